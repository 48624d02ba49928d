//! Batches of one sample: not a rewrite, but found as rewrites are.

use smallvec::SmallVec;

use super::analysis::along;
use crate::diag::Diagnostic;
use crate::ir::{DimName, Graph, NodeId};
use crate::ops::Op;
use crate::resolve::Resolved;
use crate::spec;

/// What to say of a batch of one whose sample is compared with all others: something has the axis of samples twice, as the
/// similarities of a contrastive loss do. Such a loss does not depend on the model, so nothing is trained.
pub fn warning(resolved: &Resolved) -> Option<Diagnostic> {
    let (name, dim) = resolved.spec.dims.iter().find(|(_, dim)| matches!(dim.node, spec::Dim::Batch(1)))?;
    let train = resolved.model.programs.get(alip_plan::PROGRAM_TRAIN)?;
    let compared = compared(train, &name.text)?;
    let mut warning = Diagnostic::warning("a batch of one sample, which is compared with no other");
    if let Some(span) = train.origin(compared).span {
        warning = warning.label(span, format!("this compares {}", train.ty(train.node(compared).inputs[0])));
    }
    Some(
        warning
            .context(dim.span, "the batch")
            .help("a contrastive loss needs at least 2 samples, and gains by hundreds"),
    )
}

/// The first product of samples with samples; `batch` is the name of their axis in the inputs.
fn compared(graph: &Graph, batch: &str) -> Option<NodeId> {
    let batch = Some(DimName::from(batch));
    // Dimensions of each value that run along the samples.
    let mut axes: Vec<SmallVec<[usize; 2]>> = Vec::with_capacity(graph.nodes().len());
    for id in graph.ids() {
        let node = graph.node(id);
        let mut own: SmallVec<[usize; 2]> = match &node.op {
            Op::Input { .. } => {
                (0..graph.shape(id).rank()).filter(|&axis| graph.shape(id).0[axis].name == batch).collect()
            }
            _ => (0..graph.shape(id).rank())
                .filter(|&axis| {
                    let from = along(graph, id, axis).unwrap_or_default();
                    let mut operands = node.inputs.iter().zip(from);
                    operands.any(|(input, from)| from.is_some_and(|from| axes[input.index()].contains(&from)))
                })
                .collect(),
        };
        // Sizes of one cannot be told apart in a view.
        if !matches!(node.op, Op::Dot(_)) {
            own.truncate(1);
        } else if own.len() > 1 {
            return Some(id);
        }
        axes.push(own);
    }
    None
}
