//! Scalar operations on floats, integers and truth values.

use alip_compiler::ir::{DType, NodeId};
use alip_compiler::ops::{Op, ScalarOp};

use super::super::maker::{Held, MAX_INTEGER, MAX_MAGNITUDE, Maker};
use ScalarOp::{
    Abs, Add, And, Cos, Div, Eq, Erf, Exp, Floor, Le, Ln, Lt, Max, Min, Mul, Neg, Not, Or, Pow, Rem, Select, Sin, Sqrt,
    Sub, Tanh,
};

/// `x^2 + above`, which is positive.
fn positive(maker: &mut Maker, x: NodeId, above: f64) -> NodeId {
    let (square, above) = (maker.point(Mul, &[x, x]), maker.scalar(above));
    maker.point(Add, &[square, above])
}

pub(super) fn unary(maker: &mut Maker, x: Held) {
    match maker.draws.below(14) {
        kind @ 0..=3 => {
            let id = maker.point([Tanh, Sin, Cos, Erf][kind], &[x.id]);
            maker.keep(id, false, 1.0);
        }
        4 => {
            let id = maker.point(Neg, &[x.id]);
            maker.keep(id, x.exact, x.magnitude);
        }
        5 | 6 if x.magnitude <= MAX_MAGNITUDE => {
            let id = maker.point(Exp, &[x.id]);
            maker.keep(id, false, x.magnitude.exp());
        }
        7 => {
            let above = positive(maker, x.id, 0.5);
            let op = maker.draws.pick(&[Sqrt, Ln]);
            let id = maker.point(op, &[above]);
            maker.keep(id, false, x.magnitude + 1.0);
        }
        8 if x.magnitude <= MAX_MAGNITUDE => {
            let base = positive(maker, x.id, 0.5);
            let exponent = maker.partner(&maker.sizes(x.id));
            let exponent = maker.point(Tanh, &[exponent.id]);
            let id = maker.point(Pow, &[base, exponent]);
            maker.keep(id, false, 0.5 + x.magnitude.powi(2));
        }
        9 => {
            let factor = maker.draws.pick(&[0.0, 1.0, 0.5, -2.0, 0.3]);
            let id = maker.scaled(x.id, factor);
            maker.keep(id, false, x.magnitude * factor.abs());
        }
        10 => {
            let id = maker.op(Op::StopGradient, &[x.id]);
            maker.keep(id, x.exact, x.magnitude);
        }
        11 if x.magnitude < MAX_INTEGER => {
            let id = maker.point(Floor, &[x.id]);
            maker.keep(id, x.exact, x.magnitude + 1.0);
        }
        12 => {
            let step = maker.draws.pick(&[0.7, 2.0, -1.5]);
            let divisor = maker.scalar(step);
            let id = maker.point(Rem, &[x.id, divisor]);
            maker.keep(id, false, step.abs());
        }
        _ => {
            let above = positive(maker, x.id, 1.0);
            let id = maker.point(Div, &[x.id, above]);
            maker.keep(id, false, 0.5);
        }
    }
}

pub(super) fn binary(maker: &mut Maker, x: Held) {
    let y = maker.partner(&maker.sizes(x.id));
    let op = maker.draws.pick(&[Add, Sub, Mul]);
    let (a, b) = if maker.draws.flip() { (x.id, y.id) } else { (y.id, x.id) };
    let id = maker.point(op, &[a, b]);
    let magnitude = if op == Mul { x.magnitude * y.magnitude } else { x.magnitude + y.magnitude };
    maker.keep(id, false, magnitude);
}

/// The larger, the smaller, the magnitude.
pub(super) fn ordered(maker: &mut Maker, x: Held) {
    if maker.draws.one_in(3) {
        let id = maker.point(Abs, &[x.id]);
        return maker.keep(id, x.exact, x.magnitude);
    }
    let y = maker.partner(&maker.sizes(x.id));
    let op = maker.draws.pick(&[Max, Min]);
    let (a, b) = if maker.draws.flip() { (x.id, y.id) } else { (y.id, x.id) };
    let id = maker.point(op, &[a, b]);
    maker.keep(id, x.exact && y.exact, x.magnitude.max(y.magnitude));
}

/// A comparison that is right whatever is rounded, or nearly always.
fn comparison(maker: &mut Maker, sizes: &[u64]) -> NodeId {
    let (a, b) = (maker.partner(sizes), maker.partner(sizes));
    let op = maker.draws.pick(&[Lt, Le, Eq]);
    maker.point(op, &[a.id, b.id])
}

pub(super) fn select(maker: &mut Maker, x: Held) {
    let sizes = maker.sizes(x.id);
    let mut condition = comparison(maker, &sizes);
    if maker.draws.one_in(3) {
        condition = maker.point(Not, &[condition]);
    }
    if maker.draws.one_in(3) {
        maker.truths.push(condition);
    }
    let y = maker.partner(&sizes);
    let (a, b) = if maker.draws.flip() { (x.id, y.id) } else { (y.id, x.id) };
    let id = maker.point(Select, &[condition, a, b]);
    maker.keep(id, x.exact && y.exact, x.magnitude.max(y.magnitude));
}

/// Logic, and back to numbers.
pub(super) fn truth(maker: &mut Maker, x: Held) {
    let a = comparison(maker, &maker.sizes(x.id));
    let shape = maker.graph().shape(a).clone();
    let same: Vec<NodeId> = maker.truths.iter().filter(|id| *maker.graph().shape(**id) == shape).copied().collect();
    let id = if same.is_empty() {
        maker.point(Not, &[a])
    } else {
        let b = maker.draws.pick(&same);
        let op = maker.draws.pick(&[And, Or, Eq]);
        maker.point(op, &[a, b])
    };
    maker.truths.push(id);
    let id = maker.cast(id, DType::F32);
    maker.keep(id, true, 1.0);
}

/// Arithmetic on integers.
pub(super) fn integer(maker: &mut Maker, x: Held) {
    if maker.integers.is_empty() || maker.draws.one_in(3) {
        let sizes = maker.sizes(x.id);
        let id = if x.exact && !maker.wild && x.magnitude < MAX_INTEGER && maker.draws.flip() {
            maker.cast(x.id, DType::I32)
        } else {
            maker.numbers(&sizes, |_, word| f64::from(word % 9) - 4.0)
        };
        return maker.integers.push(Held { id, exact: true, magnitude: x.magnitude.max(4.0) });
    }
    let held = maker.integers.clone();
    let a = maker.draws.pick(&held);
    let shape = maker.graph().shape(a.id).clone();
    let same: Vec<Held> = held.into_iter().filter(|b| *maker.graph().shape(b.id) == shape).collect();
    let b = maker.draws.pick(&same);
    let (op, magnitude) = match maker.draws.below(8) {
        0 => (Mul, a.magnitude * b.magnitude),
        1 => (Max, a.magnitude.max(b.magnitude)),
        2 => (Sub, a.magnitude + b.magnitude),
        3 => (maker.draws.pick(&[Div, Rem]), a.magnitude.max(3.0)),
        4 => (Neg, a.magnitude),
        5 => {
            let id = maker.cast(a.id, DType::F32);
            return maker.keep(id, true, a.magnitude);
        }
        // Twice by the largest: a sum that wraps around to two less, a product that does so to a itself.
        6 => {
            let op = maker.draws.pick(&[Add, Mul]);
            let most = maker.b().constant(f64::from(i32::MAX), DType::I32).expect("a constant");
            let once = maker.point(op, &[a.id, most]);
            let id = maker.point(op, &[once, most]);
            return maker.integers.push(Held { id, exact: true, magnitude: a.magnitude + 2.0 });
        }
        _ => (Add, a.magnitude + b.magnitude),
    };
    if magnitude >= MAX_INTEGER {
        return;
    }
    let id = match op {
        Neg => maker.point(Neg, &[a.id]),
        // No zero divisors.
        Div | Rem => {
            let by = maker.draws.pick(&[3.0, -3.0]);
            let by = maker.b().constant(by, DType::I32).expect("a constant");
            maker.point(op, &[a.id, by])
        }
        op => maker.point(op, &[a.id, b.id]),
    };
    maker.integers.push(Held { id, exact: true, magnitude });
}
