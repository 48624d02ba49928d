//! Whether a spec is right, without compiling it.

use crate::diag::{Diagnostics, SourceId, SourceMap};
pub use crate::resolve::Checked;
use crate::resolve::{Options, resolve_any, resolve_any_source};
use crate::training::add_update;

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

fn with_step(mut checked: Checked) -> Result<Checked, Diagnostics> {
    if let Checked::Graph(resolved) = &mut checked {
        add_update(resolved, Default::default())?;
    }
    Ok(checked)
}
