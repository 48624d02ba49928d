//! What of a graph can be packed: the reads at one position per sample, and the walk back from them.

use alip_plan::packing::Group;
use smallvec::SmallVec;

use super::super::analysis::along;
use super::Stopped;
use crate::hash::HashMap;
use crate::ir::{Graph, NodeId};
use crate::ops::attention::{Attention, AttentionResult, Rows};
use crate::ops::axes::{Layout, Operand, Operands, Packs};
use crate::ops::{Op, ScalarOp};

/// How a value with samples and positions becomes one with rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// Its op is applied to packed operands.
    Op(Operands),
    /// It is computed as written, and its rows are picked.
    Pick,
}

/// What is read at one position per sample.
pub(super) struct Reads {
    /// The index, without reshapes.
    index: NodeId,
    group: Group,
    /// `gather(h, e)`, and attention with one query per sample over the first `e + 1` keys.
    nodes: Vec<NodeId>,
}

/// Part of a graph whose rows are packed together.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) group: Group,
    pub(super) index: NodeId,
    pub(super) reads: Vec<NodeId>,
    /// Values of the region: where their dimensions are, how they are packed.
    pub(super) values: HashMap<NodeId, (Layout, Packing)>,
}

/// The value that a chain of reshapes begins with.
fn root(graph: &Graph, mut id: NodeId) -> NodeId {
    while let Op::Reshape { .. } = graph.node(id).op {
        id = graph.node(id).inputs[0];
    }
    id
}

/// The index whose successor this is: `e` of `e + 1`.
fn predecessor(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let node = graph.node(root(graph, id));
    if node.op != Op::Pointwise(ScalarOp::Add) {
        return None;
    }
    let is_one = |id: NodeId| {
        let node = graph.node(id);
        let node = if matches!(node.op, Op::Broadcast { .. }) { graph.node(node.inputs[0]) } else { node };
        matches!(&node.op, Op::Const { value, .. } if value.0 == 1.0)
    };
    let (a, b) = (node.inputs[0], node.inputs[1]);
    if is_one(b) { Some(root(graph, a)) } else { is_one(a).then(|| root(graph, b)) }
}

/// Reads at one position per sample by an index that is known before the program runs, by index.
pub(super) fn reads(graph: &Graph) -> Vec<Reads> {
    let mut known: HashMap<NodeId, bool> = HashMap::default();
    let mut found: Vec<Reads> = Vec::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let shape = |operand: usize| graph.shape(node.inputs[operand]);
        let (index, over) = match &node.op {
            Op::Gather { batch: 1 } if node.ty.dtype.is_float() => (Some(root(graph, node.inputs[1])), shape(0)),
            Op::Attention(Attention { result: AttentionResult::Out, rows: Rows::Lengths, .. })
                if shape(0).size(1) == 1 =>
            {
                (predecessor(graph, node.inputs[3]), shape(1))
            }
            _ => continue,
        };
        let group = Group { samples: over.size(0), context: over.size(1) };
        let Some(index) = index.filter(|index| graph.shape(*index).elements() == group.samples) else { continue };
        let few = group.samples.checked_mul(group.context).is_some_and(|rows| rows <= i32::MAX as u64);
        if group.context < 2 || !few || !from_inputs(graph, index, &mut known) {
            continue;
        }
        match found.iter_mut().find(|reads| reads.index == index && reads.group == group) {
            Some(reads) => reads.nodes.push(id),
            None => found.push(Reads { index, group, nodes: vec![id] }),
        }
    }
    found
}

/// Whether a value is computed from inputs of the program by integer operations, which are exact everywhere.
fn from_inputs(graph: &Graph, id: NodeId, known: &mut HashMap<NodeId, bool>) -> bool {
    if let Some(known) = known.get(&id) {
        return *known;
    }
    let node = graph.node(id);
    let exact = !node.ty.dtype.is_float() && !matches!(node.op, Op::State { .. } | Op::Random { .. });
    let result = exact && node.inputs.iter().all(|input| from_inputs(graph, *input, known));
    known.insert(id, result);
    result
}

/// The walk back from reads of one index; none when it meets nothing that is worth packing.
pub(super) fn walk(graph: &Graph, reads: &Reads, kept: &[NodeId]) -> Result<Option<Region>, Stopped> {
    let mut walk = Walk {
        graph,
        layouts: HashMap::default(),
        followed: HashMap::default(),
        values: HashMap::default(),
        work: false,
    };
    let mut wanted: Vec<NodeId> = Vec::new();
    for id in &reads.nodes {
        let node = graph.node(*id);
        // Of attention, the queries are rows that were read before.
        let rows = if matches!(node.op, Op::Gather { .. }) { 0..1 } else { 1..3 };
        for operand in &node.inputs[rows] {
            walk.want(*operand, Layout::FIRST)?;
            wanted.push(*operand);
        }
    }
    let uses = uses(graph, kept);
    let first = wanted.iter().max().copied().unwrap_or(NodeId(0));
    for id in (0..=first.0).rev().map(NodeId) {
        if let Some(layout) = walk.layouts.get(&id).copied() {
            walk.value(id, layout, uses[id.index()])?;
        }
    }
    let Walk { values, work, .. } = walk;
    Ok(work.then(|| Region { group: reads.group, index: reads.index, reads: reads.nodes.clone(), values }))
}

/// How often each value is read, results of the program included.
fn uses(graph: &Graph, kept: &[NodeId]) -> Vec<usize> {
    let mut uses = vec![0; graph.nodes().len()];
    let results = graph.outputs.values().chain(graph.updates.values()).chain(kept);
    for id in graph.nodes().iter().flat_map(|node| &node.inputs).chain(results) {
        uses[id.index()] += 1;
    }
    uses
}

struct Walk<'a> {
    graph: &'a Graph,
    /// Of the values met, that a reader wants packed.
    layouts: HashMap<NodeId, Layout>,
    /// How many of a value's readers want it packed.
    followed: HashMap<NodeId, usize>,
    values: HashMap<NodeId, (Layout, Packing)>,
    /// Whether there are products or attention: packing costs launches, which pay only there.
    work: bool,
}

impl Walk<'_> {
    /// A reader wants a value packed.
    fn want(&mut self, id: NodeId, layout: Layout) -> Result<(), Stopped> {
        *self.followed.entry(id).or_default() += 1;
        match self.layouts.insert(id, layout) {
            Some(other) if other != layout => {
                Err(self.stop(id, "it is read with other dimensions as samples or positions"))
            }
            _ => Ok(()),
        }
    }

    fn stop(&self, id: NodeId, why: &str) -> Stopped {
        let at = self.graph.origin(id).path.to_string();
        let name = self.graph.node(id).op.name();
        Stopped { at, why: format!("`{name}` {}: {why}", self.graph.ty(id)) }
    }

    /// Decides how a value is packed, and wants its operands.
    fn value(&mut self, id: NodeId, layout: Layout, uses: usize) -> Result<(), Stopped> {
        let node = self.graph.node(id);
        let packing = match self.operands(id, layout)? {
            Some(operands) => Packing::Op(operands),
            None => Packing::Pick,
        };
        let Packing::Op(operands) = &packing else {
            self.values.insert(id, (layout, packing));
            return Ok(());
        };
        let rows = operands.iter().any(|operand| matches!(operand, Operand::Rows(_)));
        if rows && node.ty.dtype.is_float() && self.followed.get(&id) != Some(&uses) {
            return Err(self.stop(id, "all its positions are read elsewhere too"));
        }
        self.work |= matches!(node.op, Op::Dot(_) | Op::Attention(_));
        for (input, operand) in node.inputs.iter().zip(operands) {
            if let Operand::Rows(layout) = operand {
                self.want(*input, *layout)?;
            }
        }
        self.values.insert(id, (layout, packing));
        Ok(())
    }

    /// How each operand follows the rows; none when the value itself is to be picked from.
    fn operands(&self, id: NodeId, layout: Layout) -> Result<Option<Operands>, Stopped> {
        let node = self.graph.node(id);
        let types: SmallVec<[_; 3]> = node.inputs.iter().map(|input| self.graph.ty(*input)).collect();
        let packs = node.op.packs(&types, layout);
        if packs == Packs::Segments {
            return Ok(Some(Operands::from_elem(Operand::Rows(layout), types.len())));
        }
        let both = (along(self.graph, id, layout.samples), along(self.graph, id, layout.positions));
        if let (Some(samples), Some(positions)) = both {
            let operand = |(samples, positions): (&Option<usize>, &Option<usize>)| match (*samples, *positions) {
                (Some(samples), Some(positions)) => Operand::Rows(Layout { samples, positions }),
                (Some(samples), None) => Operand::Samples(samples),
                (None, Some(positions)) => Operand::Positions(positions),
                (None, None) => Operand::Same,
            };
            let operands: Operands = samples.iter().zip(&positions).map(operand).collect();
            let follows = |operand: &Operand| matches!(operand, Operand::Rows(_) | Operand::Same);
            if packs == Packs::Repeats || packs == Packs::Rows && operands.iter().all(follows) {
                return Ok(Some(operands));
            }
        }
        match (&node.op, packs) {
            (Op::Input { .. } | Op::State { .. } | Op::Random { .. }, _) => Ok(None),
            _ if !node.ty.dtype.is_float() => Ok(None),
            (_, Packs::No(why)) => Err(self.stop(id, why)),
            _ => Err(self.stop(id, "does not work row by row")),
        }
    }
}
