//! What a random graph may do next: one file per family of ops.

mod attention;
mod idiom;
mod mask;
mod narrow;
mod pick;
mod pointwise;
mod product;
mod row;
mod towers;
mod view;

use super::maker::{Held, Maker};

/// One way to go on.
pub(super) struct Step {
    /// How often, relative to the others.
    pub(super) weight: usize,
    /// Whether it has only ops that are exact for every input, NaN and infinities too.
    pub(super) exact: bool,
    /// Adds nodes, given a value to begin with.
    pub(super) make: fn(&mut Maker, Held),
}

const fn step(weight: usize, exact: bool, make: fn(&mut Maker, Held)) -> Step {
    Step { weight, exact, make }
}

/// All ways to go on. Where a step cannot begin with the value it is given, it adds nothing.
pub(super) const STEPS: &[Step] = &[
    step(3, false, pointwise::unary),
    step(4, false, pointwise::binary),
    step(2, true, pointwise::ordered),
    step(2, true, pointwise::select),
    step(1, true, pointwise::truth),
    step(2, true, pointwise::integer),
    step(2, false, row::reduce),
    step(1, true, row::extremum),
    step(2, false, row::softmax),
    step(2, false, row::norm),
    step(2, false, row::lifted),
    step(1, false, row::activation),
    step(1, false, row::cross_entropy),
    step(1, false, row::diagonal),
    step(4, false, product::dot),
    step(2, false, product::linear),
    step(2, false, product::convolve),
    step(5, true, view::view),
    step(2, true, pick::gather),
    step(1, false, pick::scatter),
    step(1, true, pick::argmax),
    step(2, true, pick::source),
    step(2, false, attention::attention),
    step(1, false, attention::by_hand),
    step(2, false, mask::masked),
    step(1, false, towers::towers),
    step(2, true, idiom::number),
    step(2, false, idiom::algebra),
    step(1, true, idiom::choice),
    step(2, true, idiom::rejoined),
    step(1, true, idiom::reduced),
    step(2, false, idiom::products),
    step(1, false, idiom::projections),
    step(2, true, narrow::rounded),
    step(1, true, narrow::parameter),
    step(2, false, narrow::arithmetic),
    step(1, false, narrow::linear),
    step(1, false, narrow::attention),
];
