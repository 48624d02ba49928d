//! What people write that could be written shorter, and what composing modules leaves behind: numbers that change nothing,
//! signs that cancel, what is split and joined again, products of one operand. The optimiser's rules are about these.

use alip_compiler::ir::{DType, NodeId};
use alip_compiler::ops::{Conv, ConvKind, Op, ReduceKind, ScalarOp};

use super::super::maker::{Held, MAX_ELEMENTS, MAX_MAGNITUDE, MAX_RANK, Maker};
use ScalarOp::{Abs, Add, And, Div, Lt, Max, Min, Mul, Neg, Not, Or, Select, Sub, Tanh};

/// Numbers that change nothing, and signs: the value itself, but for its sign. Exact, also of NaN.
pub(super) fn number(maker: &mut Maker, x: Held) {
    let (zero, one, minus) = (maker.scalar(0.0), maker.scalar(1.0), maker.scalar(-1.0));
    let negative = maker.point(Neg, &[x.id]);
    let id = match maker.draws.below(9) {
        0 => maker.point(Sub, &[x.id, zero]),
        1 => maker.point(Div, &[x.id, one]),
        2 => maker.point(Neg, &[negative]),
        3 => maker.point(Sub, &[zero, x.id]),
        4 => maker.point(Mul, &[x.id, minus]),
        5 => maker.point(Abs, &[negative]),
        6 => maker.point(Max, &[x.id, x.id]),
        7 => maker.point(Min, &[x.id, x.id]),
        _ => maker.point(Add, &[zero, x.id]),
    };
    maker.keep(id, x.exact, x.magnitude);
}

/// Sums, products and quotients that can be written with fewer operations.
pub(super) fn algebra(maker: &mut Maker, x: Held) {
    if x.magnitude > MAX_MAGNITUDE {
        return;
    }
    let (third, tenth) = (maker.scalar(0.3), maker.scalar(0.1));
    let negative = maker.point(Neg, &[x.id]);
    match maker.draws.below(6) {
        5 => {
            let part = maker.point(Mul, &[x.id, third]);
            let id = maker.point(Add, &[part, x.id]);
            maker.keep(id, false, 1.3 * x.magnitude);
        }
        4 => {
            let y = maker.partner(&maker.sizes(x.id));
            let size = maker.point(Abs, &[y.id]);
            let divisor = maker.point(Add, &[size, third]);
            let divisor = maker.op(Op::StopGradient, &[divisor]);
            let parts = [x.id, y.id].map(|id| maker.point(Div, &[id, divisor]));
            let id = maker.point(Add, &parts);
            maker.keep(id, false, (x.magnitude + y.magnitude) * 4.0);
        }
        0 => {
            let sum = maker.point(Add, &[x.id, third]);
            let op = maker.draws.pick(&[Add, Sub]);
            let id = maker.point(op, &[sum, tenth]);
            maker.keep(id, false, x.magnitude + 0.4);
        }
        1 => {
            let id = maker.point(Mul, &[negative, negative]);
            maker.keep(id, false, x.magnitude.powi(2));
        }
        kind => {
            let square = maker.point(Mul, &[x.id, x.id]);
            let one = maker.scalar(1.0);
            let above = maker.point(Add, &[square, one]);
            let y = maker.partner(&maker.sizes(x.id));
            let id = if kind == 2 {
                let below = maker.point(Neg, &[above]);
                maker.point(Div, &[y.id, below])
            } else {
                let quotient = maker.point(Div, &[above, third]);
                // 2 or 3, which is known of it: divisors become one only where their product cannot be too large.
                let asked = maker.point(ScalarOp::Le, &[y.id, x.id]);
                let (one_or_none, two) = (maker.cast(asked, DType::F32), maker.scalar(2.0));
                let divisor = maker.point(Add, &[one_or_none, two]);
                let quotient = maker.point(Div, &[quotient, divisor]);
                maker.point(Div, &[tenth, quotient])
            };
            maker.keep(id, false, y.magnitude);
        }
    }
}

/// Logic that says nothing, and choices between equals or by what is known.
pub(super) fn choice(maker: &mut Maker, x: Held) {
    let sizes = maker.sizes(x.id);
    let (a, b) = (maker.partner(&sizes), maker.partner(&sizes));
    let truth = |maker: &mut Maker, value: f64| maker.b().constant(value, DType::Bool).expect("a constant");
    let asked = maker.point(ScalarOp::Le, &[a.id, b.id]);
    let (condition, other) = match maker.draws.below(5) {
        0 => {
            let not = maker.point(Not, &[asked]);
            (maker.point(Not, &[not]), a)
        }
        1 => {
            let yes = truth(maker, 1.0);
            (maker.point(And, &[asked, yes]), a)
        }
        2 => {
            let no = truth(maker, 0.0);
            (maker.point(Or, &[asked, no]), b)
        }
        3 => (asked, x),
        _ => {
            let known = maker.draws.below(2) as f64;
            (truth(maker, known), b)
        }
    };
    let id = maker.point(Select, &[condition, x.id, other.id]);
    maker.keep(id, x.exact && other.exact, x.magnitude.max(other.magnitude));
}

/// A maximum of maxima, a sum of sums or with zeros in it; a multiple by zero of what is surely finite.
pub(super) fn reduced(maker: &mut Maker, x: Held) {
    let sizes = maker.sizes(x.id);
    if sizes.len() < 2 {
        let sizes = if sizes.is_empty() { vec![2] } else { sizes };
        let asked = maker.partner(&sizes);
        let asked = maker.point(ScalarOp::Le, &[asked.id, x.id]);
        let number = maker.cast(asked, DType::F32);
        let id = maker.scaled(number, 0.0);
        return maker.keep(id, true, 0.0);
    }
    let first = maker.draws.below(sizes.len());
    if !x.exact && maker.draws.flip() && maker.elements(x.id) <= MAX_ELEMENTS / 4 {
        let along = |size: u64| (0..sizes.len()).map(|axis| if axis == first { size } else { 0 }).collect::<Vec<_>>();
        let padded = maker.op(Op::Pad { low: along(1), high: along(2), interior: along(0) }, &[x.id]);
        let id = maker.b().reduce(ReduceKind::Sum, padded, &[first], false).expect("an axis of x");
        let id = maker.scaled(id, 1.0 / sizes[first] as f64);
        return maker.keep(id, false, x.magnitude);
    }
    let kind = if x.exact { maker.draws.pick(&[ReduceKind::Max, ReduceKind::Min]) } else { ReduceKind::Sum };
    // Of what lies the other way round, at times.
    let from = if maker.draws.flip() {
        let perm: Vec<usize> = (0..sizes.len()).rev().collect();
        maker.b().transpose(x.id, &perm).expect("a permutation")
    } else {
        x.id
    };
    let once = maker.b().reduce(kind, from, &[first], false).expect("an axis of x");
    let second = maker.draws.below(sizes.len() - 1);
    let id = maker.b().reduce(kind, once, &[second], false).expect("an axis of the rest");
    let terms = maker.elements(x.id) / maker.elements(id).max(1);
    let id = if x.exact { id } else { maker.scaled(id, 1.0 / terms.max(1) as f64) };
    maker.keep(id, x.exact, x.magnitude);
}

/// Views that undo one another, whole or in part.
pub(super) fn rejoined(maker: &mut Maker, x: Held) {
    let sizes = maker.sizes(x.id);
    let Some(axis) = (!sizes.is_empty()).then(|| maker.draws.below(sizes.len())) else { return };
    let size = sizes[axis];
    let id = match maker.draws.below(9) {
        8 if size > 2 => {
            let inner = maker.b().slice_axis(x.id, axis, 1, size).expect("a part");
            maker.b().slice_axis(inner, axis, 0, size - 2).expect("a part of it")
        }
        0 if size > 1 => {
            let at = maker.draws.size(size as usize - 1);
            let parts = [(0, at), (at, size)];
            let parts = parts.map(|(from, to)| maker.b().slice_axis(x.id, axis, from, to).expect("a part"));
            maker.op(Op::Concat { axis }, &parts)
        }
        1 | 6 | 7 if sizes.len() > 1 => {
            let perm: Vec<usize> = (0..sizes.len()).rev().collect();
            let turned = maker.b().transpose(x.id, &perm).expect("a permutation");
            // Something between the two keeps both where nothing moves them.
            let between = maker.point(if x.exact { Abs } else { Tanh }, &[turned]);
            let first = maker.b().slice_axis(between, 0, 0, sizes[perm[0]].div_ceil(2)).expect("a part");
            let turned = if maker.draws.one_in(3) { first } else { between };
            maker.b().transpose(turned, &perm).expect("a permutation")
        }
        2 if sizes.len() > 1 && sizes.len() < MAX_RANK && sizes.iter().any(|size| size.is_multiple_of(2)) => {
            let axis = sizes.iter().rposition(|size| size.is_multiple_of(2)).unwrap_or(axis);
            let size = sizes[axis];
            // One dimension in two parts, which go to the front together and become one again.
            let mut split = sizes.clone();
            split[axis] = size / 2;
            split.insert(axis + 1, 2);
            let parts = maker.b().reshape(x.id, split.into_iter().collect()).expect("as many elements");
            let rest = (0..=sizes.len()).filter(|at| *at != axis && *at != axis + 1);
            let perm: Vec<usize> = [axis, axis + 1].into_iter().chain(rest).collect();
            let turned = maker.b().transpose(parts, &perm).expect("a permutation");
            let others = (0..sizes.len()).filter(|at| *at != axis).map(|at| sizes[at]);
            let whole = [size].into_iter().chain(others).collect();
            maker.b().reshape(turned, whole).expect("as many elements")
        }
        3 if sizes.len() > 1 => {
            let perm: Vec<usize> = (1..sizes.len()).chain([0]).collect();
            let turned = maker.b().transpose(x.id, &perm).expect("a permutation");
            let perm = if maker.draws.flip() { perm } else { (0..sizes.len()).rev().collect() };
            maker.b().transpose(turned, &perm).expect("a permutation")
        }
        4 if maker.elements(x.id) <= MAX_ELEMENTS / 8 => {
            let (low, high) = (vec![1; sizes.len()], vec![2; sizes.len()]);
            let padded = maker.op(Op::Pad { low, high, interior: vec![0; sizes.len()] }, &[x.id]);
            let (from, to) = maker.draws.pick(&[(1, size + 1), (0, 1), (1, 2), (0, size + 3)]);
            maker.b().slice_axis(padded, axis, from, to).expect("a part")
        }
        _ if maker.elements(x.id) <= MAX_ELEMENTS / 4 => {
            let y = maker.shaped(&sizes);
            let inner = maker.op(Op::Concat { axis }, &[x.id, y.id]);
            let id = if maker.draws.one_in(3) {
                let from = maker.draws.below(size as usize) as u64;
                let to = size + maker.draws.size(size as usize);
                maker.b().slice_axis(inner, axis, from, to).expect("a part")
            } else {
                let parts = if maker.draws.flip() { [inner, x.id] } else { [x.id, inner] };
                maker.op(Op::Concat { axis }, &parts)
            };
            return maker.keep(id, x.exact && y.exact, x.magnitude.max(y.magnitude));
        }
        _ => return,
    };
    maker.keep(id, x.exact, x.magnitude);
}

/// Products by one matrix, a sum of products, and the convolution that is a product of pixels.
pub(super) fn products(maker: &mut Maker, x: Held) {
    let count = maker.elements(x.id);
    let Some(width) = maker.sizes(x.id).last().copied().filter(|width| *width <= 64 && count <= MAX_ELEMENTS / 4)
    else {
        return;
    };
    let rows = count / width;
    let matrix = maker.b().reshape(x.id, [rows, width].into()).expect("as many elements");
    let out = maker.draws.size(5);
    let product = |maker: &mut Maker, a: NodeId, b: NodeId| {
        let id = maker.b().matmul(a, b).expect("the widths agree");
        maker.scaled(id, 1.0 / width as f64)
    };
    match maker.draws.below(9) {
        0 => {
            let weight = maker.fresh(&[width, out], true);
            let more = maker.draws.size(6);
            let other = maker.fresh(&[more, width], true);
            for (rows, magnitude) in [(matrix, x.magnitude), (other.id, 1.0)] {
                let id = product(maker, rows, weight.id);
                maker.keep(id, false, magnitude);
            }
        }
        // By halves, of rows or of columns.
        1 if rows > 1 => {
            let weight = maker.fresh(&[width, out], true);
            for (from, to) in [(0, rows / 2), (rows / 2, rows)] {
                let part = maker.b().slice_axis(matrix, 0, from, to).expect("a part");
                let id = product(maker, part, weight.id);
                maker.keep(id, false, x.magnitude);
            }
        }
        // By a matrix that is scaled, or is one number.
        2 | 7 => {
            let half = maker.scalar(0.4);
            let weight = if maker.draws.flip() {
                let weight = maker.fresh(&[width, out], true);
                let scale = maker.fresh(&[], true);
                // Of any size as far as the graph says, or between two numbers.
                let above = if maker.draws.one_in(3) {
                    let above = maker.point(Abs, &[scale.id]);
                    maker.point(Add, &[above, half])
                } else {
                    let (less, two) = (maker.point(Lt, &[scale.id, half]), maker.scalar(2.0));
                    maker.point(Select, &[less, half, two])
                };
                maker.point(Div, &[weight.id, above])
            } else {
                maker.b().broadcast_to(half, &[width, out].into()).expect("a scalar")
            };
            let id = if maker.draws.flip() {
                let (weight, matrix) =
                    [weight, matrix].map(|id| maker.b().transpose(id, &[1, 0]).expect("a matrix")).into();
                product(maker, weight, matrix)
            } else {
                product(maker, matrix, weight)
            };
            maker.keep(id, false, 2.5 * x.magnitude);
        }
        3 => {
            let other = maker.fresh(&[rows, width], true);
            let parts = [matrix, other.id].map(|rows| {
                let weight = maker.fresh(&[width, out], true);
                maker.b().matmul(rows, weight.id).expect("the widths agree")
            });
            let sum = maker.point(Add, &parts);
            let id = maker.scaled(sum, 1.0 / width as f64);
            maker.keep(id, false, x.magnitude + 1.0);
        }
        4 => {
            let weight = maker.fresh(&[width, out], true);
            let weight = maker.scaled(weight.id, 1.0 / width as f64);
            let id = maker.b().matmul(matrix, weight).expect("the widths agree");
            let id = maker.b().transpose(id, &[1, 0]).expect("a matrix");
            maker.keep(id, false, x.magnitude);
        }
        // Pixels of an image, of one that is there or of a new one that can be differentiated.
        kind => {
            let shape = if kind == 5 { [1, width, rows, 1] } else { [2, 3, 6, 6] };
            let image = if kind == 5 {
                maker.b().reshape(x.id, shape.into()).expect("as many elements")
            } else {
                let image = maker.fresh(&shape, true);
                maker.point(Tanh, &[image.id])
            };
            // Of one pixel, or patches beside each other.
            let window = if kind == 5 { 1 } else { maker.draws.pick(&[1, 1, 1, 2, 3]) };
            let weight = maker.fresh(&[out, shape[1], window, window], true);
            let conv = Conv { kind: ConvKind::Forward, stride: window, padding: 0, size: (0, 0) };
            let id = maker.op(Op::Conv2d(conv), &[image, weight.id]);
            let id = maker.scaled(id, 1.0 / (shape[1] * window * window) as f64);
            maker.keep(id, false, x.magnitude.max(1.0));
        }
    }
}

/// Queries, keys and values as three projections of the same rows, by parameters that can lie one after another in memory:
/// those fill whole lines of 64 numbers.
pub(super) fn projections(maker: &mut Maker, x: Held) {
    const WIDTH: u64 = 8;
    // As many nodes as ten other steps.
    if !maker.draws.one_in(3) {
        return;
    }
    let count = maker.elements(x.id);
    let fits = count.is_multiple_of(WIDTH) && count <= 16 * WIDTH && x.magnitude <= MAX_MAGNITUDE;
    let (rows, x) = if fits { (count / WIDTH, x) } else { (3, maker.fresh(&[3, WIDTH], false)) };
    let matrix = maker.b().reshape(x.id, [rows, WIDTH].into()).expect("as many elements");
    let matrix = maker.scaled(matrix, 1.0 / WIDTH as f64);
    let biased = maker.draws.one_in(3);
    let out = if biased { 64 } else { WIDTH * maker.draws.size(2) };
    let [queries, keys, values] = [(); 3].map(|()| {
        let weight = maker.fresh(&[out, WIDTH], true);
        let turned = maker.b().transpose(weight.id, &[1, 0]).expect("a matrix");
        let id = maker.b().matmul(matrix, turned).expect("the widths agree");
        if !biased {
            return id;
        }
        let bias = maker.fresh(&[out], true);
        maker.point(Add, &[id, bias.id])
    });
    let magnitude = x.magnitude + 1.0;
    let keys = maker.b().transpose(keys, &[1, 0]).expect("a matrix");
    let scores = maker.b().matmul(queries, keys).expect("of one width");
    let scores = maker.scaled(scores, 1.0 / out as f64);
    let id = maker.b().matmul(scores, values).expect("as many rows");
    let id = maker.scaled(id, 1.0 / rows as f64);
    maker.keep(id, false, magnitude.powi(3));
}
