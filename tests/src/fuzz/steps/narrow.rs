//! Values of 16 bits: rounded on the way, computed with, multiplied, attended to, and kept as state.

use alip_compiler::ir::{DType, NodeId};
use alip_compiler::ops::attention::{Attention, AttentionResult, Rows};
use alip_compiler::ops::{Op, Real, ReduceKind, ScalarOp};

use super::super::maker::{Held, MAX_ELEMENTS, MAX_MAGNITUDE, Maker};
use super::row::softmax_along;

/// Numbers above this are left to types that hold them.
const MOST: f64 = 1e4;
/// Relative growth of what is rounded to nearest.
const GROWTH: f64 = 1.01;

fn dtype(maker: &mut Maker) -> DType {
    maker.draws.pick(&[DType::Bf16, DType::F16])
}

/// To 16 bits and back, also as the one operation that a target without such types has for it.
pub(super) fn rounded(maker: &mut Maker, x: Held) {
    if x.magnitude > MOST {
        return;
    }
    let id = match maker.draws.below(4) {
        0 => maker.point(ScalarOp::RoundBf16, &[x.id]),
        1 => maker.point(ScalarOp::RoundF16, &[x.id]),
        _ => {
            let to = dtype(maker);
            let narrow = maker.cast(x.id, to);
            maker.cast(narrow, DType::F32)
        }
    };
    maker.keep(id, x.exact, x.magnitude * GROWTH);
}

/// A state of 16 bits, as it is.
pub(super) fn parameter(maker: &mut Maker, _: Held) {
    let (sizes, dtype) = (maker.shape(), dtype(maker));
    let held = maker.fresh_of(&sizes, true, dtype);
    let id = maker.cast(held.id, DType::F32);
    maker.keep(id, true, held.magnitude);
}

/// Arithmetic in 16 bits: every result on the way is rounded.
pub(super) fn arithmetic(maker: &mut Maker, x: Held) {
    use ScalarOp::{Add, Div, Exp, Max, Mul, Neg, Select, Sub, Tanh};
    if x.magnitude > MAX_MAGNITUDE {
        return;
    }
    let (y, dtype) = (maker.partner(&maker.sizes(x.id)), dtype(maker));
    if y.magnitude > MAX_MAGNITUDE {
        return;
    }
    let (a, b) = (maker.cast(x.id, dtype), maker.cast(y.id, dtype));
    let (id, magnitude) = match maker.draws.below(8) {
        0 => {
            let (less, half) = (maker.point(ScalarOp::Lt, &[a, b]), maker.scalar(0.3));
            let scaled = maker.point(Mul, &[b, half]);
            (maker.point(Select, &[less, scaled, a]), x.magnitude.max(y.magnitude))
        }
        1 => (maker.point(Exp, &[a]), x.magnitude.exp()),
        2 => {
            let (square, one) = (maker.point(Mul, &[b, b]), maker.scalar(1.0));
            let above = maker.point(Add, &[square, one]);
            (maker.point(Div, &[a, above]), x.magnitude)
        }
        3 if !maker.sizes(a).is_empty() => {
            let rank = maker.sizes(a).len();
            let axes = maker.axes(rank);
            let kind = maker.draws.pick(&[ReduceKind::Sum, ReduceKind::Max]);
            let summed: u64 = axes.iter().map(|axis| maker.sizes(a)[*axis]).product();
            (maker.along(kind, a, &axes), x.magnitude * summed as f64)
        }
        4 => {
            let larger = maker.point(Max, &[a, b]);
            (maker.point(Neg, &[larger]), x.magnitude.max(y.magnitude))
        }
        kind => {
            let op = maker.draws.pick(&[Add, Sub, Mul]);
            let first = maker.point(op, &[a, b]);
            let id = if kind == 5 { maker.point(Tanh, &[first]) } else { first };
            (id, x.magnitude * y.magnitude + x.magnitude + y.magnitude)
        }
    };
    let id = maker.cast(id, DType::F32);
    if magnitude <= MOST {
        maker.keep(id, false, magnitude * GROWTH);
    }
}

/// A product of 16 bits with weights, perhaps of 16 bits, rounded behind its bias.
pub(super) fn linear(maker: &mut Maker, x: Held) {
    let sizes = maker.sizes(x.id);
    let Some(&width) = sizes.last().filter(|_| sizes.len() > 1) else { return };
    let out = maker.draws.size(6);
    if width > 64 || x.magnitude > MAX_MAGNITUDE || maker.elements(x.id) / width * out > MAX_ELEMENTS {
        return;
    }
    let dtype = dtype(maker);
    let of_weight = if maker.draws.flip() { dtype } else { DType::F32 };
    let weight = maker.fresh_of(&[width, out], true, of_weight).id;
    let bias = maker.fresh(&[out], true).id;
    let (a, b) = (maker.cast(x.id, dtype), maker.cast(weight, dtype));
    let product = maker.b().matmul(a, b).expect("the widths agree");
    let product = maker.scaled(product, 1.0 / width as f64);
    let id = maker.point(ScalarOp::Add, &[product, bias]);
    let id = if maker.draws.flip() { maker.cast(id, dtype) } else { id };
    let id = maker.cast(id, DType::F32);
    maker.keep(id, false, (x.magnitude + 1.0) * GROWTH);
}

/// Attention of 16 bits; at times written out, with what is between the products rounded, which no lift may skip.
pub(super) fn attention(maker: &mut Maker, _: Held) {
    let (n, keys, heads, d) = (maker.draws.size(2), maker.draws.size(9), maker.draws.size(2), maker.draws.size(4));
    let dtype = dtype(maker);
    let parts: [Held; 3] = [(); 3].map(|()| maker.shaped(&[n, keys, heads, d]));
    if parts.iter().any(|part| part.magnitude > MAX_MAGNITUDE) {
        return;
    }
    let [q, k, v]: [NodeId; 3] = parts.map(|part| maker.cast(part.id, dtype));
    let id = if maker.draws.flip() {
        let causal = maker.draws.flip();
        let op = Attention { result: AttentionResult::Out, rows: Rows::Dense, causal, scale: Real(0.3) };
        maker.op(Op::Attention(op), &[q, k, v])
    } else {
        let scores = maker.b().einsum("n q h d, n k h d -> n h q k", &[q, k]).expect("heads agree");
        let mut scores = maker.scaled(scores, 0.3);
        if maker.draws.flip() {
            let narrow = maker.cast(scores, dtype);
            scores = maker.cast(narrow, DType::F32);
        }
        let spelling = maker.draws.below(4);
        let weights = softmax_along(maker, Held { id: scores, exact: false, magnitude: MOST }, &[3], spelling);
        let (weights, v) = match maker.draws.flip() {
            true => (maker.cast(weights, dtype), v),
            false => (weights, maker.cast(v, DType::F32)),
        };
        maker.b().einsum("n h q k, n k h e -> n q h e", &[weights, v]).expect("heads agree")
    };
    let id = maker.cast(id, DType::F32);
    maker.keep(id, false, parts[2].magnitude * GROWTH);
}
