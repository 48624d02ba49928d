//! Scores under masks in the spellings that people use, and what they do to the scores afterwards: scaled, multiplied, masked
//! again. What hides a key in one of them hides it no longer in another; whole rows may be hidden, by finite numbers or by
//! infinities, and lengths may lie far outside.

use alip_compiler::ir::{DType, NodeId};
use alip_compiler::ops::{Op, ReduceKind, ScalarOp};

use super::super::draws::Draws;
use super::super::maker::{Held, MAX_MAGNITUDE, Maker};
use super::row::{log_sum_exp, softmax_along};
use ScalarOp::{Add, Le, Lt, Max, Mul, Not, Select, Sub};

/// What hidden scores become, exact in f32, so that a row that is wholly hidden is known: far below any score, and -16384,
/// below which scores may lie.
const FILLS: [f64; 4] = [-134_217_728.0, -1_073_741_824.0, -1.267_650_600_228_229_4e30, -16384.0];
/// This hides nothing.
const NEAR: f64 = -4.0;
/// By how much masked scores are scaled: 2^-12 and 2^-24 bring what hides up to where it hides no longer.
const FACTORS: [f64; 5] = [1.0 / 4096.0, 1.0 / 16_777_216.0, 0.5, 4.0, -1.0];
/// Lengths that no text has; one more overflows.
const EXTREMES: [f64; 3] = [i32::MAX as f64, (i32::MAX - 1) as f64, i32::MIN as f64];

/// Scores `[n, heads, queries, keys]`.
struct Scores {
    n: u64,
    heads: u64,
    queries: u64,
    keys: u64,
}

/// Attention with one or two masks between its products; at times the logsumexp of the scores.
pub(super) fn masked(maker: &mut Maker, _: Held) {
    let draws = &mut maker.draws;
    let keys = if draws.one_in(8) { draws.pick(&[17, 33]) } else { 1 + draws.size(6) };
    // Now and then one more query than keys, or one fewer.
    let queries = (keys + draws.pick(&[0, 0, 0, 1])).saturating_sub(draws.pick(&[0, 0, 0, 1]));
    // Dimensions of size 1 are rare: they hide what a softmax is from lifting, which is what this is about.
    let few = |draws: &mut Draws| if draws.one_in(6) { 1 } else { 1 + draws.size(2) };
    let (n, heads, d, e) = (few(draws), few(draws), 1 + draws.size(3), 1 + draws.size(3));
    let of = Scores { n, heads, queries, keys };
    let q = maker.shaped(&[n, queries, heads, d]);
    let k = maker.shaped(&[n, keys, heads, d]);
    let v = maker.shaped(&[n, keys, heads, e]);
    if q.magnitude * k.magnitude > MAX_MAGNITUDE.powi(2) || v.magnitude > MAX_MAGNITUDE {
        return;
    }
    let id = maker.b().einsum("n q h d, n k h d -> n h q k", &[q.id, k.id]).expect("heads agree");
    let mut scores = maker.scaled(id, 0.5 / d as f64);
    if maker.draws.one_in(4) {
        scores = changed(maker, scores, &of);
    }
    for _ in 0..1 + usize::from(maker.draws.one_in(4)) {
        let shown = shown(maker, &of);
        for _ in 0..1 + usize::from(maker.draws.one_in(6)) {
            scores = hidden(maker, scores, shown);
        }
        if maker.draws.one_in(3) {
            scores = changed(maker, scores, &of);
        }
    }
    let spelling = maker.draws.below(4);
    // Scores reach far, so the largest is always taken away, but where infinities are the point.
    let held = Held { id: scores, exact: false, magnitude: f64::INFINITY };
    if maker.draws.one_in(4) {
        let id = log_sum_exp(maker, held, &[3], spelling > 1);
        return maker.keep(id, false, f64::INFINITY);
    }
    let weights = softmax_along(maker, held, &[3], spelling);
    let id = maker.b().einsum("n h q k, n k h e -> n q h e", &[weights, v.id]).expect("heads agree");
    maker.keep(id, false, v.magnitude);
}

/// Which keys are seen: a condition that broadcasts to the scores.
fn shown(maker: &mut Maker, of: &Scores) -> NodeId {
    let keys = maker.b().iota([1, of.keys].into(), 1).expect("a dimension");
    let queries = maker.b().iota([of.queries, 1].into(), 0).expect("a dimension");
    let id = match maker.draws.below(6) {
        kind @ 0..=1 => {
            let shift =
                if kind == 0 { of.keys as f64 - of.queries as f64 } else { maker.draws.pick(&[0.0, 1.0, -1.0]) };
            let shift = maker.b().constant(shift, DType::I32).expect("a constant");
            let last = maker.point(Add, &[queries, shift]);
            maker.point(Le, &[keys, last])
        }
        2 | 3 => {
            let length = lengths(maker, of);
            if maker.draws.flip() {
                let op = maker.draws.pick(&[Lt, Le]);
                maker.point(op, &[keys, length])
            } else {
                let op = maker.draws.pick(&[Lt, Le]);
                let behind = maker.point(op, &[length, keys]);
                maker.point(Not, &[behind])
            }
        }
        4 => {
            // Whole rows.
            let row = maker.draws.below(of.queries as usize) as f64;
            let row = maker.b().constant(row, DType::I32).expect("a constant");
            maker.point(Le, &[row, queries])
        }
        _ => {
            let sizes = [[of.n, 1, 1, of.keys], [1, of.heads, of.queries, of.keys], [of.n, of.heads, of.queries, 1]];
            let sizes = maker.draws.pick(&sizes);
            let (a, b) = (maker.fresh(&sizes, false), maker.fresh(&sizes, true));
            maker.point(Le, &[a.id, b.id])
        }
    };
    if maker.draws.one_in(6) { maker.point(Not, &[id]) } else { id }
}

/// A length per sample, `[n, 1, 1, 1]`: within the keys, at times 0 or far outside, at times computed in steps.
fn lengths(maker: &mut Maker, of: &Scores) -> NodeId {
    let extreme = maker.draws.one_in(4);
    let length = |_, word: u32| match word % 7 {
        at @ 0..=2 if extreme => EXTREMES[at as usize],
        _ => f64::from((word >> 8) % (of.keys as u32 + 2)),
    };
    let mut id = maker.numbers(&[of.n, 1, 1, 1], length);
    if maker.draws.flip() {
        let one = maker.b().constant(1.0, DType::I32).expect("a constant");
        // The sum of the largest would overflow, of which nothing is promised.
        id = if extreme || maker.draws.flip() { maker.point(Max, &[id, one]) } else { maker.point(Add, &[id, one]) };
    }
    id
}

/// The scores where `shown`, something far below elsewhere.
fn hidden(maker: &mut Maker, scores: NodeId, shown: NodeId) -> NodeId {
    let fill = match maker.draws.below(12) {
        0 => NEAR,
        1 => f64::NEG_INFINITY,
        _ => maker.draws.pick(&FILLS),
    };
    let (fill_id, zero, one) = (maker.scalar(fill), maker.scalar(0.0), maker.scalar(1.0));
    // A product of infinity and 0 is no number.
    match maker.draws.below(if fill.is_finite() { 5 } else { 2 }) {
        0 => maker.point(Select, &[shown, scores, fill_id]),
        1 => {
            let bias = maker.point(Select, &[shown, zero, fill_id]);
            maker.point(Add, &[scores, bias])
        }
        kind => {
            let seen = maker.cast(shown, DType::F32);
            let unseen = if kind == 2 {
                let not = maker.point(Not, &[shown]);
                maker.cast(not, DType::F32)
            } else {
                maker.point(Sub, &[one, seen])
            };
            let bias = maker.point(Mul, &[unseen, fill_id]);
            let scores = if kind == 4 { maker.point(Mul, &[scores, seen]) } else { scores };
            maker.point(Add, &[scores, bias])
        }
    }
}

/// Scaled, multiplied by zeros and ones, shifted.
fn changed(maker: &mut Maker, scores: NodeId, of: &Scores) -> NodeId {
    match maker.draws.below(7) {
        0..=3 => {
            let factor = maker.draws.pick(&FACTORS);
            maker.scaled(scores, factor)
        }
        4 => {
            let shown = shown(maker, of);
            let seen = maker.cast(shown, DType::F32);
            maker.point(Mul, &[scores, seen])
        }
        5 => {
            let bias = maker.fresh(&[of.heads, 1, of.keys], true);
            maker.point(Add, &[scores, bias.id])
        }
        _ => {
            let most = maker.along(ReduceKind::Max, scores, &[3]);
            let most = maker.op(Op::StopGradient, &[most]);
            maker.point(Sub, &[scores, most])
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use alip_compiler::transform::{Options, Report, Results, forward_program};

    use super::*;

    /// A step that lifting never takes for attention would find no wrong lift.
    #[test]
    fn many_masks_are_lifted_and_all_others_are_told_why() {
        let (mut lifted, mut of) = (0, 0);
        let mut reasons: BTreeMap<String, u32> = BTreeMap::new();
        for seed in 0..400 {
            let case = Maker::alone(seed, masked);
            let mut report = Report::default();
            let results = Results { values: Default::default() };
            forward_program(&case.graph, &results, &Options::default(), &mut report).expect("a graph");
            of += 1;
            lifted += u32::from(report.lifted.iter().any(|lifted| lifted.what == "attention"));
            for missed in report.missed {
                *reasons.entry(missed.why).or_default() += 1;
            }
        }
        println!("{lifted} of {of} lifted; {reasons:#?}");
        assert!(lifted * 25 > of, "{lifted} of {of}");
    }
}
