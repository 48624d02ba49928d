//! What grouping knows of every node before it starts, from one pass forward.

use alip_plan::kernel::ScalarOp;
use alip_plan::{Fusion, Rates, Target};
use smallvec::SmallVec;

use crate::ir::{Graph, NodeId};
use crate::launch::Effort;
use crate::ops::Op;

/// Facts of one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// The number of nodes that use it, through views too.
    pub(crate) readers: u32,
    /// Large values an expression over it reads, if it is not stored itself; two stand for two or more.
    sources: SmallVec<[NodeId; 2]>,
    /// Operations since the sources.
    operations: u32,
    /// To compute it again costs less than to store and load it: at most one large source, few operations.
    pub(crate) cheap: bool,
    /// No inputs, one operation: a constant, a coordinate. Computed wherever it is used.
    pub(crate) trivial: bool,
    /// Number of elements reduced per element of this value, if it depends on a reduction at its own shape.
    pub(crate) row_length: Option<u64>,
    /// Computed pointwise from a product that has no other use: the product can take it as epilogue.
    pub(crate) after_product: bool,
}

/// Facts of all nodes.
pub(crate) fn facts(graph: &Graph, target: &Target) -> Vec<Facts> {
    let mut all: Vec<Facts> = vec![Facts::default(); graph.nodes().len()];
    for id in graph.ids().rev() {
        let through = if graph.node(id).op.is_view() { all[id.index()].readers } else { 1 };
        for input in &graph.node(id).inputs {
            all[input.index()].readers += through;
        }
    }
    for id in graph.outputs.values().chain(graph.updates.values()) {
        all[id.index()].readers += 1;
    }
    for id in graph.ids() {
        let facts = of(graph, id, &all, target);
        all[id.index()] = facts;
    }
    all
}

fn of(graph: &Graph, id: NodeId, all: &[Facts], target: &Target) -> Facts {
    let node = graph.node(id);
    let readers = all[id.index()].readers;
    if graph.node(id).op.is_view() {
        let input = &all[node.inputs[0].index()];
        let same = graph.shape(node.inputs[0]).elements() == node.ty.shape.elements();
        return Facts {
            readers,
            row_length: input.row_length.filter(|_| same),
            after_product: input.after_product && same,
            // A view that is a value of its own, because its coordinates are no longer affine where they are read, is stored.
            trivial: false,
            ..input.clone()
        };
    }
    let mut facts = Facts { readers, ..Facts::default() };
    match &node.op {
        Op::Const { .. } | Op::Iota { .. } => (facts.cheap, facts.trivial) = (true, true),
        Op::Pointwise(op) => pointwise(graph, id, *op, all, target, &mut facts),
        Op::Random { .. } => {
            facts.operations = 4 * target.rates.transcendental; // ten rounds of two wide products
            facts.cheap = true;
        }
        Op::Reduce { axes, .. } => {
            facts.sources.push(id);
            facts.row_length = Some(axes.iter().map(|axis| graph.shape(node.inputs[0]).size(*axis)).product());
        }
        _ => {
            facts.sources.push(id);
            facts.cheap = matches!(node.op, Op::Gather { .. });
            facts.after_product = matches!(node.op, Op::Dot(_));
        }
    }
    facts
}

/// What it takes to compute a scalar operation again, in simple ones; a division is one of them here.
pub(super) fn operations(op: ScalarOp, rates: &Rates) -> u32 {
    if Effort::of(op) == Effort::Transcendental { rates.transcendental } else { 1 }
}

fn pointwise(graph: &Graph, id: NodeId, op: ScalarOp, all: &[Facts], target: &Target, facts: &mut Facts) {
    let node = graph.node(id);
    let elements = node.ty.shape.elements();
    facts.operations = operations(op, &target.rates);
    let Fusion { much_smaller, most_operations, .. } = target.fusion;
    let mut large: SmallVec<[NodeId; 2]> = SmallVec::new();
    for input in &node.inputs {
        let given = &all[input.index()];
        facts.operations += given.operations;
        for source in &given.sources {
            let small = graph.shape(*source).elements().saturating_mul(much_smaller) <= elements;
            if !small && !large.contains(source) && large.len() < 2 {
                large.push(*source);
            }
        }
        let same = graph.shape(*input).elements() == elements;
        let product = matches!(base(graph, *input).1, Op::Dot(_));
        facts.after_product |= given.after_product && same && (product || given.readers <= 1 || given.cheap);
        facts.row_length = facts.row_length.or(given.row_length.filter(|_| same));
    }
    // Reading much more than it is keeps something large alive for something small.
    let wasteful = large.iter().any(|source| graph.shape(*source).elements() > 2 * elements);
    facts.cheap = large.len() <= 1 && facts.operations <= most_operations && !wasteful;
    facts.sources = large;
    // What rounds to fewer bits is there to be stored: its source has twice the bytes.
    let narrows = node.ty.dtype.bytes() < node.inputs.iter().map(|id| graph.ty(*id).dtype.bytes()).max().unwrap_or(0);
    facts.cheap &= !narrows;
    if !facts.cheap && facts.readers > 1 {
        // It will be stored, so that what is computed from it reads it.
        facts.sources = SmallVec::from_slice(&[id]);
        facts.operations = 0;
    }
}

/// The first value below views.
pub(crate) fn base(graph: &Graph, mut id: NodeId) -> (NodeId, &Op) {
    while graph.node(id).op.is_view() {
        id = graph.node(id).inputs[0];
    }
    (id, &graph.node(id).op)
}
