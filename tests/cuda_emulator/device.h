// What a kernel's text sees in the emulator in place of CUDA: types, functions, and the primitives that stand for inline PTX.
//
// Texts are compiled as they are. Loads and stores of buffers and of shared memory are seen by the instrumentation of
// -fsanitize=thread, whose hooks are in memory.cpp; misaligned ones by that of -fsanitize=alignment. What waits for other
// threads (barriers, shuffles, products) is a call into machine.cpp or warp.cpp, with the line of the text it stands on.
#pragma once

#include <math.h>
#include <string.h>

#define ALIP_EMULATOR 1

#define __global__ __attribute__((visibility("hidden")))
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// The C library has functions of these names.
#define __expf expf
#define __logf logf
#define __align__(n) __attribute__((aligned(n)))
// Every kernel has a section of its own, between whose arrays lie bytes that belong to none.
#define ALIP_JOINED_(a, b) a##b
#define ALIP_JOINED(a, b) ALIP_JOINED_(a, b)
#define ALIP_IN_SECTION static __attribute__((used, section(ALIP_SHARED)))
#define __shared__ ALIP_IN_SECTION unsigned char ALIP_JOINED(alip_redzone_, __COUNTER__)[512]; ALIP_IN_SECTION

struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct uint3 { unsigned x, y, z; };

static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Constant to a thread; the machine sets them whenever another thread runs.
extern "C" const uint3 threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;

template <class To, class From> static inline To alip_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits of one size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float x) { return alip_bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return alip_bits<float>(x); }
static inline int __float_as_int(float x) { return alip_bits<int>(x); }
static inline float __int_as_float(int x) { return alip_bits<float>(x); }

static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
static inline int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class T> static inline T __ldg(const T* p) { return *p; }

#define ALIP_MIN_MAX(T)                                          \
    static inline T min(T a, T b) { return b < a ? b : a; }      \
    static inline T max(T a, T b) { return a < b ? b : a; }
ALIP_MIN_MAX(int)
ALIP_MIN_MAX(unsigned)
ALIP_MIN_MAX(long)
ALIP_MIN_MAX(unsigned long)
ALIP_MIN_MAX(long long)
ALIP_MIN_MAX(unsigned long long)
#undef ALIP_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

// The machine.
extern "C" {
void alip_barrier(int line);
void alip_syncwarp(unsigned mask, int line);
unsigned long long alip_shuffle(unsigned mask, unsigned long long value, unsigned source, int line);
enum AlipProduct { ALIP_BF16, ALIP_F16, ALIP_TF32 };
void alip_mma(enum AlipProduct kind, float* d, const unsigned* a, const unsigned* b, int line);
void alip_ldmatrix(unsigned* r, int matrices, bool transposed, const void* row, int line);
void alip_copy_async(void* shared, const void* global, bool inside, int line);
void alip_copy_commit(void);
void alip_copy_wait(unsigned groups, int line);
}

// Where a default argument is evaluated is the line of the call.
static inline void __syncthreads(int line = __builtin_LINE()) { alip_barrier(line); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) { alip_syncwarp(mask, line); }

template <class T> static inline T alip_shuffled(unsigned mask, T value, unsigned source, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle is of 4 or 8 bytes");
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = alip_shuffle(mask, bits, source, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}
// A source outside the segment of `width` lanes leaves a lane its own value.
static inline unsigned alip_lane() { return threadIdx.x % 32; }
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
    unsigned first = alip_lane() & ~(unsigned)(width - 1);
    return alip_shuffled(mask, value, first + ((unsigned)source & (unsigned)(width - 1)), line);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, int line = __builtin_LINE()) {
    unsigned lane = alip_lane(), source = lane ^ (unsigned)lanes, end = (lane & ~(unsigned)(width - 1)) + (unsigned)width;
    return alip_shuffled(mask, value, source < end ? source : lane, line);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    unsigned lane = alip_lane(), end = (lane & ~(unsigned)(width - 1)) + (unsigned)width;
    return alip_shuffled(mask, value, lane + by < end ? lane + by : lane, line);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    unsigned lane = alip_lane(), first = lane & ~(unsigned)(width - 1);
    return alip_shuffled(mask, value, lane >= first + by ? lane - by : lane, line);
}

static inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    alip_mma(ALIP_BF16, d, a, b, line);
}
static inline void mma_m16n8k16_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    alip_mma(ALIP_F16, d, a, b, line);
}
static inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    alip_mma(ALIP_TF32, d, a, b, line);
}
static inline void ldmatrix_x4(unsigned (&r)[4], const void* row, int line = __builtin_LINE()) {
    alip_ldmatrix(r, 4, false, row, line);
}
static inline void ldmatrix_x2(unsigned (&r)[2], const void* row, int line = __builtin_LINE()) {
    alip_ldmatrix(r, 2, false, row, line);
}
static inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, int line = __builtin_LINE()) {
    alip_ldmatrix(r, 4, true, row, line);
}
static inline void ldmatrix_x2_trans(unsigned (&r)[2], const void* row, int line = __builtin_LINE()) {
    alip_ldmatrix(r, 2, true, row, line);
}
static inline void cp_async_16(void* shared, const void* global, int line = __builtin_LINE()) {
    alip_copy_async(shared, global, true, line);
}
static inline void cp_async_16_zfill(void* shared, const void* global, bool inside, int line = __builtin_LINE()) {
    alip_copy_async(shared, global, inside, line);
}
static inline void cp_async_commit() { alip_copy_commit(); }
template <int N> static inline void cp_async_wait(int line = __builtin_LINE()) { alip_copy_wait(N, line); }

// How the machine finds a kernel, calls it, and knows its shared memory.
struct AlipKernel {
    const char* entry;
    void (*call)(void** operands);
    const unsigned char* shared_begin;
    const unsigned char* shared_end;
    unsigned operands;
    unsigned block;
};
template <unsigned... I> struct AlipIndices {};
template <unsigned N, unsigned... I> struct AlipCount : AlipCount<N - 1, N - 1, I...> {};
template <unsigned... I> struct AlipCount<0, I...> { typedef AlipIndices<I...> Type; };
template <class... Pointers, unsigned... I>
static inline void alip_spread(void (*kernel)(Pointers...), void** operands, AlipIndices<I...>) {
    kernel((Pointers)operands[I]...);
}
template <class... Pointers> static inline void alip_call(void (*kernel)(Pointers...), void** operands) {
    alip_spread(kernel, operands, typename AlipCount<sizeof...(Pointers)>::Type());
}
template <class... Pointers> static constexpr unsigned alip_operands(void (*)(Pointers...)) { return sizeof...(Pointers); }
