//! The order of operands that may be exchanged.
//!
//! Passes order the operands of a sum by when they were made, so that equal sums are found. Two kernels that do the same to
//! different tensors would then differ, and could not be joined: the factor that all updates of a training step share was
//! made before the second parameter's moments, but after the first one's. Here operands come in an order of what they are
//! made of, sizes and names aside.

use smallvec::SmallVec;

use crate::hash::HashMap;
use crate::ir::{Graph, Node, NodeId};
use crate::ops::{Op, ScalarOp};

/// Number of a way to be computed, in the order in which ways were met.
type Form = u32;

/// What a node computes: its op, without sizes; the value of a constant; and how its operands are computed, below pointwise
/// ops and views.
#[derive(PartialEq, Eq, Hash)]
struct Way {
    op: &'static str,
    detail: u64,
    operands: SmallVec<[Form; 3]>,
}

/// The forms of the nodes of a graph that is being made.
#[derive(Default)]
pub(super) struct Forms {
    known: HashMap<Way, Form>,
    of: Vec<Form>,
}

impl Forms {
    /// Notes the last node of a graph.
    pub(super) fn note(&mut self, graph: &Graph, node: &Node) {
        let below = || node.inputs.iter().map(|input| self.of[input.index()]).collect();
        let (detail, operands) = match &node.op {
            Op::Const { value, .. } => (value.0.to_bits(), SmallVec::new()),
            Op::Broadcast { .. } => (u64::from(graph.shape(node.inputs[0]).elements() == 1), below()),
            Op::Pointwise(_) | Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } => (0, below()),
            _ => (0, SmallVec::new()),
        };
        let way = Way { op: node.op.name(), detail, operands };
        let next = self.known.len() as Form;
        self.of.push(*self.known.entry(way).or_insert(next));
    }

    /// Puts the operands of a commutative operation in order; constants and what repeats one element last.
    pub(super) fn sort(&self, graph: &Graph, op: &Op, operands: &mut [NodeId]) {
        use ScalarOp::{Add, And, Eq, Max, Min, Mul, Or};
        if matches!(op, Op::Pointwise(Add | Mul | Min | Max | Eq | And | Or)) {
            operands.sort_by_key(|id| (one_element(graph, *id), self.of[id.index()]));
        }
    }
}

fn one_element(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    match &node.op {
        Op::Const { .. } => true,
        Op::Broadcast { .. } => graph.shape(node.inputs[0]).elements() == 1,
        _ => false,
    }
}
