//! Arithmetic on compile-time values.

use super::eval::{Result, overflow};
use super::value::Value;
use crate::diag::Diagnostic;
use crate::spec::{BinaryOp, Expr};

/// `a op b` without tensors. Whole numbers stay whole where the result is; `7 / 2` is 3.5.
pub(crate) fn binary(expr: &Expr, op: BinaryOp, (a, _): (&Value, &Expr), (b, _): (&Value, &Expr)) -> Result<Value> {
    let unfit = || {
        Diagnostic::error(format!("`{}` is not defined for {} and {}", op.symbol(), a.describe(), b.describe()))
            .label(expr.span, "")
    };
    match op {
        BinaryOp::Eq => return equal(a, b).map(Value::Bool).ok_or_else(unfit),
        BinaryOp::Ne => return equal(a, b).map(|same| Value::Bool(!same)).ok_or_else(unfit),
        _ => {}
    }
    match (op, a, b) {
        (BinaryOp::Add, Value::List(a), Value::List(b)) => {
            return Ok(Value::List(a.iter().chain(b).cloned().collect()));
        }
        // A left side that decides alone does not come here.
        (BinaryOp::And | BinaryOp::Or, Value::Bool(_), Value::Bool(b)) => return Ok(Value::Bool(*b)),
        _ => {}
    }
    if let (Some(x), Some(y)) = (a.int(), b.int())
        && let Some(result) = whole(op, x, y)
    {
        return result.map(Value::Int).ok_or_else(|| overflow(expr));
    }
    let (Some(x), Some(y)) = (a.number(), b.number()) else { return Err(unfit()) };
    let value = match op {
        BinaryOp::Lt => return Ok(Value::Bool(x < y)),
        BinaryOp::Le => return Ok(Value::Bool(x <= y)),
        BinaryOp::Gt => return Ok(Value::Bool(x > y)),
        BinaryOp::Ge => return Ok(Value::Bool(x >= y)),
        BinaryOp::Add => x + y,
        BinaryOp::Sub => x - y,
        BinaryOp::Mul => x * y,
        BinaryOp::Div => x / y,
        BinaryOp::Rem => {
            let rest = x % y;
            if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest }
        }
        BinaryOp::Pow => libm::pow(x, y),
        _ => return Err(unfit()),
    };
    finite(expr, value)
}

/// The result in whole numbers; the outer `None` where it is not one, the inner where it overflows.
fn whole(op: BinaryOp, x: i64, y: i64) -> Option<Option<i64>> {
    match op {
        BinaryOp::Add => Some(x.checked_add(y)),
        BinaryOp::Sub => Some(x.checked_sub(y)),
        BinaryOp::Mul => Some(x.checked_mul(y)),
        BinaryOp::Div if y != 0 && x.checked_rem(y) == Some(0) => Some(x.checked_div(y)),
        BinaryOp::Rem if y != 0 => {
            Some(x.checked_rem(y).map(|rest| if rest != 0 && (rest < 0) != (y < 0) { rest + y } else { rest }))
        }
        BinaryOp::Pow => u32::try_from(y).ok().map(|y| x.checked_pow(y)),
        _ => None,
    }
}

fn equal(a: &Value, b: &Value) -> Option<bool> {
    if let (Some(x), Some(y)) = (a.number(), b.number()) {
        return Some(x == y);
    }
    Some(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Str(a), Value::Str(b)) => a == b,
        (Value::None, Value::None) => true,
        (Value::None, _) | (_, Value::None) => false,
        // `mask == 'causal'` where the mask may be something else.
        (Value::Str(_), Value::Bool(_) | Value::Int(_) | Value::Float(_)) => false,
        _ => return None,
    })
}

/// A function of numbers, where it is one of those that arguments and initialisers use.
pub(crate) fn call(name: &str, args: &[&Value], expr: &Expr) -> Option<Result<Value>> {
    if let ("min" | "max", [a, b]) = (name, args)
        && let (Some(x), Some(y)) = (a.int(), b.int())
    {
        return Some(Ok(Value::Int(if name == "min" { x.min(y) } else { x.max(y) })));
    }
    let numbers: Vec<f64> = args.iter().map(|value| value.number()).collect::<Option<_>>()?;
    let value = match (name, numbers.as_slice()) {
        ("exp", [x]) => libm::exp(*x),
        ("ln", [x]) => libm::log(*x),
        ("sqrt", [x]) => libm::sqrt(*x),
        ("abs", [x]) => x.abs(),
        ("floor", [x]) => return Some(Ok(Value::Int(libm::floor(*x) as i64))),
        ("min", [x, y]) => x.min(*y),
        ("max", [x, y]) => x.max(*y),
        _ => return None,
    };
    Some(finite(expr, value))
}

/// Tensors are of f32 at most: what overflows there has no meaning on any device.
fn finite(expr: &Expr, value: f64) -> Result<Value> {
    if (value as f32).is_finite() {
        return Ok(Value::Float(value));
    }
    let help = match &expr.kind {
        _ if value.is_finite() => format!("the largest number is {:e}", f32::MAX),
        crate::spec::ExprKind::Binary(BinaryOp::Div, ..) => "is the divisor 0?".into(),
        _ => "constants are finite; is one of its operands 0, negative or very large?".into(),
    };
    Err(Diagnostic::error(format!("`{expr}` is {value:?}"))
        .label(expr.span, "not a number that can be used")
        .help(help))
}
