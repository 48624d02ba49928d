//! Slice push-down: what is computed and then not read is not computed.
//!
//! An image tower is read at its class token and a text tower at the end of the text, but the last block computes all
//! positions. Picking positions commutes with every op that works row by row along them: normalisations, products with
//! parameters, residual sums, the queries of attention (its keys and values are read whole). So the last block computes the
//! one position that is read, and keys and values of the others.
//!
//! *What is found.* Backwards through the graph, each node learns which parts of its result are read: a part is the whole
//! tensor but for a range or per-sample indices along some dimensions. A slice asks for its range, a gather for its indices, and
//! every op passes a part on to its operands as far as it is row-wise there ([`along`]); where it is not, its whole result
//! is asked for, and the part taken of that. A second reader of the full sequence asks for the whole, so nothing is computed
//! twice.
//!
//! *Products that are read in pieces.* The packed projection of queries, keys and values is read whole for keys and values, and at
//! one position for queries. Parts that meet are joined to one (keys and values become one product); a tensor that is still
//! read in several parts is computed in these parts if they leave out a quarter of it, else as a whole: a further launch
//! and a second read of the operands are to be worth it. Through the product, parts of columns become parts of the weight.
//!
//! *Causal attention.* A range of queries up to position `e` sees the keys up to there, aligned at the end as before. One query per
//! sample at index `i` sees `i + 1` keys: the mask becomes the lengths of the samples' keys.
//!
//! *What is weighed.* A part is never more than the whole, so no step adds operations; the rewrite is done when the program
//! then takes fewer.

use smallvec::{SmallVec, smallvec};

use super::Changed;
use super::analysis::{self, along, cost, fault, places};
use crate::diag::Diagnostics;
use crate::hash::HashMap;
use crate::ir::{Builder, Dim, Graph, NodeId, Shape};
use crate::ops::attention::{Attention, Rows};
use crate::ops::axes::same_place;
use crate::ops::{Op, OpError};

const NAME: &str = "push_down";

/// A tensor that is read in more parts than this is computed as a whole.
const MAX_PARTS: usize = 8;

pub(super) fn push_down(graph: &Graph) -> Result<Option<Changed>, Diagnostics> {
    let read = Read::new(graph);
    let computed = |id: NodeId| matches!(graph.node(id).op, Op::Dot(_) | Op::Attention(_) | Op::Conv2d(_));
    let is_part = |id: &NodeId| read.units[id.index()].iter().any(|part| !part.is_whole());
    let shrunk: Vec<NodeId> = graph.ids().filter(|id| computed(*id) && is_part(id)).collect();
    if shrunk.is_empty() {
        return Ok(None);
    }
    let new = Emitter::new(graph, &read.units).run().map_err(|error| fault(graph, NAME, &error))?;
    if cost(&new).flops >= cost(graph).flops {
        return Ok(None);
    }
    let places = places(shrunk.iter().map(|id| &*graph.origin(*id).path));
    Ok(Some(Changed { graph: new, places }))
}

/// Positions along one dimension.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Pick {
    /// `start, start + step, ...` below `end`.
    Range { start: u64, end: u64, step: u64 },
    /// Those in an I32 tensor, whose leading dimensions are these dimensions of the tensor that is picked from.
    Index { index: NodeId, batch: SmallVec<[usize; 2]> },
}

impl Pick {
    fn range(start: u64, end: u64) -> Pick {
        Pick::Range { start, end, step: 1 }
    }

    /// Number of positions.
    fn count(&self, graph: &Graph) -> u64 {
        match self {
            Pick::Range { start, end, step } => (end - start).div_ceil(*step),
            Pick::Index { index, batch } => graph.shape(*index).0[batch.len()..].iter().map(|dim| dim.size).product(),
        }
    }
}

/// A tensor but for what is not picked along some dimensions, which are sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Part(SmallVec<[(usize, Pick); 1]>);

impl Part {
    fn is_whole(&self) -> bool {
        self.0.is_empty()
    }

    fn get(&self, axis: usize) -> Option<&Pick> {
        self.0.iter().find(|(at, _)| *at == axis).map(|(_, pick)| pick)
    }

    /// Adds a pick that leaves something out.
    fn insert(&mut self, axis: usize, pick: Pick, shape: &Shape) {
        let whole = Pick::range(0, shape.size(axis));
        if pick != whole {
            let at = self.0.partition_point(|(other, _)| *other < axis);
            self.0.insert(at, (axis, pick));
        }
    }

    fn shape(&self, graph: &Graph, whole: &Shape) -> Shape {
        let mut shape = whole.clone();
        for (axis, pick) in &self.0 {
            shape.0[*axis] = Dim::from(pick.count(graph));
        }
        shape
    }

    /// What is to be picked of this part to have the other, if it is all in this one.
    fn rest(&self, other: &Part) -> Option<Part> {
        let mut rest = Part::default();
        for (axis, pick) in &other.0 {
            match (self.get(*axis), pick) {
                (Some(own), pick) if own == pick => {}
                (None, pick) => rest.0.push((*axis, pick.clone())),
                (Some(Pick::Range { start, end, step: 1 }), Pick::Range { start: first, end: last, step })
                    if start <= first && last <= end =>
                {
                    rest.0.push((*axis, Pick::Range { start: first - start, end: last - start, step: *step }));
                }
                _ => return None,
            }
        }
        self.0.iter().all(|(axis, _)| other.get(*axis).is_some()).then_some(rest)
    }

    /// The part that both are, if they differ in nothing but ranges that meet, of a dimension that no index counts.
    fn union(&self, other: &Part, shape: &Shape) -> Option<Part> {
        if self.rest(other).is_some() {
            return Some(self.clone());
        }
        let same_axes = self.0.iter().map(|(axis, _)| axis).eq(other.0.iter().map(|(axis, _)| axis));
        let mut differing = self.0.iter().zip(&other.0).filter(|(a, b)| a != b);
        let (Some(((axis, a), (_, b))), None, true) = (differing.next(), differing.next(), same_axes) else {
            return None;
        };
        let (Pick::Range { start, end, step: 1 }, Pick::Range { start: first, end: last, step: 1 }) = (a, b) else {
            return None;
        };
        let counts = |pick: &Pick| matches!(pick, Pick::Index { batch, .. } if batch.contains(axis));
        if start > last || first > end || self.0.iter().any(|(_, pick)| counts(pick)) {
            return None;
        }
        let mut union = Part(self.0.iter().filter(|(at, _)| at != axis).cloned().collect());
        union.insert(*axis, Pick::range(*start.min(first), *end.max(last)), shape);
        Some(union)
    }
}

/// For each operand the part that is read; none if nothing is.
type Wanted = SmallVec<[Option<Part>; 3]>;

/// One pick for each operand: what it restricts.
type Passed = SmallVec<[Wish; 3]>;

enum Wish {
    All,
    Nothing,
    Only(usize, Pick),
}

/// Which parts of each node are to be computed; none for those that nothing reads.
struct Read<'g> {
    graph: &'g Graph,
    units: Vec<Vec<Part>>,
}

impl<'g> Read<'g> {
    fn new(graph: &'g Graph) -> Read<'g> {
        let mut read = Read { graph, units: vec![Vec::new(); graph.nodes().len()] };
        let named = graph.outputs.values().chain(graph.updates.values()).chain(graph.inputs.values());
        named.for_each(|id| read.units[id.index()].push(Part::default()));
        for id in graph.ids().rev() {
            let wanted = std::mem::take(&mut read.units[id.index()]);
            if wanted.is_empty() {
                continue;
            }
            let units = read.computed(id, wanted);
            for part in &units {
                let (_, operands) = pass(graph, id, part);
                for (input, part) in graph.node(id).inputs.iter().zip(operands) {
                    read.units[input.index()].extend(part);
                }
            }
            read.units[id.index()] = units;
        }
        read
    }

    /// The parts in which a node is computed so that all wanted parts can be had.
    fn computed(&self, id: NodeId, wanted: Vec<Part>) -> Vec<Part> {
        let shape = self.graph.shape(id);
        let mut units: Vec<Part> = wanted;
        loop {
            // Picks at which the op is not row-wise are made of its result.
            let passed: Vec<Part> = units.iter().map(|part| pass(self.graph, id, part).0).collect();
            let joined = join(passed.clone(), shape);
            if joined == units {
                break;
            }
            units = joined;
        }
        let volume = |part: &Part| part.shape(self.graph, shape).elements();
        let (whole, sum) = (shape.elements(), units.iter().map(volume).fold(0u64, u64::saturating_add));
        let splits = units.len() > 1 && (units.len() > MAX_PARTS || sum.saturating_mul(4) > whole.saturating_mul(3));
        if splits || sum >= whole { vec![Part::default()] } else { units }
    }
}

/// Joins parts that meet, until none do. Parts of which none meet come back sorted, whatever their order was: so whoever joins
/// again until nothing changes comes to an end.
fn join(mut parts: Vec<Part>, shape: &Shape) -> Vec<Part> {
    let mut joined: Vec<Part> = Vec::new();
    while let Some(mut part) = parts.pop() {
        let met =
            joined.iter().position(|other| part.union(other, shape).or_else(|| other.union(&part, shape)).is_some());
        match met {
            Some(at) => {
                let other = joined.swap_remove(at);
                if let Some(union) = part.union(&other, shape).or_else(|| other.union(&part, shape)) {
                    part = union;
                }
                parts.push(part);
            }
            None => joined.push(part),
        }
    }
    joined.sort_unstable();
    joined
}

/// How a part of a node's result is had: the part that is computed (the picks that the op passes on), and the parts of the
/// operands that this takes.
fn pass(graph: &Graph, id: NodeId, part: &Part) -> (Part, Wanted) {
    let node = graph.node(id);
    let shape = |operand: usize| graph.shape(node.inputs[operand]);
    let mut wanted: Wanted = node.inputs.iter().map(|_| Some(Part::default())).collect();
    let mut computed = Part::default();
    match &node.op {
        Op::Slice { start, end, step } => {
            let mut whole = Part::default();
            for (axis, ((start, end), step)) in start.iter().zip(end).zip(step).enumerate() {
                let own = Pick::Range { start: *start, end: *end, step: *step };
                let pick = match part.get(axis) {
                    Some(pick) => compose(&own, pick, shape(0).size(axis)),
                    None => Some(own.clone()),
                };
                if let (Some(pick), Some(_)) = (part.get(axis), &pick) {
                    computed.0.push((axis, pick.clone()));
                }
                whole.insert(axis, pick.unwrap_or(own), shape(0));
            }
            wanted[0] = Some(whole);
            return (computed, wanted);
        }
        Op::Gather { batch } => {
            if let Some(own) = picked(graph, id) {
                let indices = shape(1).rank();
                let mut picked = Part(smallvec![(*batch, own)]);
                for (axis, pick) in part.0.iter().filter(|(axis, _)| *axis >= indices) {
                    if let Pick::Range { .. } = pick {
                        computed.0.push((*axis, pick.clone()));
                        picked.insert(batch + 1 + axis - indices, pick.clone(), shape(0));
                    }
                }
                wanted[0] = Some(picked);
                return (computed, wanted);
            }
        }
        _ => {}
    }
    for (axis, pick) in &part.0 {
        let Some(wishes) = pass_one(graph, id, *axis, pick) else { continue };
        let taken = |(operand, wish): (&Option<Part>, &Wish)| match (operand, wish) {
            (Some(part), Wish::Only(axis, _)) => part.get(*axis).is_some(),
            _ => false,
        };
        if wanted.iter().zip(&wishes).any(taken) {
            continue;
        }
        for (operand, wish) in wishes.into_iter().enumerate() {
            match (wish, &mut wanted[operand]) {
                (Wish::Nothing, part) => *part = None,
                (Wish::Only(axis, pick), Some(part)) => part.insert(axis, pick, shape(operand)),
                _ => {}
            }
        }
        computed.0.push((*axis, pick.clone()));
    }
    (computed, wanted)
}

/// What a gather picks per sample, if that is less than there is.
fn picked(graph: &Graph, id: NodeId) -> Option<Pick> {
    let (Op::Gather { batch: batch @ 1.. }, [from, index]) = (&graph.node(id).op, &graph.node(id).inputs[..]) else {
        return None;
    };
    let pick = Pick::Index { index: *index, batch: (0..*batch).collect() };
    (pick.count(graph) < graph.shape(*from).size(*batch)).then_some(pick)
}

/// A pick of what a range picks.
fn compose(range: &Pick, of: &Pick, size: u64) -> Option<Pick> {
    match (range, of) {
        (Pick::Range { start: 0, end, step: 1 }, Pick::Index { .. }) if *end == size => Some(of.clone()),
        (Pick::Range { start, step, .. }, Pick::Range { start: first, end, step: stride }) => {
            let last = start + (end - 1) * step;
            Some(Pick::Range { start: start + first * step, end: last + 1, step: step * stride })
        }
        _ => None,
    }
}

/// What one pick of a node's result asks of its operands; `None` when the op is not row-wise there.
fn pass_one(graph: &Graph, id: NodeId, axis: usize, pick: &Pick) -> Option<Passed> {
    let node = graph.node(id);
    match (&node.op, pick) {
        (Op::Concat { axis: joined }, pick) if *joined == axis => concat(graph, &node.inputs, axis, pick),
        (Op::Attention(attention), pick) if attention.causal && axis == 1 && attention.rows != Rows::Segments => {
            causal(graph, attention, &node.inputs, pick)
        }
        (Op::Reshape { shape: to }, Pick::Range { start, end, step: 1 }) => {
            let (axis, range) = reshaped(graph.shape(node.inputs[0]), to, axis, *start..*end)?;
            Some(smallvec![Wish::Only(axis, Pick::range(range.start, range.end))])
        }
        (_, Pick::Range { .. }) => {
            let wish = |axis: Option<usize>| axis.map_or(Wish::All, |axis| Wish::Only(axis, pick.clone()));
            Some(along(graph, id, axis)?.into_iter().map(wish).collect())
        }
        (_, Pick::Index { index, batch }) => {
            let picked = along(graph, id, axis)?;
            let batches: Vec<_> = batch.iter().map(|axis| along(graph, id, *axis)).collect::<Option<_>>()?;
            let wish = |(operand, axis): (usize, Option<usize>)| {
                let Some(axis) = axis else { return Some(Wish::All) };
                let batch = batches.iter().map(|axes| axes[operand]).collect::<Option<_>>()?;
                Some(Wish::Only(axis, Pick::Index { index: *index, batch }))
            };
            picked.into_iter().enumerate().map(wish).collect()
        }
    }
}

/// Those of the joined tensors that a range lies in.
fn concat(graph: &Graph, inputs: &[NodeId], axis: usize, pick: &Pick) -> Option<Passed> {
    let Pick::Range { start, end, step: 1 } = *pick else { return None };
    let mut before = 0;
    let wish = |input: &NodeId| {
        let size = graph.shape(*input).size(axis);
        let (first, last) = (start.saturating_sub(before), (end.max(before) - before).min(size));
        before += size;
        if first < last { Wish::Only(axis, Pick::range(first, last)) } else { Wish::Nothing }
    };
    Some(inputs.iter().map(wish).collect())
}

/// Some queries of causal attention: those up to position `end` see no key behind it.
fn causal(graph: &Graph, attention: &Attention, inputs: &[NodeId], pick: &Pick) -> Option<Passed> {
    let rows = |operand: usize| graph.shape(inputs[operand]).size(1);
    let ahead = rows(1) - rows(0);
    let keys = match pick {
        Pick::Range { end, step: 1, .. } => Wish::Only(1, Pick::range(0, end + ahead)),
        Pick::Index { batch, .. } if ahead == 0 && pick.count(graph) == 1 && batch[..] == [0] => Wish::All,
        _ => return None,
    };
    let lengths = usize::from(attention.rows == Rows::Lengths);
    let mut wishes: Passed = smallvec![Wish::Only(1, pick.clone())];
    for _ in 1..inputs.len() - lengths {
        wishes.push(match &keys {
            Wish::Only(axis, pick) => Wish::Only(*axis, pick.clone()),
            _ => Wish::All,
        });
    }
    wishes.extend((0..lengths).map(|_| Wish::All));
    Some(wishes)
}

/// Where a range along a dimension lies before a reshape: in the same dimension, in that which was split and of which this
/// is the outer one, or in the outer one of those that were merged.
fn reshaped(
    from: &Shape,
    to: &Shape,
    axis: usize,
    range: std::ops::Range<u64>,
) -> Option<(usize, std::ops::Range<u64>)> {
    if let Some(place) = same_place(from, to, axis) {
        return Some((place, range));
    }
    let before = |shape: &Shape, axis: usize| shape.0[..axis].iter().map(|dim| dim.size).product::<u64>();
    let elements = before(to, axis);
    let ends = |shape: &Shape, end: u64| (0..=shape.rank()).any(|axis| before(shape, axis) == end);
    let place = (0..from.rank()).find(|place| before(from, *place) == elements && from.size(*place) > 1)?;
    let (old, new) = (from.size(place), to.size(axis));
    if old > new && old % new == 0 && ends(to, elements * old) {
        let inner = old / new;
        return Some((place, range.start * inner..range.end * inner));
    }
    let inner = new / old;
    let fits = new > old && new % old == 0;
    let aligned = fits && range.start.is_multiple_of(inner) && range.end.is_multiple_of(inner);
    (aligned && ends(from, elements * new)).then(|| (place, range.start / inner..range.end / inner))
}

/// Writes the graph in which each node is computed in its parts.
struct Emitter<'a> {
    graph: &'a Graph,
    units: &'a [Vec<Part>],
    new: Graph,
    /// By old node and part.
    done: HashMap<(NodeId, Part), NodeId>,
}

impl<'a> Emitter<'a> {
    fn new(graph: &'a Graph, units: &'a [Vec<Part>]) -> Emitter<'a> {
        Emitter { graph, units, new: graph.successor(), done: HashMap::default() }
    }

    fn run(mut self) -> Result<Graph, OpError> {
        // In the order of the graph, but for parts by an index, which come behind it.
        let mut order: Vec<(NodeId, bool, NodeId, &Part)> = Vec::new();
        for (id, parts) in self.graph.ids().zip(self.units) {
            for part in parts {
                let indices = part.0.iter().filter_map(|(_, pick)| match pick {
                    Pick::Index { index, .. } => Some(*index),
                    Pick::Range { .. } => None,
                });
                let at = indices.chain([id]).max().unwrap_or(id);
                order.push((at, at != id, id, part));
            }
        }
        order.sort_by_key(|(at, behind, id, _)| (*at, *behind, *id));
        for (_, _, id, part) in order {
            let value = self.emit(id, part)?;
            self.done.insert((id, part.clone()), value);
        }
        let (graph, done) = (self.graph, std::mem::take(&mut self.done));
        self.new.take_names(graph, |id| done.get(&(id, Part::default())).copied());
        Ok(self.new)
    }

    fn emit(&mut self, id: NodeId, part: &Part) -> Result<NodeId, OpError> {
        let node = self.graph.node(id);
        let (_, wanted) = pass(self.graph, id, part);
        let shape = part.shape(self.graph, &node.ty.shape);
        let mut inputs: SmallVec<[NodeId; 4]> = SmallVec::new();
        for (input, wanted) in node.inputs.iter().zip(&wanted) {
            if let Some(wanted) = wanted {
                inputs.push(self.value(*input, wanted)?);
            }
        }
        // A slice is the part that it asked for, as is a gather that picks.
        let is_had = matches!(node.op, Op::Slice { .. }) || picked(self.graph, id).is_some();
        if let (true, Some(had)) = (is_had, inputs.first()) {
            return Builder::new(&mut self.new, node.origin).reshape(*had, shape);
        }
        let mut op = node.op.clone();
        for (axis, pick) in &part.0 {
            if let Op::Attention(attention) = &op
                && attention.causal
                && *axis == 1
            {
                op = self.unmasked(attention.clone(), pick, &mut inputs, node.origin)?;
            }
            op = op.resized(*axis, pick.count(self.graph));
        }
        self.new.add(op, &inputs, node.origin)
    }

    /// Causal attention of some queries: of one per sample to as many keys as lie up to it.
    fn unmasked(
        &mut self,
        attention: Attention,
        pick: &Pick,
        inputs: &mut SmallVec<[NodeId; 4]>,
        origin: crate::ir::OriginId,
    ) -> Result<Op, OpError> {
        let Pick::Index { index, .. } = pick else {
            let causal = pick.count(self.graph) > 1;
            return Ok(Op::Attention(Attention { causal, ..attention }));
        };
        let index = self.value(*index, &Part::default())?;
        let mut b = Builder::new(&mut self.new, origin);
        let samples = b.graph.shape(inputs[0]).0[..1].iter().cloned().collect();
        let index = b.reshape(index, samples)?;
        let mut lengths = analysis::one_more(&mut b, index)?;
        if attention.rows == Rows::Lengths
            && let Some(given) = inputs.pop()
        {
            lengths = b.min(lengths, given)?;
        }
        inputs.push(lengths);
        Ok(Op::Attention(Attention { rows: Rows::Lengths, causal: false, ..attention }))
    }

    /// A part of an old node, picked from one that holds it.
    fn value(&mut self, id: NodeId, part: &Part) -> Result<NodeId, OpError> {
        if let Some(value) = self.done.get(&(id, part.clone())) {
            return Ok(*value);
        }
        let holds = |unit: &Part| Some((self.done.get(&(id, unit.clone())).copied()?, unit.rest(part)?));
        let Some((mut value, rest)) = self.units[id.index()].iter().find_map(holds) else {
            return Err(OpError::new(format!("no part of %{} holds {part:?}", id.0)));
        };
        let origin = self.graph.node(id).origin;
        // An index has as many rows as are left of the dimensions it counts.
        let (ranges, indices): (Vec<_>, Vec<_>) =
            rest.0.into_iter().partition(|(_, pick)| matches!(pick, Pick::Range { .. }));
        for (axis, pick) in ranges.into_iter().chain(indices) {
            value = match pick {
                Pick::Range { start, end, step } => {
                    let mut b = Builder::new(&mut self.new, origin);
                    let mut ends = b.graph.shape(value).sizes();
                    let (mut starts, mut steps) = (vec![0; ends.len()], vec![1; ends.len()]);
                    (starts[axis], ends[axis], steps[axis]) = (start, end, step);
                    b.slice(value, &starts, &ends, &steps)?
                }
                Pick::Index { index, batch } => self.gather(value, axis, index, &batch, origin)?,
            };
        }
        self.done.insert((id, part.clone()), value);
        Ok(value)
    }

    /// Picks by index along a dimension, which stays where it is.
    fn gather(
        &mut self,
        x: NodeId,
        axis: usize,
        index: NodeId,
        batch: &[usize],
        origin: crate::ir::OriginId,
    ) -> Result<NodeId, OpError> {
        let index = self.value(index, &Part::default())?;
        let mut b = Builder::new(&mut self.new, origin);
        let rank = b.graph.shape(x).rank();
        let mut perm: Vec<usize> = batch.iter().copied().chain([axis]).collect();
        perm.extend((0..rank).filter(|other| *other != axis && !batch.contains(other)));
        let first = b.transpose(x, &perm)?;
        let picked = b.gather(first, index, batch.len())?;
        // One dimension of positions, however many the index has.
        let mut shape = b.graph.shape(first).clone();
        shape.0[batch.len()] =
            Dim::from(b.graph.shape(index).0[batch.len()..].iter().map(|dim| dim.size).product::<u64>());
        let picked = b.reshape(picked, shape)?;
        let mut back = vec![0; rank];
        perm.iter().enumerate().for_each(|(from, to)| back[*to] = from);
        b.transpose(picked, &back)
    }
}
