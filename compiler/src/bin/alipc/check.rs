//! `alipc check`.

use std::process::ExitCode;

use alip_compiler::diag::{Diagnostics, SourceMap};
use alip_compiler::ir::Model;
use alip_compiler::resolve::Options;
use alip_compiler::{Checked, check};
use alip_plan::StateKind;

/// Check specs: names, shapes, types, gradients
///
/// A graph is resolved down to the training step; a pipeline is checked against the graph that names it. Warnings go to
/// stderr.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  alipc check alip_b32\n  alipc check my_graph.ron --batch 64 --set train.epochs=3")]
pub(crate) struct Args {
    /// Paths of spec files, or names of graphs that ship with alip
    #[arg(required = true)]
    specs: Vec<String>,
    /// Global batch, in place of the spec's
    #[arg(long)]
    batch: Option<u64>,
    /// Change one thing of a graph
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let options = Options { batch: args.batch, set: args.set.clone(), ..Options::default() };
    let mut failed = false;
    let mut lines = String::new();
    for spec in &args.specs {
        let mut sources = SourceMap::new();
        match check(&mut sources, spec, &options) {
            Ok(checked) => lines += &format!("{spec}: {}\n", summary(&checked, &sources)),
            Err(diagnostics) => {
                crate::report(&diagnostics, &sources);
                failed = true;
            }
        }
    }
    let printed = crate::print(&lines);
    if failed { ExitCode::FAILURE } else { printed }
}

fn summary(checked: &Checked, sources: &SourceMap) -> String {
    match checked {
        Checked::Graph(resolved, step) => {
            let warnings = resolved.warnings.iter().chain(&step.warnings).cloned().collect();
            if let Err(warnings) = Diagnostics::check((), warnings) {
                crate::report(&warnings, sources);
            }
            graph(&step.model, resolved.batch)
        }
        Checked::Modules(modules) => {
            let names: Vec<&str> = modules.iter().map(|module| module.name.as_str()).collect();
            format!("modules {}", names.join(", "))
        }
        Checked::Pipeline(pipeline) => {
            let outputs: Vec<&str> = pipeline.outputs.keys().map(String::as_str).collect();
            format!("pipeline from {} to {}", pipeline.source.kind(), outputs.join(", "))
        }
    }
}

fn graph(model: &Model, batch: Option<u64>) -> String {
    let params = || model.state.values().filter(|decl| decl.kind == StateKind::Param);
    let count: u64 = params().map(|decl| decl.ty.shape.elements()).sum();
    let programs: Vec<String> =
        model.programs.iter().map(|(name, graph)| format!("{name} ({} nodes)", graph.nodes().len())).collect();
    let batch = batch.map_or(String::new(), |batch| format!(", batch {batch}"));
    format!("graph with {count} parameters in {} tensors{batch}; programs {}", params().count(), programs.join(", "))
}
