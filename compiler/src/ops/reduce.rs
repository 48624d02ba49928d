//! Reductions along dimensions.

use alip_plan::fault::{Fault, planted};

use super::axes::{self, Along, Layout, No, PackedCall, Packs};
use super::cases::{Case, CaseBuilder};
use super::rounding::{Found, Rounding};
use super::{Builder, Call, Op, OpError, Primitive, ReduceKind, Tensor, strided};
use crate::graph::{DType, NodeId, Shape, TensorType};

pub(super) struct Reduce<'a> {
    pub(super) kind: ReduceKind,
    pub(super) axes: &'a [usize],
}

impl Reduce<'_> {
    fn kept(&self, rank: usize) -> Vec<usize> {
        (0..rank).filter(|axis| !self.axes.contains(axis)).collect()
    }

    /// Whether an integer may be another one.
    fn choice(&self, r: &mut Rounding<'_, '_>) -> Found {
        let Some(e) = r.e[0] else { return Ok(None) };
        if self.kind != ReduceKind::ArgMax || !r.of_floats() {
            return r.any(e, self.axes, 0.0);
        }
        // Whether another element than the largest one may be the largest.
        let (e, lost) = r.reach(e)?;
        let (low, high) = (r.b.sub(r.x[0], e)?, r.b.add(r.x[0], e)?);
        let (least, most) = (r.b.scalar(f64::NEG_INFINITY)?, r.b.scalar(f64::INFINITY)?);
        let (low, high) = (r.b.select(lost, least, low)?, r.b.select(lost, most, high)?);
        let best = r.b.reduce(ReduceKind::Max, low, self.axes, true)?;
        let rival = r.b.le(best, high)?;
        r.any(rival, self.axes, 1.0)
    }

    /// A tensor of the result's shape, repeated along the reduced dimensions.
    fn spread(&self, b: &mut Builder<'_>, y: NodeId, like: NodeId) -> Result<NodeId, OpError> {
        let shape = b.graph.shape(like).clone();
        let dims = self.kept(shape.rank());
        b.op(Op::Broadcast { shape, dims }, &[y])
    }
}

impl Primitive for Reduce<'_> {
    fn name(&self) -> &'static str {
        match self.kind {
            ReduceKind::Sum => "sum",
            ReduceKind::Prod => "prod",
            ReduceKind::Max => "reduce_max",
            ReduceKind::Min => "reduce_min",
            ReduceKind::ArgMax => "argmax",
        }
    }

    fn arity(&self) -> Option<usize> {
        Some(1)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let x = inputs[0];
        if x.dtype == DType::Bool {
            return Err(OpError::new(format!("`{}` takes numbers, not {x}", self.name()))
                .help("cast it first: `cast(x, 'f32')`"));
        }
        if let Some(axis) = self.axes.iter().find(|axis| **axis >= x.shape.rank()) {
            return Err(OpError::new(format!("`{}` along dimension {axis}, but {} has none", self.name(), x.shape)));
        }
        if !self.axes.is_sorted_by(|a, b| a < b) {
            return Err(OpError::new(format!("`{}` names a dimension twice: {:?}", self.name(), self.axes)));
        }
        if self.kind == ReduceKind::ArgMax && self.axes.len() != 1 {
            return Err(OpError::new(format!("`argmax` takes one axis, not {}", self.axes.len())));
        }
        let shape: Shape = self.kept(x.shape.rank()).iter().map(|axis| x.shape.0[*axis]).collect();
        let dtype = if self.kind == ReduceKind::ArgMax { DType::I32 } else { x.dtype };
        Ok(TensorType::new(dtype, shape))
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let shape = &inputs[0].ty.shape;
        let mut perm = self.kept(shape.rank());
        perm.extend(self.axes);
        let data = strided::permuted(inputs[0].data, shape, &perm);
        let row = data.len() / out.shape.elements() as usize;
        let larger = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
        let reduce = |row: &[f64]| match self.kind {
            ReduceKind::Sum => row.iter().sum(),
            ReduceKind::Prod => row.iter().product(),
            ReduceKind::Max => row.iter().copied().fold(f64::NEG_INFINITY, |best, x| larger(x, best)),
            ReduceKind::Min => -row.iter().fold(f64::NEG_INFINITY, |best, x| larger(-x, best)),
            // NaN is passed over, whether it comes first or last.
            ReduceKind::ArgMax => {
                let first = (0, f64::NEG_INFINITY);
                row.iter().enumerate().fold(first, |best, (i, x)| if *x > best.1 { (i, *x) } else { best }).0 as f64
            }
        };
        // Sums and products of integers wrap around.
        let reduce_i32 = |row: &[f64]| match self.kind {
            ReduceKind::Sum => f64::from(row.iter().fold(0_i32, |sum, x| sum.wrapping_add(*x as i32))),
            ReduceKind::Prod => f64::from(row.iter().fold(1_i32, |product, x| product.wrapping_mul(*x as i32))),
            _ => reduce(row),
        };
        let integers = inputs[0].ty.dtype == DType::I32;
        data.chunks(row.max(1)).map(|row| if integers { reduce_i32(row) } else { reduce(row) }).collect()
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, _: usize) -> Result<Option<NodeId>, OpError> {
        let (x, y) = (call.inputs[0], call.output);
        let g = self.spread(b, g, x)?;
        match self.kind {
            ReduceKind::Sum => Ok(Some(g)),
            ReduceKind::ArgMax => Ok(None),
            // Shared equally among the elements that attain the extremum.
            ReduceKind::Max | ReduceKind::Min => {
                let y = self.spread(b, y, x)?;
                let hit = if planted(Fault::MaxGradientEverywhere) { b.le(y, y)? } else { b.eq(x, y)? };
                let ones = b.cast(hit, b.graph.ty(x).dtype)?;
                let count = b.reduce(ReduceKind::Sum, ones, self.axes, false)?;
                let count = self.spread(b, count, x)?;
                let share = b.div(g, count)?;
                // Not a product: an infinite gradient does not reach the others.
                let zero = b.scalar(0.0)?;
                b.select(hit, share, zero).map(Some)
            }
            // The product of the others. Dividing by x would be wrong at zeros: a row with one zero has a gradient there
            // and nowhere else, a row with two has none.
            ReduceKind::Prod => {
                let (zero, one) = (b.scalar(0.0)?, b.scalar(1.0)?);
                let is_zero = b.eq(x, zero)?;
                let filled = b.select(is_zero, one, x)?;
                let product = b.reduce(ReduceKind::Prod, filled, self.axes, false)?;
                let product = self.spread(b, product, x)?;
                let zeros = b.cast(is_zero, b.graph.ty(x).dtype)?;
                let count = b.reduce(ReduceKind::Sum, zeros, self.axes, false)?;
                let count = self.spread(b, count, x)?;
                // Zeros among the other elements of the row.
                let others = b.sub(count, zeros)?;
                let alone = b.eq(others, zero)?;
                let quotient = b.div(product, filled)?;
                let share = b.mul(g, quotient)?;
                b.select(alone, share, zero).map(Some)
            }
        }
    }

    fn flops(&self, inputs: &[&TensorType], _: &TensorType) -> u64 {
        inputs[0].shape.elements()
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        axes::kept(inputs, self.axes, axis)
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        Some(Op::Reduce { kind: self.kind, axes: call.axes(self.axes) })
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        if !r.is_float() {
            return self.choice(r);
        }
        let terms = r.terms();
        let like = |kind| Op::Reduce { kind, axes: self.axes.to_vec() };
        match self.kind {
            ReduceKind::Sum => {
                let carried = r.e[0].map(|e| r.b.op(like(self.kind), &[e])).transpose()?;
                let magnitude = r.b.abs(r.x[0])?;
                let magnitude = r.b.op(like(self.kind), &[magnitude])?;
                r.plus(carried, magnitude, terms as f64)
            }
            // prod(|x| + e) - prod(|x|), and a rounding for each factor.
            ReduceKind::Prod => {
                let magnitude = r.b.abs(r.x[0])?;
                let least = r.b.op(like(self.kind), &[magnitude])?;
                let Some(e) = r.e[0] else { return r.plus(None, least, terms as f64) };
                let reach = r.b.add(magnitude, e)?;
                let most = r.b.op(like(self.kind), &[reach])?;
                let carried = r.b.sub(most, least)?;
                r.plus(Some(carried), most, terms as f64)
            }
            _ => r.e[0].map(|e| r.b.op(like(ReduceKind::Max), &[e])).transpose(),
        }
    }
}

pub(super) fn cases() -> Vec<Case> {
    use ReduceKind::*;
    let mut cases = Vec::new();
    for kind in [Sum, Prod, Max, Min] {
        for (label, axes) in
            [("last", vec![2]), ("first", vec![0]), ("middle", vec![1]), ("outer", vec![0, 2]), ("all", vec![0, 1, 2])]
        {
            let mut case = CaseBuilder::new(&format!("reduce_{kind:?}_{label}").to_lowercase());
            let x = case.uniform("x", [3, 4, 5], -1.5, 1.5);
            cases.push(case.op(Op::Reduce { kind, axes }, &[x]));
        }
    }
    for kind in [Max, Min] {
        let mut case = CaseBuilder::new(&format!("reduce_{kind:?}_ties").to_lowercase());
        let x = case.input("x", TensorType::f32([2, 3]), vec![0.5, 1.25, 1.25, -1.0, -1.0, 3.0]);
        cases.push(case.op(Op::Reduce { kind, axes: vec![1] }, &[x]));
    }
    let mut case = CaseBuilder::new("reduce_prod_zeros");
    let x = case.input("x", TensorType::f32([3, 3]), vec![0.5, 0.0, 1.25, 0.0, -1.0, 0.0, 2.0, 3.0, 0.5]);
    cases.push(case.op(Op::Reduce { kind: Prod, axes: vec![1] }, &[x]));
    for (label, axis) in [("last", 2), ("first", 0)] {
        let mut case = CaseBuilder::new(&format!("argmax_{label}"));
        let x = case.uniform("x", [3, 4, 5], -1.0, 1.0);
        cases.push(case.op(Op::Reduce { kind: ArgMax, axes: vec![axis] }, &[x]));
    }
    let mut case = CaseBuilder::new("argmax_first_of_equal");
    let x = case.integers("x", [4, 7], 0, 3);
    cases.push(case.op(Op::Reduce { kind: ArgMax, axes: vec![1] }, &[x]));
    let mut case = CaseBuilder::new("reduce_sum_long_row");
    let x = case.uniform("x", [2, 1500], -1.0, 1.0);
    cases.push(case.op(Op::Reduce { kind: Sum, axes: vec![1] }, &[x]));
    let mut case = CaseBuilder::new("reduce_sum_i32");
    let x = case.integers("x", [4, 7], -9, 9);
    cases.push(case.op(Op::Reduce { kind: Sum, axes: vec![1] }, &[x]));
    // Beyond what f64 counts, and beyond I32 on the way.
    for kind in [Sum, Prod] {
        let mut case = CaseBuilder::new(&format!("reduce_{kind:?}_wraps").to_lowercase());
        let row = |first: f64, rest: f64| [vec![first], vec![rest; 39]].concat();
        let values = [row(7.0, 3.0), row(-1.0, f64::from(i32::MAX)), row(5.0, -46_341.0)].concat();
        let x = case.input("x", TensorType::new(DType::I32, [3, 40]), values);
        cases.push(case.op(Op::Reduce { kind, axes: vec![1] }, &[x]));
    }
    cases
}
