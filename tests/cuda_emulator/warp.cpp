// What the lanes of a warp do together: shuffles, and the primitives of tensor cores by the fragment layouts that the PTX
// manual publishes ("Matrix Fragments for mma.m16n8k16" and ".m16n8k8", "ldmatrix").

#include "machine.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define CALLED extern "C" __attribute__((visibility("default")))

namespace {

using namespace emulator;

struct Shuffle : WarpCall {
    unsigned long long value, result;
    unsigned source;
};

struct Product : WarpCall {
    AlipProduct kind;
    float* d;
    const unsigned* a;
    const unsigned* b;
};

struct Matrices : WarpCall {
    unsigned* r;
    int matrices;
    bool transposed;
    const unsigned char* row;
};

void resolve_shuffle(WarpCall* const lanes[WARP]) {
    for (unsigned lane = 0; lane < WARP; ++lane) {
        auto* self = static_cast<Shuffle*>(lanes[lane]);
        if (!self) continue;
        auto* source = static_cast<Shuffle*>(lanes[self->source % WARP]);
        self->result = source ? source->value : self->value;
        if (source) continue;
        Finding finding{};
        finding.kind = "lanes that never come";
        finding.line = self->line;
        finding.other_thread = -1;
        finding.more = "a shuffle reads lane " + std::to_string(self->source % WARP) + ", which takes no part";
        report(finding);
    }
}

float of_bf16(unsigned bits) {
    return alip_bits<float>(bits << 16);
}

float of_f16(unsigned bits) {
    const unsigned sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    if (exponent == 31) return alip_bits<float>(sign | 0x7f800000 | fraction << 13);
    if (exponent) return alip_bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
    const float small = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -small : small;
}

/// Half `index` of a register.
float half(AlipProduct kind, const unsigned* registers, unsigned index) {
    const unsigned bits = registers[index / 2] >> 16 * (index % 2) & 0xffff;
    return kind == ALIP_BF16 ? of_bf16(bits) : of_f16(bits);
}

/// The core reads the upper 19 bits.
float of_tf32(unsigned bits) {
    return alip_bits<float>(bits & 0xffffe000);
}

/// Rows of a and columns of b as lanes hold them.
void gather(WarpCall* const lanes[WARP], float a[16][16], float b[16][8], unsigned& depth) {
    for (unsigned lane = 0; lane < WARP; ++lane) {
        auto* self = static_cast<Product*>(lanes[lane]);
        const unsigned group = lane / 4, member = lane % 4;
        if (!self) continue;
        if (self->kind == ALIP_TF32) {
            depth = 8;
            for (unsigned i = 0; i < 4; ++i) a[group + (i % 2) * 8][member + (i / 2) * 4] = of_tf32(self->a[i]);
            for (unsigned i = 0; i < 2; ++i) b[member + i * 4][group] = of_tf32(self->b[i]);
            continue;
        }
        depth = 16;
        for (unsigned i = 0; i < 8; ++i)
            a[group + (i / 2 % 2) * 8][member * 2 + i % 2 + (i / 4) * 8] = half(self->kind, self->a, i);
        for (unsigned i = 0; i < 4; ++i) b[member * 2 + i % 2 + (i / 2) * 8][group] = half(self->kind, self->b, i);
    }
}

/// What a tensor core makes of a sum. Products are exact; all terms are brought to the exponent of the largest, what that pushes
/// beyond the bits of an f32 is cut off, and so is what the result has too many of (Fasi, Higham, Mikaitis and Pranesh, 2021, who
/// measured cards up to the A100; it and later ones keep a bit or two more than are kept here). Of ordinary numbers that makes the worst
/// error here the larger one; of subnormal f16 a card may lose more, as it aligns them by the exponent of the smallest normal number.
float truncated_sum(float first, const double* products, unsigned count) {
    double exact = first, largest = std::fabs(static_cast<double>(first));
    for (unsigned i = 0; i < count; ++i) {
        exact += products[i];
        largest = std::max(largest, std::fabs(products[i]));
    }
    if (!std::isfinite(exact) || largest == 0.0) return static_cast<float>(exact);
    // Whole numbers of less than 24 bits, whose sum is exact.
    const int unit = std::ilogb(largest) - 23;
    const double scale = std::ldexp(1.0, -unit);
    auto cut = [&](double term) { return static_cast<int64_t>(term * scale); };
    int64_t sum = cut(first);
    for (unsigned i = 0; i < count; ++i) sum += cut(products[i]);
    const double wide = std::ldexp(static_cast<double>(sum), unit);
    const float nearest = static_cast<float>(wide);
    const bool away = std::isfinite(nearest) && std::fabs(static_cast<double>(nearest)) > std::fabs(wide);
    return away ? std::nextafterf(nearest, 0.0f) : nearest;
}

void resolve_product(WarpCall* const lanes[WARP]) {
    float a[16][16] = {}, b[16][8] = {};
    unsigned depth = 0;
    gather(lanes, a, b, depth);
    for (unsigned lane = 0; lane < WARP; ++lane) {
        auto* self = static_cast<Product*>(lanes[lane]);
        if (!self) continue;
        for (unsigned i = 0; i < 4; ++i) {
            const unsigned row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
            double products[16];
            for (unsigned k = 0; k < depth; ++k)
                products[k] = static_cast<double>(a[row][k]) * static_cast<double>(b[k][column]);
            self->d[i] = truncated_sum(self->d[i], products, depth);
        }
    }
}

void resolve_matrices(WarpCall* const lanes[WARP]) {
    unsigned short matrix[4][8][8] = {};
    for (unsigned lane = 0; lane < WARP; ++lane) {
        auto* self = static_cast<Matrices*>(lanes[lane]);
        if (self && lane / 8 < static_cast<unsigned>(self->matrices) && self->row)
            memcpy(matrix[lane / 8][lane % 8], self->row, 16);
    }
    for (unsigned lane = 0; lane < WARP; ++lane) {
        auto* self = static_cast<Matrices*>(lanes[lane]);
        if (!self) continue;
        const unsigned row = lane / 4, column = lane % 4 * 2;
        for (int m = 0; m < self->matrices; ++m) {
            const auto& from = matrix[m];
            const unsigned low = self->transposed ? from[column][row] : from[row][column];
            const unsigned high = self->transposed ? from[column + 1][row] : from[row][column + 1];
            self->r[m] = low | high << 16;
        }
    }
}

template <class Call> Call call(void (*resolve)(WarpCall* const*), unsigned mask, int line, const char* what) {
    Call made{};
    made.resolve = resolve;
    made.mask = mask;
    made.line = line;
    made.what = what;
    return made;
}

} // namespace

CALLED unsigned long long alip_shuffle(unsigned mask, unsigned long long value, unsigned source, int line) {
    auto shuffle = call<Shuffle>(resolve_shuffle, mask, line, "a shuffle");
    shuffle.value = value;
    shuffle.source = source;
    warp_call(&shuffle);
    return shuffle.result;
}

CALLED void alip_mma(AlipProduct kind, float* d, const unsigned* a, const unsigned* b, int line) {
    auto product = call<Product>(resolve_product, 0xffffffffu, line, "a product");
    product.kind = kind;
    product.d = d;
    product.a = a;
    product.b = b;
    warp_call(&product);
}

CALLED void alip_ldmatrix(unsigned* r, int matrices, bool transposed, const void* row, int line) {
    auto load = call<Matrices>(resolve_matrices, 0xffffffffu, line, "ldmatrix");
    const auto address = reinterpret_cast<uintptr_t>(row);
    const bool used = static_cast<int>(now.thread % WARP) < matrices * 8;
    Finding finding{};
    finding.line = line;
    finding.address = address;
    finding.bytes = 16;
    finding.shared = address - now.shared < now.shared_bytes;
    finding.other_thread = -1;
    if (used && address % 16) {
        finding.kind = "misaligned access";
        report(finding);
    }
    if (used && !finding.shared) {
        finding.kind = "ldmatrix of what is no shared memory";
        report(finding);
    } else if (used) {
        check_access(address, 16, false, 0, line);
        load.row = static_cast<const unsigned char*>(row);
    }
    load.r = r;
    load.matrices = matrices;
    load.transposed = transposed;
    warp_call(&load);
}
