//! Products: of any two tensors, of rows by weights with what follows, convolutions.

use alip_compiler::ir::NodeId;
use alip_compiler::ops::{Conv, ConvKind, Dot, Op, ScalarOp};

use super::super::maker::{Held, MAX_ELEMENTS, MAX_RANK, Maker};
use super::pointwise;

pub(super) fn dot(maker: &mut Maker, x: Held) {
    let left = maker.sizes(x.id);
    if left.is_empty() {
        return;
    }
    let axis = maker.draws.below(left.len());
    let shares = |float: &&Held| maker.graph().shape(float.id).sizes().contains(&left[axis]);
    let found: Vec<Held> = maker.floats.iter().filter(shares).copied().collect();
    let y = if maker.draws.flip() {
        maker.draws.pick(&found)
    } else {
        let other = maker.draws.size(6);
        let sizes = if maker.draws.flip() { [left[axis], other] } else { [other, left[axis]] };
        maker.fresh(&sizes, true)
    };
    let right = maker.sizes(y.id);
    let Some(partner) = right.iter().position(|size| *size == left[axis]) else { return };
    let mut dot = Dot { batch: Vec::new(), contract: vec![(axis, partner)] };
    let pairs = (0..left.len()).flat_map(|i| (0..right.len()).map(move |j| (i, j)));
    let same = |(i, j): &(usize, usize)| *i != axis && *j != partner && left[*i] == right[*j];
    let pairs: Vec<(usize, usize)> = pairs.filter(same).collect();
    let mut shared = left[axis];
    if !pairs.is_empty() && maker.draws.flip() {
        let (i, j) = maker.draws.pick(&pairs);
        if maker.draws.flip() {
            dot.batch.push((i, j));
        } else {
            dot.contract.push((i, j));
            shared *= left[i];
        }
    }
    let free: u64 = left.iter().chain(&right).product::<u64>() / (left[axis] * left[axis]);
    if free > MAX_ELEMENTS || free * shared > 64 * MAX_ELEMENTS || left.len() + right.len() - 2 > MAX_RANK {
        return;
    }
    let id = maker.op(Op::Dot(dot), &[x.id, y.id]);
    let id = maker.scaled(id, 1.0 / shared as f64);
    maker.keep(id, false, x.magnitude * y.magnitude);
}

/// `x` seen as rows, or as it is if it has rows.
fn rows(maker: &mut Maker, x: Held) -> Option<(NodeId, u64)> {
    let sizes = maker.sizes(x.id);
    match sizes.last() {
        None => None,
        Some(width) if sizes.len() == 1 => {
            let shape = [1, *width].into();
            Some((maker.b().reshape(x.id, shape).expect("as many elements"), *width))
        }
        Some(width) => Some((x.id, *width)),
    }
}

/// One to three products of one tensor with weights, each with a bias, an activation or a residual.
pub(super) fn linear(maker: &mut Maker, x: Held) {
    let Some((rows, width)) = rows(maker, x).filter(|_| maker.elements(x.id) <= MAX_ELEMENTS / 4) else { return };
    let out = if maker.draws.flip() { width } else { maker.draws.size(6) };
    if out * maker.elements(rows) / width > MAX_ELEMENTS || width > 64 {
        return;
    }
    for _ in 0..1 + maker.draws.below(3) {
        let transposed = maker.draws.flip();
        let weight = maker.fresh(&if transposed { [out, width] } else { [width, out] }, true);
        let weight = if transposed { maker.b().transpose(weight.id, &[1, 0]).expect("a matrix") } else { weight.id };
        let id = maker.b().matmul(rows, weight).expect("the widths agree");
        let mut id = maker.scaled(id, 1.0 / width as f64);
        let mut magnitude = x.magnitude;
        if maker.draws.flip() {
            let bias = maker.fresh(&[out], true);
            id = maker.point(ScalarOp::Add, &[id, bias.id]);
            magnitude += 1.0;
        }
        if out == width && maker.draws.flip() {
            id = maker.point(ScalarOp::Add, &[id, rows]);
            magnitude += x.magnitude;
        }
        maker.keep(id, false, magnitude);
        if maker.draws.one_in(3) {
            let last = *maker.floats.last().expect("one was added");
            pointwise::unary(maker, last);
        }
    }
}

pub(super) fn convolve(maker: &mut Maker, x: Held) {
    let mut sizes = maker.sizes(x.id);
    while sizes.len() < 4 {
        sizes.insert(0, 1);
    }
    if sizes.len() > 4 || maker.elements(x.id) > MAX_ELEMENTS / 2 {
        return;
    }
    let image = maker.b().reshape(x.id, sizes.iter().copied().collect()).expect("as many elements");
    let (height, width) = (maker.draws.size(3).min(sizes[2]), maker.draws.size(3).min(sizes[3]));
    let stride = if maker.draws.flip() && height == width { height } else { maker.draws.size(2) };
    let padding = maker.draws.below(2) as u64;
    let outputs = maker.draws.size(3);
    let weight = maker.fresh(&[outputs, sizes[1], height, width], true);
    let conv = Conv { kind: ConvKind::Forward, stride, padding, size: (0, 0) };
    let id = maker.op(Op::Conv2d(conv), &[image, weight.id]);
    let id = maker.scaled(id, 1.0 / (sizes[1] * height * width) as f64);
    maker.keep(id, false, x.magnitude);
}
