//! `alipc diff`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use alip_compiler::diag::{Diagnostics, SourceMap};
use alip_compiler::diff::{Change, Diff, diff};
use alip_compiler::resolve::Options;
use alip_compiler::{CompileOptions, Feed, SpecOptions, compile_spec, transform};

/// Most differing operations shown per application; `--all` shows the rest.
const MOST_OPERATIONS: usize = 6;

/// Show what differs between two graphs
///
/// Compares what the specs mean: parameters and other state, operations per application of a module, launches, operations
/// and memory of the plans. Names of intermediate values and the order of equations make no difference.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  alipc diff alip_shapes examples/variants/gamma_1.ron
  alipc diff alip_b32 alip_rn50 --batch 16 --json")]
pub(crate) struct Args {
    /// Path of a graph, or name of one that ships with alip
    first: String,
    /// The graph to compare with it
    second: String,
    /// Global batch of both, in place of the specs'
    #[arg(long)]
    batch: Option<u64>,
    /// Change one thing of the second graph
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Show all operations that differ
    #[arg(long)]
    all: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let mut sources = SourceMap::new();
    match compare(args, &mut sources) {
        Ok((title, diff)) if args.json => match serde_json::to_string_pretty(&diff) {
            Ok(json) => crate::print(&format!("{json}\n")),
            Err(error) => {
                eprintln!("error: {title}: {error}");
                ExitCode::FAILURE
            }
        },
        Ok((title, diff)) => crate::print(&in_words(&title, &diff, args.all)),
        Err(diagnostics) => {
            crate::report(&diagnostics, &sources);
            ExitCode::FAILURE
        }
    }
}

fn compare(args: &Args, sources: &mut SourceMap) -> Result<(String, Diff), Diagnostics> {
    let mut both = |compile: &CompileOptions| {
        let mut compiled = |spec: &str, set: &[String]| {
            let spec_options = Options { batch: args.batch, set: set.to_vec(), ..Options::default() };
            let (compile, feed) = (compile.clone(), Feed::Loader);
            compile_spec(sources, spec, &SpecOptions { spec: spec_options, compile, feed, ..SpecOptions::default() })
        };
        Ok::<_, Diagnostics>((compiled(&args.first, &[])?, compiled(&args.second, &args.set)?))
    };
    // Operations are compared as they are written, costs as they are compiled.
    let transform = transform::Options { lift: false, disabled: transform::Disabled::all() };
    let stop_after = Some("model".to_owned());
    let written = both(&CompileOptions { transform, stop_after, ..CompileOptions::default() })?;
    let compiled = both(&CompileOptions::default())?;
    let title = format!("- {}\n+ {}\n", compiled.0.model.name, compiled.1.model.name);
    let cost = diff(&compiled.0, &compiled.1).cost;
    Ok((title, Diff { cost, ..diff(&written.0, &written.1) }))
}

fn in_words(title: &str, diff: &Diff, all: bool) -> String {
    if diff.is_empty() {
        return format!("{title}nothing differs\n");
    }
    let mut text = title.to_owned();
    section(&mut text, "state", &diff.state, |(old, new)| match (old, new) {
        (Some(old), Some(new)) => format!("{old} -> {new}"),
        (Some(old), None) => format!("- {old}"),
        (None, new) => format!("+ {}", new.as_deref().unwrap_or_default()),
    });
    for (program, changes) in &diff.programs {
        let _ = writeln!(text, "\noperations of {program}");
        for (path, change) in changes {
            let _ = writeln!(text, "  {}", if path.is_empty() { "(top level)" } else { path });
            operations(&mut text, change, all);
        }
    }
    section(&mut text, "cost", &diff.cost, |(old, new)| {
        let percent = 100.0 * (*new as f64 - *old as f64) / (*old).max(1) as f64;
        format!("{old} -> {new} ({percent:+.1} %)")
    });
    text
}

fn section<T>(text: &mut String, title: &str, lines: &BTreeMap<String, T>, show: impl Fn(&T) -> String) {
    if lines.is_empty() {
        return;
    }
    let width = lines.keys().map(String::len).max().unwrap_or(0);
    let _ = writeln!(text, "\n{title}");
    for (name, line) in lines {
        let _ = writeln!(text, "  {name:width$}  {}", show(line));
    }
}

fn operations(text: &mut String, change: &Change, all: bool) {
    let signed = |sign: char, ops: &BTreeMap<String, usize>| -> Vec<String> {
        ops.iter()
            .map(|(op, count)| if *count > 1 { format!("{sign} {op}  x{count}") } else { format!("{sign} {op}") })
            .collect()
    };
    let lines = [signed('-', &change.removed), signed('+', &change.added)].concat();
    let shown = if all { lines.len() } else { MOST_OPERATIONS.min(lines.len()) };
    for line in &lines[..shown] {
        let _ = writeln!(text, "    {line}");
    }
    if shown < lines.len() {
        let _ = writeln!(text, "    and {} more (--all)", lines.len() - shown);
    }
}
