//! Functions of the texts, written only where used: what CUDA C++ has no word for, or another meaning than ours.
//!
//! The last ones are the primitives: instructions as inline PTX, by the names and fragment layouts of the PTX manual. They are left
//! out where `ALIP_EMULATOR` is defined, and nothing else may hold PTX.

use std::collections::BTreeSet;

use alip_plan::DType;

/// The helpers a text uses.
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

    /// From f32 to a type of 16 bits, and back.
    pub(super) fn narrow(&mut self, dtype: DType) -> [&'static str; 2] {
        match dtype {
            DType::F16 => ["f16_of", "of_f16"],
            _ => ["bf16_of", "of_bf16"],
        }
        .map(|name| self.use_(name))
    }

    /// Declarations of all used helpers, each behind those that it calls.
    pub(super) fn text(&self) -> String {
        let used = |all: &[(&'static str, &'static str)]| -> String {
            all.iter().filter(|(name, _)| self.0.contains(name)).map(|(_, text)| *text).collect()
        };
        let primitives = used(PRIMITIVES);
        let primitives = match primitives.as_str() {
            "" => primitives,
            _ => format!("#ifndef ALIP_EMULATOR\n{primitives}#endif\n"),
        };
        used(HELPERS) + &primitives
    }
}

const CALLS: &[(&str, &[&str])] = &[
    ("load_bf16", &["of_bf16"]),
    ("store_bf16", &["bf16_of"]),
    ("load_f16", &["of_f16"]),
    ("store_f16", &["f16_of"]),
    ("split_bf16", &["bf16_of", "of_bf16"]),
];

const HELPERS: &[(&str, &str)] = &[
    // To the nearest, ties to even; NaN and infinities keep their upper bits.
    (
        "bf16_of",
        "static __device__ __forceinline__ unsigned short bf16_of(float x) {
  const unsigned bits = __float_as_uint(x);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  const unsigned quiet = bits | ((bits & 0x7fffffu) != 0u ? 0x400000u : 0u);
  return (unsigned short)((finite ? bits + 0x7fffu + ((bits >> 16) & 1u) : quiet) >> 16);
}
",
    ),
    (
        "of_bf16",
        "static __device__ __forceinline__ float of_bf16(unsigned short x) { return __uint_as_float((unsigned)x << 16); }\n",
    ),
    // Below 2^-14 the step is 2^-24, which is that of f32 from a half to one: what is added to a half there is a multiple.
    (
        "f16_of",
        "static __device__ __forceinline__ unsigned short f16_of(float x) {
  const unsigned bits = __float_as_uint(x);
  const unsigned sign = (bits >> 16) & 0x8000u;
  const unsigned size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return (unsigned short)(sign | 0x7e00u);
  if (size >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);
  if (size < 0x38800000u) {
    return (unsigned short)(sign | (__float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u));
  }
  return (unsigned short)(sign | ((size + 0xfffu + ((size >> 13) & 1u) - 0x38000000u) >> 13));
}
",
    ),
    (
        "of_f16",
        "static __device__ __forceinline__ float of_f16(unsigned short x) {
  const unsigned sign = (unsigned)(x & 0x8000u) << 16;
  const unsigned size = x & 0x7fffu;
  if (size >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (size & 0x3ffu) << 13);
  if (size < 0x400u) return __uint_as_float(sign | __float_as_uint((float)size * 0x1p-24f));
  return __uint_as_float(sign | ((size << 13) + 0x38000000u));
}
",
    ),
    // Toward zero, clamped to what fits; NaN is 0.
    (
        "int_of",
        "static __device__ __forceinline__ int int_of(float x) {
  if (x != x) return 0;
  if (x >= 2147483648.0f) return 2147483647;
  return x <= -2147483648.0f ? -2147483647 - 1 : (int)x;
}
",
    ),
    // NaN if either argument is NaN, which fminf and fmaxf drop.
    (
        "min_f",
        "static __device__ __forceinline__ float min_f(float a, float b) { return a != a || b != b ? a + b : fminf(a, b); }\n",
    ),
    (
        "max_f",
        "static __device__ __forceinline__ float max_f(float a, float b) { return a != a || b != b ? a + b : fmaxf(a, b); }\n",
    ),
    (
        "rem_f",
        "static __device__ __forceinline__ float rem_f(float a, float b) {
  const float rest = fmodf(a, b);
  return rest != 0.0f && (rest < 0.0f) != (b < 0.0f) ? rest + b : rest;
}
",
    ),
    // By 0 it is a itself; the one quotient that does not fit wraps around.
    (
        "div_i",
        "static __device__ __forceinline__ int div_i(int a, int b) {
  if (b == 0) return a;
  return b == -1 ? (int)(0u - (unsigned)a) : a / b;
}
",
    ),
    (
        "rem_i",
        "static __device__ __forceinline__ int rem_i(int a, int b) {
  if (b == 0) return a;
  if (b == -1) return 0;
  const int rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
",
    ),
    // Philox4x32-10, as `alip_plan::philox` has it.
    (
        "uniform_f",
        "static __device__ __forceinline__ float uniform_f(int seed, int step, int index, unsigned low, unsigned high, unsigned word) {
  unsigned c0 = (unsigned)index, c1 = low, c2 = high, c3 = 0u;
  unsigned k0 = (unsigned)seed, k1 = (unsigned)step;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const unsigned l0 = 0xd2511f53u * c0, h0 = __umulhi(0xd2511f53u, c0);
    const unsigned l1 = 0xcd9e8d57u * c2, h1 = __umulhi(0xcd9e8d57u, c2);
    c0 = h1 ^ c1 ^ k0;
    c1 = l1;
    c2 = h0 ^ c3 ^ k1;
    c3 = l0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  const unsigned drawn = word == 0u ? c0 : word == 1u ? c1 : word == 2u ? c2 : c3;
  return (float)(drawn >> 8) * 5.9604645e-8f;
}
",
    ),
    // Two numbers, each as the sum of two of 16 bits, which is off by 2^-17 of it; what is not finite has no rest.
    (
        "split_bf16",
        "static __device__ __forceinline__ void split_bf16(float x, float y, unsigned& high, unsigned& low) {
  const unsigned short hx = bf16_of(x), hy = bf16_of(y);
  const float rx = x - of_bf16(hx), ry = y - of_bf16(hy);
  high = hx | (unsigned)hy << 16;
  low = (rx == rx ? bf16_of(rx) : 0u) | (unsigned)(ry == ry ? bf16_of(ry) : 0u) << 16;
}
",
    ),
    // V neighbouring elements, a multiple of four, at a multiple of V.
    (
        "load_f32",
        "template <unsigned V> static __device__ __forceinline__ void load_f32(float (&x)[V], const float* p) {
#pragma unroll
  for (unsigned i = 0u; i < V; i += 4u) {
    const float4 q = *(const float4*)(p + i);
    x[i] = q.x; x[i + 1u] = q.y; x[i + 2u] = q.z; x[i + 3u] = q.w;
  }
}
",
    ),
    (
        "store_f32",
        "template <unsigned V> static __device__ __forceinline__ void store_f32(const float (&x)[V], float* p) {
#pragma unroll
  for (unsigned i = 0u; i < V; i += 4u) *(float4*)(p + i) = make_float4(x[i], x[i + 1u], x[i + 2u], x[i + 3u]);
}
",
    ),
    (
        "load_i32",
        "template <unsigned V> static __device__ __forceinline__ void load_i32(int (&x)[V], const int* p) {
#pragma unroll
  for (unsigned i = 0u; i < V; i += 4u) {
    const int4 q = *(const int4*)(p + i);
    x[i] = q.x; x[i + 1u] = q.y; x[i + 2u] = q.z; x[i + 3u] = q.w;
  }
}
",
    ),
    (
        "store_i32",
        "template <unsigned V> static __device__ __forceinline__ void store_i32(const int (&x)[V], int* p) {
#pragma unroll
  for (unsigned i = 0u; i < V; i += 4u) *(int4*)(p + i) = make_int4(x[i], x[i + 1u], x[i + 2u], x[i + 3u]);
}
",
    ),
    (
        "load_bool",
        "template <unsigned V> static __device__ __forceinline__ void load_bool(bool (&x)[V], const unsigned* p) {
#pragma unroll
  for (unsigned i = 0u; i < V; i += 4u) {
    const uint4 q = *(const uint4*)(p + i);
    x[i] = q.x != 0u; x[i + 1u] = q.y != 0u; x[i + 2u] = q.z != 0u; x[i + 3u] = q.w != 0u;
  }
}
",
    ),
    (
        "store_bool",
        "template <unsigned V> static __device__ __forceinline__ void store_bool(const bool (&x)[V], unsigned* p) {
#pragma unroll
  for (unsigned i = 0u; i < V; i += 4u) {
    *(uint4*)(p + i) = make_uint4(x[i] ? 1u : 0u, x[i + 1u] ? 1u : 0u, x[i + 2u] ? 1u : 0u, x[i + 3u] ? 1u : 0u);
  }
}
",
    ),
    (
        "load_u8",
        "template <unsigned V> static __device__ __forceinline__ void load_u8(float (&x)[V], const unsigned char* p) {
#pragma unroll
  for (unsigned i = 0u; i < V; i += 4u) {
    const unsigned q = *(const unsigned*)(p + i);
    x[i] = (float)(q & 255u); x[i + 1u] = (float)(q >> 8 & 255u);
    x[i + 2u] = (float)(q >> 16 & 255u); x[i + 3u] = (float)(q >> 24);
  }
}
",
    ),
    (
        "load_bf16",
        "template <unsigned V> static __device__ __forceinline__ void load_bf16(float (&x)[V], const unsigned short* p) {
  unsigned w[V / 2u];
  if constexpr (V == 8u) {
    const uint4 q = *(const uint4*)p;
    w[0] = q.x; w[1] = q.y; w[2] = q.z; w[3] = q.w;
  } else {
    const uint2 q = *(const uint2*)p;
    w[0] = q.x; w[1] = q.y;
  }
#pragma unroll
  for (unsigned i = 0u; i < V / 2u; i++) {
    x[2u * i] = __uint_as_float(w[i] << 16);
    x[2u * i + 1u] = __uint_as_float(w[i] & 0xffff0000u);
  }
}
",
    ),
    (
        "store_bf16",
        "template <unsigned V> static __device__ __forceinline__ void store_bf16(const float (&x)[V], unsigned short* p) {
  unsigned w[V / 2u];
#pragma unroll
  for (unsigned i = 0u; i < V / 2u; i++) w[i] = bf16_of(x[2u * i]) | (unsigned)bf16_of(x[2u * i + 1u]) << 16;
  if constexpr (V == 8u) *(uint4*)p = make_uint4(w[0], w[1], w[2], w[3]);
  else *(uint2*)p = make_uint2(w[0], w[1]);
}
",
    ),
    (
        "load_f16",
        "template <unsigned V> static __device__ __forceinline__ void load_f16(float (&x)[V], const unsigned short* p) {
  unsigned w[V / 2u];
  if constexpr (V == 8u) {
    const uint4 q = *(const uint4*)p;
    w[0] = q.x; w[1] = q.y; w[2] = q.z; w[3] = q.w;
  } else {
    const uint2 q = *(const uint2*)p;
    w[0] = q.x; w[1] = q.y;
  }
#pragma unroll
  for (unsigned i = 0u; i < V / 2u; i++) {
    x[2u * i] = of_f16((unsigned short)w[i]);
    x[2u * i + 1u] = of_f16((unsigned short)(w[i] >> 16));
  }
}
",
    ),
    (
        "store_f16",
        "template <unsigned V> static __device__ __forceinline__ void store_f16(const float (&x)[V], unsigned short* p) {
  unsigned w[V / 2u];
#pragma unroll
  for (unsigned i = 0u; i < V / 2u; i++) w[i] = f16_of(x[2u * i]) | (unsigned)f16_of(x[2u * i + 1u]) << 16;
  if constexpr (V == 8u) *(uint4*)p = make_uint4(w[0], w[1], w[2], w[3]);
  else *(uint2*)p = make_uint2(w[0], w[1]);
}
",
    ),
];

/// Instructions. Fragments are those of the PTX manual ("Matrix Fragments for mma.m16n8k16"): of a warp's lane with `g = lane / 4` and
/// `t = lane % 4`, `a` holds rows g and g + 8 at columns 2t and 2t + 8, `b` rows 2t and 2t + 8 of column g, two neighbours in each
/// register, and `d` rows g and g + 8 at columns 2t and 2t + 1.
const PRIMITIVES: &[(&str, &str)] = &[
    (
        "mma_m16n8k16_bf16",
        "static __device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(\"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\"
    : \"+f\"(d[0]), \"+f\"(d[1]), \"+f\"(d[2]), \"+f\"(d[3])
    : \"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3]), \"r\"(b[0]), \"r\"(b[1]));
}
",
    ),
    (
        "mma_m16n8k16_f16",
        "static __device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(\"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\"
    : \"+f\"(d[0]), \"+f\"(d[1]), \"+f\"(d[2]), \"+f\"(d[3])
    : \"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3]), \"r\"(b[0]), \"r\"(b[1]));
}
",
    ),
    (
        "ldmatrix_x4",
        "static __device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row) {
  const unsigned at = (unsigned)__cvta_generic_to_shared(row);
  asm volatile(\"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\"
    : \"=r\"(r[0]), \"=r\"(r[1]), \"=r\"(r[2]), \"=r\"(r[3]) : \"r\"(at) : \"memory\");
}
",
    ),
    (
        "ldmatrix_x4_trans",
        "static __device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
  const unsigned at = (unsigned)__cvta_generic_to_shared(row);
  asm volatile(\"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\"
    : \"=r\"(r[0]), \"=r\"(r[1]), \"=r\"(r[2]), \"=r\"(r[3]) : \"r\"(at) : \"memory\");
}
",
    ),
    // 16 bytes, or zeros.
    (
        "cp_async_16_zfill",
        "static __device__ __forceinline__ void cp_async_16_zfill(void* shared, const void* global, bool inside) {
  const unsigned at = (unsigned)__cvta_generic_to_shared(shared);
  asm volatile(\"cp.async.cg.shared.global [%0], [%1], 16, %2;\" :: \"r\"(at), \"l\"(global), \"r\"(inside ? 16 : 0) : \"memory\");
}
",
    ),
    (
        "cp_async_commit",
        "static __device__ __forceinline__ void cp_async_commit() { asm volatile(\"cp.async.commit_group;\" ::: \"memory\"); }\n",
    ),
    // Waits until at most N groups are on their way.
    (
        "cp_async_wait",
        "template <int N> static __device__ __forceinline__ void cp_async_wait() { asm volatile(\"cp.async.wait_group %0;\" :: \"n\"(N) : \"memory\"); }\n",
    ),
];
