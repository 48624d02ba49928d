//! The weights that training starts from, as a spec names them.

use alip_plan::{Start, StateKind};

use super::groups::Selector;
use super::library::Library;
use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::Model;
use crate::spec::{StartSpec, TrainSpec, plain_path};

/// What training starts from.
///
/// # Errors
/// A selector that is none, or that names nothing of the graph.
pub(crate) fn starts(train: &TrainSpec, library: &Library, model: &Model) -> Result<Vec<Start>, Diagnostics> {
    let mut errors = Vec::new();
    let mut starts = Vec::new();
    for spec in train.start.iter().flatten() {
        match start(spec, library, model) {
            Ok(start) => starts.push(start),
            Err(error) => errors.push(error),
        }
    }
    Diagnostics::check(starts, errors)
}

fn start(spec: &StartSpec, library: &Library, model: &Model) -> Result<Start, Diagnostic> {
    if let Some(select) = &spec.select {
        let selector = Selector::parse(select)?;
        let is_weight = |kind| matches!(kind, StateKind::Param | StateKind::Buffer);
        let paths = || model.state.iter().filter(|(_, state)| is_weight(state.kind)).map(|(path, _)| path.as_str());
        if !paths().any(|path| selector.captures(path).is_some()) {
            return Err(Diagnostic::error(format!("`{}` selects nothing of the graph", select.node))
                .label(select.span, "no parameter and no state has such a path")
                .suggest(&select.node, paths()));
        }
    }
    let file = library.seen_from(spec.file.span.source, &spec.file.node).to_string_lossy().into_owned();
    Ok(Start { file, select: spec.select.as_ref().map(|select| plain_path(&select.node)) })
}
