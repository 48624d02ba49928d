//! How far a computed number may lie from the exact one: the one place where tests and tools get their tolerances.
//!
//! Nothing here is tuned on results. A bound follows from three facts: the format's unit roundoff `u`, the number of
//! roundings a value goes through, and the magnitude of what was added up. The model is the standard one (Higham,
//! *Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 2.2): `fl(a op b) = (a op b)(1 + d)`, `|d| <= u`.
//!
//! A result then is its exact terms, each times a product of `n` factors `(1 + d_i)`, where `n` counts the roundings on
//! the longest path from an input to the result. Two bounds on such a product are known:
//!
//! * `|prod - 1| <= n u / (1 - n u)`, always (Higham, lemma 3.1; section 4.2 for sums in any order);
//! * `|prod - 1| <= exp(lambda sqrt(n) u + n u^2 / (1 - u)) - 1`, with probability at least `1 - 2 exp(-lambda^2 / 2)`
//!   when rounding errors have mean zero (Higham and Mary, *A New Approach to Probabilistic Rounding Error Analysis*,
//!   SIAM J. Sci. Comput. 41(5), 2019, theorem 2.4).
//!
//! [`Roundings::relative`] takes the smaller one. A sum or dot product of length `n`, whatever its order, is `n`
//! roundings relative to the sum of the terms' absolute values (sections 3.1 and 4.2), not to the result, which
//! cancellation may make small. A chain of operations adds its counts: that is what the product of factors says, and it
//! grows with the square root of the total length where step-by-step bounds would grow with the sum of square roots.
//!
//! What the counts do not hold is conditioning: where an operation amplifies the relative error of its input (`exp` of a
//! large number, a difference of close numbers), the caller multiplies the magnitude by the condition number.
//! Two computed results may differ by the sum of their bounds.
//!
//! Never here: a tolerance that was widened until a test passed, or one that only a single test knows.

use std::fmt;
use std::ops::{Add, Mul};

use crate::DType;

/// A binary floating-point format, as far as rounding is concerned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FloatFormat {
    /// Half the distance from 1 to the next larger number: 2^-p for a significand of p bits.
    pub unit_roundoff: f64,
    /// The smallest positive normal number. Devices may flush what is smaller to zero, so this is the absolute error
    /// of one operation near zero.
    pub min_normal: f64,
    /// The largest finite number.
    pub largest: f64,
}

/// IEEE binary64: 53 bits.
pub const F64: FloatFormat = FloatFormat { unit_roundoff: exp2(-53), min_normal: f64::MIN_POSITIVE, largest: f64::MAX };
/// IEEE binary32: 24 bits.
pub const F32: FloatFormat =
    FloatFormat { unit_roundoff: exp2(-24), min_normal: exp2(-126), largest: (2.0 - exp2(-23)) * exp2(127) };
/// IEEE binary16: 11 bits.
pub const F16: FloatFormat = FloatFormat { unit_roundoff: exp2(-11), min_normal: exp2(-14), largest: 65_504.0 };
/// bfloat16: 8 bits, the exponents of binary32.
pub const BF16: FloatFormat =
    FloatFormat { unit_roundoff: exp2(-8), min_normal: exp2(-126), largest: (2.0 - exp2(-7)) * exp2(127) };

impl FloatFormat {
    /// The nearest number of the format, ties to even: subnormal near zero, infinite beyond the largest. For formats of
    /// fewer bits than f64, in which every step here is exact.
    pub fn round(self, x: f64) -> f64 {
        if x == 0.0 || !x.is_finite() {
            return x;
        }
        // Between powers of two numbers are evenly spaced, below the smallest normal as just above it.
        let power = f64::from_bits(x.abs().max(self.min_normal).to_bits() & (0x7FF << 52));
        let unit = 2.0 * self.unit_roundoff * power;
        let rounded = (x / unit).round_ties_even() * unit;
        if rounded.abs() > self.largest { f64::INFINITY.copysign(x) } else { rounded }
    }
}

impl DType {
    /// How numbers of this type round; `None` for integers and truth values, which are exact.
    pub fn format(self) -> Option<FloatFormat> {
        match self {
            DType::F32 => Some(F32),
            DType::Bf16 => Some(BF16),
            DType::F16 => Some(F16),
            DType::I32 | DType::Bool | DType::U8 => None,
        }
    }

    /// Whether it is a float of 16 bits, whose values are rounded where they are made.
    pub fn is_narrow(self) -> bool {
        self.is_float() && self.bytes() == 2
    }

    /// The value of this type that a number is rounded to. For 16 bits alone: f32 stands for exact numbers wherever a
    /// meaning is defined, and what rounding to it does is bounded rather than said.
    pub fn rounded(self, x: f64) -> f64 {
        self.format().filter(|_| self.is_narrow()).map_or(x, |format| format.round(x))
    }
}

/// Two to the power of `exponent`, exactly, for normal results.
const fn exp2(exponent: i64) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// The lambda of the probabilistic bound. A product leaves the bound with probability at most `2 exp(-32)`, 2.5e-14, so
/// that even tensors of millions of entries stay inside. Below `LAMBDA^2 = 64` roundings the certain bound is smaller.
const LAMBDA: f64 = 8.0;

/// A number of roundings on the longest path from an input to a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Roundings(f64);

impl Roundings {
    /// No rounding: copies, reshapes, gathers, comparisons, negation, products with powers of two.
    pub const NONE: Self = Self(0.0);
    /// One correctly rounded operation: add, subtract, multiply, divide, square root.
    pub const ONE: Self = Self(1.0);

    /// A pointwise function known to within `ulps` units in the last place. An ulp is up to `2 u` of the value.
    pub fn pointwise(ulps: f64) -> Self {
        Self((2.0 * ulps).max(1.0))
    }

    /// A sum of `length` terms, or a dot product of `length` pairs, in any order and any grouping.
    pub fn reduction(length: usize) -> Self {
        Self(length as f64)
    }

    /// The bound on the relative error that these roundings make together in `format`.
    pub fn relative(self, format: FloatFormat) -> f64 {
        let (n, u) = (self.0, format.unit_roundoff);
        let certain = if n * u < 1.0 { n * u / (1.0 - n * u) } else { f64::INFINITY };
        let likely = (LAMBDA * n.sqrt() * u + n * u * u / (1.0 - u)).exp_m1();
        certain.min(likely)
    }
}

/// A chain: the second operation works on the result of the first.
impl Add for Roundings {
    type Output = Self;
    fn add(self, next: Self) -> Self {
        Self(self.0 + next.0)
    }
}

/// The same chain several times over, such as a stack of layers.
impl Mul<usize> for Roundings {
    type Output = Self;
    fn mul(self, times: usize) -> Self {
        Self(self.0 * times as f64)
    }
}

impl std::iter::Sum for Roundings {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::NONE, Add::add)
    }
}

/// The largest absolute error of a result that went through `roundings` in `format`. `magnitude` is what the result
/// would be if every term were replaced by its absolute value (times a condition number where there is one):
/// `sum |x_i|` for a sum, `sum |x_i y_i|` for a dot product, the result itself for a pointwise operation.
pub fn bound(format: FloatFormat, roundings: Roundings, magnitude: f64) -> f64 {
    roundings.relative(format) * magnitude.abs() + roundings.0 * format.min_normal
}

/// The largest absolute value, zero for none.
pub fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// The bounds that the golden data state for a run in f32 (`tests/goldens/README.md`). They are measured against
/// PyTorch's own f32 run, which stays within half of them, and do not follow from a count of roundings.
pub mod golden {
    use super::{F32, FloatFormat, largest};

    /// Step 1: embeddings, similarities, gates and losses, relative to the largest entry of the tensor.
    pub const STEP_ONE: f64 = 2e-6;
    /// Step 1: gradients of a model with a vision transformer, relative to the largest entry of the tensor.
    pub const GRADIENT: f64 = 1e-5;
    /// Step 1: gradients of a model with a ResNet. Batch statistics amplify rounding.
    pub const GRADIENT_RESNET: f64 = 2e-5;
    /// How many times the measured sensitivity a later step may be off: "a few".
    pub const SENSITIVITY_FACTOR: f64 = 4.0;
    /// What a later step may be off where the sensitivity is nearly zero.
    pub const LATER_STEP: f64 = 1e-6;
    /// The f64 interpreter, on every quantity, relative to the largest entry of the tensor.
    pub const INTERPRETER: f64 = 1e-10;

    /// The bound in f32 as one for a run whose products take operands of `format`: the same number of units of the roundoff.
    pub fn in_format(relative: f64, format: FloatFormat) -> f64 {
        relative * (format.unit_roundoff / F32.unit_roundoff)
    }

    /// The absolute bound for each entry of a tensor: `relative` (a constant of this module) times its largest entry.
    pub fn of_largest(relative: f64, expected: &[f64]) -> f64 {
        relative * largest(expected)
    }

    /// The absolute bound for each step of a series: the stored sensitivity is the relative change that tiny changes of
    /// the weights make, and what counts at a step is the largest one met so far. A series without a sensitivity of its
    /// own (the learning rate, beta1) passes an empty slice; `clip_coef` follows that of `grad_norm`.
    pub fn trajectory(expected: &[f64], sensitivity: &[f64]) -> Vec<f64> {
        let mut most = 0.0f64;
        let so_far = sensitivity.iter().copied().chain(std::iter::repeat(0.0)).map(|step| {
            most = most.max(step);
            most
        });
        expected
            .iter()
            .zip(so_far)
            .map(|(value, most)| (SENSITIVITY_FACTOR * most + LATER_STEP) * value.abs())
            .collect()
    }
}

/// A number outside its bound.
#[derive(Clone, Debug, PartialEq)]
pub enum Violation {
    /// The two sides do not have the same number of entries.
    Length {
        /// Entries computed.
        actual: usize,
        /// Entries expected.
        expected: usize,
    },
    /// The entry that exceeds its bound by the largest factor.
    Entry {
        /// Its flat, row-major index.
        index: usize,
        /// The computed value.
        actual: f64,
        /// The expected value.
        expected: f64,
        /// Their absolute difference.
        error: f64,
        /// The absolute bound on it.
        bound: f64,
        /// How many entries are out of bound.
        count: usize,
        /// How many entries were compared.
        total: usize,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { actual, expected } => write!(f, "{actual} values where {expected} are expected"),
            Self::Entry { index, actual, expected, error, bound, count, total } => write!(
                f,
                "[{index}] is {actual:e}, expected {expected:e}: off by {error:.3e}, bound {bound:.3e} \
                 ({count} of {total} values out of bound)"
            ),
        }
    }
}

impl std::error::Error for Violation {}

/// Checks `|actual - expected| <= bound` for every entry, with one absolute bound.
///
/// # Errors
/// The worst entry, or the lengths where they differ.
pub fn assert_within(actual: &[f64], expected: &[f64], bound: f64) -> Result<(), Violation> {
    compare(actual, expected, |_| bound)
}

/// Checks `|actual - expected| <= bounds` entry by entry, each with its own absolute bound.
///
/// # Errors
/// The worst entry, or the lengths where they differ.
pub fn assert_within_each(actual: &[f64], expected: &[f64], bounds: &[f64]) -> Result<(), Violation> {
    if bounds.len() != expected.len() {
        return Err(Violation::Length { actual: bounds.len(), expected: expected.len() });
    }
    compare(actual, expected, |index| bounds.get(index).copied().unwrap_or(0.0))
}

fn compare(actual: &[f64], expected: &[f64], bound: impl Fn(usize) -> f64) -> Result<(), Violation> {
    if actual.len() != expected.len() {
        return Err(Violation::Length { actual: actual.len(), expected: expected.len() });
    }
    let mut worst: Option<(f64, Violation)> = None;
    let mut count = 0;
    for (index, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let (error, bound) = (distance(actual, expected), bound(index));
        // Not `error > bound`: a bound that is not a number must not let anything through.
        if error <= bound {
            continue;
        }
        count += 1;
        let excess = if bound > 0.0 { error / bound } else { f64::INFINITY };
        if worst.as_ref().is_none_or(|(most, _)| excess > *most) {
            worst = Some((excess, Violation::Entry { index, actual, expected, error, bound, count: 0, total: 0 }));
        }
    }
    match worst {
        None => Ok(()),
        Some((_, mut violation)) => {
            if let Violation::Entry { count: out, total, .. } = &mut violation {
                (*out, *total) = (count, expected.len());
            }
            Err(violation)
        }
    }
}

/// The absolute difference. Equal infinities and two NaNs are equal; any other NaN is infinitely far away.
pub fn distance(actual: f64, expected: f64) -> f64 {
    if actual == expected || (actual.is_nan() && expected.is_nan()) {
        return 0.0;
    }
    let difference = (actual - expected).abs();
    if difference.is_nan() { f64::INFINITY } else { difference }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in [-1, 1) from a linear congruential generator (Knuth, MMIX): enough to spread rounding errors.
    fn numbers(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn exact_dot(x: &[f32], y: &[f32]) -> f64 {
        x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    }

    fn magnitude(x: &[f32], y: &[f32]) -> f64 {
        x.iter().zip(y).map(|(&x, &y)| (f64::from(x) * f64::from(y)).abs()).sum()
    }

    fn pairwise(terms: &[f32]) -> f32 {
        match terms {
            [] => 0.0,
            [one] => *one,
            _ => pairwise(&terms[..terms.len() / 2]) + pairwise(&terms[terms.len() / 2..]),
        }
    }

    #[test]
    fn dot_products_in_any_order_stay_within_their_bound_and_injected_errors_do_not() {
        for length in [1, 2, 7, 64, 65, 768, 3072, 50_000] {
            let (x, y) = (numbers(length as u64, length), numbers(99, length));
            let terms: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x * y).collect();
            let expected = exact_dot(&x, &y);
            let bound = bound(F32, Roundings::reduction(length), magnitude(&x, &y));
            let forward: f32 = terms.iter().sum();
            let backward: f32 = terms.iter().rev().sum();
            for actual in [forward, backward, pairwise(&terms)].map(f64::from) {
                assert_within(&[actual], &[expected], bound).unwrap_or_else(|v| panic!("length {length}: {v}"));
                for sign in [-4.0, 4.0] {
                    let wrong = actual + sign * bound;
                    assert!(assert_within(&[wrong], &[expected], bound).is_err(), "length {length}");
                }
            }
        }
    }

    #[test]
    fn a_bound_is_tight_enough_to_see_one_missing_term() {
        let length = 3072;
        let (x, y) = (numbers(1, length), numbers(2, length));
        let without_last = exact_dot(&x[1..], &y[1..]);
        let bound = bound(F32, Roundings::reduction(length), magnitude(&x, &y));
        assert!(assert_within(&[without_last], &[exact_dot(&x, &y)], bound).is_err());
    }

    #[test]
    fn a_pointwise_operation_is_known_to_its_ulps() {
        // The neighbour of a number is one ulp away, 2u just above a power of two.
        let value = 1.0f32;
        let next = f64::from(f32::from_bits(value.to_bits() + 1));
        let bound = |ulps| bound(F32, Roundings::pointwise(ulps), 1.0);
        assert!(assert_within(&[next], &[1.0], bound(1.0)).is_ok());
        assert!(assert_within(&[next], &[1.0], bound(0.5)).is_err());
    }

    #[test]
    fn a_chain_stays_within_the_sum_of_its_counts() {
        // y = x / sqrt(mean(x^2)), ten times over: a sum of 256 squares, a division, a root, a division.
        let (width, layers) = (256, 10);
        let mut low = numbers(5, width);
        let mut high: Vec<f64> = low.iter().copied().map(f64::from).collect();
        for _ in 0..layers {
            let low_scale = (low.iter().map(|x| x * x).sum::<f32>() / width as f32).sqrt();
            let high_scale = (high.iter().map(|x| x * x).sum::<f64>() / width as f64).sqrt();
            low.iter_mut().for_each(|x| *x /= low_scale);
            high.iter_mut().for_each(|x| *x /= high_scale);
        }
        let low: Vec<f64> = low.into_iter().map(f64::from).collect();
        let roundings = (Roundings::reduction(width) + Roundings::ONE * 3) * layers;
        let bounds: Vec<f64> = high.iter().map(|x| bound(F32, roundings, *x)).collect();
        assert_within_each(&low, &high, &bounds).unwrap_or_else(|v| panic!("{v}"));
        let wrong: Vec<f64> = low.iter().zip(&bounds).map(|(x, bound)| x + 4.0 * bound).collect();
        assert!(assert_within_each(&wrong, &high, &bounds).is_err());
    }

    #[test]
    fn the_certain_bound_rules_short_sums_and_the_likely_one_long_sums() {
        let u = F32.unit_roundoff;
        let relative = |n| Roundings::reduction(n).relative(F32);
        assert!((relative(10) / (10.0 * u) - 1.0).abs() < 1e-5);
        assert!((relative(1_000_000) / (8.0 * 1000.0 * u) - 1.0).abs() < 1e-3);
        assert!(Roundings::reduction(512).relative(BF16).is_finite());
        assert_eq!(Roundings::NONE.relative(F16), 0.0);
    }

    #[test]
    fn formats_agree_with_the_machine() {
        assert_eq!(F64.unit_roundoff, f64::EPSILON / 2.0);
        assert_eq!(F32.unit_roundoff, f64::from(f32::EPSILON) / 2.0);
        assert_eq!(F32.min_normal, f64::from(f32::MIN_POSITIVE));
    }

    #[test]
    fn numbers_of_sixteen_bits_are_the_nearest() {
        for (format, word) in [(F16, 10), (BF16, 7)] {
            let u = format.unit_roundoff;
            for (x, y) in [(1.0 + u, 1.0), (1.0 + 3.0 * u, 1.0 + 4.0 * u), (1.0 + 1.01 * u, 1.0 + 2.0 * u), (-u, -u)] {
                assert_eq!(format.round(x), y, "{x}");
            }
            let smallest = format.min_normal * 2f64.powi(-word);
            for (x, y) in [(0.5, 0.0), (0.51, 1.0), (1.5, 2.0), (2.5, 2.0), (-3.5, -4.0)] {
                assert_eq!(format.round(x * smallest), y * smallest, "{x} of the smallest");
            }
            assert_eq!(format.round(format.largest), format.largest);
            assert_eq!(format.round(-2.0 * format.largest), f64::NEG_INFINITY);
        }
        assert_eq!((F16.round(65_519.0), F16.round(65_520.0)), (65_504.0, f64::INFINITY));
        assert!(F16.round(f64::NAN).is_nan());
    }

    #[test]
    fn a_trajectory_remembers_the_largest_sensitivity() {
        let bounds = golden::trajectory(&[2.0, -1.0, 1.0], &[1e-6, 5e-6, 0.0]);
        assert_within_each(&bounds, &[1e-5, 2.1e-5, 2.1e-5], &[1e-15; 3]).unwrap_or_else(|v| panic!("{v}"));
        assert_eq!(golden::trajectory(&[2.0], &[]), [2e-6]);
    }

    #[test]
    fn violations_say_which_entry_is_worst() {
        let violation = assert_within(&[1.0, 2.5, 3.1], &[1.0, 2.0, 3.0], 0.01).unwrap_err();
        let text = "[1] is 2.5e0, expected 2e0: off by 5.000e-1, bound 1.000e-2 (2 of 3 values out of bound)";
        assert_eq!(violation.to_string(), text);
        let violation = assert_within(&[1.0], &[1.0, 2.0], 0.01).unwrap_err();
        assert_eq!(violation.to_string(), "1 values where 2 are expected");
    }

    #[test]
    fn what_is_not_finite_never_passes_by_accident() {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        for (actual, expected, same) in [
            (nan, 1.0, false),
            (1.0, nan, false),
            (inf, 1.0, false),
            (inf, -inf, false),
            (nan, nan, true),
            (inf, inf, true),
        ] {
            assert_eq!(assert_within(&[actual], &[expected], 1.0).is_ok(), same, "{actual} against {expected}");
        }
        assert!(assert_within(&[1.0], &[2.0], nan).is_err());
    }
}
