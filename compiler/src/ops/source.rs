//! Ops without a computation: inputs, state, constants, coordinates, random numbers; and the gradient stop.

use alip_plan::philox;

use super::axes::{self, Along, Layout, No, PackedCall, Packs};
use super::cases::{Case, CaseBuilder};
use super::rounding::{Found, Rounding};
use super::{Op, OpError, Primitive, Real, Tensor, strided};
use crate::graph::{DType, Shape, TensorType};

/// An input, or a state tensor.
pub(super) struct Given<'a> {
    pub(super) name: &'static str,
    pub(super) ty: &'a TensorType,
}

impl Primitive for Given<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn arity(&self) -> Option<usize> {
        Some(0)
    }

    fn infer(&self, _: &[&TensorType]) -> Result<TensorType, OpError> {
        Ok(self.ty.clone())
    }

    /// The interpreter supplies inputs and state itself; a graph evaluated without them sees zeros.
    fn eval(&self, _: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        vec![0.0; out.shape.elements() as usize]
    }

    fn along(&self, _: &[&TensorType], _: usize) -> Result<Along, No> {
        Err(No("it is as it is given"))
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::No("it is as it is given")
    }

    fn error(&self, _: &mut Rounding<'_, '_>) -> Found {
        Ok(None)
    }
}

pub(super) struct Const {
    pub(super) value: Real,
    pub(super) dtype: DType,
}

impl Primitive for Const {
    fn name(&self) -> &'static str {
        "const"
    }

    fn arity(&self) -> Option<usize> {
        Some(0)
    }

    fn infer(&self, _: &[&TensorType]) -> Result<TensorType, OpError> {
        let value = self.value.0;
        let fits = match self.dtype {
            DType::I32 => value.fract() == 0.0 && (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&value),
            DType::Bool => value == 0.0 || value == 1.0,
            dtype => dtype.rounded(value) == value || value.is_nan(),
        };
        if !fits {
            return Err(OpError::new(format!("{value} is not a value of {}", self.dtype)));
        }
        Ok(TensorType::new(self.dtype, Shape::scalar()))
    }

    fn eval(&self, _: &[Tensor<'_>], _: &TensorType) -> Vec<f64> {
        vec![self.value.0]
    }

    fn along(&self, _: &[&TensorType], _: usize) -> Result<Along, No> {
        Err(No("a scalar has no dimension"))
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::No("a scalar has no dimension")
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        if f64::from(self.value.0 as f32) == self.value.0 { Ok(None) } else { r.rounded(None, 1.0) }
    }
}

/// Refuses a number that a float type of 16 bits does not hold, not even nearly: where it would be infinite, or nothing.
///
/// # Errors
/// Says what to write.
pub(crate) fn fits(value: f64, dtype: DType) -> Result<(), OpError> {
    let rounded = dtype.rounded(value);
    let (bound, limit, is) = match dtype {
        DType::F16 if rounded.is_infinite() => ("largest", "65504", "infinite"),
        DType::F16 => ("least", "6e-8", "0"),
        _ if rounded.is_infinite() => ("largest", "3.38e38", "infinite"),
        _ => ("least", "1e-40", "0"),
    };
    if !value.is_finite() || value == 0.0 || rounded.is_finite() && rounded != 0.0 {
        return Ok(());
    }
    let sign = if value < 0.0 { "-" } else { "" };
    let help =
        format!("the {bound} number of {dtype} is {limit}: write {sign}{limit}, or compute in f32: `cast(x, 'f32')`");
    Err(OpError { number: Some(value), ..OpError::new(format!("{value:e} is {is} in {dtype}")).help(help) })
}

pub(super) struct Iota<'a> {
    pub(super) shape: &'a Shape,
    pub(super) axis: usize,
}

impl Primitive for Iota<'_> {
    fn name(&self) -> &'static str {
        "iota"
    }

    fn arity(&self) -> Option<usize> {
        Some(0)
    }

    fn infer(&self, _: &[&TensorType]) -> Result<TensorType, OpError> {
        match self.shape.0.get(self.axis) {
            Some(dim) if dim.size <= i32::MAX as u64 => Ok(TensorType::new(DType::I32, self.shape.clone())),
            Some(dim) => Err(OpError::new(format!("`iota` counts to {dim}, which is beyond i32"))),
            None => {
                Err(OpError::new(format!("`iota` counts along dimension {}, but {} has none", self.axis, self.shape)))
            }
        }
    }

    fn eval(&self, _: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let stride = strided::strides(&out.shape)[self.axis];
        let size = out.shape.size(self.axis) as usize;
        (0..out.shape.elements() as usize).map(|i| (i / stride % size) as f64).collect()
    }

    fn along(&self, _: &[&TensorType], axis: usize) -> Result<Along, No> {
        if axis == self.axis { Err(No("it counts there")) } else { Ok(Along::new()) }
    }

    fn resized(&self, axis: usize, size: u64) -> Option<Op> {
        Some(Op::Iota { shape: axes::with_size(self.shape, axis, size), axis: self.axis })
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn packed(&self, call: &PackedCall<'_>) -> Option<Op> {
        let axis = call.layout.packed(self.axis).unwrap_or(self.axis);
        Some(Op::Iota { shape: call.shape.clone(), axis })
    }

    fn error(&self, _: &mut Rounding<'_, '_>) -> Found {
        Ok(None)
    }
}

pub(super) struct Random<'a> {
    pub(super) shape: &'a Shape,
    pub(super) stream: u64,
    pub(super) lane: u8,
}

impl Primitive for Random<'_> {
    fn name(&self) -> &'static str {
        "random_uniform"
    }

    fn arity(&self) -> Option<usize> {
        None
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let (key, counters) = inputs.split_at(inputs.len().min(2));
        let is_key = |ty: &&TensorType| ty.dtype == DType::I32 && ty.shape.rank() == 0;
        if key.len() < 2 || !key.iter().all(is_key) || counters.len() > 1 {
            let list = inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
            return Err(OpError::new(format!("`random_uniform` takes seed and step as i32[], not {list}")));
        }
        if let Some(ty) = counters.iter().find(|ty| ty.dtype != DType::I32 || ty.shape != *self.shape) {
            return Err(OpError::new(format!(
                "`random_uniform` of {} takes its counters as i32, not {ty}",
                self.shape
            )));
        }
        if self.lane > 3 {
            return Err(OpError::new(format!("`random_uniform` has lanes 0 to 3, not {}", self.lane)));
        }
        // Kernels count elements in I32.
        if self.shape.checked_elements().is_none_or(|n| n > i32::MAX as u64) {
            return Err(OpError::new(format!("{} has 2^31 or more random elements", self.shape)));
        }
        Ok(TensorType::new(DType::F32, self.shape.clone()))
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let key = [inputs[0].data[0] as i32 as u32, inputs[1].data[0] as i32 as u32];
        let draw = |i: u32| philox::philox4x32(philox::drawn(i, self.stream), key)[usize::from(self.lane)];
        let counter = |i: u64| inputs.get(2).map_or(i as u32, |counters| counters.data[i as usize] as i32 as u32);
        (0..out.shape.elements()).map(|i| f64::from(philox::uniform(draw(counter(i))))).collect()
    }

    fn along(&self, _: &[&TensorType], _: usize) -> Result<Along, No> {
        Err(No("an element is drawn by its number among all"))
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::No("an element is drawn by its number among all")
    }

    fn error(&self, _: &mut Rounding<'_, '_>) -> Found {
        Ok(None)
    }
}

pub(super) struct StopGradient;

impl Primitive for StopGradient {
    fn name(&self) -> &'static str {
        "stop_gradient"
    }

    fn arity(&self) -> Option<usize> {
        Some(1)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        Ok(inputs[0].clone())
    }

    fn eval(&self, inputs: &[Tensor<'_>], _: &TensorType) -> Vec<f64> {
        inputs[0].data.to_vec()
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        axes::all(inputs, axis)
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        Ok(r.e[0])
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shape = || Shape::from([3, 4, 5]);
    for axis in 0..3 {
        cases.push(CaseBuilder::new(&format!("iota_{axis}")).op(Op::Iota { shape: shape(), axis }, &[]));
    }
    for (lane, value) in [(0, -7.0), (3, 123_456_789.0)] {
        let mut case = CaseBuilder::new(&format!("random_lane{lane}"));
        let seed = case.scalar("seed", DType::I32, value);
        let step = case.scalar("step", DType::I32, 5.0);
        cases.push(case.op(Op::Random { shape: shape(), stream: 9, lane }, &[seed, step]));
    }
    let mut case = CaseBuilder::new("random_of_counters");
    let (seed, step) = (case.scalar("seed", DType::I32, 3.0), case.scalar("step", DType::I32, 1.0));
    let counters = case.integers("counters", [3, 4, 5], 0, 1000);
    cases.push(case.op(Op::Random { shape: shape(), stream: 9, lane: 1 }, &[seed, step, counters]));
    for (dtype, value) in [(DType::F32, 0.1), (DType::I32, -3.0), (DType::Bool, 1.0)] {
        let case = CaseBuilder::new(&format!("const_{dtype}"));
        cases.push(case.op(Op::Const { value: Real(value), dtype }, &[]));
    }
    let mut case = CaseBuilder::new("stop_gradient");
    let x = case.uniform("x", [3, 4], -1.0, 1.0);
    cases.push(case.op(Op::StopGradient, &[x]));
    let mut case = CaseBuilder::new("state");
    let x = case.state("weight", [3, 4], -1.0, 1.0);
    cases.push(case.op(Op::Pointwise(super::ScalarOp::Neg), &[x]));
    cases
}
