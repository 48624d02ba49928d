//! Scalar operations at every point of equally shaped tensors: one table row each.

use alip_plan::fault::{Fault, planted};

use super::cases::{Case, CaseBuilder};
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
    /// Interval from which test cases draw: inside the domain, and where no overflow hides a wrong gradient.
    pub range: (f64, f64),
    /// Meaning on floats and bools (0 or 1), through one fixed libm.
    eval: fn(f64, f64, f64) -> f64,
    /// Meaning on I32 where it is not that on floats: arithmetic wraps.
    eval_i32: Option<fn(i32, i32) -> i32>,
    /// (inputs, output, gradient of the output, which input) -> gradient of that input; `None`: zero everywhere.
    vjp: Option<Derivative>,
}

fn truth(x: bool) -> f64 {
    f64::from(u8::from(x))
}

fn smaller(a: f64, b: f64) -> f64 {
    if a.is_nan() || a < b { a } else { b }
}

fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

fn remainder(a: f64, b: f64, _: f64) -> f64 {
    let rest = a % b;
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
}

fn remainder_i32(a: i32, b: i32) -> i32 {
    let rest = if b == 0 { a } else { a.wrapping_rem(b) };
    if b != 0 && rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }
}

/// What flows of a gradient where the second argument would be chosen: nothing, where the first: all, at ties half.
fn share(b: &mut Builder<'_>, g: NodeId, chosen: NodeId, other: NodeId) -> Result<NodeId, OpError> {
    let (zero, half, one) = (b.scalar(0.0)?, b.scalar(0.5)?, b.scalar(1.0)?);
    let tie = b.select(other, zero, half)?;
    let factor = b.select(chosen, one, tie)?;
    b.mul(g, factor)
}

const UNIT: (f64, f64) = (-1.5, 1.5);
const POSITIVE: (f64, f64) = (0.3, 2.5);

/// Every scalar operation that may stand in a graph, in the order of [`ScalarOp`].
pub fn pointwise_rows() -> &'static [Pointwise] {
    ROWS
}

static ROWS: &[Pointwise] = &[
    Pointwise {
        op: ScalarOp::Cast(DType::F32),
        name: "cast",
        doc: "Conversion to another dtype; float to integer truncates toward zero and ends where i32 does, NaN gives 0; anything to bool is `!= 0`, which NaN is.",
        rule: Rule::Cast,
        range: (-3.5, 3.5),
        eval: |x, _, _| x,
        eval_i32: None,
        vjp: Some(|_, _, _, g, _| Ok(g)),
    },
    Pointwise {
        op: ScalarOp::Neg,
        name: "neg",
        doc: "-x.",
        rule: Rule::Number,
        range: UNIT,
        eval: |x, _, _| -x,
        eval_i32: Some(|x, _| x.wrapping_neg()),
        vjp: Some(|b, _, _, g, _| b.neg(g)),
    },
    Pointwise {
        op: ScalarOp::Abs,
        name: "abs",
        doc: "Magnitude. The gradient at 0 is 0.",
        rule: Rule::Number,
        range: UNIT,
        eval: |x, _, _| x.abs(),
        eval_i32: Some(|x, _| x.wrapping_abs()),
        vjp: Some(|b, x, _, g, _| {
            let zero = b.scalar(0.0)?;
            let minus = b.neg(g)?;
            let (negative, positive) = (b.lt(x[0], zero)?, b.gt(x[0], zero)?);
            let upper = b.select(positive, g, zero)?;
            b.select(negative, minus, upper)
        }),
    },
    Pointwise {
        op: ScalarOp::Exp,
        name: "exp",
        doc: "e^x.",
        rule: Rule::Float,
        range: UNIT,
        eval: |x, _, _| libm::exp(x),
        eval_i32: None,
        vjp: Some(|b, _, y, g, _| b.mul(g, y)),
    },
    Pointwise {
        op: ScalarOp::Ln,
        name: "ln",
        doc: "Natural logarithm.",
        rule: Rule::Float,
        range: POSITIVE,
        eval: |x, _, _| libm::log(x),
        eval_i32: None,
        vjp: Some(|b, x, _, g, _| b.div(g, x[0])),
    },
    Pointwise {
        op: ScalarOp::Sqrt,
        name: "sqrt",
        doc: "Square root. The gradient at 0 is infinite, but none where none comes from above.",
        rule: Rule::Float,
        range: POSITIVE,
        eval: |x, _, _| libm::sqrt(x),
        eval_i32: None,
        vjp: Some(|b, _, y, g, _| {
            let (zero, half) = (b.scalar(0.0)?, b.scalar(0.5)?);
            let half = b.mul(g, half)?;
            let slope = b.div(half, y)?;
            // 0 / 0 is none: `max(sqrt(x), least)` does not move with an x of 0.
            let none = b.eq(g, zero)?;
            b.select(none, zero, slope)
        }),
    },
    Pointwise {
        op: ScalarOp::Sin,
        name: "sin",
        doc: "Sine of x in radians.",
        rule: Rule::Float,
        range: (-3.0, 3.0),
        eval: |x, _, _| libm::sin(x),
        eval_i32: None,
        vjp: Some(|b, x, _, g, _| {
            let cos = b.cos(x[0])?;
            b.mul(g, cos)
        }),
    },
    Pointwise {
        op: ScalarOp::Cos,
        name: "cos",
        doc: "Cosine of x in radians.",
        rule: Rule::Float,
        range: (-3.0, 3.0),
        eval: |x, _, _| libm::cos(x),
        eval_i32: None,
        vjp: Some(|b, x, _, g, _| {
            let sin = b.sin(x[0])?;
            let product = b.mul(g, sin)?;
            b.neg(product)
        }),
    },
    Pointwise {
        op: ScalarOp::Tanh,
        name: "tanh",
        doc: "Hyperbolic tangent.",
        rule: Rule::Float,
        range: (-2.0, 2.0),
        eval: |x, _, _| libm::tanh(x),
        eval_i32: None,
        vjp: Some(|b, _, y, g, _| {
            let one = b.scalar(1.0)?;
            let square = b.mul(y, y)?;
            let slope = b.sub(one, square)?;
            b.mul(g, slope)
        }),
    },
    Pointwise {
        op: ScalarOp::Erf,
        name: "erf",
        doc: "Error function, 2/sqrt(pi) times the integral of e^(-t^2) from 0 to x.",
        rule: Rule::Float,
        range: (-2.0, 2.0),
        eval: |x, _, _| libm::erf(x),
        eval_i32: None,
        vjp: Some(|b, x, _, g, _| {
            let scale = b.scalar(std::f64::consts::FRAC_2_SQRT_PI)?;
            let square = b.mul(x[0], x[0])?;
            let exponent = b.neg(square)?;
            let bell = b.exp(exponent)?;
            let slope = b.mul(bell, scale)?;
            b.mul(g, slope)
        }),
    },
    Pointwise {
        op: ScalarOp::Floor,
        name: "floor",
        doc: "Largest integer not above x, as a float. The gradient is 0.",
        rule: Rule::Float,
        range: (-3.5, 3.5),
        eval: |x, _, _| x.floor(),
        eval_i32: None,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Not,
        name: "not",
        doc: "Logical negation.",
        rule: Rule::Logic,
        range: UNIT,
        eval: |x, _, _| truth(x == 0.0),
        eval_i32: None,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Add,
        name: "add",
        doc: "a + b.",
        rule: Rule::Number,
        range: UNIT,
        eval: |a, b, _| a + b,
        eval_i32: Some(i32::wrapping_add),
        vjp: Some(|_, _, _, g, _| Ok(g)),
    },
    Pointwise {
        op: ScalarOp::Sub,
        name: "sub",
        doc: "a - b.",
        rule: Rule::Number,
        range: UNIT,
        eval: |a, b, _| a - b,
        eval_i32: Some(i32::wrapping_sub),
        vjp: Some(|b, _, _, g, input| if input == 0 || planted(Fault::SubGradientSign) { Ok(g) } else { b.neg(g) }),
    },
    Pointwise {
        op: ScalarOp::Mul,
        name: "mul",
        doc: "a * b.",
        rule: Rule::Number,
        range: UNIT,
        eval: |a, b, _| a * b,
        eval_i32: Some(i32::wrapping_mul),
        vjp: Some(|b, x, _, g, input| b.mul(g, x[1 - input])),
    },
    Pointwise {
        op: ScalarOp::Div,
        name: "div",
        doc: "a / b; integers truncate toward zero, and a / 0 is a (as in WGSL).",
        rule: Rule::Number,
        range: POSITIVE,
        eval: |a, b, _| a / b,
        eval_i32: Some(|a, b| if b == 0 { a } else { a.wrapping_div(b) }),
        vjp: Some(|b, x, y, g, input| {
            let quotient = b.div(g, x[1])?;
            if input == 0 {
                return Ok(quotient);
            }
            let product = b.mul(quotient, y)?;
            if planted(Fault::DivGradientSign) { Ok(product) } else { b.neg(product) }
        }),
    },
    Pointwise {
        op: ScalarOp::Pow,
        name: "pow",
        doc: "a to the power b; NaN for negative a, unless b is whole. Anything to the power 0 is 1.",
        rule: Rule::Float,
        range: POSITIVE,
        eval: |a, b, _| libm::pow(a, b),
        eval_i32: None,
        vjp: Some(|b, x, y, g, input| {
            if input == 0 {
                let one = b.scalar(1.0)?;
                let less = b.sub(x[1], one)?;
                let power = b.pointwise(ScalarOp::Pow, &[x[0], less])?;
                let slope = b.mul(x[1], power)?;
                // a^0 is constant in a, also at 0.
                let zero = b.scalar(0.0)?;
                let constant = b.eq(x[1], zero)?;
                let slope = b.select(constant, zero, slope)?;
                return b.mul(g, slope);
            }
            // 0^b is constant in b.
            let zero = b.scalar(0.0)?;
            let positive = b.gt(x[0], zero)?;
            let ln = b.ln(x[0])?;
            let slope = b.mul(y, ln)?;
            let slope = b.select(positive, slope, zero)?;
            b.mul(g, slope)
        }),
    },
    Pointwise {
        op: ScalarOp::Min,
        name: "min",
        doc: "The smaller of a and b; NaN if either is. At ties each takes half of the gradient.",
        rule: Rule::Number,
        range: UNIT,
        eval: |a, b, _| if b.is_nan() { b } else { smaller(a, b) },
        eval_i32: Some(Ord::min),
        vjp: Some(|b, x, _, g, input| {
            let (mine, other) = (x[input], x[1 - input]);
            let (chosen, beaten) = (b.lt(mine, other)?, b.lt(other, mine)?);
            share(b, g, chosen, beaten)
        }),
    },
    Pointwise {
        op: ScalarOp::Max,
        name: "max",
        doc: "The larger of a and b; NaN if either is. At ties each takes half of the gradient.",
        rule: Rule::Number,
        range: UNIT,
        eval: |a, b, _| if b.is_nan() { b } else { larger(a, b) },
        eval_i32: Some(Ord::max),
        vjp: Some(|b, x, _, g, input| {
            let (mine, other) = (x[input], x[1 - input]);
            let (chosen, beaten) = (b.gt(mine, other)?, b.gt(other, mine)?);
            share(b, g, chosen, beaten)
        }),
    },
    Pointwise {
        op: ScalarOp::Lt,
        name: "lt",
        doc: "a < b.",
        rule: Rule::Compare,
        range: UNIT,
        eval: |a, b, _| truth(a < b),
        eval_i32: None,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Le,
        name: "le",
        doc: "a <= b.",
        rule: Rule::Compare,
        range: UNIT,
        eval: |a, b, _| truth(a <= b),
        eval_i32: None,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Eq,
        name: "eq",
        doc: "a == b.",
        rule: Rule::Equal,
        range: UNIT,
        eval: |a, b, _| truth(a == b),
        eval_i32: None,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::And,
        name: "and",
        doc: "Logical and.",
        rule: Rule::Logic,
        range: UNIT,
        eval: |a, b, _| truth(a != 0.0 && b != 0.0),
        eval_i32: None,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Or,
        name: "or",
        doc: "Logical or.",
        rule: Rule::Logic,
        range: UNIT,
        eval: |a, b, _| truth(a != 0.0 || b != 0.0),
        eval_i32: None,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Select,
        name: "select",
        doc: "b where a (Bool) holds, c elsewhere.",
        rule: Rule::Select,
        range: UNIT,
        eval: |a, b, c| if a != 0.0 { b } else { c },
        eval_i32: None,
        vjp: Some(|b, x, _, g, input| {
            let zero = b.scalar(0.0)?;
            if input == 1 { b.select(x[0], g, zero) } else { b.select(x[0], zero, g) }
        }),
    },
    Pointwise {
        op: ScalarOp::Rem,
        name: "rem",
        doc: "What is left of a when multiples of b are taken away, with the sign of b (as in Python and torch.remainder), exactly; for b = 0 NaN, of integers a.",
        rule: Rule::Number,
        range: POSITIVE,
        eval: remainder,
        eval_i32: Some(remainder_i32),
        vjp: Some(|b, x, y, g, input| {
            if input == 0 {
                return Ok(g);
            }
            // What was taken away, which is exact, rather than the quotient, which may be rounded up to a whole number.
            let taken = b.sub(x[0], y)?;
            let quotient = b.div(taken, x[1])?;
            let half = b.scalar(0.5)?;
            let above = b.add(quotient, half)?;
            let multiples = b.floor(above)?;
            let product = b.mul(g, multiples)?;
            b.neg(product)
        }),
    },
    Pointwise {
        op: ScalarOp::RoundBf16,
        name: "round_bf16",
        doc: "The nearest bf16, as f32; gradients pass.",
        rule: Rule::Float,
        range: UNIT,
        eval: |x, _, _| DType::Bf16.rounded(x),
        eval_i32: None,
        vjp: Some(|_, _, _, g, _| Ok(g)),
    },
    Pointwise {
        op: ScalarOp::RoundF16,
        name: "round_f16",
        doc: "The nearest f16, as f32; gradients pass.",
        rule: Rule::Float,
        range: UNIT,
        eval: |x, _, _| DType::F16.rounded(x),
        eval_i32: None,
        vjp: Some(|_, _, _, g, _| Ok(g)),
    },
];

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
fn convert(x: f64, to: DType) -> f64 {
    match to {
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
            (ScalarOp::Cast(to), _) => convert(a, to),
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
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for row in ROWS {
        let dtypes: &[DType] = match row.rule {
            Rule::Float | Rule::Cast => &[DType::F32],
            Rule::Logic => &[DType::Bool],
            _ => &[DType::F32, DType::I32],
        };
        for dtype in dtypes {
            cases.push(row_case(row, row.op, *dtype));
        }
    }
    for (from, to) in [
        (DType::F32, DType::I32),
        (DType::F32, DType::Bool),
        (DType::I32, DType::F32),
        (DType::Bool, DType::F32),
        (DType::F32, DType::Bf16),
        (DType::F32, DType::F16),
        (DType::Bf16, DType::F32),
        (DType::F16, DType::F32),
    ] {
        let row = &ROWS[0];
        cases.push(row_case(row, ScalarOp::Cast(to), from));
    }
    for (op, name) in
        [(ScalarOp::Min, "min_ties"), (ScalarOp::Max, "max_ties"), (ScalarOp::Le, "le_ties"), (ScalarOp::Eq, "eq_ties")]
    {
        let mut case = CaseBuilder::new(name);
        let a = case.input("a", TensorType::f32([4]), vec![1.0, -0.5, 2.0, 0.25]);
        let b = case.input("b", TensorType::f32([4]), vec![1.0, 0.5, 2.0, -0.25]);
        cases.push(case.op(Op::Pointwise(op), &[a, b]));
    }
    // Arithmetic wraps, division truncates toward zero.
    let edge = [i32::MAX, i32::MIN, -7, 7, -7, 46_341];
    let other = [1, -1, 2, -2, -2, 46_341];
    for (op, name) in [(ScalarOp::Add, "add_wraps"), (ScalarOp::Mul, "mul_wraps"), (ScalarOp::Div, "div_truncates")] {
        let mut case = CaseBuilder::new(name);
        let int = |values: [i32; 6]| values.iter().map(|x| f64::from(*x)).collect();
        let a = case.input("a", TensorType::new(DType::I32, [6]), int(edge));
        // i32::MIN / -1 is left out: devices disagree on it and nothing computes it.
        let b = case.input(
            "b",
            TensorType::new(DType::I32, [6]),
            if op == ScalarOp::Div { int([1, 3, 2, -2, -2, 5]) } else { int(other) },
        );
        cases.push(case.op(Op::Pointwise(op), &[a, b]));
    }
    // The sign of the divisor, of floats exactly whatever the quotient, of integers also by 0.
    let mut case = CaseBuilder::new("rem_signs");
    let a = case.input("a", TensorType::f32([6]), vec![5.5, -5.5, 5.5, -5.5, 7.25, 0.3]);
    let b = case.input("b", TensorType::f32([6]), vec![2.0, 2.0, -2.0, -2.0, 0.75, 1.1]);
    cases.push(case.op(Op::Pointwise(ScalarOp::Rem), &[a, b]));
    // Quotients that round to the whole number above.
    let mut case = CaseBuilder::new("rem_below_whole");
    let a = case.input("a", TensorType::f32([3]), vec![1.0, 3.0, 0.75]);
    let b = case.input("b", TensorType::f32([3]), vec![f64::from(0.1f32), f64::from(0.3f32), f64::from(0.15f32)]);
    cases.push(case.op(Op::Pointwise(ScalarOp::Rem), &[a, b]));
    let mut case = CaseBuilder::new("rem_signs_i32");
    let int = |values: [i32; 6]| values.iter().map(|x| f64::from(*x)).collect();
    let a = case.input("a", TensorType::new(DType::I32, [6]), int([7, -7, 7, -7, 7, i32::MIN]));
    let b = case.input("b", TensorType::new(DType::I32, [6]), int([3, 3, -3, -3, 0, -1]));
    cases.push(case.op(Op::Pointwise(ScalarOp::Rem), &[a, b]));
    // More than one tile of a cpu kernel, not a multiple of anything.
    let mut case = CaseBuilder::new("add_long");
    let a = case.uniform("a", [5, 431], -1.0, 1.0);
    let b = case.uniform("b", [5, 431], -1.0, 1.0);
    cases.push(case.op(Op::Pointwise(ScalarOp::Add), &[a, b]));
    cases
}

fn row_case(row: &Pointwise, op: ScalarOp, dtype: DType) -> Case {
    let name = match op {
        ScalarOp::Cast(to) => format!("cast_{dtype}_{to}"),
        _ => format!("{}_{dtype}", row.name),
    };
    let mut case = CaseBuilder::new(&name);
    let inputs: Vec<NodeId> = (0..ScalarOp::arity(op))
        .map(|i| {
            let name = ["a", "b", "c"][i];
            match dtype {
                _ if row.rule == Rule::Select && i == 0 => case.bools(name, [3, 7]),
                DType::Bool => case.bools(name, [3, 7]),
                // No zero divisors.
                DType::I32 if matches!(op, ScalarOp::Div | ScalarOp::Rem) && i == 1 => {
                    case.integers(name, [3, 7], 1, 5)
                }
                DType::I32 => case.integers(name, [3, 7], -4, 5),
                _ => case.uniform_of(name, TensorType::new(dtype, [3, 7]), row.range.0, row.range.1),
            }
        })
        .collect();
    case.op(Op::Pointwise(op), &inputs)
}

/// The value of a constant as a graph op.
pub(crate) fn constant(value: f64, dtype: DType) -> Op {
    // -0 and 0 would be two constants for value numbering, and no rule of the house tells them apart.
    Op::Const { value: Real(if value == 0.0 { 0.0 } else { dtype.rounded(value) }), dtype }
}
