//! Scalar operations at every point of equally shaped tensors: one row of a [table](rows) each.

mod bounds;
mod cases;
mod rows;

pub(super) use self::cases::cases;
use self::rows::ROWS;
use super::axes::{self, Along, Layout, No, Packs};
use super::rounding::{Found, Rounding};
use super::{Builder, Call, Op, OpError, Primitive, Real, ScalarOp, Tensor, same_shape};
use crate::graph::{DType, NodeId, TensorType};

/// Which dtypes a scalar operation takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Floats to the same float.
    Float,
    /// Numbers of one dtype (a float or I32) to the same dtype.
    Number,
    /// Numbers of one dtype to Bool.
    Compare,
    /// Two of any one dtype to Bool.
    Equal,
    /// Bools to Bool.
    Logic,
    /// Bool and two of any one dtype to that dtype.
    Select,
    /// Any dtype to the one named by the op.
    Cast,
}

type Derivative = fn(&mut Builder<'_>, &[NodeId], NodeId, NodeId, usize) -> Result<NodeId, OpError>;

/// A scalar operation that may stand in a graph.
pub struct Pointwise {
    /// The operation; `Cast` stands for casts to every dtype.
    pub op: ScalarOp,
    /// Its name in errors, and in the language where it is a function.
    pub name: &'static str,
    /// What it computes.
    pub doc: &'static str,
    /// Dtypes.
    pub rule: Rule,
    /// Whether a float that it gives may jump where an operand moves a little (a cast does if it rounds).
    pub jumps: bool,
    /// Interval from which test cases draw: inside the domain, and where no overflow hides a wrong gradient.
    pub range: (f64, f64),
    /// Meaning on floats and bools (0 or 1), through one fixed libm.
    eval: fn(f64, f64, f64) -> f64,
    /// Meaning on I32 where it is not that on floats: arithmetic wraps.
    eval_i32: Option<fn(i32, i32) -> i32>,
    /// Bound on the error of a result that is a float or is made of floats; others go by [`Rounding::any_input`].
    error: fn(&mut Rounding<'_, '_>, ScalarOp) -> Found,
    /// (inputs, output, gradient of the output, which input) -> gradient of that input; `None`: zero everywhere.
    vjp: Option<Derivative>,
}

fn truth(x: bool) -> f64 {
    f64::from(u8::from(x))
}

/// Every scalar operation that may stand in a graph, in the order of [`ScalarOp`].
pub fn pointwise_rows() -> &'static [Pointwise] {
    ROWS
}

/// What rounds an f32 to the values of a type of 16 bits.
pub(crate) fn rounding(dtype: DType) -> Option<ScalarOp> {
    match dtype {
        DType::Bf16 => Some(ScalarOp::RoundBf16),
        DType::F16 => Some(ScalarOp::RoundF16),
        _ => None,
    }
}

/// The type whose values a scalar operation rounds to, if that is all it does.
pub(crate) fn rounds_to(op: ScalarOp) -> Option<DType> {
    match op {
        ScalarOp::RoundBf16 => Some(DType::Bf16),
        ScalarOp::RoundF16 => Some(DType::F16),
        ScalarOp::Cast(to) => Some(to).filter(|to| to.is_narrow()),
        _ => None,
    }
}

/// Whether a float that a scalar operation gives may jump where an operand moves a little.
pub(crate) fn jumps(op: ScalarOp) -> bool {
    pointwise(op).is_none_or(|row| row.jumps) || rounds_to(op).is_some()
}

/// The row of a scalar operation; `None` for those that exist inside kernels only (`Load`, `Slot`, ...).
pub fn pointwise(op: ScalarOp) -> Option<&'static Pointwise> {
    let kind = std::mem::discriminant(&op);
    ROWS.iter().find(|row| std::mem::discriminant(&row.op) == kind)
}

/// Value of a scalar operation on scalars of one dtype: the reference meaning, for constant folding.
/// `None` for operations that exist inside kernels only.
pub fn fold(op: ScalarOp, dtype: DType, args: &[f64]) -> Option<f64> {
    let arg = |i: usize| args.get(i).copied().unwrap_or_default();
    let result = |row: &Pointwise| match row.rule {
        Rule::Float | Rule::Number | Rule::Select => dtype.rounded(row.apply(op, dtype, arg(0), arg(1), arg(2))),
        _ => row.apply(op, dtype, arg(0), arg(1), arg(2)),
    };
    pointwise(op).map(result)
}

/// Conversion of a value to what its dtype holds.
fn convert(x: f64, from: DType, to: DType) -> f64 {
    match to {
        // Integers become f32 first, as in registers.
        to if to.is_narrow() && from == DType::I32 => to.rounded(f64::from(x as f32)),
        // `as` truncates and saturates; NaN gives 0.
        DType::I32 => f64::from(x as i32),
        DType::Bool => truth(x != 0.0),
        to => to.rounded(x),
    }
}

impl Pointwise {
    /// `dtype` is that of the numbers it works on.
    #[inline]
    fn apply(&self, op: ScalarOp, dtype: DType, a: f64, b: f64, c: f64) -> f64 {
        match (op, self.eval_i32) {
            (ScalarOp::Cast(to), _) => convert(a, dtype, to),
            (_, Some(eval)) if dtype == DType::I32 => f64::from(eval(a as i32, b as i32)),
            _ => (self.eval)(a, b, c),
        }
    }

    fn result(&self, op: ScalarOp, types: &[&TensorType]) -> Result<DType, OpError> {
        let first = types[0].dtype;
        let number = |dtype: DType| dtype.is_float() || dtype == DType::I32;
        let (accepted, result, wants) = match self.rule {
            Rule::Float => (types.iter().all(|ty| ty.dtype.is_float()), first, "floats"),
            Rule::Number => (types.iter().all(|ty| number(ty.dtype)), first, "numbers"),
            Rule::Compare => (types.iter().all(|ty| number(ty.dtype)), DType::Bool, "numbers"),
            Rule::Equal => (true, DType::Bool, "tensors"),
            Rule::Logic => (types.iter().all(|ty| ty.dtype == DType::Bool), DType::Bool, "bools"),
            Rule::Select => (first == DType::Bool, types[1].dtype, "a bool first"),
            Rule::Cast => match op {
                ScalarOp::Cast(to) => return Ok(to),
                _ => (false, first, "a dtype"),
            },
        };
        let list = || types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        if !accepted {
            let advice =
                if self.rule == Rule::Logic { "compare first: `x != 0`" } else { "cast it first: `cast(x, 'f32')`" };
            return Err(OpError::new(format!("`{}` takes {wants}, not {}", self.name, list())).help(advice));
        }
        let operands = if self.rule == Rule::Select { &types[1..] } else { types };
        if operands.iter().any(|ty| ty.dtype != operands[0].dtype) {
            let message = format!("`{}` takes tensors of one dtype, not {}", self.name, list());
            return Err(OpError::new(message).help("cast one of them: `cast(x, 'f32')`"));
        }
        Ok(result)
    }
}

impl Primitive for ScalarOp {
    fn name(&self) -> &'static str {
        pointwise(*self).map_or("kernel-only", |row| row.name)
    }

    fn arity(&self) -> Option<usize> {
        Some(ScalarOp::arity(*self))
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let Some(row) = pointwise(*self) else {
            return Err(OpError::new(format!("{self:?} exists inside kernels only")));
        };
        let dtype = row.result(*self, inputs)?;
        let mut shape = inputs[0].shape.clone();
        for other in &inputs[1..] {
            shape = same_shape(&shape, &other.shape)?;
        }
        Ok(TensorType::new(dtype, shape))
    }

    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let Some(row) = pointwise(*self) else { return vec![f64::NAN; out.shape.elements() as usize] };
        let dtype = inputs[inputs.len() - 1].ty.dtype;
        let apply = |a, b, c| row.apply(*self, dtype, a, b, c);
        match inputs {
            [a] => a.data.iter().map(|a| apply(*a, 0.0, 0.0)).collect(),
            [a, b] => a.data.iter().zip(b.data).map(|(a, b)| apply(*a, *b, 0.0)).collect(),
            [a, b, c] => a.data.iter().zip(b.data).zip(c.data).map(|((a, b), c)| apply(*a, *b, *c)).collect(),
            _ => vec![],
        }
    }

    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, input: usize) -> Result<Option<NodeId>, OpError> {
        match pointwise(*self).and_then(|row| row.vjp) {
            Some(vjp) => vjp(b, call.inputs, call.output, g, input).map(Some),
            None => Ok(None),
        }
    }

    fn flops(&self, _: &[&TensorType], out: &TensorType) -> u64 {
        out.shape.elements()
    }

    fn along(&self, inputs: &[&TensorType], axis: usize) -> Result<Along, No> {
        axes::all(inputs, axis)
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::Rows
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        match pointwise(*self) {
            Some(_) if !r.is_float() && !r.of_floats() => r.any_input(),
            Some(row) => (row.error)(r, *self),
            None => Err(OpError::new(format!("{self:?} exists inside kernels only"))),
        }
    }
}

/// The value of a constant as a graph op.
pub(crate) fn constant(value: f64, dtype: DType) -> Op {
    // -0 and 0 would be two constants for value numbering, and no rule of the house tells them apart.
    Op::Const { value: Real(if value == 0.0 { 0.0 } else { dtype.rounded(value) }), dtype }
}
