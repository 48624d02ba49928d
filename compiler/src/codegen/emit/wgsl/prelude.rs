//! Helper functions of the shaders, written only where used.
//!
//! The transcendental functions are good to a few units in the last place on every adapter: only `+ - *`, bit operations
//! and one division are used, whose errors WGSL bounds. Polynomials are weighted least-squares fits made minimax by
//! Lawson's iteration, in f64, rounded to f32; the interval and the fit's relative error stand beside each.

use std::collections::BTreeSet;

/// The helpers a shader uses.
#[derive(Default)]
pub(super) struct Functions(BTreeSet<&'static str>);

impl Functions {
    /// Marks a helper, and those it calls, as used; gives its name.
    pub(super) fn use_(&mut self, name: &'static str) -> &'static str {
        if self.0.insert(name) {
            for callee in CALLS.iter().filter(|(caller, _)| *caller == name).flat_map(|(_, callees)| callees.iter()) {
                self.use_(callee);
            }
        }
        name
    }

    /// Declarations of all used helpers. WGSL needs no order.
    pub(super) fn text(&self) -> String {
        HELPERS.iter().filter(|(name, _)| self.0.contains(name)).map(|(_, text)| *text).collect()
    }
}

const CALLS: &[(&str, &[&str])] = &[
    ("i32_f", &["is_nan_f"]),
    ("bool_f", &["is_nan_f"]),
    ("min_f", &["nan_f", "is_nan_f"]),
    ("max_f", &["nan_f", "is_nan_f"]),
    ("exp_f", &["inf_f", "is_nan_f"]),
    ("ln_f", &["inf_f", "nan_f", "is_nan_f"]),
    ("erf_f", &["exp_f", "is_nan_f"]),
    ("tanh_f", &["exp_f", "is_nan_f"]),
    ("sin_f", &["quadrant_f"]),
    ("cos_f", &["quadrant_f"]),
    ("quadrant_f", &["nan_f", "is_nan_f"]),
    ("rem_f", &["nan_f"]),
    ("pow_f", &["ln_f", "exp_f", "inf_f", "nan_f"]),
    ("uniform_f", &["mul_hi"]),
];

const HELPERS: &[(&str, &str)] = &[
    ("inf_f", "fn inf_f() -> f32 { return bitcast<f32>(0x7f800000u + zero); }\n"),
    ("nan_f", "fn nan_f() -> f32 { return bitcast<f32>(0x7fc00000u + zero); }\n"),
    (
        "is_nan_f",
        "fn is_nan_f(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }\n",
    ),
    // x <= the largest finite number: what `is_finite` asks of |x|. True of -inf, false of NaN.
    (
        "below_inf_f",
        "fn below_inf_f(x: f32) -> bool {
  let bits = bitcast<u32>(x);
  return bits < 0x7f800000u || (bits >= 0x80000000u && bits <= 0xff800000u);
}
",
    ),
    // The nearest number of the type, the even one of two; NaN and infinities stay.
    (
        "bf16_f",
        "fn bf16_f(x: f32) -> f32 {
  let bits = bitcast<u32>(x);
  let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) & 0xffff0000u;
  return bitcast<f32>(select(rounded, bits, (bits & 0x7f800000u) == 0x7f800000u));
}
",
    ),
    // Below 2^-14 the step is 2^-24, which is that of f32 from a half to one: what is added to a half there is a multiple.
    (
        "f16_f",
        "fn f16_f(x: f32) -> f32 {
  let bits = bitcast<u32>(x);
  let size = bits & 0x7fffffffu;
  if (size >= 0x7f800000u) { return x; }
  var near = (size + 0xfffu + ((size >> 13u) & 1u)) & 0xffffe000u;
  if (size < 0x38800000u) {
    let steps = bitcast<u32>(bitcast<f32>(size) + 0.5f) - 0x3f000000u;
    near = bitcast<u32>(f32(steps) * 0x1p-24f);
  }
  if (near >= 0x47800000u) { near = 0x7f800000u; }
  return bitcast<f32>(near | (bits & 0x80000000u));
}
",
    ),
    // Toward zero, as far as i32 goes; NaN is 0. The built-in conversion promises nothing of either.
    (
        "i32_f",
        "fn i32_f(x: f32) -> i32 {
  let inside = i32(clamp(x, -2147483648.0f, 2147483520.0f));
  return select(select(inside, 2147483647i, x >= 2147483648.0f), 0i, is_nan_f(x));
}
",
    ),
    // Whether it is not 0, which NaN is not.
    (
        "bool_f",
        "fn bool_f(x: f32) -> bool { return x != 0.0f || is_nan_f(x); }\n",
    ),
    // NaN if either argument is NaN; the built-in functions may drop it.
    (
        "min_f",
        "fn min_f(a: f32, b: f32) -> f32 { return select(select(b, a, a < b), nan_f(), is_nan_f(a) || is_nan_f(b)); }\n",
    ),
    (
        "max_f",
        "fn max_f(a: f32, b: f32) -> f32 { return select(select(b, a, a > b), nan_f(), is_nan_f(a) || is_nan_f(b)); }\n",
    ),
    // e^r = 1 + r + r^2 p(r) on |r| <= ln(2) / 2, error 1e-9; below -87.3 the result, subnormal, is 0.
    (
        "exp_f",
        "fn exp_f(x: f32) -> f32 {
  let n = floor(x * 1.4426950408889634f + 0.5f);
  let r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  let p = 0.5f + r * (0.16666667f + r * (0.041666266f + r * (0.0083332686f + r * (0.0013946358f + r * 1.9916006e-4f))));
  let y = 1.0f + (r + r * r * p);
  let half_n = i32(clamp(n, -126.0f, 128.0f)) / 2;
  let rest_n = i32(clamp(n, -126.0f, 128.0f)) - half_n;
  let scaled = y * bitcast<f32>(u32(half_n + 127) << 23u) * bitcast<f32>(u32(rest_n + 127) << 23u);
  let bounded = select(select(scaled, inf_f(), x > 88.72284f), 0.0f, x < -87.33655f);
  return select(bounded, x, is_nan_f(x));
}
",
    ),
    // With x = m 2^e, m in [sqrt(1/2), sqrt(2)), s = (m - 1) / (m + 1): ln m = 2 s + s^3 p(s^2), error 1e-9.
    (
        "ln_f",
        "fn ln_f(x: f32) -> f32 {
  let tiny = x < 1.1754944e-38f;
  let bits = bitcast<u32>(select(x, x * 8388608.0f, tiny));
  let e = (bitcast<i32>(bits - 0x3f3504f3u) >> 23u) - select(0, 23, tiny);
  let m = bitcast<f32>(((bits - 0x3f3504f3u) & 0x007fffffu) + 0x3f3504f3u);
  let f = m - 1.0f;
  let s = f / (2.0f + f);
  let z = s * s;
  let p = z * (0.6666666f + z * (0.40000337f + z * (0.28537166f + z * 0.23584996f)));
  let h = 0.5f * f * f;
  let k = f32(e);
  let y = k * 0.693359375f + (f - (h - (s * (h + p) + k * -2.12194440e-4f)));
  let bounded = select(select(y, -inf_f(), x == 0.0f), nan_f(), x < 0.0f);
  return select(bounded, x, is_nan_f(x) || bitcast<u32>(x) == 0x7f800000u);
}
",
    ),
    // |x| < 1: x + x p(x^2), error 4e-11; else 1 - e^-q(|x|) with q = -ln erfc on [1, 4], error 6e-9 of the result.
    (
        "erf_f",
        "fn erf_f(x: f32) -> f32 {
  let a = abs(x);
  let z = x * x;
  let p = 0.12837923f + z * (-0.37612638f + z * (0.11283784f + z * (-0.026865445f + z * (0.005221075f + z * (-8.484710e-4f + z * (1.1270535e-4f + z * -9.680110e-6f))))));
  let q = -1.8855596e-4f + a * (1.1295807f + a * (0.6332154f + a * (0.10842320f + a * (-0.025211070f + a * (0.0042055692f + a * (-4.4153249e-4f + a * 2.1702865e-5f))))));
  let tail = select(1.0f - exp_f(-q), 1.0f, a > 3.95f);
  let large = select(tail, -tail, x < 0.0f);
  return select(select(large, x + x * p, a < 1.0f), x, is_nan_f(x));
}
",
    ),
    // |x| < 0.625: x + x^3 p(x^2), error 4e-9; else 1 - 2 / (e^2|x| + 1).
    (
        "tanh_f",
        "fn tanh_f(x: f32) -> f32 {
  let a = abs(x);
  let z = x * x;
  let p = z * (-0.33333284f + z * (0.13331485f + z * (-0.053742904f + z * (0.020648543f + z * -0.0057146554f))));
  let tail = 1.0f - 2.0f / (exp_f(min(2.0f * a, 40.0f)) + 1.0f);
  let large = select(tail, -tail, x < 0.0f);
  return select(select(large, x + x * p, a < 0.625f), x, is_nan_f(x));
}
",
    ),
    // x minus the nearest multiple of pi/2, in three parts (Cody and Waite), and that multiple; good for |x| < 1e5.
    (
        "quadrant_f",
        "fn quadrant_f(x: f32) -> vec2<f32> {
  let n = floor(x * 0.63661977f + 0.5f);
  let r = ((x - n * 1.5703125f) - n * 4.8375130e-4f) - n * 7.5497900e-8f;
  return select(vec2<f32>(r, n), vec2<f32>(nan_f(), 0.0f), abs(x) > 1.0e9f || is_nan_f(x));
}
fn sin_poly(r: f32) -> f32 {
  let z = r * r;
  return r + r * z * (-0.16666667f + z * (0.0083333293f + z * (-1.9839330e-4f + z * 2.7182741e-6f)));
}
fn cos_poly(r: f32) -> f32 {
  let z = r * r;
  return 1.0f - 0.5f * z + z * z * (0.041666646f + z * (-0.0013887364f + z * 2.4438084e-5f));
}
",
    ),
    (
        "sin_f",
        "fn sin_f(x: f32) -> f32 {
  let q = quadrant_f(x);
  let k = i32(q.y) & 3;
  let y = select(sin_poly(q.x), cos_poly(q.x), (k & 1) == 1);
  return select(y, -y, k >= 2);
}
",
    ),
    (
        "cos_f",
        "fn cos_f(x: f32) -> f32 {
  let q = quadrant_f(x);
  let k = (i32(q.y) + 1) & 3;
  let y = select(sin_poly(q.x), cos_poly(q.x), (k & 1) == 1);
  return select(y, -y, k >= 2);
}
",
    ),
    (
        "pow_f",
        "fn pow_f(a: f32, b: f32) -> f32 {
  let size = exp_f(b * ln_f(abs(a)));
  let below = bitcast<u32>(a) >= 0x80000000u;
  let signed = select(size, -size, below && floor(b) == b && floor(0.5f * b) != 0.5f * b);
  let power = select(signed, nan_f(), a < 0.0f && floor(b) != b && abs(a) < inf_f());
  return select(power, 1.0f, b == 0.0f || a == 1.0f || (a == -1.0f && abs(b) == inf_f()));
}
",
    ),
    // Long division of the significands, one power of two after another, so that nothing is rounded but the last sum.
    (
        "rem_f",
        "fn rem_f(a: f32, b: f32) -> f32 {
  let x = bitcast<u32>(a) & 0x7fffffffu;
  let y = bitcast<u32>(b) & 0x7fffffffu;
  if (x >= 0x7f800000u || y > 0x7f800000u || y == 0u) { return nan_f(); }
  var rest = abs(a);
  if (x >= y) {
    let e = max(y >> 23u, 1u);
    let d = (y & 0x7fffffu) | select(0u, 0x800000u, y >= 0x800000u);
    var m = (x & 0x7fffffu) | select(0u, 0x800000u, x >= 0x800000u);
    for (var k = max(x >> 23u, 1u); k > e; k--) { m = (m % d) << 1u; }
    m = m % d;
    let half_n = (i32(e) - 150) / 2;
    let rest_n = i32(e) - 150 - half_n;
    rest = f32(m) * bitcast<f32>(u32(half_n + 127) << 23u) * bitcast<f32>(u32(rest_n + 127) << 23u);
  }
  let signed = select(rest, -rest, a < 0.0f);
  return select(signed, signed + b, signed != 0.0f && (signed < 0.0f) != (b < 0.0f));
}
",
    ),
    // By 0 it is a itself, but as a constant no shader may divide by it.
    (
        "div_i",
        "fn div_i(a: i32, b: i32) -> i32 {
  return a / b;
}
",
    ),
    (
        "rem_i",
        "fn rem_i(a: i32, b: i32) -> i32 {
  if (b == 0i) { return a; }
  if (b == -1i) { return 0i; }
  let rest = a % b;
  return select(rest, rest + b, rest != 0i && (rest < 0i) != (b < 0i));
}
",
    ),
    // High word of a 32 x 32 bit product, from 16-bit halves.
    (
        "mul_hi",
        "fn mul_hi(a: u32, b: u32) -> u32 {
  let al = a & 0xffffu;
  let ah = a >> 16u;
  let bl = b & 0xffffu;
  let bh = b >> 16u;
  let mid = ah * bl + ((al * bl) >> 16u);
  let low = (mid & 0xffffu) + al * bh;
  return ah * bh + (mid >> 16u) + (low >> 16u);
}
",
    ),
    // Philox4x32-10 (Salmon et al., SC 2011); the top 24 bits of word `word` as a multiple of 2^-24.
    (
        "uniform_f",
        "fn uniform_f(seed: i32, step: i32, index: i32, stream: vec2<u32>, word: u32) -> f32 {
  var c = vec4<u32>(bitcast<u32>(index), stream, 0u);
  var k = vec2<u32>(bitcast<u32>(seed), bitcast<u32>(step));
  for (var round = 0u; round < 10u; round++) {
    let low = vec2<u32>(0xd2511f53u * c.x, 0xcd9e8d57u * c.z);
    let high = vec2<u32>(mul_hi(0xd2511f53u, c.x), mul_hi(0xcd9e8d57u, c.z));
    c = vec4<u32>(high.y ^ c.y ^ k.x, low.y, high.x ^ c.w ^ k.y, low.x);
    k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
  }
  return f32(c[word] >> 8u) * 5.9604645e-8f;
}
",
    ),
];
