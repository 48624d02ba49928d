//! Attention: rows of values mixed by the softmax of scores, and the logarithm of the scores' sum of exponentials.
//!
//! One family serves self-attention and, with one head, the contrastive losses: neither ever holds the matrix of scores.
//! Rows come first, heads second, so that splitting and joining heads are reshapes.
//!
//! | tensor | dense | packed ([`Rows::Segments`]) |
//! |---|---|---|
//! | q | `[N, Lq, H, D]` | `[P, H, D]` |
//! | k | `[N, Lk, H, D]` | `[R, H, D]` |
//! | v | `[N, Lk, H, E]` | `[R, H, E]` |
//! | out, its gradient | `[N, Lq, H, E]` | `[P, H, E]` |
//! | lse, delta | F32 `[N, Lq, H]` | F32 `[P, H]` |
//!
//! With `S = scale q k^T` over the keys that a query sees: `lse = ln sum exp S`, `p = exp(S - lse)`, `out = p v`. For a
//! gradient `g` of `out` and `delta = sum(g out)` over E (Dao et al., FlashAttention, 2022, section 3.1 and appendix B):
//! `dv = p^T g`, `dS = p (g v^T - delta)`, `dq = scale dS k`, `dk = scale dS^T q`. And for a gradient `g` of `lse`:
//! `dq = g scale p k`, `dk = scale p^T (g q)`, which are members of the family again.
//!
//! Operands of 16 bits are multiplied as they are (the gradient `g` is rounded to their type), `out` is rounded to it when all
//! of it has been summed, lse, delta and gradients are f32.
//! Everything in between is f32 (exact, in the interpreter): scores, weights `p`, slopes `dS` are never rounded to fewer bits,
//! so that the order in which tiles are taken, and the maximum they are scaled by, decide nothing but roundings of f32. Where
//! a machine multiplies 16 bits alone (tensor cores), a kernel takes each weight as the sum of two numbers of 16 bits.

use alip_plan::fault::{Fault, planted};

use super::axes::{Along, Layout, No, PackedCall, Packs};
use super::cases::{Case, CaseBuilder};
use super::rounding::{Found, Rounding};
use super::{Builder, Call, Op, OpError, Primitive, Real, ReduceKind, Tensor, same_shape};
use crate::graph::{DType, NodeId, Shape, TensorType};

pub use crate::graph::{Attention, AttentionResult, Rows};

/// Number of tensors before the one that [`Rows`] asks for: q, k, and v where it matters.
fn operands(result: AttentionResult) -> usize {
    match result {
        AttentionResult::Lse | AttentionResult::GradV => 2,
        AttentionResult::Out | AttentionResult::GradQ | AttentionResult::GradK => 3,
    }
}

/// What an input of a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Q,
    K,
    V,
    /// Lengths or segments.
    Rows,
    Lse,
    G,
    Delta,
}

/// One sample or segment: its rows among queries and keys, and how many of its keys can be seen at all.
struct Segment {
    queries: std::ops::Range<usize>,
    keys: std::ops::Range<usize>,
    limit: usize,
}

impl Segment {
    /// Number of keys, from the segment's first, that its query `i` sees.
    fn seen(&self, i: usize, causal: bool) -> usize {
        let aligned = (i + 1 + self.keys.len()).saturating_sub(self.queries.len());
        if causal { self.limit.min(aligned) } else { self.limit }
    }
}

impl Attention {
    fn with(&self, result: AttentionResult) -> Op {
        Op::Attention(Attention { result, ..self.clone() })
    }

    /// What the inputs are, in order.
    pub(crate) fn roles(&self) -> Vec<Role> {
        let mut roles = vec![Role::Q, Role::K, Role::V];
        roles.truncate(operands(self.result));
        roles.extend((self.rows != Rows::Dense).then_some(Role::Rows));
        match self.result {
            AttentionResult::Out | AttentionResult::Lse => {}
            AttentionResult::GradQ | AttentionResult::GradK => roles.extend([Role::Lse, Role::G, Role::Delta]),
            AttentionResult::GradV => roles.extend([Role::Lse, Role::G]),
        }
        roles
    }

    /// The inputs of a member of the family, of which `call` is another one.
    fn inputs(&self, call: &[NodeId], tensors: &[NodeId], after: &[NodeId]) -> Vec<NodeId> {
        let rows = call.get(operands(self.result)).filter(|_| self.rows != Rows::Dense);
        tensors.iter().chain(rows).chain(after).copied().collect()
    }

    /// Dimensions before heads and width.
    pub(crate) fn lead(&self) -> usize {
        if self.rows == Rows::Segments { 1 } else { 2 }
    }

    fn check_rows(&self, q: &Shape, k: &Shape, rows: Option<&TensorType>) -> Result<(), OpError> {
        let lead = self.lead();
        if lead == 2 && q.0[0] != k.0[0] {
            return Err(super::disagree(q, k, 0, 0));
        }
        if lead == 2 && self.causal && q.size(1) > k.size(1) {
            return Err(OpError::new(format!("causal attention of {q} to {k} has queries that see no key")));
        }
        let fits = match (self.rows, rows) {
            (Rows::Dense, _) => true,
            (Rows::Lengths, Some(ty)) => ty.dtype == DType::I32 && ty.shape.sizes() == [q.size(0)],
            (Rows::Segments, Some(ty)) => {
                ty.dtype == DType::I32 && ty.shape.rank() == 2 && ty.shape.size(0) == 2 && ty.shape.size(1) >= 2
            }
            _ => false,
        };
        if fits { Ok(()) } else { Err(OpError::new(format!("`attention` over {:?} of {q} by {rows:?}", self.rows))) }
    }

    fn segments(&self, q: &Shape, k: &Shape, rows: Option<&Tensor<'_>>) -> Vec<Segment> {
        let range = |n: usize, length: usize| n * length..(n + 1) * length;
        match (self.rows, rows) {
            // Edges lie among the rows, and one that falls counts as the highest before it: segments never overlap.
            (Rows::Segments, Some(rows)) => {
                let count = rows.ty.shape.size(1) as usize;
                let edges = |row: usize, there: u64| -> Vec<usize> {
                    let clamped = rows.data[row * count..][..count].iter().map(|x| x.clamp(0.0, there as f64) as usize);
                    let rising = |most: &mut usize, edge: usize| {
                        *most = edge.max(*most);
                        Some(*most)
                    };
                    clamped.scan(0, rising).collect()
                };
                let (queries, keys) = (edges(0, q.size(0)), edges(1, k.size(0)));
                let segment = |(queries, keys): (&[usize], &[usize])| {
                    let (queries, keys) = (queries[0]..queries[1], keys[0]..keys[1]);
                    Segment { limit: keys.len(), queries, keys }
                };
                queries.windows(2).zip(keys.windows(2)).map(segment).collect()
            }
            (_, lengths) => {
                let (queries, keys) = (q.size(1) as usize, k.size(1) as usize);
                let limit = |n: usize| lengths.map_or(keys, |rows| rows.data[n].clamp(1.0, keys as f64) as usize);
                let segment = |n: usize| Segment { queries: range(n, queries), keys: range(n, keys), limit: limit(n) };
                (0..q.size(0) as usize).map(segment).collect()
            }
        }
    }
}

/// A tensor as rows of heads of numbers.
#[derive(Clone, Copy)]
struct Heads<'a> {
    data: &'a [f64],
    heads: usize,
    width: usize,
}

impl<'a> Heads<'a> {
    fn new(tensor: &Tensor<'a>, lead: usize) -> Heads<'a> {
        let sizes = tensor.ty.shape.sizes();
        let width = sizes[lead + 1..].iter().product::<u64>() as usize;
        Heads { data: tensor.data, heads: sizes[lead] as usize, width }
    }

    fn at(self, row: usize, head: usize) -> &'a [f64] {
        let start = (row * self.heads + head) * self.width;
        &self.data[start..start + self.width]
    }
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Primitive for Attention {
    fn name(&self) -> &'static str {
        match self.result {
            AttentionResult::Out => "attention",
            AttentionResult::Lse => "attention_lse",
            AttentionResult::GradQ => "attention_grad_q",
            AttentionResult::GradK => "attention_grad_k",
            AttentionResult::GradV => "attention_grad_v",
        }
    }

    fn arity(&self) -> Option<usize> {
        Some(self.roles().len())
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let (lead, tensors) = (self.lead(), operands(self.result));
        let (q, k) = (&inputs[0].shape, &inputs[1].shape);
        for ty in &inputs[..tensors] {
            if !ty.dtype.is_float() || ty.dtype != inputs[0].dtype || ty.shape.rank() != lead + 2 {
                return Err(OpError::new(format!("`{}` takes floats of rank {}, not {ty}", self.name(), lead + 2)));
            }
        }
        let rows = (self.rows != Rows::Dense).then(|| inputs[tensors]);
        self.check_rows(q, k, rows)?;
        for axis in lead..lead + 2 {
            if q.0[axis] != k.0[axis] {
                return Err(super::disagree(q, k, axis, axis));
            }
        }
        let per_query: Shape = q.0[..=lead].iter().cloned().collect();
        let after = &inputs[tensors + usize::from(rows.is_some())..];
        let (stats, g) = match (self.result, after) {
            (AttentionResult::GradV, [lse, g]) => (vec![lse], Some(g)),
            (_, [lse, g, delta]) => (vec![lse, delta], Some(g)),
            _ => (vec![], None),
        };
        for ty in stats {
            same_shape(&ty.shape, &per_query)?;
            if ty.dtype != DType::F32 {
                return Err(OpError::new(format!("`{}` keeps lse and delta in f32, not {ty}", self.name())));
            }
        }
        let wide =
            |like: &Shape, width: &Shape| -> Shape { like.0[..=lead].iter().chain(width.0.last()).cloned().collect() };
        let v = inputs[..tensors].get(2).map(|v| &v.shape);
        if let Some(v) = v {
            same_shape(&v.0[..=lead].iter().cloned().collect(), &k.0[..=lead].iter().cloned().collect())?;
        }
        if let (Some(g), Some(v)) = (g, v) {
            same_shape(&g.shape, &wide(q, v))?;
        }
        if let Some(g) = g {
            same_shape(&g.shape.0.iter().take(lead + 1).cloned().collect(), &per_query)?;
        }
        Ok(match (self.result, v, g) {
            (AttentionResult::Lse, ..) => TensorType::new(DType::F32, per_query),
            (AttentionResult::Out, Some(v), _) => TensorType::new(inputs[0].dtype, wide(q, v)),
            (AttentionResult::GradK, ..) => TensorType::new(DType::F32, k.clone()),
            (AttentionResult::GradV, _, Some(g)) => TensorType::new(DType::F32, wide(k, &g.shape)),
            _ => TensorType::new(DType::F32, q.clone()),
        })
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let (lead, tensors) = (self.lead(), operands(self.result));
        let (q, k) = (Heads::new(&inputs[0], lead), Heads::new(&inputs[1], lead));
        let v = inputs[..tensors].get(2).map(|v| Heads::new(v, lead));
        let rows = (self.rows != Rows::Dense).then(|| &inputs[tensors]);
        let after: Vec<Heads<'_>> =
            inputs[tensors + usize::from(rows.is_some())..].iter().map(|x| Heads::new(x, lead)).collect();
        let width = if self.result == AttentionResult::Lse { 1 } else { out.shape.0.last().map_or(1, |d| d.size) };
        let width = width as usize;
        let mut y = vec![0.0; out.shape.elements() as usize];
        for segment in self.segments(&inputs[0].ty.shape, &inputs[1].ty.shape, rows) {
            for (i, row) in segment.queries.clone().enumerate() {
                let keys = segment.keys.start..segment.keys.start + segment.seen(i, self.causal);
                for head in (0..q.heads).filter(|_| !keys.is_empty()) {
                    let score = |key: usize| self.scale.0 * inner(q.at(row, head), k.at(key, head));
                    let lse = after.first().map_or_else(
                        || {
                            let top = keys.clone().map(score).fold(f64::NEG_INFINITY, f64::max);
                            let top = if top.is_finite() { top } else { 0.0 };
                            top + keys.clone().map(|key| (score(key) - top).exp()).sum::<f64>().ln()
                        },
                        |lse| lse.at(row, head)[0],
                    );
                    let mut add = |to: usize, factor: f64, what: &[f64]| {
                        let start = (to * q.heads + head) * width;
                        y[start..start + width].iter_mut().zip(what).for_each(|(y, x)| *y += factor * x);
                    };
                    if self.result == AttentionResult::Lse {
                        add(row, 1.0, &[lse]);
                        continue;
                    }
                    for key in keys.clone() {
                        let p = (score(key) - lse).exp();
                        let ds = |v: Heads<'_>| {
                            self.scale.0
                                * p
                                * (inner(after[1].at(row, head), v.at(key, head)) - after[2].at(row, head)[0])
                        };
                        match (self.result, v) {
                            (AttentionResult::Out, Some(v)) => add(row, p, v.at(key, head)),
                            (AttentionResult::GradQ, Some(v)) => add(row, ds(v), k.at(key, head)),
                            (AttentionResult::GradK, Some(v)) => add(key, ds(v), q.at(row, head)),
                            _ => add(key, p, after[1].at(row, head)),
                        }
                    }
                }
            }
        }
        y
    }

    /// Gradients themselves have none.
    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, input: usize) -> Result<Option<NodeId>, OpError> {
        let (q, k) = (call.inputs[0], call.inputs[1]);
        let lead = self.lead();
        if self.result == AttentionResult::Lse {
            let shape = b.graph.shape(q).clone();
            let dtype = b.graph.ty(q).dtype;
            let spread = b.op(Op::Broadcast { shape, dims: (0..=lead).collect() }, &[g])?;
            let scale = b.scalar(self.scale.0)?;
            let spread = b.mul(spread, scale)?;
            let times = |b: &mut Builder<'_>, x: NodeId| {
                let x = b.cast(x, DType::F32)?;
                b.mul(spread, x)
            };
            return match input {
                0 => {
                    let mixed = b.op(self.with(AttentionResult::Out), &self.inputs(call.inputs, &[q, k, k], &[]))?;
                    times(b, mixed).map(Some)
                }
                1 => {
                    let upstream = times(b, q)?;
                    let upstream = b.cast(upstream, dtype)?;
                    let inputs = self.inputs(call.inputs, &[q, k], &[call.output, upstream]);
                    b.op(self.with(AttentionResult::GradV), &inputs).map(Some)
                }
                _ => Ok(None),
            };
        }
        if self.result != AttentionResult::Out {
            return Err(OpError::new(format!("`{}` cannot be differentiated: it is a gradient itself", self.name())));
        }
        if input > 2 {
            return Ok(None);
        }
        let v = call.inputs[2];
        let g = b.cast(g, b.graph.ty(q).dtype)?;
        let lse = b.op(self.with(AttentionResult::Lse), &self.inputs(call.inputs, &[q, k], &[]))?;
        if input == 2 {
            let inputs = self.inputs(call.inputs, &[q, k], &[lse, g]);
            return b.op(self.with(AttentionResult::GradV), &inputs).map(Some);
        }
        // Kept in f32 whatever the operands are of, as lse is.
        let wide = [b.cast(g, DType::F32)?, b.cast(call.output, DType::F32)?];
        let product = if planted(Fault::AttentionDeltaUnweighted) { wide[1] } else { b.mul(wide[0], wide[1])? };
        let delta = b.reduce(ReduceKind::Sum, product, &[lead + 1], false)?;
        let result = if input == 0 { AttentionResult::GradQ } else { AttentionResult::GradK };
        b.op(self.with(result), &self.inputs(call.inputs, &[q, k, v], &[lse, g, delta])).map(Some)
    }

    fn flops(&self, inputs: &[&TensorType], _: &TensorType) -> u64 {
        let (q, k) = (&inputs[0].shape, &inputs[1].shape);
        let lead = self.lead();
        let rows = match (self.rows, inputs.get(operands(self.result))) {
            (Rows::Segments, Some(rows)) => [rows.shape.size(1) - 1, q.size(0), k.size(0)],
            _ => [q.size(0), q.size(1), k.size(1)],
        };
        let wide = match self.result {
            AttentionResult::Lse | AttentionResult::GradV => inputs.last(),
            _ => inputs.get(2),
        };
        let e = wide.and_then(|ty| ty.shape.0.last()).map_or(1, |dim| dim.size);
        flops(&[self.result], self, rows, [q.size(lead), q.size(lead + 1), e])
    }

    fn along(&self, _: &[&TensorType], axis: usize) -> Result<Along, No> {
        if !matches!(self.result, AttentionResult::Out | AttentionResult::Lse) {
            return Err(No("gradients do not stand in forward graphs"));
        }
        let (heads, packed) = (self.lead(), self.rows == Rows::Segments);
        let of = |q: Option<usize>, k: Option<usize>, v: Option<usize>, rows: Option<usize>| {
            let all = [q, k, v].into_iter().take(operands(self.result));
            Ok(all.chain((self.rows != Rows::Dense).then_some(rows)).collect())
        };
        match axis {
            axis if axis == heads => of(Some(heads), Some(heads), Some(heads), None),
            axis if axis > heads => of(None, None, Some(heads + 1), None),
            _ if packed => Err(No("which rows belong together is said by their place")),
            0 => of(Some(0), Some(0), Some(0), Some(0)),
            // The lengths are per sample, not per query.
            _ if !self.causal => of(Some(1), None, None, None),
            _ => Err(No("a query sees keys by its place")),
        }
    }

    fn packs(&self, inputs: &[&TensorType], layout: Layout) -> Packs {
        let all = |ty: &&TensorType| ty.shape.sizes()[..2] == inputs[0].shape.sizes()[..2];
        match (self.result, self.rows) {
            (AttentionResult::Out, Rows::Dense) if !self.causal => {
                Packs::No("positions see later ones: the attention is not causal")
            }
            (AttentionResult::Out, Rows::Dense) if layout != Layout::FIRST || !inputs.iter().all(all) => {
                Packs::No("queries and keys of the attention are not the same positions")
            }
            (AttentionResult::Out, Rows::Dense) => Packs::Segments,
            _ => Packs::No("the attention has lengths or segments of its own, or is part of a gradient"),
        }
    }

    fn packed(&self, _: &PackedCall<'_>) -> Option<Op> {
        Some(Op::Attention(Attention { rows: Rows::Segments, ..self.clone() }))
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        r.as_expanded(self.name())
    }
}

/// Operations of some results of one call, which share what they have in common: the scores, and the products of `g` and
/// values. Sizes are samples, queries and keys of each, or segments, queries and keys of all; heads, D and E. Of packed
/// rows, whose lengths are not known here, as if all segments were of one length.
pub(crate) fn flops(
    results: &[AttentionResult],
    op: &Attention,
    [samples, queries, keys]: [u64; 3],
    [heads, d, e]: [u64; 3],
) -> u64 {
    use AttentionResult::*;
    let of_each = |rows: u64| if op.rows == Rows::Segments { rows.div_ceil(samples.max(1)) } else { rows };
    let (queries, keys) = (of_each(queries), of_each(keys));
    let unseen = if op.causal { queries.min(keys).saturating_sub(1) * queries / 2 } else { 0 };
    let pairs = samples * (queries * keys).saturating_sub(unseen) * heads;
    let any = |wanted: &[AttentionResult]| u64::from(results.iter().any(|result| wanted.contains(result)));
    let over_d = 1 + any(&[GradQ]) + any(&[GradK]);
    let over_e = any(&[Out]) + any(&[GradQ, GradK]) + any(&[GradV]);
    // Products per pair of query and key; 4 for the exponential and its neighbours.
    pairs * (2 * d * over_d + 2 * e * over_e + 4)
}

pub(super) fn cases() -> Vec<Case> {
    use AttentionResult::*;
    let mut cases = Vec::new();
    /// N, Lq, Lk (packed: segments, P, R), and heads, D, E.
    type Sizes = ([u64; 3], [u64; 3]);
    let table: [(&str, Rows, bool, Sizes); 8] = [
        ("dense", Rows::Dense, false, ([2, 5, 5], [3, 4, 4])),
        ("bf16", Rows::Dense, true, ([2, 5, 5], [2, 4, 4])),
        ("causal", Rows::Dense, true, ([2, 6, 6], [2, 4, 4])),
        ("one_query", Rows::Dense, true, ([3, 1, 7], [2, 4, 3])),
        ("one_head", Rows::Dense, false, ([1, 9, 11], [1, 16, 16])),
        ("lengths", Rows::Lengths, false, ([3, 1, 7], [2, 4, 4])),
        ("segments", Rows::Segments, true, ([3, 14, 14], [2, 4, 4])),
        ("segments_one_query", Rows::Segments, true, ([3, 3, 14], [2, 4, 5])),
    ];
    for (label, rows, causal, ([n, queries, keys], [heads, d, e])) in table {
        for result in [Out, Lse, GradQ, GradK, GradV] {
            let op = Attention { result, rows, causal, scale: Real(0.5) };
            let mut case = CaseBuilder::new(&format!("{}_{label}", op.name()));
            let shape = |rows_there: u64, tail: &[u64]| -> TensorType {
                let lead: &[u64] = if rows == Rows::Segments { &[rows_there] } else { &[n, rows_there] };
                // What is one number per query and head is f32.
                let dtype = if label == "bf16" && tail.len() == 2 { DType::Bf16 } else { DType::F32 };
                TensorType::new(dtype, [lead, tail].concat().into_iter().collect::<Shape>())
            };
            let mut inputs = vec![
                case.uniform_of("q", shape(queries, &[heads, d]), -1.0, 1.0),
                case.uniform_of("k", shape(keys, &[heads, d]), -1.0, 1.0),
            ];
            if operands(result) == 3 {
                inputs.push(case.uniform_of("v", shape(keys, &[heads, e]), -1.0, 1.0));
            }
            match rows {
                Rows::Dense => {}
                Rows::Lengths => inputs.push(case.integers_of("lengths", [n].into(), 1, keys as i32 + 1)),
                // Three segments, one of a single row, and a rest that belongs to none.
                Rows::Segments => {
                    let of_keys = [0.0, 5.0, 6.0, 12.0];
                    let of_queries = if queries == keys { of_keys } else { [0.0, 1.0, 2.0, 3.0] };
                    let ty = TensorType::new(DType::I32, [2, 4]);
                    inputs.push(case.input("segments", ty, [of_queries, of_keys].concat()));
                }
            }
            if result != Out && result != Lse {
                // Larger than any score, so that p stays below 1.
                inputs.push(case.uniform_of("lse", shape(queries, &[heads]), 2.0, 3.0));
                inputs.push(case.uniform_of("g", shape(queries, &[heads, e]), -1.0, 1.0));
            }
            if result == GradQ || result == GradK {
                inputs.push(case.uniform_of("delta", shape(queries, &[heads]), -1.0, 1.0));
            }
            cases.push(case.op(Op::Attention(op), &inputs));
        }
    }
    cases
}
