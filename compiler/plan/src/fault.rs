//! Faults that tests plant on purpose, to see whether they are found.
//!
//! The places that can be made wrong ask [`planted`], which is a constant `false` in release builds. Builds for tests (those
//! with debug assertions) carry the faults, so that they need no build of their own; none shows until it is planted:
//! `tests/tests/planted_faults.rs` plants one after the other.

use std::sync::atomic::{AtomicU8, Ordering};

/// Whether this build can be made wrong.
pub const PLANTABLE: bool = cfg!(debug_assertions);

/// A mistake of a kind that people make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Gradient: of the subtrahend, with the sign of the minuend.
    SubGradientSign,
    /// Gradient: of the divisor, without its minus.
    DivGradientSign,
    /// Gradient: of a largest element, to all elements.
    MaxGradientEverywhere,
    /// Gradient: of a slice, as far from the end as it was from the beginning.
    SliceGradientShifted,
    /// Gradient: of attention, with the sum of the result in the place of its product with the upstream gradient.
    AttentionDeltaUnweighted,
    /// Rule: `x * 0` is taken for `x`.
    TimesZeroIsIdentity,
    /// Rule of the e-graph: a division by a repeated value becomes a product with the value itself.
    InverseForgotten,
    /// Rule: two transposes become one in the wrong order.
    TransposesComposedBackwards,
    /// Lift: attention that is written out loses the factor of its scores.
    ScaleLost,
    /// Packing: rows of all samples but the first are those one position before.
    RowOffsetShifted,
    /// Schedule: a slice is read one element early.
    SliceOffByOne,
    /// Schedule: what follows a product is applied twice.
    EpilogueTwice,
    /// Schedule: a difference behind a product has its sides exchanged.
    EpilogueSubSwapped,
    /// Kernel: a narrowing cast is skipped where its result stays in registers.
    RoundingSkipped,
    /// Memory: a new value overwrites an old one that is read later.
    StaleInPlace,
    /// Memory: a value's place is given away before its last reader ran.
    LifeTooShort,
    /// Kernel: attention's logarithm of a sum of exponentials lacks the largest score.
    LseWithoutMax,
    /// Kernel: attention shows one key of a block too few.
    CausalOffByOne,
    /// Kernel: a row at the border of two packed segments counts to the wrong one.
    SegmentBoundaryLeak,
    /// Kernel: a reduction forgets the last element of a row that is longer than a vector.
    LastLaneLost,
    /// Kernel: a product leaves out the last row of its last block.
    LastRowMissing,
    /// Kernel: the larger of NaN and a number is the number.
    MaxWithoutNan,
    /// Kernel: scattered rows overwrite each other.
    ScatterOverwrites,
    /// Kernel: a padded convolution takes its last column for padding.
    ConvLastColumnLost,
    /// Shader: the tree that joins the partial results of a workgroup leaves out half of them.
    TreeHalved,
}

impl Fault {
    /// All faults.
    pub const ALL: [Fault; 25] = [
        Fault::SubGradientSign,
        Fault::DivGradientSign,
        Fault::MaxGradientEverywhere,
        Fault::SliceGradientShifted,
        Fault::AttentionDeltaUnweighted,
        Fault::TimesZeroIsIdentity,
        Fault::InverseForgotten,
        Fault::TransposesComposedBackwards,
        Fault::ScaleLost,
        Fault::RowOffsetShifted,
        Fault::SliceOffByOne,
        Fault::EpilogueTwice,
        Fault::EpilogueSubSwapped,
        Fault::RoundingSkipped,
        Fault::StaleInPlace,
        Fault::LifeTooShort,
        Fault::LseWithoutMax,
        Fault::CausalOffByOne,
        Fault::SegmentBoundaryLeak,
        Fault::LastLaneLost,
        Fault::LastRowMissing,
        Fault::MaxWithoutNan,
        Fault::ScatterOverwrites,
        Fault::ConvLastColumnLost,
        Fault::TreeHalved,
    ];
}

const NONE: u8 = u8::MAX;

static ACTIVE: AtomicU8 = AtomicU8::new(NONE);

/// Whether a fault is to show.
#[inline(always)]
pub fn planted(fault: Fault) -> bool {
    PLANTABLE && ACTIVE.load(Ordering::Relaxed) == fault as u8
}

/// Makes one fault show, in the whole process, or none. Nothing shows unless [`PLANTABLE`].
pub fn plant(fault: Option<Fault>) {
    ACTIVE.store(fault.map_or(NONE, |fault| fault as u8), Ordering::Relaxed);
}
