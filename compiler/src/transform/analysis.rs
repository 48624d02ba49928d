//! What the rewrites ask of a graph: along which dimensions an operation works row by row, and what a program costs.

use indexmap::IndexMap;
use smallvec::SmallVec;

use super::Cost;
use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Builder, DType, Graph, NodeId};
use crate::launch::joined;
use crate::ops::axes::Along;
use crate::ops::{Op, OpError, ReduceKind};

/// How the op of a node works along dimension `axis` of its result; `None` when it is not row-wise there.
pub(super) fn along(graph: &Graph, id: NodeId, axis: usize) -> Option<Along> {
    let node = graph.node(id);
    let types: SmallVec<[_; 3]> = node.inputs.iter().map(|input| graph.ty(*input)).collect();
    node.op.along(&types, axis).ok()
}

/// Whether readers find the result in its operand's memory.
fn is_shared(op: &Op) -> bool {
    matches!(op, Op::Reshape { .. } | Op::Broadcast { .. } | Op::StopGradient)
}

/// Whether nothing is computed or moved.
fn is_free(graph: &Graph, id: NodeId) -> bool {
    let op = &graph.node(id).op;
    is_shared(op)
        || matches!(op, Op::Input { .. } | Op::State { .. } | Op::Const { .. } | Op::Slice { .. })
        || joined(graph, id).is_some()
}

/// What the results of a program need: operations and bytes, each op reading its operands and writing its result.
pub(super) fn cost(graph: &Graph) -> Cost {
    let live = graph.live(graph.outputs.values().chain(graph.updates.values()));
    let mut cost = Cost::default();
    for id in graph.ids().rev().filter(|id| live[id.index()] && !is_free(graph, *id)) {
        let node = graph.node(id);
        let types: SmallVec<[_; 3]> = node.inputs.iter().map(|input| graph.ty(*input)).collect();
        // What is repeated is read once, and of what is picked from, the rows that are picked.
        let stored = |mut id: NodeId| {
            while is_shared(&graph.node(id).op) {
                id = graph.node(id).inputs[0];
            }
            graph.bytes(id)
        };
        let read = |operand: (usize, &NodeId)| match (&node.op, operand) {
            (Op::Gather { .. }, (0, _)) => graph.bytes(id),
            (_, (_, input)) => stored(*input),
        };
        cost.flops += node.op.flops(&types, &node.ty);
        cost.bytes += graph.bytes(id) + node.inputs.iter().enumerate().map(read).sum::<u64>();
    }
    cost
}

/// A node that its op refuses: a fault of the rewrite.
pub(super) fn fault(graph: &Graph, rewrite: &str, error: &OpError) -> Diagnostics {
    let message = format!("internal: `{rewrite}` of program `{}` failed: {}", graph.name, error.message);
    let help = format!("please report it with the spec; `--no-rule {rewrite}` compiles without");
    Diagnostic::error(message).help(help).into()
}

/// Where something was done, in short: per first step of the paths, the longest path that leads to all of them.
pub(super) fn places<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut parts: IndexMap<&str, Vec<&str>> = IndexMap::new();
    for path in paths {
        let mut steps: Vec<&str> = path.split('.').collect();
        match parts.get_mut(steps[0]) {
            Some(common) => {
                let same = steps.iter().zip(common.iter()).take_while(|(a, b)| a == b).count();
                common.truncate(same);
            }
            None => {
                parts.insert(steps[0], std::mem::take(&mut steps));
            }
        }
    }
    parts.into_values().map(|steps| steps.join(".")).collect()
}

/// The length that ends behind a position: integers plus one, of which none wraps around. A position may be any integer, as
/// an index is limited to what there is.
pub(super) fn one_more(b: &mut Builder<'_>, position: NodeId) -> Result<NodeId, OpError> {
    let mut from = position;
    while let Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } =
        b.graph.node(from).op
    {
        from = b.graph.node(from).inputs[0];
    }
    let mut last = position;
    if !matches!(b.graph.node(from).op, Op::Reduce { kind: ReduceKind::ArgMax, .. } | Op::Iota { .. }) {
        let most = b.constant(f64::from(i32::MAX - 1), DType::I32)?;
        last = b.min(position, most)?;
    }
    let one = b.constant(1.0, DType::I32)?;
    b.add(last, one)
}
