//! Puts a graph into the form that grouping expects; what is computed stays the same.
//!
//! Afterwards: every node is live (inputs aside) and distinct, there are no identities, the operands of every product are
//! `[batch.., free.., contracted..]` with the contracted dimensions in one order, no product exists only to be transposed,
//! and no sum of very many elements into very few results is left in one piece, nor one of products that leaves most of a card idle.

use alip_plan::{Fusion, Rates, Target};
use smallvec::SmallVec;

use super::commute::Forms;
use super::split;
use crate::diag::{Diagnostic, Diagnostics};
use crate::hash::HashMap;
use crate::ir::{Graph, NodeId, OriginId, Shape};
use crate::ops::{Dot, Op, OpError, ReduceKind, ScalarOp};

/// The same programs in the form that grouping expects.
///
/// # Errors
/// An op refuses its inputs, which only a defect of a pass can cause.
pub fn prepare(graph: &Graph, target: &Target) -> Result<Graph, Diagnostics> {
    let live = graph.live(graph.inputs.values().chain(graph.outputs.values()).chain(graph.updates.values()));
    let turned = turned(graph, &live);
    let (seen, forms) = (HashMap::default(), Forms::default());
    let Target { fusion, rates, .. } = target;
    let mut rebuild = Rebuild { graph: graph.successor(), seen, forms, fusion: *fusion, rates: *rates };
    let mut moved: Vec<NodeId> = Vec::with_capacity(graph.nodes().len());
    for id in graph.ids() {
        let node = graph.node(id);
        if !live[id.index()] {
            moved.push(NodeId(u32::MAX));
            continue;
        }
        let mut inputs: SmallVec<[NodeId; 3]> = node.inputs.iter().map(|input| moved[input.index()]).collect();
        let mut op = node.op.clone();
        match &mut op {
            Op::Transpose { .. } if turned[id.index()] => {
                moved.push(inputs[0]);
                continue;
            }
            Op::Dot(dot) if turned[id.index()] => {
                inputs.reverse();
                dot.batch.iter_mut().chain(&mut dot.contract).for_each(|pair| *pair = (pair.1, pair.0));
            }
            _ => {}
        }
        let new = rebuild.node(&op, &inputs, &node.ty.shape, node.origin).map_err(|error| {
            let path = &graph.origin(id).path;
            Diagnostic::error(format!("internal: preparing `{}` of program `{}`", path, graph.name)).note(error.message)
        })?;
        moved.push(new);
    }
    // Old values of state stay readable only until they are replaced, and inputs are not the program's to give away:
    // an output or update that is one is a copy.
    let mut copied: HashMap<NodeId, NodeId> = HashMap::default();
    for id in graph.outputs.values().chain(graph.updates.values()).map(|id| moved[id.index()]) {
        let node = rebuild.graph.node(id);
        if matches!(node.op, Op::State { .. } | Op::Input { .. }) && !copied.contains_key(&id) {
            let (dtype, origin) = (node.ty.dtype, node.origin);
            let copy = rebuild.graph.add(Op::Pointwise(ScalarOp::Cast(dtype)), &[id], origin);
            copied.insert(id, copy.map_err(|error| Diagnostic::error("internal: a copy").note(error.message))?);
        }
    }
    let mut result = rebuild.graph;
    let copy = |id: NodeId| copied.get(&id).copied().unwrap_or(id);
    let port = |(name, id): (&String, &NodeId)| live[id.index()].then(|| (name.clone(), moved[id.index()]));
    result.inputs = graph.inputs.iter().filter_map(port).collect();
    result.outputs = graph.outputs.iter().filter_map(port).map(|(name, id)| (name, copy(id))).collect();
    // A state tensor whose new value is its old one needs no update.
    let same = |path: &str, id: NodeId| matches!(&result.node(id).op, Op::State { path: of, .. } if **of == *path);
    let updates = graph.updates.iter().filter_map(port).filter(|(path, id)| !same(path, *id));
    result.updates = updates.map(|(path, id)| (path, copy(id))).collect();
    result.values = graph.values.iter().filter_map(port).collect();
    Ok(result)
}

/// Products whose only user is a transpose that exchanges their sides, and these transposes: `(x y)^T` is `y^T x^T`. So the
/// gradient of a weight that is used transposed comes out as the weight lies.
fn turned(graph: &Graph, live: &[bool]) -> Vec<bool> {
    let mut uses = vec![0u32; graph.nodes().len()];
    let read = graph.ids().filter(|id| live[id.index()]).flat_map(|id| &graph.node(id).inputs);
    let named = graph.outputs.values().chain(graph.updates.values()).chain(graph.values.values());
    for id in read.chain(named) {
        uses[id.index()] += 1;
    }
    let mut turned = vec![false; graph.nodes().len()];
    for id in graph.ids().filter(|id| live[id.index()]) {
        let node = graph.node(id);
        let Op::Transpose { perm } = &node.op else { continue };
        let Op::Dot(dot) = &graph.node(node.inputs[0]).op else { continue };
        let batch = dot.batch.len();
        let left = graph.shape(graph.node(node.inputs[0]).inputs[0]).rank() - batch - dot.contract.len();
        let exchanged = (0..batch).chain(batch + left..perm.len()).chain(batch..batch + left);
        if uses[node.inputs[0].index()] == 1 && perm.iter().copied().eq(exchanged) {
            turned[id.index()] = true;
            turned[node.inputs[0].index()] = true;
        }
    }
    turned
}

struct Rebuild {
    graph: Graph,
    seen: HashMap<(Op, SmallVec<[NodeId; 3]>), NodeId>,
    forms: Forms,
    fusion: Fusion,
    rates: Rates,
}

impl Rebuild {
    /// Adds a node unless there is an equal one.
    fn add(&mut self, op: Op, inputs: &[NodeId], origin: OriginId) -> Result<NodeId, OpError> {
        let mut inputs = SmallVec::from_slice(inputs);
        self.forms.sort(&self.graph, &op, &mut inputs);
        let key = (op, inputs);
        if let Some(id) = self.seen.get(&key) {
            return Ok(*id);
        }
        let id = self.graph.add(key.0.clone(), &key.1, origin)?;
        self.forms.note(&self.graph, self.graph.node(id));
        self.seen.insert(key, id);
        Ok(id)
    }

    fn node(&mut self, op: &Op, inputs: &[NodeId], shape: &Shape, origin: OriginId) -> Result<NodeId, OpError> {
        match op {
            Op::StopGradient => Ok(inputs[0]),
            Op::Reshape { .. } | Op::Broadcast { .. } | Op::Transpose { .. } | Op::Slice { .. } => {
                self.view(op, inputs[0], shape, origin)
            }
            Op::Pointwise(ScalarOp::Cast(to)) if self.graph.ty(inputs[0]).dtype == *to => Ok(inputs[0]),
            // Exact: x * 1 and x / 1 are x.
            Op::Pointwise(ScalarOp::Mul | ScalarOp::Div) if self.is_one(inputs[1]) => Ok(inputs[0]),
            Op::Pointwise(ScalarOp::Mul) if self.is_one(inputs[0]) => Ok(inputs[1]),
            Op::Dot(dot) => self.dot(dot, inputs, origin),
            Op::Reduce { kind, axes } => self.reduce(*kind, axes, inputs[0], origin),
            Op::Concat { .. } if inputs.len() == 1 => Ok(inputs[0]),
            _ => self.add(op.clone(), inputs, origin),
        }
    }

    /// Views that change nothing vanish; a reshape of a reshape is one, and a transpose of a transpose.
    fn view(&mut self, op: &Op, input: NodeId, shape: &Shape, origin: OriginId) -> Result<NodeId, OpError> {
        let before = self.graph.shape(input);
        let nothing = match op {
            Op::Transpose { perm } => perm.iter().enumerate().all(|(to, from)| to == *from),
            _ => before == shape,
        };
        if nothing {
            return Ok(input);
        }
        let op = match op {
            Op::Broadcast { .. } if before.elements() == shape.elements() => Op::Reshape { shape: shape.clone() },
            _ => op.clone(),
        };
        let inner = self.graph.node(input);
        match (&op, &inner.op) {
            (Op::Reshape { .. }, Op::Reshape { .. }) => {
                let base = inner.inputs[0];
                if self.graph.shape(base) == shape { Ok(base) } else { self.add(op, &[base], origin) }
            }
            (Op::Transpose { perm }, Op::Transpose { perm: first }) => {
                let perm = perm.iter().map(|&from| first[from]).collect();
                let base = inner.inputs[0];
                self.view(&Op::Transpose { perm }, base, shape, origin)
            }
            _ => self.add(op, &[input], origin),
        }
    }

    fn is_one(&self, id: NodeId) -> bool {
        self.graph.splat(id) == Some(1.0)
    }

    fn dot(&mut self, dot: &Dot, inputs: &[NodeId], origin: OriginId) -> Result<NodeId, OpError> {
        let mut contract = dot.contract.clone();
        contract.sort_unstable();
        let sides: [(Vec<usize>, Vec<usize>); 2] = [
            (dot.batch.iter().map(|pair| pair.0).collect(), contract.iter().map(|pair| pair.0).collect()),
            (dot.batch.iter().map(|pair| pair.1).collect(), contract.iter().map(|pair| pair.1).collect()),
        ];
        let mut operands = Vec::new();
        let mut ranks = [0; 2];
        for ((input, (batch, contracted)), rank_of) in inputs.iter().zip(sides).zip(&mut ranks) {
            let rank = self.graph.shape(*input).rank();
            let free = (0..rank).filter(|dim| !batch.contains(dim) && !contracted.contains(dim));
            let perm: Vec<usize> = batch.iter().copied().chain(free).chain(contracted.iter().copied()).collect();
            let shape: Shape = perm.iter().map(|from| self.graph.shape(*input).0[*from]).collect();
            operands.push(self.view(&Op::Transpose { perm }, *input, &shape, origin)?);
            *rank_of = rank;
        }
        let (count, batches) = (contract.len(), dot.batch.len());
        let Some(parts) = self.parts(&operands, batches, count) else {
            return self.add(Op::Dot(aligned(batches, ranks, count)), &operands, origin);
        };
        // Parts become the first batch dimension: a sum over it is one of neighbours far apart, which threads read together.
        for (operand, rank) in operands.iter_mut().zip(&mut ranks) {
            let shape = self.graph.shape(*operand).clone();
            let outermost = *rank - count;
            let inner = (shape.size(outermost) / parts).into();
            let dims = shape.0.iter().copied();
            let cut: Shape =
                dims.clone().take(outermost).chain([parts.into(), inner]).chain(dims.skip(outermost + 1)).collect();
            let cut_view = self.view(&Op::Reshape { shape: cut.clone() }, *operand, &cut, origin)?;
            let perm: Vec<usize> = [outermost].into_iter().chain(0..outermost).chain(outermost + 1..=*rank).collect();
            let moved: Shape = perm.iter().map(|from| cut.0[*from]).collect();
            *operand = self.view(&Op::Transpose { perm }, cut_view, &moved, origin)?;
            *rank += 1;
        }
        let partial = self.add(Op::Dot(aligned(batches + 1, ranks, count)), &operands, origin)?;
        self.add(Op::Reduce { kind: ReduceKind::Sum, axes: vec![0] }, &[partial], origin)
    }

    /// Into how many parts the sums of a product of `[batch.., free.., contracted..]` are cut, if they are.
    fn parts(&self, operands: &[NodeId], batches: usize, count: usize) -> Option<u64> {
        let [a, b] = [0, 1].map(|side| self.graph.shape(operands[side]));
        let product = |shape: &Shape, dims: std::ops::Range<usize>| dims.map(|dim| shape.size(dim)).product::<u64>();
        let outermost = a.rank() - count;
        let sizes = split::Sizes {
            batch: product(a, 0..batches),
            m: product(a, batches..outermost),
            n: product(b, batches..b.rank() - count),
            k: product(a, outermost..a.rank()),
        };
        (count > 0).then(|| split::parts(sizes, a.size(outermost), &self.rates)).flatten()
    }

    fn reduce(&mut self, kind: ReduceKind, axes: &[usize], x: NodeId, origin: OriginId) -> Result<NodeId, OpError> {
        let shape = self.graph.shape(x).clone();
        let kept: Shape = (0..shape.rank()).filter(|dim| !axes.contains(dim)).map(|dim| shape.0[dim]).collect();
        let length: u64 = axes.iter().map(|axis| shape.size(*axis)).product();
        if length == 1 && kind != ReduceKind::ArgMax {
            return self.view(&Op::Reshape { shape: kept.clone() }, x, &kept, origin);
        }
        let trailing = axes.iter().enumerate().all(|(i, axis)| *axis == shape.rank() - axes.len() + i);
        let Fusion { few_results, piece, .. } = self.fusion;
        if kind == ReduceKind::ArgMax || kept.elements() >= few_results || !trailing || length < 2 * piece {
            return self.add(Op::Reduce { kind, axes: axes.to_vec() }, &[x], origin);
        }
        let rank = kept.rank();
        let Some(pieces) = pieces(length, piece) else {
            // Whole pieces, and what remains.
            let flat: Shape = kept.0.iter().cloned().chain([length.into()]).collect();
            let flat = self.view(&Op::Reshape { shape: flat.clone() }, x, &flat, origin)?;
            let mut parts = Vec::new();
            for (first, last) in [(0, length / piece * piece), (length / piece * piece, length)] {
                let start = std::iter::repeat_n(0, rank).chain([first]).collect();
                let end = kept.sizes().into_iter().chain([last]).collect();
                let shape: Shape = kept.0.iter().cloned().chain([(last - first).into()]).collect();
                let slice = Op::Slice { start, end, step: vec![1; rank + 1] };
                let part = self.view(&slice, flat, &shape, origin)?;
                parts.push(self.reduce(kind, &[rank], part, origin)?);
            }
            let join = match kind {
                ReduceKind::Prod => ScalarOp::Mul,
                ReduceKind::Max => ScalarOp::Max,
                ReduceKind::Min => ScalarOp::Min,
                _ => ScalarOp::Add,
            };
            return self.add(Op::Pointwise(join), &parts, origin);
        };
        let cut: Shape = kept.0.iter().cloned().chain([pieces.into(), (length / pieces).into()]).collect();
        let cut = self.view(&Op::Reshape { shape: cut.clone() }, x, &cut, origin)?;
        let partial = self.add(Op::Reduce { kind, axes: vec![rank + 1] }, &[cut], origin)?;
        self.reduce(kind, &[rank], partial, origin)
    }
}

/// The dimensions of a product of `[batch.., free.., contracted..]`.
fn aligned(batches: usize, ranks: [usize; 2], count: usize) -> Dot {
    let contract = (0..count).map(|i| (ranks[0] - count + i, ranks[1] - count + i)).collect();
    Dot { batch: (0..batches).map(|i| (i, i)).collect(), contract }
}

/// Into how many equal pieces a reduction of this length is cut: the divisor that makes pieces nearest to this long, within
/// a factor of eight. Some lengths (a large prime) have no such divisor.
fn pieces(length: u64, piece: u64) -> Option<u64> {
    let wanted = length / piece;
    let candidates = (wanted.div_ceil(8)..=wanted * 8).filter(|pieces| length.is_multiple_of(*pieces));
    candidates.min_by_key(|pieces| pieces.abs_diff(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reductions_are_cut_near_the_wanted_length() {
        assert_eq!(pieces(768 * 768, 4096), Some(144));
        assert_eq!(pieces(8191 * 4096, 4096), Some(8191));
        assert_eq!(pieces(104_729, 4096), None, "a prime");
    }
}
