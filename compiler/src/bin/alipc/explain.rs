//! `alipc explain`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::ExitCode;

use alip_compiler::diag::{Diagnostic, Diagnostics, SourceMap};
use alip_compiler::ir::{NodeId, describe};
use alip_compiler::optimize::OptimizeOptions;
use alip_compiler::resolve::Options;
use alip_compiler::schedule::{Explained, Explanation, ScheduleOptions, computes};
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::PROGRAM_TRAIN;

use crate::compile::{grouped, operations, size, target};

/// Show what became of a graph's operations
///
/// Without NODE: where the kernels, operations and bytes of a program are, and what keeps kernels apart. With NODE, the path
/// of an application as errors and profiles show it, or the beginning of one: its kernels, what each computes, reads and
/// stores, and why what it stores is not computed in the kernel that reads it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  alipc explain alip_b32 --batch 16
  alipc explain alip_b32 visual.transformer.resblocks.3.mlp --batch 16
  alipc explain alip_b32 text.ln_final --program encode_text --target wgpu")]
pub(crate) struct Args {
    /// Path of a graph, or name of one that ships with alip
    spec: String,
    /// Path of an application: `visual.transformer.resblocks.3.attn`; applications inside it are shown too
    node: Option<String>,
    /// The program to explain
    #[arg(long, value_name = "NAME", default_value = PROGRAM_TRAIN)]
    program: String,
    /// What to compile for: cpu or wgpu
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    target: String,
    /// Global batch, in place of the spec's
    #[arg(long)]
    batch: Option<u64>,
    /// Change one thing of the graph
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Give every operation a kernel of its own
    #[arg(long)]
    no_fuse: bool,
    /// Optimise with the e-graph
    #[arg(long)]
    egraph: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let mut sources = SourceMap::new();
    match explain(args, &mut sources) {
        Ok(text) => crate::print(&text),
        Err(diagnostics) => {
            crate::report(&diagnostics, &sources);
            ExitCode::FAILURE
        }
    }
}

fn explain(args: &Args, sources: &mut SourceMap) -> Result<String, Diagnostics> {
    let options = SpecOptions {
        spec: Options { batch: args.batch, set: args.set.clone(), ..Options::default() },
        compile: CompileOptions {
            target: target(&args.target)?,
            optimize: OptimizeOptions { enabled: args.egraph, ..OptimizeOptions::default() },
            schedule: ScheduleOptions { fuse: !args.no_fuse },
            explain: true,
            ..CompileOptions::default()
        },
        ..SpecOptions::default()
    };
    let compiled = compile_spec(sources, &args.spec, &options)?;
    let names = || compiled.explained.keys().map(String::as_str);
    let program = compiled.explained.get(&args.program).ok_or_else(|| {
        let error = Diagnostic::error(format!("`{}` has no program `{}`", args.spec, args.program));
        error
            .note(format!("its programs are {}", names().collect::<Vec<_>>().join(", ")))
            .suggest(&args.program, names())
    })?;
    let mut text = format!("{} for {}: {}\n\n", compiled.resolved.model.name, args.target, args.program);
    match &args.node {
        None => overview(&mut text, program),
        Some(node) => kernels_of(&mut text, program, node)?,
    }
    Ok(text)
}

/// Kernels by the application they belong to; layers of a stack count together.
fn overview(text: &mut String, program: &Explanation) {
    #[derive(Default)]
    struct Sum {
        kernels: u64,
        flops: u64,
        bytes: u64,
    }
    let mut places: BTreeMap<String, Sum> = BTreeMap::new();
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for kernel in &program.kernels {
        let path = home(program, kernel);
        let sum = places.entry(alike(&path)).or_default();
        sum.kernels += 1;
        sum.flops += kernel.flops;
        sum.bytes += kernel.bytes;
        let of_kernel: BTreeSet<String> = kernel.blocked.iter().map(|(_, _, why)| alike(why)).collect();
        of_kernel.into_iter().for_each(|why| *reasons.entry(why).or_default() += 1);
    }
    let width = places.keys().map(String::len).max().unwrap_or(0).max("where".len());
    let _ = writeln!(text, "{:width$}  {:>7}  {:>14}  {:>12}", "where", "kernels", "operations", "bytes");
    let mut places: Vec<(String, Sum)> = places.into_iter().collect();
    places.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.flops));
    for (path, sum) in &places {
        let path = if path.is_empty() { "(top level)" } else { path };
        let (kernels, flops, bytes) = (grouped(sum.kernels), operations(sum.flops), size(sum.bytes));
        let _ = writeln!(text, "{path:width$}  {kernels:>7}  {flops:>14}  {bytes:>12}");
    }
    let total = |of: fn(&Sum) -> u64| places.iter().map(|(_, sum)| of(sum)).sum::<u64>();
    let (kernels, flops, bytes) = (total(|sum| sum.kernels), total(|sum| sum.flops), total(|sum| sum.bytes));
    let (kernels, flops, bytes) = (grouped(kernels), operations(flops), size(bytes));
    let _ = writeln!(text, "{:width$}  {kernels:>7}  {flops:>14}  {bytes:>12}", "all");
    let _ = writeln!(text, "\nkernels  that store a value for a later one because");
    let mut reasons: Vec<(String, u64)> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (why, count) in reasons {
        let _ = writeln!(text, "{:>7}  {why}", grouped(count));
    }
}

/// The application of the last value a kernel stores.
fn home(program: &Explanation, kernel: &Explained) -> String {
    kernel.stores.iter().max().map_or(String::new(), |id| program.graph.origin(*id).path.to_string())
}

/// Numbers replaced by `*`, so that the layers of a stack and equal reasons at other sizes fall together.
fn alike(text: &str) -> String {
    let mut out = String::new();
    let mut word = false;
    for c in text.chars() {
        if c.is_ascii_digit() && !word {
            if !out.ends_with('*') {
                out.push('*');
            }
        } else {
            out.push(c);
            // `ln_1` and `text#2` are names, `resblocks.3` and `[16, 50]` are not.
            word = c.is_alphanumeric() || c == '_' || c == '#';
        }
    }
    out
}

fn kernels_of(text: &mut String, program: &Explanation, node: &str) -> Result<(), Diagnostic> {
    let graph = &program.graph;
    let inside = |id: NodeId| {
        let path = &*graph.origin(id).path;
        path == node || path.strip_prefix(node).is_some_and(|rest| rest.starts_with('.'))
    };
    let mut found = 0;
    for (position, kernel) in program.kernels.iter().enumerate() {
        let here: Vec<NodeId> = kernel.covers.iter().copied().filter(|id| inside(*id)).collect();
        if !here.iter().any(|id| computes(&graph.node(*id).op)) && !kernel.stores.iter().any(|id| inside(*id)) {
            continue;
        }
        found += 1;
        one(text, program, position, &inside);
    }
    if found > 0 {
        return Ok(());
    }
    let paths: BTreeSet<&str> = graph.origins().iter().map(|origin| &*origin.path).collect();
    let error = Diagnostic::error(format!("no kernel of `{}` computes anything of `{node}`", graph.name));
    Err(error.suggest(node, paths).help("`alipc explain SPEC` without a node lists where kernels are"))
}

fn one(text: &mut String, program: &Explanation, position: usize, inside: &impl Fn(NodeId) -> bool) {
    let graph = &program.graph;
    let kernel = &program.kernels[position];
    let (kept, reduced) = &kernel.domain;
    let domain = if reduced.is_empty() { format!("{kept:?}") } else { format!("{kept:?} x {reduced:?}") };
    let (flops, bytes) = (operations(kernel.flops), size(kernel.bytes));
    let _ = writeln!(text, "kernel {position}: {} over {domain}, {flops}, {bytes}", kernel.kind);
    for id in kernel.covers.iter().filter(|id| computes(&graph.node(**id).op)) {
        let elsewhere = if inside(*id) { String::new() } else { format!("  (of `{}`)", graph.origin(*id).path) };
        let _ = writeln!(text, "    computes  {}{elsewhere}", describe(graph, *id));
    }
    for id in &kernel.reads {
        let _ = writeln!(text, "    reads     {}", named(program, *id));
    }
    for id in &kernel.stores {
        let _ = writeln!(text, "    stores    {}", named(program, *id));
        for (_, reader, why) in kernel.blocked.iter().filter(|(value, _, _)| value == id) {
            let of = home(program, &program.kernels[*reader]);
            let _ = writeln!(text, "              for kernel {reader} (`{of}`): {why}");
        }
    }
    text.push('\n');
}

/// A value by its op, type and place.
fn named(program: &Explanation, id: NodeId) -> String {
    let graph = &program.graph;
    let (op, ty, path) = (&graph.node(id).op, graph.ty(id), &graph.origin(id).path);
    match op {
        alip_compiler::ops::Op::State { path, .. } => format!("{ty} state `{path}`"),
        alip_compiler::ops::Op::Input { name, .. } => format!("{ty} input `{name}`"),
        op => format!("{ty} {} of `{path}`", op.name()),
    }
}
