//! Cutting a graph into regions, small enough to saturate and alike wherever the graph repeats itself.
//!
//! - Nodes are cut into runs of consecutive ones: a run of a topological order is convex, so replacing it cannot make a
//!   cycle. A run ends where few values that are made and read nearby cross, preferably right before a product: its operands
//!   are in memory anyway, while what follows a product (bias, residual, the next normalisation) stays in one run with it.
//!   Where to cut depends on nothing but nearby nodes, so that repeated blocks are cut alike, whatever they are called and
//!   wherever they stand.
//! - The connected parts of a run are its regions; products of one operand count as connected, since they may become one.
//! - A region also holds copies of what is computed from constants alone, of the views through which it reads a value, and
//!   of the scalings through which its products do, so that these can be moved although they belong to an earlier region;
//!   what nobody reads any more is then not made there.
//! - Equal regions have equal [`Key`]s: ops, types, how nodes read each other, which of them are read from outside. Names
//!   and origins are not in it.

use smallvec::SmallVec;

use super::language::{Interner, Kind, OpId};
use crate::hash::HashMap;
use crate::ir::{Graph, NodeId, TensorType};
use crate::launch::Neighbours;
use crate::ops::{Op, ScalarOp};

/// Length of a run. Shorter ones hold too little for rules that need several products, longer ones cost more than their
/// share to saturate and repeat less often.
const SHORTEST: usize = 40;
const LONGEST: usize = 150;
/// A value that is read further away than this crosses every cut anyway.
const NEARBY: usize = 64;
/// A cut elsewhere than before a product is as bad as so many values that cross.
const NOT_BEFORE_PRODUCT: u32 = 3;

/// What the nodes of a graph are to regions.
pub(crate) struct Cut {
    /// Regions in an order in which they can be computed: core nodes, ascending.
    pub(crate) regions: Vec<Vec<NodeId>>,
    /// Computed from constants alone: part of every region that reads it.
    pub(crate) trivial: Vec<bool>,
}

/// Cuts a graph into regions.
pub(crate) fn cut(graph: &Graph, neighbours: &Neighbours) -> Cut {
    let trivial = trivial(graph);
    let core: Vec<NodeId> = graph
        .ids()
        .filter(|id| !trivial[id.index()])
        .filter(|id| !matches!(graph.node(*id).op, Op::Input { .. } | Op::State { .. }))
        .filter(|id| neighbours.of(graph, *id).is_none())
        .collect();
    let mut place = vec![usize::MAX; graph.nodes().len()];
    for (at, id) in core.iter().enumerate() {
        place[id.index()] = at;
    }
    let badness = badness(graph, &core, &place);
    let mut regions = Vec::new();
    let mut start = 0;
    while start < core.len() {
        let (first, last) = (start + SHORTEST, (start + LONGEST).min(core.len()));
        let end = match first < last && core.len() - start > SHORTEST {
            true => (first..last).min_by_key(|at| badness[*at]).unwrap_or(core.len()),
            false => core.len(),
        };
        regions.extend(components(graph, &core[start..end], &place, start));
        start = end;
    }
    Cut { regions, trivial }
}

/// Which nodes are computed from constants alone.
pub(crate) fn trivial(graph: &Graph) -> Vec<bool> {
    let mut trivial: Vec<bool> = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        trivial.push(match &node.op {
            Op::Const { .. } | Op::Iota { .. } => true,
            Op::Pointwise(_) => node.inputs.iter().all(|input| trivial[input.index()]),
            op => Kind::of(op).is_view() && trivial[node.inputs[0].index()],
        });
    }
    trivial
}

fn heavy(op: &Op) -> bool {
    matches!(Kind::of(op), Kind::Dot | Kind::Conv | Kind::ImageGrad | Kind::WeightGrad | Kind::Other)
}

/// For every place of the sequence, how bad it is to cut before it.
fn badness(graph: &Graph, core: &[NodeId], place: &[usize]) -> Vec<u32> {
    let mut last = vec![0; core.len()];
    for (at, id) in core.iter().enumerate() {
        for input in &graph.node(*id).inputs {
            let from = place[input.index()];
            if from != usize::MAX && at - from <= NEARBY {
                last[from] = at;
            }
        }
    }
    let mut change = vec![0i32; core.len() + 2];
    for (from, to) in last.iter().enumerate().filter(|(from, to)| *to > from) {
        change[from + 1] += 1;
        change[to + 1] -= 1;
    }
    let mut crossing = 0;
    let at = |(at, id): (usize, &NodeId)| {
        crossing += change[at];
        crossing as u32 + if heavy(&graph.node(*id).op) { 0 } else { NOT_BEFORE_PRODUCT }
    };
    core.iter().enumerate().map(at).collect()
}

/// The connected parts of a run that starts at this place.
fn components(graph: &Graph, run: &[NodeId], place: &[usize], start: usize) -> Vec<Vec<NodeId>> {
    let mut part: Vec<usize> = (0..run.len()).collect();
    fn find(part: &mut [usize], mut at: usize) -> usize {
        while part[at] != at {
            part[at] = part[part[at]];
            at = part[at];
        }
        at
    }
    let mut product_of: HashMap<NodeId, usize> = HashMap::default();
    for (at, id) in run.iter().enumerate() {
        let node = graph.node(*id);
        for input in &node.inputs {
            let inside = place[input.index()];
            let other = if inside != usize::MAX && inside >= start {
                Some(inside - start)
            } else if matches!(node.op, Op::Dot(_)) && inside != usize::MAX {
                Some(*product_of.entry(*input).or_insert(at))
            } else {
                None
            };
            if let Some(other) = other {
                let (a, b) = (find(&mut part, at), find(&mut part, other));
                part[a.max(b)] = a.min(b);
            }
        }
    }
    let mut parts: Vec<Vec<NodeId>> = vec![Vec::new(); run.len()];
    for (at, id) in run.iter().enumerate() {
        let root = find(&mut part, at);
        parts[root].push(*id);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// What a region looks like, without names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(Vec<u32>);

/// A region as it is optimised.
pub(crate) struct Region {
    /// All nodes, ascending: leaves aside, with copies.
    pub(crate) nodes: Vec<NodeId>,
    /// Values from outside, in the order in which they are first read.
    pub(crate) leaves: Vec<NodeId>,
    /// Positions in `nodes` of what is read from outside.
    pub(crate) outputs: Vec<usize>,
    pub(crate) key: Key,
}

/// Operand of a node of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Leaf(usize),
    Node(usize),
}

impl Region {
    /// A region of which these core nodes are read; what they do not depend on is left out.
    pub(crate) fn new(
        graph: &Graph,
        core: &[NodeId],
        trivial: &[bool],
        outputs: &[NodeId],
        ops: &mut Interner,
    ) -> Region {
        let inside = |id: NodeId| core.binary_search(&id).is_ok();
        let mut nodes: Vec<NodeId> = Vec::new();
        let mut stack: Vec<(NodeId, bool)> = outputs.iter().map(|id| (*id, false)).collect();
        let mut seen: HashMap<NodeId, ()> = outputs.iter().map(|id| (*id, ())).collect();
        while let Some((id, below)) = stack.pop() {
            nodes.push(id);
            let node = graph.node(id);
            // Only a product can take a scaling over; elsewhere to compute it again is work, and no gain.
            let passes = Kind::of(&node.op).is_view() || !inside(id);
            let below = matches!(node.op, Op::Dot(_)) || (below && passes);
            for input in &node.inputs {
                let copied = || trivial[input.index()] || copied(graph, *input, trivial, below);
                if (inside(*input) || copied()) && seen.insert(*input, ()).is_none() {
                    stack.push((*input, below));
                }
            }
        }
        nodes.sort_unstable();
        let position = |id: &NodeId| nodes.binary_search(id).ok();
        let mut leaves: Vec<NodeId> = Vec::new();
        let mut leaf_of: HashMap<NodeId, usize> = HashMap::default();
        let mut key = Vec::with_capacity(4 * nodes.len());
        for id in &nodes {
            let node = graph.node(*id);
            key.push(ops.intern(&node.op).0);
            for input in &node.inputs {
                key.push(match position(input) {
                    Some(at) => 2 * at as u32,
                    None => {
                        let leaf = *leaf_of.entry(*input).or_insert_with(|| {
                            leaves.push(*input);
                            leaves.len() - 1
                        });
                        2 * leaf as u32 + 1
                    }
                });
            }
        }
        key.push(u32::MAX);
        key.extend(leaves.iter().enumerate().map(|(at, id)| leaf_op(ops, at, graph.ty(*id))));
        key.push(u32::MAX);
        let outputs: Vec<usize> = outputs.iter().filter_map(position).collect();
        key.extend(outputs.iter().map(|at| *at as u32));
        Region { nodes, leaves, outputs, key: Key(key) }
    }

    /// Operands of the node at a position.
    pub(crate) fn operands(&self, graph: &Graph, at: usize) -> SmallVec<[Operand; 3]> {
        let operand = |input: &NodeId| match self.nodes.binary_search(input) {
            Ok(at) => Operand::Node(at),
            Err(_) => Operand::Leaf(self.leaves.iter().position(|leaf| leaf == input).unwrap_or_default()),
        };
        graph.node(self.nodes[at]).inputs.iter().map(operand).collect()
    }
}

/// The op that stands for a leaf.
pub(crate) fn leaf_op(ops: &mut Interner, number: usize, ty: &TensorType) -> OpId {
    ops.intern(&Op::Input { name: number.to_string().into(), ty: ty.clone() }).0
}

/// Whether a value from outside is copied: a view of one other value or, below a product, its scaling by a constant.
fn copied(graph: &Graph, id: NodeId, trivial: &[bool], below_product: bool) -> bool {
    use ScalarOp::{Div, Mul, Neg};
    let node = graph.node(id);
    match &node.op {
        Op::Pointwise(Neg) => below_product,
        Op::Pointwise(Mul | Div) => {
            below_product && node.inputs.iter().filter(|input| !trivial[input.index()]).count() < 2
        }
        op => Kind::of(op).is_view(),
    }
}
