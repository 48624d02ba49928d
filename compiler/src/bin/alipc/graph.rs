//! `alipc graph`.

use std::path::PathBuf;
use std::process::ExitCode;

use alip_compiler::diag::{Diagnostic, Diagnostics, SourceMap};
use alip_compiler::picture::html;
use alip_compiler::resolve::{Options, Resolved, resolve};
use alip_plan::{PROGRAM_INIT, PROGRAM_TRAIN};

use crate::files;
use crate::options::no_program;

/// Draw a graph as a web page
///
/// One file that needs nothing else: modules are boxes that open and close, tensors are arrows with their shapes. What is
/// drawn is the forward part of the training step, before gradients and optimiser, or another program.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  alipc graph alip_b32 -o alip_b32.html
  alipc graph alip_b32 -o image.html --program encode_image --batch 16")]
pub(crate) struct Args {
    /// Path of a graph, or name of one that ships with alip
    spec: String,
    /// The page to write
    #[arg(short, long, value_name = "FILE.html")]
    output: PathBuf,
    /// The program to draw: `train`, or one of the graph's `programs`
    #[arg(long, value_name = "NAME")]
    program: Option<String>,
    /// Global batch, in place of the spec's
    #[arg(long)]
    batch: Option<u64>,
    /// Change one thing of the graph
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let mut sources = SourceMap::new();
    match draw(args, &mut sources) {
        Ok(line) => crate::print(&line),
        Err(diagnostics) => {
            crate::report(&diagnostics, &sources);
            ExitCode::FAILURE
        }
    }
}

/// Writes the page; says what is in it.
fn draw(args: &Args, sources: &mut SourceMap) -> Result<String, Diagnostics> {
    let options = Options { batch: args.batch, set: args.set.clone(), ..Options::default() };
    let resolved = resolve(sources, &args.spec, &options)?;
    let name = program(&resolved, args.program.as_deref())?;
    let graph = &resolved.model.programs[name];
    let title = format!("{}: {name}", resolved.model.name);
    let doc = resolved.spec.doc.as_ref().map_or("", |doc| doc.node.as_str());
    let page = html(graph, &title, doc, sources);
    files::replace(&args.output, page.as_bytes())?;
    Ok(format!("wrote {}: {title}, {} nodes\n", args.output.display(), graph.nodes().len()))
}

/// The program that was asked for, else the first in this order: `train`, the others of the spec, `init`.
fn program<'a>(resolved: &'a Resolved, asked: Option<&str>) -> Result<&'a str, Diagnostic> {
    let names = || resolved.model.programs.keys().map(String::as_str);
    let Some(asked) = asked else {
        let rank = |name: &&str| (*name != PROGRAM_TRAIN, *name == PROGRAM_INIT);
        return names().min_by_key(rank).ok_or_else(|| Diagnostic::error("the graph has no program"));
    };
    names().find(|name| *name == asked).ok_or_else(|| no_program(&resolved.model.name, asked, names()))
}
