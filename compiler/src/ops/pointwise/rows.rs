//! The table: what each scalar operation means, its rounding bound and its gradient.
//!
//! A gradient of exactly 0 stays 0 through `exp`, `ln`, `sqrt` and `pow`, whose slopes may be infinite where their values are
//! of use: `max(ln(x), least)` does not move with an x of 0, nor `min(exp(x), most)` with one of 1000.

use alip_plan::fault::{Fault, planted};

use super::{Pointwise, Rule, bounds, truth};
use crate::graph::{DType, NodeId};
use crate::ops::{Builder, OpError, ScalarOp};

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

/// What flows of a gradient where the second argument would be chosen: nothing, be it infinite, where the first: all, at
/// ties half.
fn share(b: &mut Builder<'_>, g: NodeId, chosen: NodeId, other: NodeId) -> Result<NodeId, OpError> {
    let (zero, half) = (b.scalar(0.0)?, b.scalar(0.5)?);
    let tie = b.mul(g, half)?;
    let rest = b.select(other, zero, tie)?;
    b.select(chosen, g, rest)
}

/// `slope`, which has the gradient `g` as a factor: nothing where `g` is 0, even if the slope itself is infinite.
fn through(b: &mut Builder<'_>, g: NodeId, slope: NodeId) -> Result<NodeId, OpError> {
    let zero = b.scalar(0.0)?;
    let none = b.eq(g, zero)?;
    b.select(none, zero, slope)
}

const UNIT: (f64, f64) = (-1.5, 1.5);
const POSITIVE: (f64, f64) = (0.3, 2.5);

pub(super) static ROWS: &[Pointwise] = &[
    Pointwise {
        op: ScalarOp::Cast(DType::F32),
        name: "cast",
        doc: "Conversion to another dtype; float to integer truncates toward zero and ends where i32 does, NaN gives 0; anything to bool is `!= 0`, which NaN is.",
        rule: Rule::Cast,
        jumps: false,
        range: (-3.5, 3.5),
        eval: |x, _, _| x,
        eval_i32: None,
        error: bounds::cast,
        vjp: Some(|_, _, _, g, _| Ok(g)),
    },
    Pointwise {
        op: ScalarOp::Neg,
        name: "neg",
        doc: "-x.",
        rule: Rule::Number,
        jumps: false,
        range: UNIT,
        eval: |x, _, _| -x,
        eval_i32: Some(|x, _| x.wrapping_neg()),
        error: bounds::exact,
        vjp: Some(|b, _, _, g, _| b.neg(g)),
    },
    Pointwise {
        op: ScalarOp::Abs,
        name: "abs",
        doc: "Magnitude. The gradient at 0 is 0.",
        rule: Rule::Number,
        jumps: false,
        range: UNIT,
        eval: |x, _, _| x.abs(),
        eval_i32: Some(|x, _| x.wrapping_abs()),
        error: bounds::exact,
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
        doc: "e^x. No gradient comes through where none comes from above.",
        rule: Rule::Float,
        jumps: false,
        range: UNIT,
        eval: |x, _, _| libm::exp(x),
        eval_i32: None,
        error: bounds::exp,
        vjp: Some(|b, _, y, g, _| {
            let slope = b.mul(g, y)?;
            through(b, g, slope)
        }),
    },
    Pointwise {
        op: ScalarOp::Ln,
        name: "ln",
        doc: "Natural logarithm. The gradient at 0 is infinite, but none where none comes from above.",
        rule: Rule::Float,
        jumps: false,
        range: POSITIVE,
        eval: |x, _, _| libm::log(x),
        eval_i32: None,
        error: bounds::ln,
        vjp: Some(|b, x, _, g, _| {
            let slope = b.div(g, x[0])?;
            through(b, g, slope)
        }),
    },
    Pointwise {
        op: ScalarOp::Sqrt,
        name: "sqrt",
        doc: "Square root. The gradient at 0 is infinite, but none where none comes from above.",
        rule: Rule::Float,
        jumps: false,
        range: POSITIVE,
        eval: |x, _, _| libm::sqrt(x),
        eval_i32: None,
        error: bounds::sqrt,
        vjp: Some(|b, _, y, g, _| {
            let half = b.scalar(0.5)?;
            let half = b.mul(g, half)?;
            let slope = b.div(half, y)?;
            through(b, g, slope)
        }),
    },
    Pointwise {
        op: ScalarOp::Sin,
        name: "sin",
        doc: "Sine of x in radians.",
        rule: Rule::Float,
        jumps: false,
        range: (-3.0, 3.0),
        eval: |x, _, _| libm::sin(x),
        eval_i32: None,
        error: bounds::circular,
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
        jumps: false,
        range: (-3.0, 3.0),
        eval: |x, _, _| libm::cos(x),
        eval_i32: None,
        error: bounds::circular,
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
        jumps: false,
        range: (-2.0, 2.0),
        eval: |x, _, _| libm::tanh(x),
        eval_i32: None,
        error: bounds::tanh,
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
        jumps: false,
        range: (-2.0, 2.0),
        eval: |x, _, _| libm::erf(x),
        eval_i32: None,
        error: bounds::erf,
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
        jumps: true,
        range: (-3.5, 3.5),
        eval: |x, _, _| x.floor(),
        eval_i32: None,
        error: bounds::steps,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Not,
        name: "not",
        doc: "Logical negation.",
        rule: Rule::Logic,
        jumps: false,
        range: UNIT,
        eval: |x, _, _| truth(x == 0.0),
        eval_i32: None,
        error: bounds::logic,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Add,
        name: "add",
        doc: "a + b.",
        rule: Rule::Number,
        jumps: false,
        range: UNIT,
        eval: |a, b, _| a + b,
        eval_i32: Some(i32::wrapping_add),
        error: bounds::added,
        vjp: Some(|_, _, _, g, _| Ok(g)),
    },
    Pointwise {
        op: ScalarOp::Sub,
        name: "sub",
        doc: "a - b.",
        rule: Rule::Number,
        jumps: false,
        range: UNIT,
        eval: |a, b, _| a - b,
        eval_i32: Some(i32::wrapping_sub),
        error: bounds::added,
        vjp: Some(|b, _, _, g, input| if input == 0 || planted(Fault::SubGradientSign) { Ok(g) } else { b.neg(g) }),
    },
    Pointwise {
        op: ScalarOp::Mul,
        name: "mul",
        doc: "a * b.",
        rule: Rule::Number,
        jumps: false,
        range: UNIT,
        eval: |a, b, _| a * b,
        eval_i32: Some(i32::wrapping_mul),
        error: bounds::multiplied,
        vjp: Some(|b, x, _, g, input| b.mul(g, x[1 - input])),
    },
    Pointwise {
        op: ScalarOp::Div,
        name: "div",
        doc: "a / b; integers truncate toward zero, and a / 0 is a (as in WGSL).",
        rule: Rule::Number,
        jumps: false,
        range: POSITIVE,
        eval: |a, b, _| a / b,
        eval_i32: Some(|a, b| if b == 0 { a } else { a.wrapping_div(b) }),
        error: bounds::quotient,
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
        doc: "a to the power b; NaN for negative a, unless b is whole. Anything to the power 0 is 1. No gradient comes through where none comes from above.",
        rule: Rule::Float,
        jumps: false,
        range: POSITIVE,
        eval: |a, b, _| libm::pow(a, b),
        eval_i32: None,
        error: bounds::pow,
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
                let slope = b.mul(g, slope)?;
                return through(b, g, slope);
            }
            // 0^b is constant in b.
            let zero = b.scalar(0.0)?;
            let positive = b.gt(x[0], zero)?;
            let ln = b.ln(x[0])?;
            let slope = b.mul(y, ln)?;
            let slope = b.select(positive, slope, zero)?;
            let slope = b.mul(g, slope)?;
            through(b, g, slope)
        }),
    },
    Pointwise {
        op: ScalarOp::Min,
        name: "min",
        doc: "The smaller of a and b; NaN if either is. At ties each takes half of the gradient.",
        rule: Rule::Number,
        jumps: false,
        range: UNIT,
        eval: |a, b, _| if b.is_nan() { b } else { smaller(a, b) },
        eval_i32: Some(Ord::min),
        error: bounds::extremum,
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
        jumps: false,
        range: UNIT,
        eval: |a, b, _| if b.is_nan() { b } else { larger(a, b) },
        eval_i32: Some(Ord::max),
        error: bounds::extremum,
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
        jumps: false,
        range: UNIT,
        eval: |a, b, _| truth(a < b),
        eval_i32: None,
        error: bounds::compared,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Le,
        name: "le",
        doc: "a <= b.",
        rule: Rule::Compare,
        jumps: false,
        range: UNIT,
        eval: |a, b, _| truth(a <= b),
        eval_i32: None,
        error: bounds::compared,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Eq,
        name: "eq",
        doc: "a == b.",
        rule: Rule::Equal,
        jumps: false,
        range: UNIT,
        eval: |a, b, _| truth(a == b),
        eval_i32: None,
        error: bounds::compared,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::And,
        name: "and",
        doc: "Logical and.",
        rule: Rule::Logic,
        jumps: false,
        range: UNIT,
        eval: |a, b, _| truth(a != 0.0 && b != 0.0),
        eval_i32: None,
        error: bounds::logic,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Or,
        name: "or",
        doc: "Logical or.",
        rule: Rule::Logic,
        jumps: false,
        range: UNIT,
        eval: |a, b, _| truth(a != 0.0 || b != 0.0),
        eval_i32: None,
        error: bounds::logic,
        vjp: None,
    },
    Pointwise {
        op: ScalarOp::Select,
        name: "select",
        doc: "b where a (Bool) holds, c elsewhere.",
        rule: Rule::Select,
        jumps: false,
        range: UNIT,
        eval: |a, b, c| if a != 0.0 { b } else { c },
        eval_i32: None,
        error: bounds::chosen,
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
        jumps: true,
        range: POSITIVE,
        eval: remainder,
        eval_i32: Some(remainder_i32),
        error: bounds::remainder,
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
        jumps: true,
        range: UNIT,
        eval: |x, _, _| DType::Bf16.rounded(x),
        eval_i32: None,
        error: bounds::steps,
        vjp: Some(|_, _, _, g, _| Ok(g)),
    },
    Pointwise {
        op: ScalarOp::RoundF16,
        name: "round_f16",
        doc: "The nearest f16, as f32; gradients pass.",
        rule: Rule::Float,
        jumps: true,
        range: UNIT,
        eval: |x, _, _| DType::F16.rounded(x),
        eval_i32: None,
        error: bounds::steps,
        vjp: Some(|_, _, _, g, _| Ok(g)),
    },
];
