//! Rows by index, indices from values, and what comes from nowhere.

use alip_compiler::ir::{DType, Dim, Shape};
use alip_compiler::ops::{Op, ReduceKind};

use super::super::maker::{Held, MAX_ELEMENTS, Maker};

pub(super) fn gather(maker: &mut Maker, x: Held) {
    let sizes = maker.sizes(x.id);
    let batch = maker.draws.below(sizes.len().min(2));
    let Some(limit) = sizes.get(batch).copied() else { return };
    let mut shape = sizes[..batch].to_vec();
    shape.extend((0..maker.draws.below(3)).map(|_| maker.draws.size(4)));
    if shape.iter().chain(&sizes[batch + 1..]).product::<u64>() > MAX_ELEMENTS {
        return;
    }
    let index = maker.indices(&shape, limit);
    let id = maker.op(Op::Gather { batch }, &[x.id, index]);
    maker.keep(id, x.exact, x.magnitude);
}

pub(super) fn scatter(maker: &mut Maker, x: Held) {
    let sizes = maker.sizes(x.id);
    let Some(count) = sizes.first().copied() else { return };
    let batch = usize::from(sizes.len() > 1 && maker.draws.one_in(3));
    let rows = maker.draws.size(4);
    let index = maker.indices(&sizes[..=batch], rows);
    let id = maker.op(Op::ScatterAdd { batch, rows }, &[index, x.id]);
    let terms = if batch == 0 { count } else { sizes[1] };
    let id = maker.scaled(id, 1.0 / terms as f64);
    maker.keep(id, false, x.magnitude);
}

pub(super) fn argmax(maker: &mut Maker, x: Held) {
    let sizes = maker.sizes(x.id);
    if sizes.is_empty() {
        return;
    }
    let axis = maker.draws.below(sizes.len());
    let id = maker.b().reduce(ReduceKind::ArgMax, x.id, &[axis], false).expect("an axis of x");
    maker.integers.push(Held { id, exact: x.exact, magnitude: sizes[axis] as f64 });
    if x.exact && maker.draws.flip() {
        let id = maker.cast(id, DType::F32);
        maker.keep(id, true, sizes[axis] as f64);
    }
}

/// Random numbers, coordinates, new inputs.
pub(super) fn source(maker: &mut Maker, _: Held) {
    let sizes = maker.shape();
    let shape: Shape = sizes.iter().map(|size| Dim::from(*size)).collect();
    match maker.draws.below(3) {
        0 => {
            let key = if maker.draws.flip() {
                [7.0, 3.0].map(|value| maker.b().constant(value, DType::I32).expect("a constant"))
            } else {
                [(); 2].map(|()| maker.numbers(&[], |_, word| f64::from(word as i32)))
            };
            // Streams of parameters are one word, those of noise two.
            let which = maker.draws.below(6) as u64;
            let stream = (which % 3) | ((which / 3) << 62);
            let lane = maker.draws.below(4) as u8;
            let mut inputs = key.to_vec();
            if maker.draws.one_in(3) {
                inputs.push(maker.numbers(&sizes, |_, word| f64::from(word as i32)));
            }
            let id = maker.op(Op::Random { shape, stream, lane }, &inputs);
            maker.keep(id, true, 1.0);
        }
        1 if !sizes.is_empty() => {
            let axis = maker.draws.below(sizes.len());
            let id = maker.op(Op::Iota { shape, axis }, &[]);
            let magnitude = sizes[axis] as f64;
            maker.integers.push(Held { id, exact: true, magnitude });
            if magnitude <= 64.0 {
                let id = maker.cast(id, DType::F32);
                maker.keep(id, true, magnitude);
            }
        }
        _ => {
            maker.fresh(&sizes, false);
        }
    }
}
