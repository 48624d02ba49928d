//! Attention, as the op and as people write it.

use alip_compiler::ir::{DType, NodeId};
use alip_compiler::ops::attention::{Attention, AttentionResult, Rows};
use alip_compiler::ops::{Op, Real, ScalarOp};

use super::super::maker::{Held, MAX_MAGNITUDE, Maker};
use super::row::softmax_along;

/// Sizes of an attention: samples, queries, keys, heads, widths of keys and values.
struct Sizes {
    n: u64,
    queries: u64,
    keys: u64,
    heads: u64,
    d: u64,
    e: u64,
}

/// Small, with now and then more keys than a tile has.
fn sizes(maker: &mut Maker) -> Sizes {
    let draws = &mut maker.draws;
    let keys = if draws.one_in(6) { draws.pick(&[17, 33, 70]) } else { draws.size(7) };
    let queries = match draws.below(3) {
        0 => 1,
        1 => draws.size(keys.min(6) as usize),
        _ => keys.min(9),
    };
    Sizes { n: draws.size(3), queries, keys, heads: draws.size(3), d: draws.size(5), e: draws.size(5) }
}

/// First rows of so many segments among `rows`: some are empty, and rows behind the last are of none.
fn edges(maker: &mut Maker, segments: usize, rows: u64) -> Vec<f64> {
    let mut edges: Vec<u64> = (0..segments).map(|_| maker.draws.below(rows as usize + 1) as u64).collect();
    edges.push(0);
    edges.sort_unstable();
    edges.into_iter().map(|edge| edge as f64).collect()
}

pub(super) fn attention(maker: &mut Maker, _: Held) {
    let Sizes { n, mut queries, keys, heads, d, e } = sizes(maker);
    let rows = maker.draws.pick(&[Rows::Dense, Rows::Dense, Rows::Lengths, Rows::Segments]);
    let lead = |count: u64| if rows == Rows::Segments { vec![count] } else { vec![n, count] };
    let of = |count: u64, tail: &[u64]| [lead(count), tail.to_vec()].concat();
    let causal = maker.draws.flip();
    let extra = match rows {
        Rows::Dense => None,
        Rows::Lengths => Some(maker.numbers(&[n], |_, word| f64::from(word % (keys as u32 + 2)))),
        Rows::Segments => {
            let segments = 1 + maker.draws.below(3);
            let of_keys = edges(maker, segments, keys);
            let of_queries = match maker.draws.below(3) {
                // One query per segment, as after a push-down.
                0 => {
                    queries = segments as u64;
                    (0..=segments).map(|s| s as f64).collect()
                }
                1 => {
                    queries = keys;
                    of_keys.clone()
                }
                _ => edges(maker, segments, queries),
            };
            let all = [of_queries, of_keys].concat();
            Some(maker.numbers(&[2, segments as u64 + 1], |i, _| all[i as usize]))
        }
    };
    let q = maker.shaped(&of(queries, &[heads, d]));
    let k = maker.shaped(&of(keys, &[heads, d]));
    let scale = maker.draws.pick(&[0.5, 1.0, 0.3]);
    let scores = scale * d as f64 * q.magnitude * k.magnitude;
    if scores > 16.0 {
        return;
    }
    let of_result = |result| Op::Attention(Attention { result, rows, causal, scale: Real(scale) });
    if maker.draws.one_in(4) {
        let inputs: Vec<NodeId> = [q.id, k.id].into_iter().chain(extra).collect();
        let id = maker.op(of_result(AttentionResult::Lse), &inputs);
        return maker.keep(id, false, scores + (keys as f64).ln());
    }
    let v = maker.shaped(&of(keys, &[heads, e]));
    let inputs: Vec<NodeId> = [q.id, k.id, v.id].into_iter().chain(extra).collect();
    let id = maker.op(of_result(AttentionResult::Out), &inputs);
    maker.keep(id, false, v.magnitude);
}

/// Products, a mask, a softmax and a product, heads first as most people have them.
pub(super) fn by_hand(maker: &mut Maker, x: Held) {
    let Sizes { n, keys, heads, d, .. } = sizes(maker);
    let keys = keys.min(17);
    let shape = [n, keys, heads * d];
    let x = if maker.elements(x.id) == shape.iter().product::<u64>() { x } else { maker.shaped(&shape) };
    if x.magnitude > MAX_MAGNITUDE {
        return;
    }
    let x = maker.b().reshape(x.id, shape.into()).expect("as many elements");
    let weights = projections(maker, heads * d);
    let causal = maker.draws.flip();
    let id = written_out(maker, x, weights, heads, causal);
    maker.keep(id, false, MAX_MAGNITUDE);
}

/// Parameters of queries, keys and values.
pub(super) fn projections(maker: &mut Maker, width: u64) -> [NodeId; 3] {
    [(); 3].map(|()| maker.fresh(&[width, width], true).id)
}

/// Attention of the rows of `x` `[n, l, width]` to each other.
pub(super) fn written_out(maker: &mut Maker, x: NodeId, weights: [NodeId; 3], heads: u64, causal: bool) -> NodeId {
    let [_, keys, width] = maker.sizes(x)[..] else { return x };
    let parts = weights.map(|weight| {
        let id = maker.b().matmul(x, weight).expect("the widths agree");
        let id = maker.scaled(id, 1.0 / width as f64);
        maker.b().rearrange(id, "n l (h d) -> n h l d", &[("h", heads)]).expect("heads divide the width")
    });
    let scores = maker.b().einsum("n h q d, n h k d -> n h q k", &[parts[0], parts[1]]).expect("heads agree");
    let mut scores = maker.scaled(scores, 0.5);
    if causal {
        let i = maker.b().iota([keys, 1].into(), 0).expect("a dimension");
        let j = maker.b().iota([1, keys].into(), 1).expect("a dimension");
        let seen = maker.point(ScalarOp::Le, &[j, i]);
        let unseen = maker.scalar(-1e9);
        scores = if maker.draws.flip() {
            maker.point(ScalarOp::Select, &[seen, scores, unseen])
        } else {
            let zero = maker.scalar(0.0);
            let mask = maker.point(ScalarOp::Select, &[seen, zero, unseen]);
            maker.point(ScalarOp::Add, &[scores, mask])
        };
    }
    let spelling = maker.draws.below(4);
    // Masked scores reach far: the largest is always taken away.
    let weights = softmax_along(maker, Held { id: scores, exact: false, magnitude: f64::INFINITY }, &[3], spelling);
    let id = maker.b().einsum("n h q k, n h k e -> n h q e", &[weights, parts[2]]).expect("heads agree");
    debug_assert_eq!(maker.graph().ty(id).dtype, DType::F32);
    maker.b().rearrange(id, "n h l d -> n l (h d)", &[]).expect("four dimensions")
}
