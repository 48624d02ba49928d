//! Arithmetic at a point: identities, constants gathered, fewer and cheaper operations.
//!
//! Operands of commutative operations match in both orders.

use alip_plan::fault::{Fault, planted};

use super::Rule;
use super::Tag::{Exact, FiniteOnly, Reassociates};
use crate::ops::{Op, ScalarOp, fold};
use crate::optimize::language::Splat;
use crate::optimize::pattern::*;
use crate::optimize::site::Site;

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::term("add-zero", Exact, add(X, num(0.0)), X),
        Rule::term("sub-zero", Exact, sub(X, num(0.0)), X),
        Rule::term("mul-one", Exact, mul(X, num(1.0)), X),
        Rule::term("div-one", Exact, div(X, num(1.0)), X),
        Rule::term("mul-zero", FiniteOnly, mul(X, num(0.0)), num(0.0)),
        Rule::term("sub-self", FiniteOnly, sub(X, X), num(0.0)),
        Rule::term("neg-neg", Exact, neg(neg(X)), X),
        Rule::term("neg-sub", Exact, neg(sub(X, Y)), sub(Y, X)),
        Rule::term("zero-sub", Exact, sub(num(0.0), X), neg(X)),
        Rule::term("add-neg", Exact, add(X, neg(Y)), sub(X, Y)),
        Rule::term("sub-neg", Exact, sub(X, neg(Y)), add(X, Y)),
        Rule::term("mul-neg", Exact, mul(neg(X), Y), neg(mul(X, Y))),
        Rule::term("div-neg", Exact, div(neg(X), Y), neg(div(X, Y))).floats(),
        Rule::term("div-by-neg", Exact, div(X, neg(Y)), neg(div(X, Y))).floats(),
        Rule::term("mul-minus-one", Exact, mul(X, num(-1.0)), neg(X)),
        Rule::build("neg-constant", Exact, neg(mul(X, C)), negated_constant),
        Rule::term("abs-neg", Exact, abs(neg(X)), abs(X)).floats(),
        Rule::term("square-of-neg", Exact, mul(neg(X), neg(X)), mul(X, X)),
        Rule::term("add-self", Exact, add(X, X), mul(X, num(2.0))),
        Rule::build("mul-constants", Reassociates, mul(mul(X, C), D), product_of_constants),
        Rule::build("add-constants", Reassociates, add(add(X, C), D), sum_of_constants),
        Rule::build("sub-constant", Exact, sub(X, C), plus_negative),
        Rule::build("div-constant", Reassociates, div(X, C), times_inverse).floats(),
        Rule::term("constant-outward", Reassociates, mul(mul(X, C), Y), mul(mul(X, Y), C)).when(moderate),
        Rule::term("constant-through-div", Reassociates, div(mul(X, C), Y), mul(div(X, Y), C)).floats().when(moderate),
        Rule::term("constant-over", Reassociates, div(C, div(X, Y)), div(mul(C, Y), X)).floats().when(moderate),
        Rule::term("div-div", Reassociates, div(div(X, Y), Z), div(X, mul(Y, Z)))
            .floats()
            .when(moderate_divisors)
            .tried_on([div(div(X, C), D)]),
        Rule::term("mul-inverse", Reassociates, mul(X, div(num(1.0), Y)), div(X, Y)).floats(),
        Rule::term("factor", Reassociates, add(mul(X, Y), mul(X, Z)), mul(X, add(Y, Z))),
        Rule::term("factor-difference", Reassociates, sub(mul(X, Y), mul(X, Z)), mul(X, sub(Y, Z))),
        Rule::term("factor-one", Reassociates, add(mul(X, C), X), mul(X, add(C, num(1.0)))),
        Rule::term("common-divisor", Reassociates, add(div(X, Z), div(Y, Z)), div(add(X, Y), Z)).floats(),
        Rule::build("div-by-repeated", Reassociates, div(X, broadcast(Y)), times_repeated_inverse).floats(),
        Rule::term("max-self", Exact, max(X, X), X),
        Rule::term("min-self", Exact, min(X, X), X),
        Rule::term("not-not", Exact, not(not(X)), X),
        Rule::term("and-true", Exact, and(X, num(1.0)), X),
        Rule::term("or-false", Exact, or(X, num(0.0)), X),
        Rule::term("select-same", Exact, select(X, Y, Y), Y),
        Rule::term("select-not", Exact, select(not(X), Y, Z), select(X, Z, Y)),
        Rule::build("select-known", Exact, select(C, X, Y), known_choice),
    ]
}

/// The constant of the left side may change places.
fn moderate(s: &Site<'_>) -> bool {
    s.var(&C).is_some_and(|c| s.is_moderate(c))
}

/// Two divisors whose product cannot be too large or too small.
fn moderate_divisors(s: &Site<'_>) -> bool {
    [Y, Z].iter().all(|divisor| s.var(divisor).is_some_and(|divisor| s.is_moderate(divisor)))
}

/// `x c d` is `x (c d)`.
fn product_of_constants(s: &mut Site<'_>) -> Option<egg::Id> {
    let (x, c) = constants_folded(s, ScalarOp::Mul)?;
    s.mul(x, c)
}

/// `x + c + d` is `x + (c + d)`.
fn sum_of_constants(s: &mut Site<'_>) -> Option<egg::Id> {
    let (x, c) = constants_folded(s, ScalarOp::Add)?;
    s.point(ScalarOp::Add, &[x, c])
}

/// Integers wrap around, as they would have done one after the other.
fn constants_folded(s: &mut Site<'_>, op: ScalarOp) -> Option<(egg::Id, egg::Id)> {
    let (x, c, d) = (s.var(&X)?, s.var(&C)?, s.var(&D)?);
    let dtype = s.fact(c).ty.dtype;
    let folded = s.fact(c).splat?.with(s.fact(d).splat?, |c, d| fold(op, dtype, &[c, d]).unwrap_or(f64::NAN))?;
    Some((x, s.number(folded, c)?))
}

/// The constant with the other sign.
fn negative(s: &Site<'_>, c: egg::Id) -> Option<Splat> {
    let dtype = s.fact(c).ty.dtype;
    s.fact(c).splat?.map(|value| fold(ScalarOp::Neg, dtype, &[value]).unwrap_or(f64::NAN))
}

/// `-(x c)` is `x (-c)`.
fn negated_constant(s: &mut Site<'_>) -> Option<egg::Id> {
    let (x, c) = (s.var(&X)?, s.var(&C)?);
    let negated = negative(s, c)?;
    let c = s.number(negated, c)?;
    s.mul(x, c)
}

/// `x - c` is `x + (-c)`, so that constants meet in sums.
fn plus_negative(s: &mut Site<'_>) -> Option<egg::Id> {
    let (x, c) = (s.var(&X)?, s.var(&C)?);
    let negated = negative(s, c).filter(|negated| negated.value != 0.0)?;
    let c = s.number(negated, c)?;
    s.point(ScalarOp::Add, &[x, c])
}

/// `x / c` is `x (1/c)`.
fn times_inverse(s: &mut Site<'_>) -> Option<egg::Id> {
    let (x, c) = (s.var(&X)?, s.var(&C)?);
    let inverse = s.fact(c).splat?.map(|value| 1.0 / value)?;
    // Where the inverse would not be a normal f32 number, it would lose digits that the quotient has.
    let normal = (1e-37..1e37).contains(&inverse.value.abs());
    let c = s.number(normal.then_some(inverse)?, c)?;
    s.mul(x, c)
}

/// One division per row instead of one per element.
fn times_repeated_inverse(s: &mut Site<'_>) -> Option<egg::Id> {
    let (x, y, Op::Broadcast { shape, dims }) = (s.var(&X)?, s.var(&Y)?, s.op(1)) else { return None };
    if s.shape(y).elements() >= shape.elements() {
        return None;
    }
    let one = s.number(1.0, y)?;
    let inverse = if planted(Fault::InverseForgotten) { y } else { s.point(ScalarOp::Div, &[one, y])? };
    let inverse = s.broadcast(inverse, shape, dims)?;
    s.mul(x, inverse)
}

fn known_choice(s: &mut Site<'_>) -> Option<egg::Id> {
    let condition = s.fact(s.var(&C)?).number()?;
    if condition == 0.0 { s.var(&Y) } else { s.var(&X) }
}
