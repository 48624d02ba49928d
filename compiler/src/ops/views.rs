//! Ops that move elements without computing: reshape, transpose, broadcast, slice, pad, concat.

use alip_plan::fault::{Fault, planted};

use super::axes::{self, Along, Layout, No, PackedCall, Packs};
use super::cases::{Case, CaseBuilder};
use super::rounding::{Found, Rounding};
use super::{Builder, Call, Op, OpError, Primitive, ReduceKind, Tensor, disagree, strided};
use crate::graph::{Dim, NodeId, Shape, TensorType};

pub(super) struct Reshape<'a> {
    pub(super) shape: &'a Shape,
}

impl Primitive for Reshape<'_> {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn arity(&self) -> Option<usize> {
        Some(1)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let x = &inputs[0].shape;
        if self.shape.checked_elements() != Some(x.elements()) {
            let message = match self.shape.checked_elements() {
                Some(n) => format!("{x} has {} elements, {} has {n}", x.elements(), self.shape),
                None => format!("{} has more than 2^40 elements", self.shape),
            };
            return Err(OpError::new(message));
        }
        Ok(TensorType::new(inputs[0].dtype, self.shape.clone()))
    }

    fn eval(&self, inputs: &[Tensor<'_>], _: &TensorType) -> Vec<f64> {
        inputs[0].data.to_vec()
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, _: usize) -> Result<Option<NodeId>, OpError> {
        let shape = b.graph.shape(call.inputs[0]).clone();
        b.reshape(g, shape).map(Some)
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        match axes::same_place(&inputs[0].shape, self.shape, axis) {
            Some(place) => axes::all(inputs, place),
            None => Err(No("the dimension is split or merged")),
        }
    }

    fn resized(&self, axis: usize, size: u64) -> Option<Op> {
        Some(Op::Reshape { shape: axes::with_size(self.shape, axis, size) })
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        Some(Op::Reshape { shape: call.shape.clone() })
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        r.moved(Op::Reshape { shape: self.shape.clone() })
    }
}

pub(super) struct Transpose<'a> {
    pub(super) perm: &'a [usize],
}

impl Primitive for Transpose<'_> {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn arity(&self) -> Option<usize> {
        Some(1)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let x = &inputs[0].shape;
        let mut sorted = self.perm.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..x.rank()) {
            return Err(OpError::new(format!("{:?} is not an order of the {} dimensions of {x}", self.perm, x.rank())));
        }
        let shape: Shape = self.perm.iter().map(|axis| x.0[*axis]).collect();
        Ok(TensorType::new(inputs[0].dtype, shape))
    }

    fn eval(&self, inputs: &[Tensor<'_>], _: &TensorType) -> Vec<f64> {
        strided::permuted(inputs[0].data, &inputs[0].ty.shape, self.perm)
    }

    fn vjp(&self, b: &mut Builder<'_>, _: Call<'_>, g: NodeId, _: usize) -> Result<Option<NodeId>, OpError> {
        let mut inverse = vec![0; self.perm.len()];
        for (to, from) in self.perm.iter().enumerate() {
            inverse[*from] = to;
        }
        b.transpose(g, &inverse).map(Some)
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        axes::all(inputs, self.perm[axis])
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        Some(Op::Transpose { perm: call.axes(self.perm) })
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        r.moved(Op::Transpose { perm: self.perm.to_vec() })
    }
}

pub(super) struct Broadcast<'a> {
    pub(super) shape: &'a Shape,
    pub(super) dims: &'a [usize],
}

impl Primitive for Broadcast<'_> {
    fn name(&self) -> &'static str {
        "broadcast"
    }

    fn arity(&self) -> Option<usize> {
        Some(1)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let x = &inputs[0].shape;
        let ordered = self.dims.is_sorted_by(|a, b| a < b) && self.dims.iter().all(|axis| *axis < self.shape.rank());
        if self.dims.len() != x.rank() || !ordered {
            let message = format!("`broadcast` of {x} to {} sends its dimensions to {:?}", self.shape, self.dims);
            return Err(OpError::new(message));
        }
        for (from, to) in self.dims.iter().enumerate() {
            if x.size(from) != 1 && x.size(from) != self.shape.size(*to) {
                return Err(disagree(x, self.shape, from, *to));
            }
        }
        Ok(TensorType::new(inputs[0].dtype, self.shape.clone()))
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let x = &inputs[0].ty.shape;
        let mut strides = vec![0; out.shape.rank()];
        for (from, stride) in strided::strides(x).into_iter().enumerate() {
            strides[self.dims[from]] = if x.size(from) == 1 { 0 } else { stride };
        }
        strided::read(inputs[0].data, &strided::sizes(&out.shape), 0, &strides)
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, _: usize) -> Result<Option<NodeId>, OpError> {
        let x = b.graph.shape(call.inputs[0]).clone();
        let repeats = |axis: &usize| match self.dims.iter().position(|to| to == axis) {
            Some(from) => x.size(from) != self.shape.size(*axis),
            None => true,
        };
        let axes: Vec<usize> = (0..self.shape.rank()).filter(repeats).collect();
        let sum = b.reduce(ReduceKind::Sum, g, &axes, false)?;
        b.reshape(sum, x).map(Some)
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        let from = self.dims.iter().position(|to| *to == axis);
        let repeats = |from: &usize| inputs[0].shape.size(*from) != self.shape.size(axis);
        Ok(Along::from_slice(&[from.filter(|from| !repeats(from))]))
    }

    fn resized(&self, axis: usize, size: u64) -> Option<Op> {
        Some(Op::Broadcast { shape: axes::with_size(self.shape, axis, size), dims: self.dims.to_vec() })
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Repeats
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        r.moved(Op::Broadcast { shape: self.shape.clone(), dims: self.dims.to_vec() })
    }
}

pub(super) struct Slice<'a> {
    pub(super) start: &'a [u64],
    pub(super) end: &'a [u64],
    pub(super) step: &'a [u64],
}

impl Primitive for Slice<'_> {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn arity(&self) -> Option<usize> {
        Some(1)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let x = &inputs[0].shape;
        let (start, end, step) = (self.start, self.end, self.step);
        if [start.len(), end.len(), step.len()] != [x.rank(); 3] {
            return Err(OpError::new(format!("a slice of {x} takes {} ranges, not {}", x.rank(), start.len())));
        }
        let mut shape = Shape::scalar();
        for axis in 0..x.rank() {
            let (start, end, step) = (start[axis], end[axis], step[axis]);
            if start >= end || end > x.size(axis) {
                let message =
                    format!("the slice {start}:{end} does not lie in dimension {axis} ({}) of {x}", x.0[axis]);
                return Err(OpError::new(message));
            }
            if step == 0 {
                return Err(OpError::new(format!("the slice of dimension {axis} of {x} has step 0")));
            }
            let whole = (start, end, step) == (0, x.size(axis), 1);
            shape.0.push(if whole { x.0[axis] } else { (end - start).div_ceil(step).into() });
        }
        Ok(TensorType::new(inputs[0].dtype, shape))
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let all = strided::strides(&inputs[0].ty.shape);
        let offset = all.iter().zip(self.start).map(|(stride, start)| stride * *start as usize).sum();
        let strides: Vec<usize> = all.iter().zip(self.step).map(|(stride, step)| stride * *step as usize).collect();
        strided::read(inputs[0].data, &strided::sizes(&out.shape), offset, &strides)
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, _: usize) -> Result<Option<NodeId>, OpError> {
        let (x, y) = (b.graph.shape(call.inputs[0]).sizes(), b.graph.shape(call.output).sizes());
        let interior: Vec<u64> = self.step.iter().map(|step| step - 1).collect();
        let mut low = self.start.to_vec();
        let mut high: Vec<u64> =
            (0..x.len()).map(|axis| x[axis] - (self.start[axis] + (y[axis] - 1) * self.step[axis] + 1)).collect();
        if planted(Fault::SliceGradientShifted) {
            low.iter_mut().zip(&mut high).for_each(|(low, high)| (*low, *high) = (*high, *low));
        }
        b.op(Op::Pad { low, high, interior }, &[g]).map(Some)
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        let whole = (self.start[axis], self.end[axis], self.step[axis]) == (0, inputs[0].shape.size(axis), 1);
        if whole { axes::all(inputs, axis) } else { Err(No("it picks positions there")) }
    }

    fn resized(&self, axis: usize, size: u64) -> Option<Op> {
        let mut end = self.end.to_vec();
        end[axis] = size;
        Some(Op::Slice { start: self.start.to_vec(), end, step: self.step.to_vec() })
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        let (start, end) = (call.per_axis(self.start, 0), call.per_axis(self.end, call.rows()));
        Some(Op::Slice { start, end, step: call.per_axis(self.step, 1) })
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        r.moved(Op::Slice { start: self.start.to_vec(), end: self.end.to_vec(), step: self.step.to_vec() })
    }
}

pub(super) struct Pad<'a> {
    pub(super) low: &'a [u64],
    pub(super) high: &'a [u64],
    pub(super) interior: &'a [u64],
}

impl Primitive for Pad<'_> {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn arity(&self) -> Option<usize> {
        Some(1)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let x = &inputs[0].shape;
        let (low, high, interior) = (self.low, self.high, self.interior);
        if [low.len(), high.len(), interior.len()] != [x.rank(); 3] {
            return Err(OpError::new(format!("padding of {x} takes {} sizes, not {}", x.rank(), low.len())));
        }
        let padded = |axis: usize| -> Option<u64> {
            let between = (x.size(axis) - 1).checked_mul(interior[axis])?;
            x.size(axis).checked_add(between)?.checked_add(low[axis])?.checked_add(high[axis])
        };
        let mut shape = Shape::scalar();
        for (axis, dim) in x.0.iter().enumerate() {
            let size =
                padded(axis).ok_or_else(|| OpError::new(format!("padding dimension {axis} of {x} overflows")))?;
            shape.0.push(if size == dim.size { *dim } else { size.into() });
        }
        Ok(TensorType::new(inputs[0].dtype, shape))
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let all = strided::strides(&out.shape);
        let offset = all.iter().zip(self.low).map(|(stride, low)| stride * *low as usize).sum();
        let strides: Vec<usize> = all.iter().zip(self.interior).map(|(stride, n)| stride * (*n as usize + 1)).collect();
        let mut result = vec![0.0; out.shape.elements() as usize];
        let mut elements = inputs[0].data.iter();
        strided::for_each(&strided::sizes(&inputs[0].ty.shape), offset, &strides, |at| {
            result[at] = elements.next().copied().unwrap_or_default();
        });
        result
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, _: usize) -> Result<Option<NodeId>, OpError> {
        let x = b.graph.shape(call.inputs[0]).sizes();
        let step: Vec<u64> = self.interior.iter().map(|n| n + 1).collect();
        let end = (0..x.len()).map(|axis| self.low[axis] + (x[axis] - 1) * step[axis] + 1).collect();
        b.op(Op::Slice { start: self.low.to_vec(), end, step }, &[g]).map(Some)
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        let none = [self.low[axis], self.high[axis], self.interior[axis]] == [0; 3];
        if none { axes::all(inputs, axis) } else { Err(No("it adds positions there")) }
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        let [low, high, interior] = [self.low, self.high, self.interior].map(|of| call.per_axis(of, 0));
        Some(Op::Pad { low, high, interior })
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        r.moved(Op::Pad { low: self.low.to_vec(), high: self.high.to_vec(), interior: self.interior.to_vec() })
    }
}

pub(super) struct Concat {
    pub(super) axis: usize,
}

impl Primitive for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn arity(&self) -> Option<usize> {
        None
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let first = inputs[0];
        if self.axis >= first.shape.rank() {
            return Err(OpError::new(format!("`concat` along dimension {}, but {first} has none", self.axis)));
        }
        let mut total = first.shape.size(self.axis);
        for other in &inputs[1..] {
            if other.dtype != first.dtype {
                let message = format!("`concat` takes tensors of one dtype, not {first} and {other}");
                return Err(OpError::new(message).help("cast one of them: `cast(x, 'f32')`"));
            }
            if other.shape.rank() != first.shape.rank() {
                let message = format!("`concat` takes tensors of one rank, not {} and {}", first.shape, other.shape);
                return Err(OpError::new(message));
            }
            let differs = |axis: &usize| *axis != self.axis && first.shape.size(*axis) != other.shape.size(*axis);
            if let Some(axis) = (0..first.shape.rank()).find(differs) {
                return Err(disagree(&first.shape, &other.shape, axis, axis));
            }
            total = total.checked_add(other.shape.size(self.axis)).ok_or_else(|| OpError::new("`concat` overflows"))?;
        }
        let mut shape = first.shape.clone();
        if inputs.len() > 1 {
            shape.0[self.axis] = total.into();
        }
        Ok(TensorType::new(first.dtype, shape))
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let outer: usize = strided::sizes(&out.shape)[..self.axis].iter().product();
        let mut result = Vec::with_capacity(out.shape.elements() as usize);
        for row in 0..outer {
            for input in inputs {
                let length = input.data.len() / outer;
                result.extend_from_slice(&input.data[row * length..(row + 1) * length]);
            }
        }
        result
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, input: usize) -> Result<Option<NodeId>, OpError> {
        let size = |b: &Builder<'_>, id: NodeId| b.graph.shape(id).size(self.axis);
        let start = call.inputs[..input].iter().map(|id| size(b, *id)).sum();
        let end = start + size(b, call.inputs[input]);
        b.slice_axis(g, self.axis, start, end).map(Some)
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        if axis == self.axis { Err(No("its operands follow one another there")) } else { axes::all(inputs, axis) }
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        Some(Op::Concat { axis: call.layout.packed(self.axis).unwrap_or(self.axis) })
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        if r.e.iter().all(Option::is_none) {
            return Ok(None);
        }
        let parts = (0..r.x.len()).map(|input| r.error_or_none(input)).collect::<Found<Vec<_>>>()?;
        r.b.op(Op::Concat { axis: self.axis }, &parts).map(Some)
    }
}

fn reorder_cases(cases: &mut Vec<Case>) {
    let reshapes: [(&str, &[u64], &[u64]); 4] = [
        ("split", &[4, 6], &[4, 2, 3]),
        ("merge", &[2, 3, 4], &[6, 4]),
        ("heads", &[3, 4, 6], &[3, 4, 2, 3]),
        ("to_scalar", &[1, 1], &[]),
    ];
    for (name, from, to) in reshapes {
        let mut case = CaseBuilder::new(&format!("reshape_{name}"));
        let x = case.uniform_of("x", TensorType::f32(from.iter().copied().collect::<Shape>()), -1.0, 1.0);
        cases.push(case.op(Op::Reshape { shape: to.iter().copied().collect() }, &[x]));
    }
    for (name, perm) in [("matrix", vec![1, 0, 2]), ("heads", vec![0, 2, 1]), ("rotate", vec![2, 0, 1])] {
        let mut case = CaseBuilder::new(&format!("transpose_{name}"));
        let x = case.uniform("x", [3, 4, 5], -1.0, 1.0);
        cases.push(case.op(Op::Transpose { perm }, &[x]));
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    reorder_cases(&mut cases);
    let sizes = |sizes: &[u64]| sizes.iter().copied().collect::<Shape>();
    let broadcasts = [
        ("scalar", sizes(&[]), sizes(&[3, 4]), vec![]),
        ("row", sizes(&[4]), sizes(&[3, 4]), vec![1]),
        ("column", sizes(&[3]), sizes(&[3, 4]), vec![0]),
        ("ones", sizes(&[3, 1, 4]), sizes(&[3, 5, 4]), vec![0, 1, 2]),
        ("both", sizes(&[1, 4]), sizes(&[2, 3, 5, 4]), vec![1, 3]),
        ("keeps_one", sizes(&[1, 4]), sizes(&[2, 1, 4]), vec![1, 2]),
    ];
    for (name, from, to, dims) in broadcasts {
        let mut case = CaseBuilder::new(&format!("broadcast_{name}"));
        let x = case.uniform_of("x", TensorType::f32(from), -1.0, 1.0);
        cases.push(case.op(Op::Broadcast { shape: to, dims }, &[x]));
    }
    for (name, start, end, step) in [
        ("range", [1, 0, 2], [3, 4, 5], [1, 1, 1]),
        ("one_position", [0, 2, 0], [3, 3, 5], [1, 1, 1]),
        ("steps", [0, 1, 0], [3, 4, 5], [2, 2, 3]),
        ("features", [0, 0, 1], [3, 4, 4], [1, 1, 1]),
    ] {
        let mut case = CaseBuilder::new(&format!("slice_{name}"));
        let x = case.uniform("x", [3, 4, 5], -1.0, 1.0);
        cases.push(case.op(Op::Slice { start: start.to_vec(), end: end.to_vec(), step: step.to_vec() }, &[x]));
    }
    for (name, low, high, interior) in
        [("around", [1, 0], [0, 2], [0, 0]), ("between", [0, 0], [0, 0], [1, 2]), ("both", [2, 1], [1, 3], [2, 1])]
    {
        let mut case = CaseBuilder::new(&format!("pad_{name}"));
        let x = case.uniform("x", [3, 4], -1.0, 1.0);
        cases.push(case.op(Op::Pad { low: low.to_vec(), high: high.to_vec(), interior: interior.to_vec() }, &[x]));
    }
    for (name, axis, other) in [("first", 0, [5, 3]), ("last", 1, [2, 4])] {
        let mut case = CaseBuilder::new(&format!("concat_{name}"));
        let a = case.uniform("a", [2, 3], -1.0, 1.0);
        let b = case.uniform("b", other, -1.0, 1.0);
        cases.push(case.op(Op::Concat { axis }, &[a, b, a]));
    }
    let mut case = CaseBuilder::new("concat_features");
    let (a, b) = (case.uniform("a", [3, 4, 2], -1.0, 1.0), case.uniform("b", [3, 4, 1], -1.0, 1.0));
    cases.push(case.op(Op::Concat { axis: 2 }, &[a, b]));
    let mut case = CaseBuilder::new("pad_features");
    let x = case.uniform("x", [3, 4, 2], -1.0, 1.0);
    let [low, high, interior] = [[0, 0, 1], [0, 0, 2], [0, 0, 1]].map(|of| of.to_vec());
    cases.push(case.op(Op::Pad { low, high, interior }, &[x]));
    cases
}

/// Sizes of two dimension lists as numpy broadcasts them: aligned at the end, size 1 stretches.
pub(crate) fn broadcast_shapes(a: &Shape, b: &Shape) -> Result<Shape, OpError> {
    let rank = a.rank().max(b.rank());
    let at = |shape: &Shape, axis: usize| -> Option<Dim> {
        (axis + shape.rank()).checked_sub(rank).map(|axis| shape.0[axis])
    };
    let mut result = Shape::scalar();
    for axis in 0..rank {
        let dim = match (at(a, axis), at(b, axis)) {
            (Some(a), Some(b)) if a.size == b.size => {
                if a.name.is_some() {
                    a
                } else {
                    b
                }
            }
            (Some(one), Some(dim)) | (Some(dim), Some(one)) if one.size == 1 => dim,
            (Some(_), Some(_)) => {
                return Err(disagree(a, b, axis + a.rank() - rank, axis + b.rank() - rank)
                    .help("shapes are aligned at their last dimension; only size 1 stretches"));
            }
            (Some(dim), None) | (None, Some(dim)) => dim,
            (None, None) => continue,
        };
        result.0.push(dim);
    }
    Ok(result)
}
