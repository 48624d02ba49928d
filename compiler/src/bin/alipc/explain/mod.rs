//! `alipc explain`.

mod dearest;
mod page;
mod text;

use std::process::ExitCode;

use alip_compiler::compile_spec;
use alip_compiler::diag::{Diagnostic, Diagnostics, SourceMap};
use alip_compiler::spec::plain_path;
use alip_plan::PROGRAM_TRAIN;

use self::page::Page;
use crate::options::{SpecArgs, no_program};

/// Show what became of a graph's operations
///
/// Without NODE: which rewrites of the whole graph were done and where, what was lifted to softmax, attention and the like,
/// what looked like it and was not, and why; which rules of the e-graph were used; where the kernels, operations and bytes of
/// a program are, what keeps kernels apart, and which launches are predicted to take longest. With NODE, the path of an application as errors and profiles show it, or the
/// beginning of one: the same for what is inside, and its kernels, what each computes, reads and stores, and why what it
/// stores is not computed in the kernel that reads it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  alipc explain alip_b32 --batch 16
  alipc explain alip_b32 --batch 512 --target sm_90a --rows 15648
  alipc explain alip_b32 visual.transformer.resblocks.3.mlp --batch 16
  alipc explain alip_b32 text.ln_final --program encode_text --target wgpu
  alipc explain my_graph.ron my_attention --no-rule packing --json")]
pub(crate) struct Args {
    #[command(flatten)]
    spec: SpecArgs,
    /// Path of an application: `visual.transformer.resblocks.3.attn`; applications inside it are shown too
    node: Option<String>,
    /// The program to explain
    #[arg(long, value_name = "NAME", default_value = PROGRAM_TRAIN)]
    program: String,
    /// Of a packed program, show the launches for so many packed rows, and not for all
    #[arg(long, value_name = "N", conflicts_with = "node")]
    rows: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
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
    let mut options = args.spec.options()?;
    options.compile.explain = true;
    let spec = &args.spec.spec;
    let compiled = compile_spec(sources, spec, &options)?;
    let names = || compiled.explained.keys().map(String::as_str);
    let program = compiled.explained.get(&args.program).ok_or_else(|| no_program(spec, &args.program, names()))?;
    let node = args.node.as_deref().map(plain_path);
    let mut page = Page::new(&compiled, sources, &args.program, program, node.as_deref());
    if let (Some(plan), None) = (&compiled.plan, &node) {
        page.dearest = Some(dearest::dearest(plan, &args.program, args.rows)?);
    }
    if let (Some(node), true) = (&node, page.is_empty()) {
        let paths = program.graph.origins().iter().map(|origin| &*origin.path);
        let error = Diagnostic::error(format!("no kernel of `{}` computes anything of `{node}`", args.program));
        let error = error.suggest(node, paths.collect::<std::collections::BTreeSet<_>>());
        return Err(error.help("`alipc explain SPEC` without a node lists where kernels are").into());
    }
    if args.json {
        let json = serde_json::to_string_pretty(&page);
        return json.map(|json| json + "\n").map_err(|error| Diagnostic::error(error.to_string()).into());
    }
    Ok(text::text(&page))
}
