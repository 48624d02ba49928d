//! What moves elements without computing.

use alip_compiler::ir::Shape;
use alip_compiler::ops::Op;

use super::super::maker::{Held, MAX_ELEMENTS, MAX_RANK, Maker};

pub(super) fn view(maker: &mut Maker, x: Held) {
    let sizes = maker.sizes(x.id);
    let (rank, elements) = (sizes.len(), sizes.iter().product::<u64>());
    let axis = maker.draws.below(rank);
    let shape = |sizes: Vec<u64>| sizes.into_iter().collect::<Shape>();
    let op = match maker.draws.below(8) {
        0 if rank > 1 && axis + 1 < rank => {
            let mut merged = sizes;
            let next = merged.remove(axis + 1);
            merged[axis] *= next;
            Op::Reshape { shape: shape(merged) }
        }
        1 if rank > 0 && rank < MAX_RANK => {
            let mut split = sizes;
            let divisors: Vec<u64> = (1..=split[axis]).filter(|n| split[axis].is_multiple_of(*n)).collect();
            let inner = maker.draws.pick(&divisors);
            split[axis] /= inner;
            split.insert(axis + 1, inner);
            Op::Reshape { shape: shape(split) }
        }
        2 | 3 if rank > 1 => {
            let mut perm: Vec<usize> = (0..rank).collect();
            (1..rank).rev().for_each(|i| perm.swap(i, maker.draws.below(i + 1)));
            Op::Transpose { perm }
        }
        4 if rank > 0 => {
            let start: Vec<u64> = sizes.iter().map(|size| maker.draws.below(*size as usize) as u64).collect();
            let left = sizes.iter().zip(&start).map(|(size, start)| size - start);
            let end = left.zip(&start).map(|(n, start)| start + maker.draws.size(n as usize)).collect();
            let step = sizes.iter().map(|_| maker.draws.size(2)).collect();
            Op::Slice { start, end, step }
        }
        5 if rank > 0 && elements <= MAX_ELEMENTS / 32 => {
            let mut few = |limit: usize| (0..rank).map(|_| maker.draws.below(limit) as u64).collect::<Vec<_>>();
            Op::Pad { low: few(2), high: few(3), interior: few(2) }
        }
        6 if rank > 0 && elements <= MAX_ELEMENTS / 4 => {
            let y = maker.shaped(&sizes);
            let parts = maker.draws.pick(&[[x.id, y.id, x.id], [y.id, x.id, y.id]]);
            let count = 2 + maker.draws.below(2);
            let id = maker.op(Op::Concat { axis }, &parts[..count]);
            return maker.keep(id, x.exact && y.exact, x.magnitude.max(y.magnitude));
        }
        _ if rank < MAX_RANK && elements <= MAX_ELEMENTS / 4 => {
            let at = maker.draws.below(rank + 1);
            let mut wide = sizes;
            wide.insert(at, 2 + maker.draws.below(3) as u64);
            Op::Broadcast { shape: shape(wide), dims: (0..=rank).filter(|dim| *dim != at).collect() }
        }
        _ => return,
    };
    let id = maker.op(op, &[x.id]);
    maker.keep(id, x.exact, x.magnitude);
}
