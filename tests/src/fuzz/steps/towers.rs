//! Towers as language-image models have them, small: what the rewrites of whole graphs look for.
//!
//! Embeddings of ids, blocks of attention and a perceptron with residual sums, of which one position per sample is read: the
//! place of the largest id, or the first. Now and then the same parameters see two texts, and a contrastive loss compares
//! what is read of both.

use alip_compiler::ir::NodeId;
use alip_compiler::ops::{Op, ScalarOp};

use super::super::maker::{Held, MAX_MAGNITUDE, Maker};
use super::attention::{projections, written_out};
use super::row::log_likelihood;

/// Ids that there are; few, so that the largest stands more than once in a text.
const VOCABULARY: u64 = 11;

/// One tower's parameters.
struct Tower {
    n: u64,
    length: u64,
    heads: u64,
    causal: bool,
    /// The place of the largest id is read, not the first.
    last: bool,
    table: NodeId,
    positions: NodeId,
    blocks: Vec<([NodeId; 3], NodeId)>,
}

pub(super) fn towers(maker: &mut Maker, _: Held) {
    // A tower has as many nodes as ten other steps.
    if !maker.draws.one_in(3) {
        return;
    }
    let tower = Tower::new(maker);
    let first = tower.of_text(maker);
    if tower.n < 2 || maker.draws.flip() {
        return maker.keep(first.id, false, first.magnitude);
    }
    let second = tower.of_text(maker);
    let columns = maker.b().transpose(second.id, &[1, 0]).expect("two dimensions");
    let scores = maker.b().matmul(first.id, columns).expect("of one width");
    let scores = maker.scaled(scores, 0.3);
    let transposed = maker.b().transpose(scores, &[1, 0]).expect("two dimensions");
    let spelling = maker.draws.below(3);
    let labels = maker.b().iota([tower.n].into(), 0).expect("a dimension");
    let losses = [scores, transposed].map(|id| {
        let logits = Held { id, exact: false, magnitude: MAX_MAGNITUDE };
        let likelihood = log_likelihood(maker, logits, spelling);
        let own = maker.op(Op::Gather { batch: 1 }, &[likelihood, labels]);
        let mean = maker.b().mean(own, &[0], false).expect("axis 0");
        maker.point(ScalarOp::Neg, &[mean])
    });
    let loss = maker.point(ScalarOp::Add, &losses);
    maker.keep(loss, false, 4.0 * MAX_MAGNITUDE);
}

impl Tower {
    fn new(maker: &mut Maker) -> Tower {
        // At times rows enough for several programs by their number.
        let n = maker.draws.size(4);
        let length = if maker.draws.one_in(4) { 33 } else { 1 + maker.draws.size(5) };
        let heads = maker.draws.size(2);
        let width = heads * (1 + maker.draws.size(2));
        let (table, positions) = (maker.fresh(&[VOCABULARY, width], true).id, maker.fresh(&[length, width], true).id);
        let count = 1 + maker.draws.below(2);
        let blocks = (0..count).map(|_| (projections(maker, width), maker.fresh(&[width, width], true).id)).collect();
        let (causal, last) = (maker.draws.below(4) > 0, maker.draws.below(4) > 0);
        Tower { n, length, heads, causal, last, table, positions, blocks }
    }

    /// What is read of each of `n` new texts, `[n, width]`.
    fn of_text(&self, maker: &mut Maker) -> Held {
        let ids = maker.numbers(&[self.n, self.length], |_, word| f64::from(word % VOCABULARY as u32));
        let embedded = maker.op(Op::Gather { batch: 0 }, &[self.table, ids]);
        let mut rows = maker.point(ScalarOp::Add, &[embedded, self.positions]);
        for (weights, perceptron) in &self.blocks {
            let mixed = written_out(maker, rows, *weights, self.heads, self.causal);
            rows = maker.point(ScalarOp::Add, &[rows, mixed]);
            let product = maker.b().matmul(rows, *perceptron).expect("the widths agree");
            let mut bent = maker.point(ScalarOp::Tanh, &[product]);
            if maker.draws.one_in(4) {
                bent = left_out(maker, bent);
            }
            rows = maker.point(ScalarOp::Add, &[rows, bent]);
        }
        let read = if self.last {
            let end = maker.b().argmax(ids, 1).expect("a dimension");
            maker.op(Op::Gather { batch: 1 }, &[rows, end])
        } else {
            let first = maker.b().slice_axis(rows, 1, 0, 1).expect("a position");
            let width = maker.sizes(rows)[2];
            maker.b().reshape(first, [self.n, width].into()).expect("as many elements")
        };
        let id = maker.point(ScalarOp::Tanh, &[read]);
        Held { id, exact: false, magnitude: 1.0 }
    }
}

/// Dropout: rows that are packed take the numbers that were drawn for them.
fn left_out(maker: &mut Maker, x: NodeId) -> NodeId {
    let key = [(); 2].map(|()| maker.numbers(&[], |_, word| f64::from(word as i32)));
    let (shape, lane) = (maker.graph().shape(x).clone(), maker.draws.below(4) as u8);
    let noise = maker.op(Op::Random { shape, stream: 1 << 62, lane }, &key);
    let (share, zero) = (maker.scalar(0.3), maker.scalar(0.0));
    let goes = maker.point(ScalarOp::Lt, &[noise, share]);
    maker.point(ScalarOp::Select, &[goes, zero, x])
}
