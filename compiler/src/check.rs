//! Whether a spec is right, without compiling it.

use crate::diag::{Diagnostics, SourceId, SourceMap};
use crate::resolve::{self, Options, Resolved, resolve_any, resolve_any_source};
use crate::spec::ModuleSpec;
use crate::training::{Training, training_step};
use alip_plan::pipeline::Pipeline;

/// What a spec file holds, with nothing wrong.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one per file, and it is taken apart at once")]
pub enum Checked {
    /// A graph, and the model with its training step.
    Graph(Box<Resolved>, Box<Training>),
    /// Modules.
    Modules(Vec<ModuleSpec>),
    /// A pipeline.
    Pipeline(Pipeline),
}

/// Checks a spec given by path or name; a graph with its training step.
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn check(sources: &mut SourceMap, spec: &str, options: &Options) -> Result<Checked, Diagnostics> {
    with_step(resolve_any(sources, spec, options)?)
}

/// Checks the spec in a source.
///
/// # Errors
/// As [`check`].
pub fn check_source(sources: &mut SourceMap, source: SourceId, options: &Options) -> Result<Checked, Diagnostics> {
    with_step(resolve_any_source(sources, source, options)?)
}

fn with_step(file: resolve::Any) -> Result<Checked, Diagnostics> {
    Ok(match file {
        resolve::Any::Graph(resolved) => {
            let step = training_step(&resolved, resolved.model.clone(), Default::default())?;
            Checked::Graph(resolved, Box::new(step))
        }
        resolve::Any::Modules(modules) => Checked::Modules(modules),
        resolve::Any::Pipeline(pipeline) => Checked::Pipeline(pipeline),
    })
}
