//! Elementary functions without branches, so that loops over them vectorise.
//!
//! Each reduces its argument and evaluates a polynomial; the coefficients are minimax fits of relative error, made for
//! these intervals (Lawson's algorithm in 40 digits). The test states the largest error in units in the last place (ulp).
//! NaN in, NaN out. `fma` is the instruction set's `a * b + c`.

/// Adding this to a float of magnitude below 2^22 rounds it to an integer, which the low bits of the sum then hold.
const ROUNDER: f32 = 12_582_912.0; // 1.5 * 2^23
/// ln 2 in two parts: the first has few bits, so that small integers times it are exact.
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

#[inline(always)]
fn polynomial<const N: usize>(coefficients: [f32; N], x: f32, fma: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut sum = 0.0;
    for (position, &coefficient) in coefficients.iter().rev().enumerate() {
        sum = if position == 0 { coefficient } else { fma(sum, x, coefficient) };
    }
    sum
}

/// e^x.
#[inline(always)]
pub(super) fn exp(x: f32, fma: impl Fn(f32, f32, f32) -> f32 + Copy) -> f32 {
    // Beyond these the result is 0 or infinite; comparisons that keep NaN.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = fma(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = fma(n, -LN2[1], fma(n, -LN2[0], x));
    let p = polynomial([4.999_999_3e-1, 1.666_652_1e-1, 4.166_839e-2, 8.368_715e-3, 1.381_460_1e-3], r, fma);
    let p = fma(p * r, r, r) + 1.0;
    // Multiply by 2^n in two steps, since 2^n alone may be subnormal or infinite where the product is not.
    let n = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

/// Natural logarithm.
#[inline(always)]
pub(super) fn ln(x: f32, fma: impl Fn(f32, f32, f32) -> f32 + Copy) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let normal = if tiny { x * 8_388_608.0 } else { x }; // 2^23
    // Split into 2^e * m with m in [sqrt(1/2), sqrt(2)).
    let bits = normal.to_bits().wrapping_sub(0x3F35_04F3);
    let e = ((bits as i32) >> 23) as f32 - if tiny { 23.0 } else { 0.0 };
    let f = f32::from_bits((bits & 0x007F_FFFF).wrapping_add(0x3F35_04F3)) - 1.0;
    let coefficients = [
        3.333_331_3e-1,
        -2.500_001e-1,
        2.000_211_9e-1,
        -1.666_799_6e-1,
        1.421_955_2e-1,
        -1.240_558_9e-1,
        1.188_816_2e-1,
        -1.167_565_2e-1,
        6.746_641e-2,
    ];
    let square = f * f;
    let tail = fma(polynomial(coefficients, f, fma) * f, square, e * LN2[1]);
    let result = fma(e, LN2[0], fma(-0.5, square, tail) + f);
    let result = if x == 0.0 { f32::NEG_INFINITY } else { result };
    let result = if x < 0.0 { f32::NAN } else { result };
    // Infinity and NaN are their own logarithms.
    if x < f32::INFINITY { result } else { x }
}

/// Error function.
#[inline(always)]
pub(super) fn erf(x: f32, fma: impl Fn(f32, f32, f32) -> f32 + Copy) -> f32 {
    let t = x.abs();
    let small = [1.283_791_5e-1, -3.761_248e-1, 1.128_168_3e-1, -2.676_172e-2, 4.985_940_6e-3, -5.953_741_7e-4];
    let small = fma(polynomial(small, x * x, fma), x, x);
    // 1 - erfc(t), where ln erfc(t) is a polynomial up to 4; beyond, erf is 1.
    let t4 = if t > 4.0 { 4.0 } else { t };
    let large = [
        -2.113_083_9e-4,
        -1.127_611_2,
        -6.372_904e-1,
        -1.038_369_4e-1,
        2.218_140_3e-2,
        -3.031_824_4e-3,
        1.947_781_7e-4,
    ];
    let large = (1.0 - exp(polynomial(large, t4, fma), fma)).copysign(x);
    if t > 0.93 { large } else { small }
}

/// Hyperbolic tangent.
#[inline(always)]
pub(super) fn tanh(x: f32, fma: impl Fn(f32, f32, f32) -> f32 + Copy) -> f32 {
    let t = x.abs();
    let square = x * x;
    let small = [-3.333_328e-1, 1.333_144_2e-1, -5.373_971e-2, 2.063_908e-2, -5.704_978_7e-3];
    let small = fma(polynomial(small, square, fma) * square, x, x);
    let large = (1.0 - 2.0 / (exp(t + t, fma) + 1.0)).copysign(x);
    if t > 0.625 { large } else { small }
}

/// Sine. Computed in f64, which also reduces large arguments; exact to rounding for |x| < 1e6.
#[inline(always)]
pub(super) fn sin(x: f32) -> f32 {
    circular(x, 0)
}

/// Cosine; see [`sin`].
#[inline(always)]
pub(super) fn cos(x: f32) -> f32 {
    circular(x, 1)
}

/// sin(x + quarter * pi / 2).
#[inline(always)]
fn circular(x: f32, quarter: i64) -> f32 {
    use std::f64::consts::FRAC_2_PI;
    // pi / 2 in two parts, the first of 33 bits, so that turns up to 2^20 times it are exact.
    const HALF_PI: [f64; 2] = [1.570_796_326_734_125_6, 6.077_100_506_506_192e-11];
    const ROUNDER: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    let wide = f64::from(x);
    let shifted = wide * FRAC_2_PI + ROUNDER;
    let n = shifted - ROUNDER;
    let r = wide - n * HALF_PI[0] - n * HALF_PI[1];
    let turns = shifted.to_bits() as i64 + quarter;
    // Taylor series on [-pi/4, pi/4]: the next terms are below 1e-10 of the result.
    let s = r * r;
    let sine = r + r * s * (-1.0 / 6.0 + s * (1.0 / 120.0 + s * (-1.0 / 5040.0 + s * (1.0 / 362_880.0))));
    let cosine =
        1.0 + s * (-0.5 + s * (1.0 / 24.0 + s * (-1.0 / 720.0 + s * (1.0 / 40_320.0 - s * (1.0 / 3_628_800.0)))));
    let value = if turns & 1 == 0 { sine } else { cosine };
    (if turns & 2 == 0 { value } else { -value }) as f32
}

/// a^b, in f64.
#[inline(always)]
pub(super) fn pow(a: f32, b: f32) -> f32 {
    use std::f64::consts::{LN_2, LOG2_E, SQRT_2};
    const ROUNDER: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    // log2 a: a = 2^e * m, m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh((m - 1) / (m + 1)).
    let (wide, exponent) = (f64::from(a.abs()), f64::from(b));
    let bits = wide.to_bits();
    let m = f64::from_bits(bits & 0x000F_FFFF_FFFF_FFFF | 0x3FF0_0000_0000_0000);
    let above = m > SQRT_2;
    let m = if above { m * 0.5 } else { m };
    // The exponent as a float without an integer conversion, which few instruction sets vectorise.
    let e = f64::from_bits((bits >> 52) | 0x4330_0000_0000_0000) - 4_503_599_627_370_496.0 - 1023.0;
    let e = if above { e + 1.0 } else { e };
    let z = (m - 1.0) / (m + 1.0);
    let s = z * z;
    let tail =
        1.0 / 3.0 + s * (0.2 + s * (1.0 / 7.0 + s * (1.0 / 9.0 + s * (1.0 / 11.0 + s * (1.0 / 13.0 + s / 15.0)))));
    let log2 = e + 2.0 * LOG2_E * (z + z * s * tail);
    // 2^(b log2 a), clamped to where f32 has long over- or underflowed.
    let y = exponent * log2;
    let y = if y > 200.0 { 200.0 } else { y };
    let y = if y < -200.0 { -200.0 } else { y };
    let shifted = y + ROUNDER;
    let r = (y - (shifted - ROUNDER)) * LN_2;
    let series = 1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0 + r * (1.0 / 40_320.0 + r * (1.0 / 362_880.0))));
    let series = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * series))));
    let power = f64::from_bits(shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(1023) << 52);
    let result = (series * power) as f32;
    // The edges: powers of 0 and infinity, negative bases, and what is 1 whatever the other argument.
    let edge = (if b > 0.0 { a } else { 1.0 / a }).abs();
    let result = if a == 0.0 || a.abs() == f32::INFINITY { edge } else { result };
    let whole = |x: f64| (x + ROUNDER) - ROUNDER == x;
    let odd = whole(exponent) && !whole(0.5 * exponent);
    let result = if a.is_sign_negative() && odd { -result } else { result };
    let rootless = a < 0.0 && a > f32::NEG_INFINITY && !whole(exponent);
    let result = if rootless || a.is_nan() || b.is_nan() { f32::NAN } else { result };
    let result = if a == -1.0 && b.abs() == f32::INFINITY { 1.0 } else { result };
    if b == 0.0 || a == 1.0 { 1.0 } else { result }
}

#[cfg(test)]
mod tests {
    /// Distance between a result and the exact value in units in the last place of f32 at the exact value.
    fn ulps(found: f32, exact: f64) -> f64 {
        let rounded = exact as f32;
        if found == rounded || found.is_nan() && exact.is_nan() {
            return 0.0;
        }
        if !found.is_finite() || !rounded.is_finite() {
            return f64::INFINITY;
        }
        let exponent = exact.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
        (f64::from(found) - exact).abs() / (exponent - 23.0).exp2()
    }

    /// The largest error over `samples` points of a range, evenly spaced in value, and over all magnitudes in it.
    fn check(name: &str, found: impl Fn(f32) -> f32, exact: fn(f64) -> f64, range: (f32, f32), limit: f64) {
        let samples = 400_000;
        let mut worst = (0.0, 0.0);
        let mut visit = |x: f32| {
            let error = ulps(found(x), exact(f64::from(x)));
            if error > worst.0 {
                worst = (error, x);
            }
        };
        for i in 0..=samples {
            visit(range.0 + (range.1 - range.0) * (i as f32 / samples as f32));
        }
        for bits in (0..f32::INFINITY.to_bits()).step_by(9973) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                if x >= range.0 && x <= range.1 {
                    visit(x);
                }
            }
        }
        println!("{name}: {:.2} ulp at {}", worst.0, worst.1);
        assert!(worst.0 <= limit, "{name}: {} ulp at {}, limit {limit}", worst.0, worst.1);
    }

    /// Limits: half a unit and a little for what is computed in f64, else at most the two units that others promise of these
    /// functions in single precision (CUDA C++ Programming Guide, Mathematical Functions).
    #[test]
    fn errors_in_units_of_the_last_place() {
        let fma = f32::mul_add;
        check("exp", |x| super::exp(x, fma), libm::exp, (-110.0, 90.0), 1.0);
        check("ln", |x| super::ln(x, fma), libm::log, (0.0, f32::MAX), 1.0);
        check("erf", |x| super::erf(x, fma), libm::erf, (-6.0, 6.0), 2.0);
        check("tanh", |x| super::tanh(x, fma), libm::tanh, (-12.0, 12.0), 2.0);
        check("sin", super::sin, libm::sin, (-1e4, 1e4), 0.6);
        check("cos", super::cos, libm::cos, (-1e4, 1e4), 0.6);
        for b in [-2.5, 0.5, 1.0 / 3.0, 2.0, 30.0, 1000.0] {
            check("pow", |a| super::pow(a, b), |a| libm::pow(a, B.get()), (B.set(f64::from(b)), 50.0), 0.6);
        }
        // Instruction sets without a fused multiply-add lose a little more.
        let fma = |a: f32, b: f32, c: f32| a * b + c;
        check("exp unfused", |x| super::exp(x, fma), libm::exp, (-110.0, 90.0), 2.0);
        check("erf unfused", |x| super::erf(x, fma), libm::erf, (-6.0, 6.0), 2.0);
    }

    /// The exponent of the `pow` cases, which a plain `fn` cannot capture.
    struct Exponent(std::sync::Mutex<f64>);
    static B: Exponent = Exponent(std::sync::Mutex::new(0.0));
    impl Exponent {
        fn set(&self, value: f64) -> f32 {
            *self.0.lock().unwrap() = value;
            0.0
        }
        fn get(&self) -> f64 {
            *self.0.lock().unwrap()
        }
    }

    #[test]
    fn special_values() {
        let fma = f32::mul_add;
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let same = |a: f32, b: f32| assert!(a == b || a.is_nan() && b.is_nan(), "{a} {b}");
        for x in [0.0, -0.0, inf, -inf, nan, 1.0, f32::MIN_POSITIVE / 4.0] {
            same(super::exp(x, fma), x.exp());
            same(super::ln(x, fma), x.ln());
            if !x.is_subnormal() {
                same(super::erf(x, fma), libm::erff(x)); // subnormal results may lose bits
            }
            same(super::tanh(x, fma), x.tanh());
            for y in [0.0, 1.0, -1.0, 0.5, inf, -inf, nan] {
                same(super::pow(x, y), x.powf(y));
            }
        }
        for (a, b) in
            [(-2.0, 2.0), (-2.0, 5.0), (-2.0, -3.0), (-2.0, 0.5), (-2.0, 0.0), (-2.0, 16_777_217.0), (-0.5, inf)]
        {
            same(super::pow(a, b), a.powf(b));
        }
        same(super::ln(-1.0, fma), nan);
        same(super::sin(nan), nan);
        same(super::cos(inf), nan);
    }
}
