// A stand-in of cuBLASLt on top of the emulator, written from NVIDIA's documentation of its calls: what descriptors mean and which
// are refused, for the part of the library that has to do with products of real matrices in single precision.
//
// Products are computed element by element, through accesses that the emulator sees. Sums are of f32. Where the preferences allow
// it, long sums are split in two: over the workspace, or worse (partial sums rounded to the type of the result) where a caller
// allows that too, so that whoever forgets to forbid it gets other numbers.
// Work is queued where the driver's stand-in has streams, and done at once where there are none.
//   ALIP_STANDIN_CUBLASLT          its version, as 120803
//   ALIP_STANDIN_CUBLASLT_REFUSE   the query, counted from 1, for which there is no algorithm

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#define LT extern "C" __attribute__((visibility("default"))) int

// Of the emulator: notes what is wrong with an access of the library, and whether it may be made.
extern "C" int emulator_touch(const void* address, uint64_t bytes, int write, const char* who);
// Of the driver's stand-in, where it is.
extern "C" __attribute__((weak)) int standin_submit(void* stream, void (*work)(void*), void (*discard)(void*), void* with);

namespace {

enum : int { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum : int { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum : int { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69 };
enum : uint32_t { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4 };
enum : uint32_t { REDUCTION_COMPUTE_TYPE = 2, REDUCTION_OUTPUT_TYPE = 4 };
enum : int { ORDER_COL = 0, ORDER_ROW = 1 };
/// Sums of at least so many terms are split.
constexpr uint64_t LONG_SUM = 64;
/// What every algorithm begins with.
constexpr uint64_t MARK = 0x616c6970;

struct Layout {
    int type = R_32F;
    int order = ORDER_COL;
    uint64_t rows = 0, cols = 0;
    int64_t ld = 0;
    int batch = 1;
    int64_t stride = 0;
};

struct Desc {
    int compute = COMPUTE_32F, scale = R_32F, pointer_mode = 0;
    int transposed[2] = {0, 0};
    uint32_t epilogue = EPILOGUE_DEFAULT;
    const void* bias = nullptr;
    int64_t bias_stride = 0;
    int bias_type = -1;
};

struct Preference {
    uint64_t workspace = 0;
    uint32_t reduction = 7;
    uint32_t alignment[4] = {256, 256, 256, 256};
};

struct Algo {
    uint64_t mark, split, alignment[4], workspace, unused;
};
static_assert(sizeof(Algo) == 64, "as cublasLt.h has it");

struct Heuristic {
    Algo algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

uint64_t size_of(int type) {
    return type == R_32F ? 4 : 2;
}

float from_f16(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float sign = bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
    return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}

/// To the nearest, ties to even.
uint16_t to_f16(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isnan(value)) return 0x7e00;
    const float size = std::fabs(value);
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size == 0.0f) return sign;
    const int exponent = size < std::ldexp(1.0f, -14) ? -14 : std::ilogb(size);
    const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    // A subnormal number has no hidden bit; what is rounded up to the next power of two carries into the exponent.
    return static_cast<uint16_t>(sign | (units + ((exponent + 14) << 10)));
}

uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 64);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float rounded_to(int type, float value) {
    if (type == R_16F) return from_f16(to_f16(value));
    if (type != R_16BF) return value;
    const uint32_t bits = static_cast<uint32_t>(to_bf16(value)) << 16;
    memcpy(&value, &bits, 4);
    return value;
}

/// NaN where nothing may be read.
float read(const char* address, int type) {
    if (!emulator_touch(address, size_of(type), 0, "cublasLtMatmul")) return NAN;
    float value;
    uint16_t half;
    if (type == R_32F) {
        memcpy(&value, address, 4);
        return value;
    }
    memcpy(&half, address, 2);
    if (type == R_16F) return from_f16(half);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    memcpy(&value, &bits, 4);
    return value;
}

void write(char* address, int type, float value) {
    if (!emulator_touch(address, size_of(type), 1, "cublasLtMatmul")) return;
    if (type == R_32F) {
        memcpy(address, &value, 4);
        return;
    }
    const uint16_t half = type == R_16F ? to_f16(value) : to_bf16(value);
    memcpy(address, &half, 2);
}

/// All that a product needs, as it was when it was submitted.
struct Work {
    Desc desc;
    Layout a, b, c, d;
    const char *at_a, *at_b, *at_c;
    char *at_d, *workspace;
    float alpha, beta;
    uint64_t split, depth;

    /// The place of an element of a layout, by its row and column.
    static int64_t place(const Layout& layout, int64_t product, int64_t row, int64_t col) {
        const int64_t within = layout.order == ORDER_COL ? col * layout.ld + row : row * layout.ld + col;
        return (product * layout.stride + within) * static_cast<int64_t>(size_of(layout.type));
    }

    float factor(const Layout& layout, const char* at, bool transposed, int64_t product, int64_t row, int64_t col) const {
        if (transposed) std::swap(row, col);
        return read(at + place(layout, product, row, col), layout.type);
    }

    float sum(int64_t product, int64_t row, int64_t col, int64_t from, int64_t to) const {
        float sum = 0;
        for (int64_t k = from; k < to; ++k)
            sum += factor(a, at_a, desc.transposed[0], product, row, k) * factor(b, at_b, desc.transposed[1], product, k, col);
        return sum;
    }

    /// The whole sum, perhaps over two parts in the workspace.
    float product_at(int64_t product, int64_t row, int64_t col) const {
        const auto length = static_cast<int64_t>(depth);
        if (!split) return sum(product, row, col, 0, length);
        const int type = split == REDUCTION_OUTPUT_TYPE ? d.type : R_32F;
        char* parts = workspace + 8 * ((static_cast<uint64_t>(product) * d.cols + static_cast<uint64_t>(col)) * d.rows + static_cast<uint64_t>(row));
        for (int part = 0; part < 2; ++part)
            write(parts + 4 * part, R_32F, rounded_to(type, sum(product, row, col, part * length / 2, (part + 1) * length / 2)));
        return read(parts, R_32F) + read(parts + 4, R_32F);
    }

    void run() const {
        for (int64_t product = 0; product < d.batch; ++product)
            for (int64_t col = 0; col < static_cast<int64_t>(d.cols); ++col)
                for (int64_t row = 0; row < static_cast<int64_t>(d.rows); ++row) {
                    float value = alpha * product_at(product, row, col);
                    if (beta != 0) value += beta * read(at_c + place(c, product, row, col), c.type);
                    if (desc.epilogue == EPILOGUE_BIAS) {
                        const int64_t element = product * desc.bias_stride + row;
                        const auto* bias = static_cast<const char*>(desc.bias);
                        value += read(bias + element * static_cast<int64_t>(size_of(d.type)), d.type);
                    }
                    write(at_d + place(d, product, row, col), d.type, value);
                }
    }
};

/// The table of types for regular matrices with CUBLAS_COMPUTE_32F: of the factors, of C and D, and of the bias, which is D's.
bool supported(const Desc& desc, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    if (desc.compute != COMPUTE_32F && desc.compute != COMPUTE_32F_PEDANTIC) return false;
    if (desc.scale != R_32F || desc.pointer_mode != 0) return false;
    if (a.type != b.type || c.type != d.type || (a.type != d.type && d.type != R_32F)) return false;
    if (desc.epilogue != EPILOGUE_DEFAULT && desc.epilogue != EPILOGUE_BIAS) return false;
    return desc.epilogue == EPILOGUE_DEFAULT || desc.bias_type == -1 || desc.bias_type == d.type;
}

/// Rows and columns of what is multiplied.
void extent(const Layout& layout, bool transposed, uint64_t& rows, uint64_t& cols) {
    rows = transposed ? layout.cols : layout.rows;
    cols = transposed ? layout.rows : layout.cols;
}

/// What both the heuristic and the product refuse; the length of the sums.
int check(const Desc* desc, const Layout* a, const Layout* b, const Layout* c, const Layout* d, uint64_t& depth) {
    if (!desc || !a || !b || !c || !d) return INVALID_VALUE;
    uint64_t rows, cols, other;
    extent(*a, desc->transposed[0], rows, depth);
    extent(*b, desc->transposed[1], other, cols);
    if (other != depth || d->rows != rows || d->cols != cols || c->rows != rows || c->cols != cols) return INVALID_VALUE;
    for (const Layout* layout : {a, b, c, d}) {
        const uint64_t line = layout->order == ORDER_COL ? layout->rows : layout->cols;
        if (layout->ld < static_cast<int64_t>(line) || layout->batch != d->batch || layout->batch < 1) return INVALID_VALUE;
        // Known of the library by the refusals that others met.
        if (layout->batch > 65535) return NOT_SUPPORTED;
    }
    if (!rows || !cols || !depth) return INVALID_VALUE;
    if (desc->epilogue == EPILOGUE_BIAS && !desc->bias) return INVALID_VALUE;
    return supported(*desc, *a, *b, *c, *d) ? SUCCESS : NOT_SUPPORTED;
}

bool aligned(const void* address, uint64_t alignment) {
    return reinterpret_cast<uintptr_t>(address) % alignment == 0;
}

/// Sets an attribute of this very size.
template <typename T> int take(T& to, const void* from, size_t bytes) {
    if (!from || bytes != sizeof to) return INVALID_VALUE;
    memcpy(&to, from, bytes);
    return SUCCESS;
}

bool initialized(const void* handle) {
    return handle && *static_cast<const uint64_t*>(handle) == MARK;
}

} // namespace

extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() {
    const char* version = getenv("ALIP_STANDIN_CUBLASLT");
    return version ? strtoull(version, nullptr, 10) : 120803;
}

LT cublasLtCreate(uint64_t** handle) {
    *handle = new uint64_t(MARK);
    return SUCCESS;
}

LT cublasLtDestroy(uint64_t* handle) {
    if (!initialized(handle)) return NOT_INITIALIZED;
    *handle = 0;
    delete handle;
    return SUCCESS;
}

LT cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    *layout = new Layout{type, ORDER_COL, rows, cols, ld, 1, 0};
    return SUCCESS;
}

LT cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return SUCCESS;
}

LT cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* from, size_t bytes) {
    switch (attribute) {
    case 0: return take(layout->type, from, bytes);
    case 1: return take(layout->order, from, bytes);
    case 2: return take(layout->rows, from, bytes);
    case 3: return take(layout->cols, from, bytes);
    case 4: return take(layout->ld, from, bytes);
    case 5: return take(layout->batch, from, bytes);
    case 6: return take(layout->stride, from, bytes);
    default: return INVALID_VALUE;
    }
}

LT cublasLtMatmulDescCreate(Desc** desc, int compute, int scale) {
    *desc = new Desc;
    (*desc)->compute = compute;
    (*desc)->scale = scale;
    return SUCCESS;
}

LT cublasLtMatmulDescDestroy(Desc* desc) {
    delete desc;
    return SUCCESS;
}

LT cublasLtMatmulDescSetAttribute(Desc* desc, int attribute, const void* from, size_t bytes) {
    switch (attribute) {
    case 0: return take(desc->compute, from, bytes);
    case 1: return take(desc->scale, from, bytes);
    case 2: return take(desc->pointer_mode, from, bytes);
    case 3: return take(desc->transposed[0], from, bytes);
    case 4: return take(desc->transposed[1], from, bytes);
    case 7: return take(desc->epilogue, from, bytes);
    case 8: return take(desc->bias, from, bytes);
    case 10: return take(desc->bias_stride, from, bytes);
    case 26: return take(desc->bias_type, from, bytes);
    default: return INVALID_VALUE;
    }
}

LT cublasLtMatmulPreferenceCreate(Preference** preference) {
    *preference = new Preference;
    return SUCCESS;
}

LT cublasLtMatmulPreferenceDestroy(Preference* preference) {
    delete preference;
    return SUCCESS;
}

LT cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* from, size_t bytes) {
    switch (attribute) {
    case 1: return take(preference->workspace, from, bytes);
    case 3: return take(preference->reduction, from, bytes);
    case 5: case 6: case 7: case 8: return take(preference->alignment[attribute - 5], from, bytes);
    default: return INVALID_VALUE;
    }
}

LT cublasLtMatmulAlgoGetHeuristic(void* handle, Desc* desc, Layout* a, Layout* b, Layout* c, Layout* d, Preference* preference,
                                  int requested, Heuristic* found, int* count) {
    if (!initialized(handle)) return NOT_INITIALIZED;
    uint64_t depth;
    if (const int wrong = check(desc, a, b, c, d, depth)) return wrong;
    if (!preference || requested < 1) return INVALID_VALUE;
    static uint64_t queries;
    const char* refused = getenv("ALIP_STANDIN_CUBLASLT_REFUSE");
    *count = 0;
    if (refused && ++queries == strtoull(refused, nullptr, 10)) return NOT_SUPPORTED;
    *count = 1;
    *found = Heuristic{};
    found->algo.mark = MARK;
    for (int matrix = 0; matrix < 4; ++matrix) found->algo.alignment[matrix] = preference->alignment[matrix];
    const uint64_t needed = 8 * d->rows * d->cols * static_cast<uint64_t>(d->batch);
    if (depth >= LONG_SUM && needed <= preference->workspace) {
        // The worse, if it is allowed.
        for (const uint64_t scheme : {REDUCTION_OUTPUT_TYPE, REDUCTION_COMPUTE_TYPE})
            if (!found->algo.split && (preference->reduction & scheme)) found->algo.split = scheme;
        if (found->algo.split) found->algo.workspace = found->workspace = needed;
    }
    return SUCCESS;
}

LT cublasLtMatmul(void* handle, Desc* desc, const void* alpha, const void* at_a, Layout* a, const void* at_b, Layout* b, const void* beta,
                  const void* at_c, Layout* c, void* at_d, Layout* d, const Algo* algo, void* workspace, size_t workspace_bytes,
                  void* stream) {
    if (!initialized(handle)) return NOT_INITIALIZED;
    uint64_t depth;
    if (const int wrong = check(desc, a, b, c, d, depth)) return wrong;
    if (!alpha || !beta || !at_a || !at_b || !at_c || !at_d) return INVALID_VALUE;
    if (!algo || algo->mark != MARK || workspace_bytes < algo->workspace || (algo->workspace && !workspace)) return INVALID_VALUE;
    const void* pointers[4] = {at_a, at_b, at_c, at_d};
    for (int matrix = 0; matrix < 4; ++matrix)
        if (!aligned(pointers[matrix], algo->alignment[matrix])) return INVALID_VALUE;
    // Vectors of the kernels on tensor cores: columns of all matrices, and the bias.
    for (const Layout* layout : {a, b, c, d})
        if (static_cast<uint64_t>(layout->ld) * size_of(layout->type) % 16 || static_cast<uint64_t>(layout->stride) * size_of(layout->type) % 16)
            return NOT_SUPPORTED;
    if (desc->epilogue == EPILOGUE_BIAS && !aligned(desc->bias, 16)) return NOT_SUPPORTED;
    auto* work = new Work{*desc, *a, *b, *c, *d, static_cast<const char*>(at_a), static_cast<const char*>(at_b), static_cast<const char*>(at_c),
                          static_cast<char*>(at_d), static_cast<char*>(workspace), *static_cast<const float*>(alpha),
                          *static_cast<const float*>(beta), algo->split, depth};
    const auto run = [](void* with) { static_cast<Work*>(with)->run(); };
    const auto discard = [](void* with) { delete static_cast<Work*>(with); };
    if (standin_submit) return standin_submit(stream, run, discard, work) ? EXECUTION_FAILED : SUCCESS;
    run(work);
    discard(work);
    return SUCCESS;
}
