//! Semantic ops in terms of primitives.
//!
//! An expansion is the meaning of a semantic op, written in the graph: tests hold each against the op's own reference
//! meaning, and a target without a kernel for the op runs it. Everything in between is f32.
//!
//! Normalisations become the forms that do not overflow. Attention becomes a product of queries and keys, a mask, exponentials and a second product. The mask of packed rows says
//! for every pair of rows whether they are of one segment, which is quadratic in the number of rows: right, not fast.

use smallvec::SmallVec;

use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Builder, DType, Graph, NodeId, Shape};
use crate::ops::attention::{Attention, AttentionResult, Rows};
use crate::ops::{Op, OpError, ReduceKind, norm};

/// The graph with every semantic op for which `expands` holds replaced by primitives.
///
/// # Errors
/// An expansion built a node its op refuses: a fault of this pass.
pub fn expand(graph: &Graph, expands: impl Fn(NodeId) -> bool) -> Result<Graph, Diagnostics> {
    let mut new = graph.successor();
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes().len());
    for id in graph.ids() {
        let node = graph.node(id);
        let inputs: SmallVec<[NodeId; 3]> = node.inputs.iter().map(|input| map[input.index()]).collect();
        let added = match &node.op {
            op if is_semantic(op) && expands(id) => {
                expansion(&mut Builder::new(&mut new, node.origin), op, &inputs, node.ty.dtype)
            }
            _ => new.copy(graph, id, inputs),
        };
        map.push(added.map_err(|error| {
            let message = format!("internal: expanding `{}` of program `{}`", node.op.name(), graph.name);
            Diagnostics::from(Diagnostic::error(message).note(error.message))
        })?);
    }
    new.take_names(graph, |id| Some(map[id.index()]));
    Ok(new)
}

/// Whether an op has an expansion.
pub fn is_semantic(op: &Op) -> bool {
    let norm = matches!(op, Op::Softmax { .. } | Op::LogSumExp { .. } | Op::LayerNorm { .. } | Op::CrossEntropy);
    norm || matches!(op, Op::Attention(_))
}

type Result<T = NodeId, E = OpError> = std::result::Result<T, E>;

/// A semantic op by its parts; other ops as they are. Operands of 16 bits are widened, and the result alone is rounded.
fn expansion(b: &mut Builder<'_>, op: &Op, inputs: &[NodeId], dtype: DType) -> Result {
    let widen = |id: &NodeId| if b.graph.ty(*id).dtype.is_float() { b.cast(*id, DType::F32) } else { Ok(*id) };
    let inputs = inputs.iter().map(widen).collect::<Result<Vec<_>>>()?;
    let y = parts(b, op, &inputs)?;
    b.cast(y, dtype)
}

/// A semantic op of f32.
fn parts(b: &mut Builder<'_>, op: &Op, inputs: &[NodeId]) -> Result {
    match (op, inputs) {
        (Op::Attention(op), _) => attention(b, op, inputs),
        (Op::Softmax { axes }, [x]) => {
            let top = b.reduce(ReduceKind::Max, *x, axes, false)?;
            let top = norm::spread(b, top, *x, axes)?;
            let shifted = b.sub(*x, top)?;
            let e = b.exp(shifted)?;
            let sum = b.reduce(ReduceKind::Sum, e, axes, false)?;
            let sum = norm::spread(b, sum, *x, axes)?;
            b.div(e, sum)
        }
        (Op::LogSumExp { axes }, [x]) => log_of_sum(b, *x, axes),
        (Op::LayerNorm { axes, eps }, [x]) => {
            let (centred, scale) = norm::statistics(b, *x, axes, *eps)?;
            let scale = norm::spread(b, scale, *x, axes)?;
            b.mul(centred, scale)
        }
        (Op::CrossEntropy, [x, target]) => {
            let last = b.graph.shape(*x).rank() - 1;
            let lse = log_of_sum(b, *x, &[last])?;
            let own = b.gather(*x, *target, last)?;
            b.sub(lse, own)
        }
        (op, _) => b.op(op.clone(), inputs),
    }
}

fn log_of_sum(b: &mut Builder<'_>, x: NodeId, axes: &[usize]) -> Result {
    let top = b.reduce(ReduceKind::Max, x, axes, false)?;
    // A row of infinities has nothing to subtract.
    let top = b.bounded(top)?;
    let wide = norm::spread(b, top, x, axes)?;
    let shifted = b.sub(x, wide)?;
    let e = b.exp(shifted)?;
    let sum = b.reduce(ReduceKind::Sum, e, axes, false)?;
    let log = b.ln(sum)?;
    b.add(log, top)
}

/// One member of the attention family; packed rows are one sample with a mask.
fn attention(b: &mut Builder<'_>, op: &Attention, inputs: &[NodeId]) -> Result {
    let has_values = !matches!(op.result, AttentionResult::Lse | AttentionResult::GradV);
    let tensors = if has_values { 3 } else { 2 };
    let packed = op.rows == Rows::Segments;
    let (lengths, after) = inputs[tensors..].split_at(usize::from(op.rows != Rows::Dense));
    let one_sample = |b: &mut Builder<'_>, x: NodeId| {
        let shape = b.graph.shape(x).0.iter().cloned();
        let shape: Shape = if packed { std::iter::once(1.into()).chain(shape).collect() } else { shape.collect() };
        b.reshape(x, shape)
    };
    let all = inputs[..tensors].iter().chain(after).map(|x| one_sample(b, *x)).collect::<Result<Vec<_>>>()?;
    let (q, k) = (all[0], all[1]);
    let scores = b.einsum("n q h d, n k h d -> n h q k", &[q, k])?;
    let scale = b.scalar(op.scale.0)?;
    let scores = b.mul(scores, scale)?;
    let mask = mask(b, op, scores, lengths.first().copied())?;
    let y = match (op.result, &all[2..]) {
        (AttentionResult::Lse, _) => {
            let lse = logsumexp(b, scores, mask)?;
            b.rearrange(lse, "n h q -> n q h", &[])?
        }
        (AttentionResult::Out, [v]) => {
            let lse = logsumexp(b, scores, mask)?;
            let p = weights(b, scores, lse, mask)?;
            b.einsum("n h q k, n k h e -> n q h e", &[p, *v])?
        }
        (AttentionResult::GradV, [lse, g]) => {
            let lse = b.rearrange(*lse, "n q h -> n h q", &[])?;
            let p = weights(b, scores, lse, mask)?;
            b.einsum("n h q k, n q h e -> n k h e", &[p, *g])?
        }
        (result, &[v, lse, g, delta]) => {
            let lse = b.rearrange(lse, "n q h -> n h q", &[])?;
            let p = weights(b, scores, lse, mask)?;
            let dp = b.einsum("n q h e, n k h e -> n h q k", &[g, v])?;
            let delta = b.rearrange(delta, "n q h -> n h q 1", &[])?;
            let centred = b.sub(dp, delta)?;
            let ds = b.mul(p, centred)?;
            let ds = b.mul(ds, scale)?;
            match result {
                AttentionResult::GradQ => b.einsum("n h q k, n k h d -> n q h d", &[ds, k])?,
                _ => b.einsum("n h q k, n q h d -> n k h d", &[ds, q])?,
            }
        }
        _ => return Err(OpError::new(format!("attention with {} inputs", inputs.len()))),
    };
    let shape = b.graph.shape(y).0.iter().skip(usize::from(packed)).cloned().collect();
    b.reshape(y, shape)
}

/// Below every score, and far from overflowing when scores are subtracted.
const UNSEEN: f64 = -1e30;

/// `[n, h, q]`; 0 where a query sees no key.
fn logsumexp(b: &mut Builder<'_>, scores: NodeId, mask: Option<NodeId>) -> Result {
    let seen = match mask {
        Some(mask) => {
            let unseen = b.scalar(UNSEEN)?;
            b.select(mask, scores, unseen)?
        }
        None => scores,
    };
    let top = b.reduce(ReduceKind::Max, seen, &[3], true)?;
    let top = b.bounded(top)?;
    let shifted = b.sub(seen, top)?;
    let exp = b.exp(shifted)?;
    let sum = b.reduce(ReduceKind::Sum, exp, &[3], true)?;
    let lse = b.ln(sum)?;
    let lse = b.add(lse, top)?;
    let lse = if mask.is_some() {
        let (half, zero) = (b.scalar(UNSEEN / 2.0)?, b.scalar(0.0)?);
        let any = b.lt(half, top)?;
        b.select(any, lse, zero)?
    } else {
        lse
    };
    b.reduce(ReduceKind::Sum, lse, &[3], false)
}

/// `exp(scores - lse)` where the mask holds, else 0.
fn weights(b: &mut Builder<'_>, scores: NodeId, lse: NodeId, mask: Option<NodeId>) -> Result {
    let shape = b.graph.shape(scores).clone();
    let lse = b.op(Op::Broadcast { shape, dims: vec![0, 1, 2] }, &[lse])?;
    let shifted = b.sub(scores, lse)?;
    // The exponential of what is not seen could overflow before it is dropped.
    let Some(mask) = mask else { return b.exp(shifted) };
    let (unseen, zero) = (b.scalar(UNSEEN)?, b.scalar(0.0)?);
    let shifted = b.select(mask, shifted, unseen)?;
    let p = b.exp(shifted)?;
    b.select(mask, p, zero)
}

/// Which keys each query sees, as the shape of the scores `[n, h, q, k]`; none if it sees all.
fn mask(b: &mut Builder<'_>, op: &Attention, scores: NodeId, rows: Option<NodeId>) -> Result<Option<NodeId>> {
    let shape = b.graph.shape(scores).clone();
    let (queries, keys) = (shape.size(2), shape.size(3));
    let (i, j) = (b.iota([queries, 1].into(), 0)?, b.iota([1, keys].into(), 1)?);
    let both = |b: &mut Builder<'_>, x: Option<NodeId>, y: NodeId| match x {
        Some(x) => b.and(x, y).map(Some),
        None => Ok(Some(y)),
    };
    let mut seen = None;
    // How far the last query of a sample lies behind its last key, for each query.
    let mut ahead = b.constant(keys as f64 - queries as f64, DType::I32)?;
    match (op.rows, rows) {
        (Rows::Segments, Some(rows)) => {
            let (of_q, last_q) = segment(b, rows, 0, queries)?;
            let (of_k, last_k) = segment(b, rows, 1, keys)?;
            let (of_q, of_k) = (b.reshape(of_q, [queries, 1].into())?, b.reshape(of_k, [1, keys].into())?);
            let same = b.eq(of_q, of_k)?;
            let inside = b.constant(b.graph.shape(rows).size(1) as f64 - 1.0, DType::I32)?;
            let inside = b.lt(of_q, inside)?;
            seen = both(b, seen, same)?;
            seen = both(b, seen, inside)?;
            // Ends of the segment of each query, among keys and queries.
            let ends = b.reshape(of_q, [queries].into())?;
            let (end_k, end_q) = (b.gather(last_k, ends, 0)?, b.gather(last_q, ends, 0)?);
            let distance = b.sub(end_k, end_q)?;
            ahead = b.reshape(distance, [queries, 1].into())?;
        }
        (Rows::Lengths, Some(lengths)) => {
            let (one, most) = (b.constant(1.0, DType::I32)?, b.constant(keys as f64, DType::I32)?);
            let lengths = b.max(lengths, one)?;
            let lengths = b.min(lengths, most)?;
            let lengths = b.reshape(lengths, [shape.size(0), 1, 1, 1].into())?;
            let within = b.lt(j, lengths)?;
            seen = both(b, seen, within)?;
        }
        _ => {}
    }
    if op.causal {
        let limit = b.add(i, ahead)?;
        let before = b.le(j, limit)?;
        seen = both(b, seen, before)?;
    }
    seen.map(|seen| b.broadcast_to(seen, &shape)).transpose()
}

/// The segment that each of `count` rows is of (the number of segments for rows of none), and where each segment ends.
fn segment(b: &mut Builder<'_>, rows: NodeId, of: u64, count: u64) -> Result<(NodeId, NodeId)> {
    let edges = b.graph.shape(rows).size(1);
    let ends = b.slice(rows, &[of, 1], &[of + 1, edges], &[1, 1])?;
    let ends = b.reshape(ends, [edges - 1].into())?;
    let row = b.iota([count, 1].into(), 0)?;
    let passed = b.le(ends, row)?;
    let passed = b.cast(passed, DType::I32)?;
    Ok((b.reduce(ReduceKind::Sum, passed, &[1], false)?, ends))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{interpret, verify};
    use crate::ops::cases;

    /// Of the largest result: both sides are sums of a few dozen terms in f64, in another order.
    const BOUND: f64 = 1e-13;

    #[test]
    fn expansions_equal_the_meaning_of_the_op() {
        let mut expanded = 0;
        for case in cases().iter().filter(|case| case.graph.nodes().iter().any(|n| is_semantic(&n.op))) {
            let graph = expand(&case.graph, |_| true).unwrap();
            verify(&graph).unwrap_or_else(|errors| panic!("{}: {errors}", case.name));
            assert!(!graph.nodes().iter().any(|node| is_semantic(&node.op)), "{}", case.name);
            let run = |graph| interpret(graph, &case.inputs, &case.state).unwrap().outputs["y"].clone();
            let (meaning, expansion) = (run(&case.graph), run(&graph));
            assert_eq!(meaning.ty, expansion.ty, "{}", case.name);
            let largest = meaning.data.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            for (x, y) in meaning.data.iter().zip(&expansion.data) {
                assert!((x - y).abs() <= BOUND * largest, "{}: {x} and {y}", case.name);
            }
            expanded += 1;
        }
        assert!(expanded >= 50, "{expanded} cases");
    }
}
