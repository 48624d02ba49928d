//! Reductions, and what has several stages over a row, in the spellings that people use.

use alip_compiler::ir::{DType, NodeId};
use alip_compiler::ops::{Op, Real, ReduceKind, ScalarOp};

use super::super::maker::{Held, MAX_ELEMENTS, MAX_MAGNITUDE, Maker};
use ScalarOp::{Add, Div, Eq, Erf, Exp, Ln, Mul, Neg, Select, Sqrt, Sub, Tanh};

pub(super) fn reduce(maker: &mut Maker, x: Held) {
    let sizes = maker.sizes(x.id);
    if sizes.is_empty() {
        return;
    }
    let axes = maker.axes(sizes.len());
    let terms: u64 = axes.iter().map(|axis| sizes[*axis]).product();
    let keep = maker.draws.flip();
    if terms <= 8 && x.magnitude <= 1.0 && maker.draws.one_in(4) {
        let id = maker.b().reduce(ReduceKind::Prod, x.id, &axes, keep).expect("axes of x");
        return maker.keep(id, false, 1.0);
    }
    let id = maker.b().reduce(ReduceKind::Sum, x.id, &axes, keep).expect("axes of x");
    let id = maker.scaled(id, 1.0 / terms as f64);
    maker.keep(id, false, x.magnitude);
}

/// Of an inexact value the gradient would be known nowhere: which element is the largest depends on rounding.
pub(super) fn extremum(maker: &mut Maker, x: Held) {
    let sizes = maker.sizes(x.id);
    if sizes.is_empty() {
        return;
    }
    let from = if x.exact { x.id } else { maker.op(Op::StopGradient, &[x.id]) };
    let axes = maker.axes(sizes.len());
    let (kind, keep) = (maker.draws.pick(&[ReduceKind::Max, ReduceKind::Min]), maker.draws.flip());
    let id = maker.b().reduce(kind, from, &axes, keep).expect("axes of x");
    maker.keep(id, x.exact, x.magnitude);
}

/// Dimensions of rows of more than one element.
fn row(maker: &mut Maker, x: Held) -> Option<Vec<usize>> {
    let sizes = maker.sizes(x.id);
    if sizes.is_empty() {
        return None;
    }
    let axes = if maker.draws.flip() { vec![sizes.len() - 1] } else { maker.axes(sizes.len()) };
    // A row of one element would be zero, or one, whatever its element.
    axes.iter().any(|axis| sizes[*axis] > 1).then_some(axes)
}

/// `x` less its largest along some axes, or `x` itself.
fn shifted(maker: &mut Maker, x: Held, axes: &[usize], spelling: usize) -> NodeId {
    if spelling == 0 && x.magnitude <= MAX_MAGNITUDE {
        return x.id;
    }
    let most = most(maker, x.id, axes);
    maker.point(Sub, &[x.id, most])
}

/// The largest along some axes, as a number that has no gradient.
fn most(maker: &mut Maker, x: NodeId, axes: &[usize]) -> NodeId {
    let most = maker.along(ReduceKind::Max, x, axes);
    maker.op(Op::StopGradient, &[most])
}

pub(super) fn softmax(maker: &mut Maker, x: Held) {
    let Some(axes) = row(maker, x) else { return };
    let spelling = maker.draws.below(4);
    let id = softmax_along(maker, x, &axes, spelling);
    maker.keep(id, false, 1.0);
}

/// The softmax of `x` along some axes in one of four spellings.
pub(super) fn softmax_along(maker: &mut Maker, x: Held, axes: &[usize], spelling: usize) -> NodeId {
    let less = shifted(maker, x, axes, spelling);
    let powers = maker.point(Exp, &[less]);
    let sum = maker.along(ReduceKind::Sum, powers, axes);
    match spelling {
        // exp(x - logsumexp(x))
        1 => {
            let log = maker.point(Ln, &[sum]);
            let id = maker.point(Sub, &[less, log]);
            maker.point(Exp, &[id])
        }
        // Multiplied by the reciprocal.
        2 => {
            let one = maker.scalar(1.0);
            let reciprocal = maker.point(Div, &[one, sum]);
            maker.point(Mul, &[powers, reciprocal])
        }
        _ => maker.point(Div, &[powers, sum]),
    }
}

/// The logsumexp of `x` along some axes, which stay as ones; with the largest taken away first, or as it is defined.
pub(super) fn log_sum_exp(maker: &mut Maker, x: Held, axes: &[usize], shift: bool) -> NodeId {
    let most = shift.then(|| most(maker, x.id, axes));
    let less = most.map_or(x.id, |most| maker.point(Sub, &[x.id, most]));
    let powers = maker.point(Exp, &[less]);
    let sum = maker.along(ReduceKind::Sum, powers, axes);
    let log = maker.point(Ln, &[sum]);
    most.map_or(log, |most| maker.point(Add, &[log, most]))
}

/// The ops that lifting makes, as they stand.
pub(super) fn lifted(maker: &mut Maker, x: Held) {
    let Some(mut axes) = row(maker, x) else { return };
    axes.sort_unstable();
    let sizes = maker.sizes(x.id);
    let terms = axes.iter().map(|axis| sizes[*axis]).product::<u64>() as f64;
    let last = sizes.len() - 1;
    let (op, magnitude) = match maker.draws.below(4) {
        0 => (Op::Softmax { axes }, 1.0),
        1 => (Op::LogSumExp { axes }, x.magnitude + terms.ln()),
        2 => (Op::LayerNorm { axes, eps: Real(0.1) }, terms.sqrt()),
        _ if sizes[last] < 2 || x.magnitude > 8.0 => return,
        _ => {
            let target = maker.indices(&sizes[..last], sizes[last]);
            let id = maker.op(Op::CrossEntropy, &[x.id, target]);
            return maker.keep(id, false, 2.0 * x.magnitude + (sizes[last] as f64).ln());
        }
    };
    let id = maker.op(op, &[x.id]);
    maker.keep(id, false, magnitude);
}

/// Layer norm, rms norm, length 1.
pub(super) fn norm(maker: &mut Maker, x: Held) {
    let Some(axes) = row(maker, x) else { return };
    let kind = maker.draws.below(4);
    let centred = if kind == 0 {
        x.id
    } else {
        let mean = maker.mean(x.id, &axes);
        maker.point(Sub, &[x.id, mean])
    };
    let squares = maker.point(Mul, &[centred, centred]);
    let epsilon = maker.scalar(0.1);
    if kind == 1 {
        let length = maker.along(ReduceKind::Sum, squares, &axes);
        let above = maker.point(Add, &[length, epsilon]);
        let length = maker.point(Sqrt, &[above]);
        let id = maker.point(Div, &[centred, length]);
        return maker.keep(id, false, 1.0);
    }
    let variance = maker.mean(squares, &axes);
    let above = maker.point(Add, &[variance, epsilon]);
    let deviation = maker.point(Sqrt, &[above]);
    let id = maker.point(Div, &[centred, deviation]);
    let sizes = maker.sizes(id);
    let (scale, bias) = (maker.fresh(&sizes[sizes.len() - 1..], true), maker.fresh(&sizes[sizes.len() - 1..], true));
    let id = maker.point(Mul, &[id, scale.id]);
    let id = maker.point(Add, &[id, bias.id]);
    maker.keep(id, false, 4.0);
}

/// gelu by the error function and by tanh, and `x sigmoid(1.702 x)`.
pub(super) fn activation(maker: &mut Maker, x: Held) {
    let (half, one) = (maker.scalar(0.5), maker.scalar(1.0));
    let gate = match maker.draws.below(3) {
        0 => {
            let inner = maker.scaled(x.id, std::f64::consts::FRAC_1_SQRT_2);
            let erf = maker.point(Erf, &[inner]);
            let above = maker.point(Add, &[erf, one]);
            maker.point(Mul, &[above, half])
        }
        1 => {
            let square = maker.point(Mul, &[x.id, x.id]);
            let cube = maker.point(Mul, &[square, x.id]);
            let cube = maker.scaled(cube, 0.044715);
            let inner = maker.point(Add, &[x.id, cube]);
            let inner = maker.scaled(inner, 0.797_884_560_802_865_4);
            let tanh = maker.point(Tanh, &[inner]);
            let above = maker.point(Add, &[tanh, one]);
            maker.point(Mul, &[above, half])
        }
        _ if x.magnitude <= 8.0 => {
            let inner = maker.scaled(x.id, -1.702);
            let power = maker.point(Exp, &[inner]);
            let below = maker.point(Add, &[one, power]);
            maker.point(Div, &[one, below])
        }
        _ => return,
    };
    let id = maker.point(Mul, &[x.id, gate]);
    maker.keep(id, false, x.magnitude);
}

/// `x - logsumexp(x)` along the second of two dimensions.
pub(super) fn log_likelihood(maker: &mut Maker, x: Held, spelling: usize) -> NodeId {
    let less = shifted(maker, x, &[1], spelling);
    let powers = maker.point(Exp, &[less]);
    let sum = maker.along(ReduceKind::Sum, powers, &[1]);
    let log = maker.point(Ln, &[sum]);
    maker.point(Sub, &[less, log])
}

/// The mean negative log likelihood of a class per row, picked by index or by comparison.
pub(super) fn cross_entropy(maker: &mut Maker, x: Held) {
    let count = maker.elements(x.id);
    let classes = maker.sizes(x.id).last().copied().unwrap_or(1);
    if classes < 2 || count > MAX_ELEMENTS || x.magnitude > 8.0 {
        return;
    }
    let rows = count / classes;
    let logits = maker.b().reshape(x.id, [rows, classes].into()).expect("as many elements");
    let logits = Held { id: logits, ..x };
    let spelling = maker.draws.below(3);
    let likelihood = log_likelihood(maker, logits, spelling);
    let labels = if rows == classes && maker.draws.flip() {
        maker.b().iota([rows].into(), 0).expect("a dimension")
    } else {
        maker.indices(&[rows], classes)
    };
    let picked = if spelling == 2 {
        let labels = maker.b().reshape(labels, [rows, 1].into()).expect("as many elements");
        let columns = maker.b().iota([1, classes].into(), 1).expect("a dimension");
        let hit = maker.point(Eq, &[labels, columns]);
        let zero = maker.scalar(0.0);
        let kept = maker.point(Select, &[hit, likelihood, zero]);
        maker.b().reduce(ReduceKind::Sum, kept, &[1], false).expect("axis 1")
    } else {
        maker.op(Op::Gather { batch: 1 }, &[likelihood, labels])
    };
    let loss = maker.point(Neg, &[picked]);
    if maker.draws.one_in(4) {
        let likely = maker.cast(labels, DType::F32);
        maker.keep(likely, true, classes as f64 + 1.0);
    }
    let id = maker.b().mean(loss, &[0], false).expect("axis 0");
    maker.keep(id, false, 2.0 * x.magnitude + (classes as f64).ln());
}

/// The mean of what each row's own column loses against all columns, in both directions, of a matrix that is a square or
/// nearly one: what lifting may only call a contrastive loss where it is.
pub(super) fn diagonal(maker: &mut Maker, _: Held) {
    let rows = 1 + maker.draws.size(5);
    let columns = maker.draws.pick(&[rows, rows, rows + 1, rows - 1, 2 * rows]).max(2);
    let width = maker.draws.size(4);
    let (a, b) = (maker.shaped(&[rows, width]), maker.shaped(&[columns, width]));
    if a.magnitude * b.magnitude > MAX_MAGNITUDE {
        return;
    }
    let scores = maker.b().einsum("i d, j d -> i j", &[a.id, b.id]).expect("of one width");
    let spelling = maker.draws.below(4);
    let weighted = maker.draws.flip();
    let both = if maker.draws.flip() { 2 } else { 1 };
    let magnitude = a.magnitude * b.magnitude * width as f64;
    let parts: Vec<NodeId> = (0..both)
        .map(|turn| {
            let id = if turn == 1 { maker.b().transpose(scores, &[1, 0]).expect("two dimensions") } else { scores };
            let logits = Held { id, exact: false, magnitude };
            let likelihood = log_likelihood(maker, logits, spelling.min(1));
            let own = own_column(maker, likelihood, spelling);
            let count = maker.sizes(own);
            let own = if weighted && count == [rows] {
                let weight = maker.fresh(&count, true);
                maker.point(Mul, &[own, weight.id])
            } else {
                own
            };
            let mean = maker.b().mean(own, &[0], false).expect("axis 0");
            maker.point(Neg, &[mean])
        })
        .collect();
    let id = if let [one, other] = parts[..] { maker.point(Add, &[one, other]) } else { parts[0] };
    maker.keep(id, false, 4.0 * magnitude + 4.0 * (columns as f64).ln());
}

/// Of each row of a matrix the element in the column of the same number: by index, by comparison, by a matrix of ones and zeros.
fn own_column(maker: &mut Maker, matrix: NodeId, spelling: usize) -> NodeId {
    let [rows, columns] = maker.sizes(matrix)[..] else { return matrix };
    if spelling < 2 {
        let labels = maker.b().iota([rows].into(), 0).expect("a dimension");
        return maker.op(Op::Gather { batch: 1 }, &[matrix, labels]);
    }
    let i = maker.b().iota([rows, 1].into(), 0).expect("a dimension");
    let j = maker.b().iota([1, columns].into(), 1).expect("a dimension");
    let hit = maker.point(Eq, &[i, j]);
    let kept = if spelling == 2 {
        let zero = maker.scalar(0.0);
        maker.point(Select, &[hit, matrix, zero])
    } else {
        let unit = maker.cast(hit, DType::F32);
        maker.point(Mul, &[matrix, unit])
    };
    maker.b().reduce(ReduceKind::Sum, kept, &[1], false).expect("axis 1")
}
