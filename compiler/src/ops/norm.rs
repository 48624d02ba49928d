//! Normalisations along dimensions, and the losses made of them, with the gradients that an expert writes.
//!
//! | op | meaning along `axes` | gradient for an upstream `g` |
//! |---|---|---|
//! | `softmax` | `y = exp(x) / sum exp(x)` | `y (g - sum(g y))` |
//! | `logsumexp` | `ln sum exp(x)` | `g exp(x - logsumexp(x))` |
//! | `layer_norm` | `y = (x - mean) / sqrt(variance + eps)`, biased variance | `(g - mean(g) - y mean(g y)) / sqrt(variance + eps)` |
//! | `cross_entropy` | `logsumexp(x) - x[target]` over the last dimension | `g (softmax(x) - (i == target))` |
//!
//! None of them is what a spec says: `lift` finds them. Before kernels are made they become primitives again
//! ([`crate::transform::expand`]); what a gradient shares with the forward part is written by the functions here in the
//! same way for both, so that it is computed once.

use super::axes::{self, Along, Layout, No, PackedCall, Packs};
use super::cases::{Case, CaseBuilder};
use super::rounding::Rounding;
use super::{Builder, Call, Op, OpError, Primitive, Real, ReduceKind, Tensor, disagree, strided};
use crate::graph::{DType, NodeId, Shape, TensorType};

pub(super) struct Softmax<'a> {
    pub(super) axes: &'a [usize],
}

pub(super) struct LogSumExp<'a> {
    pub(super) axes: &'a [usize],
}

pub(super) struct LayerNorm<'a> {
    pub(super) axes: &'a [usize],
    pub(super) eps: Real,
}

pub(super) struct CrossEntropy;

type Result<T = NodeId> = std::result::Result<T, OpError>;

fn kept(rank: usize, axes: &[usize]) -> Vec<usize> {
    (0..rank).filter(|axis| !axes.contains(axis)).collect()
}

fn check(name: &str, x: &TensorType, axes: &[usize]) -> Result<()> {
    if !x.dtype.is_float() {
        return Err(OpError::new(format!("`{name}` takes floats, not {x}")));
    }
    let sorted = axes.is_sorted_by(|a, b| a < b) && axes.iter().all(|axis| *axis < x.shape.rank());
    if axes.is_empty() || !sorted {
        return Err(OpError::new(format!("`{name}` of {x} along the dimensions {axes:?}")));
    }
    Ok(())
}

/// Applies a function to each row along `axes`; the rows it makes have `length(row)` elements.
fn rows(x: &Tensor<'_>, axes: &[usize], f: impl FnMut(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let shape = &x.ty.shape;
    let perm = [kept(shape.rank(), axes), axes.to_vec()].concat();
    let data = strided::permuted(x.data, shape, &perm);
    let length: usize = axes.iter().map(|axis| shape.size(*axis) as usize).product();
    data.chunks(length).flat_map(f).collect()
}

/// Rows along `axes` back to the shape they were taken from.
fn unrolled(rows: &[f64], shape: &Shape, axes: &[usize]) -> Vec<f64> {
    let perm = [kept(shape.rank(), axes), axes.to_vec()].concat();
    let rolled: Shape = perm.iter().map(|axis| shape.0[*axis]).collect();
    let mut inverse = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(to, from)| inverse[*from] = to);
    strided::permuted(rows, &rolled, &inverse)
}

fn logsumexp_of(row: &[f64]) -> f64 {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // A row of infinities has nothing to subtract.
    let top = if top.is_finite() { top } else { 0.0 };
    libm::log(row.iter().map(|x| libm::exp(x - top)).sum()) + top
}

/// What was reduced along `axes`, repeated along them as `like` has them.
pub(crate) fn spread(b: &mut Builder<'_>, y: NodeId, like: NodeId, axes: &[usize]) -> Result {
    let shape = b.graph.shape(like).clone();
    let dims = kept(shape.rank(), axes);
    b.op(Op::Broadcast { shape, dims }, &[y])
}

/// `x - mean(x)` and `1 / sqrt(variance(x) + eps)`, the latter without `axes`.
pub(crate) fn statistics(b: &mut Builder<'_>, x: NodeId, axes: &[usize], eps: Real) -> Result<(NodeId, NodeId)> {
    let mean = b.mean(x, axes, false)?;
    let mean = spread(b, mean, x, axes)?;
    let centred = b.sub(x, mean)?;
    let square = b.mul(centred, centred)?;
    let variance = b.mean(square, axes, false)?;
    let eps = b.scalar(eps.0)?;
    let variance = b.add(variance, eps)?;
    let deviation = b.sqrt(variance)?;
    let one = b.scalar(1.0)?;
    Ok((centred, b.div(one, deviation)?))
}

/// The targets of a cross entropy, within the classes as [`Op::Gather`] takes them, compared with each class.
fn hits(b: &mut Builder<'_>, logits: NodeId, target: NodeId) -> Result {
    let shape = b.graph.shape(logits).clone();
    let last = shape.rank() - 1;
    let (zero, most) = (b.constant(0.0, DType::I32)?, b.constant(shape.size(last) as f64 - 1.0, DType::I32)?);
    let target = b.max(target, zero)?;
    let target = b.min(target, most)?;
    let target = spread(b, target, logits, &[last])?;
    let class = b.iota(shape, last)?;
    b.eq(class, target)
}

impl Primitive for Softmax<'_> {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn arity(&self) -> Option<usize> {
        Some(1)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType> {
        check("softmax", inputs[0], self.axes)?;
        Ok(inputs[0].clone())
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let rows = rows(&inputs[0], self.axes, |row| {
            // Not by the logsumexp, which for a row of large numbers is not exact enough to be subtracted.
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = row.iter().map(|x| libm::exp(x - top)).collect();
            let sum: f64 = e.iter().sum();
            e.iter().map(|e| e / sum).collect()
        });
        unrolled(&rows, &out.shape, self.axes)
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, _: usize) -> Result<Option<NodeId>> {
        let product = b.mul(g, call.output)?;
        let sum = b.reduce(ReduceKind::Sum, product, self.axes, false)?;
        let sum = spread(b, sum, g, self.axes)?;
        let centred = b.sub(g, sum)?;
        b.mul(call.output, centred).map(Some)
    }

    fn flops(&self, inputs: &[&TensorType], _: &TensorType) -> u64 {
        5 * inputs[0].shape.elements()
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> std::result::Result<Along, No> {
        if self.axes.contains(&axis) { Err(No("a distribution runs along it")) } else { axes::all(inputs, axis) }
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        Some(Op::Softmax { axes: call.axes(self.axes) })
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Result<Option<NodeId>> {
        r.as_expanded(self.name())
    }
}

impl Primitive for LogSumExp<'_> {
    fn name(&self) -> &'static str {
        "logsumexp"
    }

    fn arity(&self) -> Option<usize> {
        Some(1)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType> {
        let x = inputs[0];
        check("logsumexp", x, self.axes)?;
        let shape: Shape = kept(x.shape.rank(), self.axes).iter().map(|axis| x.shape.0[*axis]).collect();
        Ok(TensorType::new(x.dtype, shape))
    }

    fn eval(&self, inputs: &[Tensor<'_>], _: &TensorType) -> Vec<f64> {
        rows(&inputs[0], self.axes, |row| vec![logsumexp_of(row)])
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, _: usize) -> Result<Option<NodeId>> {
        let x = call.inputs[0];
        let lse = spread(b, call.output, x, self.axes)?;
        let shifted = b.sub(x, lse)?;
        let p = b.exp(shifted)?;
        let g = spread(b, g, x, self.axes)?;
        b.mul(g, p).map(Some)
    }

    fn flops(&self, inputs: &[&TensorType], _: &TensorType) -> u64 {
        4 * inputs[0].shape.elements()
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> std::result::Result<Along, No> {
        axes::kept(inputs, self.axes, axis)
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        Some(Op::LogSumExp { axes: call.axes(self.axes) })
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Result<Option<NodeId>> {
        r.as_expanded(self.name())
    }
}

impl Primitive for LayerNorm<'_> {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn arity(&self) -> Option<usize> {
        Some(1)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType> {
        check("layer_norm", inputs[0], self.axes)?;
        Ok(inputs[0].clone())
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let rows = rows(&inputs[0], self.axes, |row| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / row.len() as f64;
            let deviation = libm::sqrt(variance + self.eps.0);
            row.iter().map(|x| (x - mean) / deviation).collect()
        });
        unrolled(&rows, &out.shape, self.axes)
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, _: usize) -> Result<Option<NodeId>> {
        let x = call.inputs[0];
        // As in the expansion of the forward part, with which it is shared: mean and deviation per row are all that has to
        // be kept beside x.
        let (centred, scale) = statistics(b, x, self.axes, self.eps)?;
        let scale = spread(b, scale, x, self.axes)?;
        let y = b.mul(centred, scale)?;
        let mean = b.mean(g, self.axes, false)?;
        let mean = spread(b, mean, x, self.axes)?;
        let product = b.mul(g, y)?;
        let along = b.mean(product, self.axes, false)?;
        let along = spread(b, along, x, self.axes)?;
        let along = b.mul(y, along)?;
        let rest = b.sub(g, mean)?;
        let rest = b.sub(rest, along)?;
        b.mul(rest, scale).map(Some)
    }

    fn flops(&self, inputs: &[&TensorType], _: &TensorType) -> u64 {
        6 * inputs[0].shape.elements()
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> std::result::Result<Along, No> {
        if self.axes.contains(&axis) {
            Err(No("its elements are normalised together"))
        } else {
            axes::all(inputs, axis)
        }
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        Some(Op::LayerNorm { axes: call.axes(self.axes), eps: self.eps })
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Result<Option<NodeId>> {
        r.as_expanded(self.name())
    }
}

impl Primitive for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn arity(&self) -> Option<usize> {
        Some(2)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType> {
        let (x, target) = (inputs[0], inputs[1]);
        let rank = x.shape.rank();
        if rank == 0 || target.shape.rank() + 1 != rank || target.dtype != DType::I32 {
            return Err(OpError::new(format!("`cross_entropy` of {x} takes i32 targets, not {target}")));
        }
        check("cross_entropy", x, &[rank - 1])?;
        match (0..rank - 1).find(|axis| x.shape.0[*axis] != target.shape.0[*axis]) {
            Some(axis) => Err(disagree(&x.shape, &target.shape, axis, axis)),
            None => Ok(TensorType::new(x.dtype, target.shape.clone())),
        }
    }

    fn eval(&self, inputs: &[Tensor<'_>], _: &TensorType) -> Vec<f64> {
        let (x, target) = (&inputs[0], &inputs[1]);
        let classes = x.data.len() / target.data.len();
        let loss =
            |(row, target): (&[f64], &f64)| logsumexp_of(row) - row[target.clamp(0.0, classes as f64 - 1.0) as usize];
        x.data.chunks(classes).zip(target.data).map(loss).collect()
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, input: usize) -> Result<Option<NodeId>> {
        if input > 0 {
            return Ok(None);
        }
        let (x, target) = (call.inputs[0], call.inputs[1]);
        let last = [b.graph.shape(x).rank() - 1];
        let lse = b.op(Op::LogSumExp { axes: last.to_vec() }, &[x])?;
        let lse = spread(b, lse, x, &last)?;
        let shifted = b.sub(x, lse)?;
        let p = b.exp(shifted)?;
        let hits = hits(b, x, target)?;
        let hits = b.cast(hits, b.graph.ty(x).dtype)?;
        let rest = b.sub(p, hits)?;
        let g = spread(b, g, x, &last)?;
        b.mul(g, rest).map(Some)
    }

    fn flops(&self, inputs: &[&TensorType], _: &TensorType) -> u64 {
        4 * inputs[0].shape.elements()
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> std::result::Result<Along, No> {
        axes::all(inputs, axis)
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Result<Option<NodeId>> {
        r.as_expanded(self.name())
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let axes: [(&str, &[usize]); 4] = [("last", &[2]), ("first", &[0]), ("outer", &[0, 2]), ("all", &[0, 1, 2])];
    for (label, axes) in axes {
        let ops = [
            Op::Softmax { axes: axes.to_vec() },
            Op::LogSumExp { axes: axes.to_vec() },
            Op::LayerNorm { axes: axes.to_vec(), eps: Real(1e-5) },
        ];
        for op in ops {
            let mut case = CaseBuilder::new(&format!("{}_{label}", op.name()));
            let x = case.uniform("x", [3, 4, 5], -2.0, 2.0);
            cases.push(case.op(op, &[x]));
        }
    }
    let mut case = CaseBuilder::new("layer_norm_large_eps");
    let x = case.uniform("x", [4, 7], -2.0, 2.0);
    cases.push(case.op(Op::LayerNorm { axes: vec![1], eps: Real(0.5) }, &[x]));
    let mut case = CaseBuilder::new("cross_entropy_rows");
    let x = case.uniform("x", [6, 5], -2.0, 2.0);
    let target = case.integers("target", [6], 0, 5);
    cases.push(case.op(Op::CrossEntropy, &[x, target]));
    let mut case = CaseBuilder::new("cross_entropy_tokens_clamped");
    let x = case.uniform("x", [2, 3, 4], -2.0, 2.0);
    let target = case.input("target", TensorType::new(DType::I32, [2, 3]), vec![-1.0, 0.0, 3.0, 9.0, 2.0, 1.0]);
    cases.push(case.op(Op::CrossEntropy, &[x, target]));
    cases
}
