// Products of a few to some hundred rows with a weight matrix [N, K] that is packed once, in bfloat16 or int8.
//
// Packed: groups of 32 outputs, each a run of chunks of 64 bytes of K (32 bfloat16 or 64 int8), each chunk two blocks
// of 16 outputs, each block 16 lines of 16 outputs x 4 bytes of K. A block is at once a B tile of AMX and 16 registers
// of what AVX512's dot products take, and a thread reads its groups from memory from front to back.
//
// Of an output all products are added up in one order, whatever other rows there are: equal rows give equal bits.
#include "linear.h"

#if defined(__AVX512F__)

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include <omp.h>

namespace penstock {

constexpr int GROUP = 32;     // outputs
constexpr int BLOCK = 16;     // outputs
constexpr int CHUNK = 64;     // bytes of K
constexpr int TILE = 1024;    // bytes of a block's chunk
constexpr int PREFETCH = 8;   // chunks of a group ahead

template <typename Packed> struct Kind;
template <> struct Kind<bf16> {
    using Sum = float;
    static constexpr int64_t PER_LINE = 2;
};
template <> struct Kind<int8_t> {
    using Sum = int32_t;
    static constexpr int64_t PER_LINE = 4;
};

// ---------------------------------------------------------------- packing

// Weights are read from front to back at every step: fewer page borders are a tenth more of the memory's pace.
static void ask_for_huge_pages(void* memory, int64_t size) {
    constexpr int64_t page = 2 << 20;
    const int64_t first = (int64_t(memory) + page - 1) / page * page, last = (int64_t(memory) + size) / page * page;
    if (first < last) madvise((void*)first, last - first, MADV_HUGEPAGE);  // a wish
}

template <typename Packed>
void pack(const Packed* weight, int64_t outputs, int64_t inputs, Packed* packed) {
    constexpr int64_t line = Kind<Packed>::PER_LINE, chunk = CHUNK / sizeof(Packed);
    const int64_t chunks = (inputs + chunk - 1) / chunk, groups = (outputs + GROUP - 1) / GROUP;
    ask_for_huge_pages(packed, groups * chunks * 2 * TILE);
#pragma omp parallel for
    for (int64_t group = 0; group < groups; ++group)
        for (int64_t c = 0; c < chunks; ++c)
            for (int64_t n = 0; n < GROUP; ++n)
                for (int64_t k = 0; k < chunk; ++k) {
                    const int64_t output = group * GROUP + n, input = c * chunk + k;
                    const int64_t block = (group * chunks + c) * 2 + n / BLOCK;
                    packed[(block * 16 + k / line) * BLOCK * line + (n % BLOCK) * line + k % line] =
                        output < outputs && input < inputs ? weight[output * inputs + input] : Packed(0);
                }
}

template <typename Packed>
void unpack_row(const Packed* packed, int64_t output, int64_t inputs, Packed* row) {
    constexpr int64_t line = Kind<Packed>::PER_LINE, chunk = CHUNK / sizeof(Packed);
    const int64_t chunks = (inputs + chunk - 1) / chunk, group = output / GROUP, n = output % GROUP;
    for (int64_t k = 0; k < inputs; k += line) {
        const int64_t block = (group * chunks + k / chunk) * 2 + n / BLOCK;
        const Packed* source = packed + (block * 16 + k % chunk / line) * BLOCK * line + (n % BLOCK) * line;
        for (int64_t i = 0; i < line && k + i < inputs; ++i) row[k + i] = source[i];
    }
}

// ---------------------------------------------------------------- the rows that are multiplied

static inline __m512 load_row(const void* row, int dtype, int64_t i, __mmask16 mask) {
    if (dtype == FLOAT32) return _mm512_maskz_loadu_ps(mask, (const float*)row + i);
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, (const bf16*)row + i);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

static inline __mmask16 tail_mask(int64_t left) { return left >= 16 ? 0xffff : __mmask16((1u << left) - 1); }

// Symmetric, one scale a row; the answer is the scale. Infinities and NaN make it infinite or NaN, and so the outputs.
static float quantize_row(const void* row, int dtype, int64_t inputs, int64_t padded, int8_t* out) {
    __m512i greatest = _mm512_setzero_si512();  // as bits: NaN is above infinity
    for (int64_t i = 0; i < inputs; i += 16) {
        const __m512i bits = _mm512_castps_si512(load_row(row, dtype, i, tail_mask(inputs - i)));
        greatest = _mm512_max_epu32(greatest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(greatest);
    float amax;
    std::memcpy(&amax, &bits, 4);
    const __m512 inverse = _mm512_set1_ps(amax == 0 ? 0.0f : 127.0f / amax);
    for (int64_t i = 0; i < padded; i += 16) {
        const __m512 values = i < inputs ? load_row(row, dtype, i, tail_mask(inputs - i)) : _mm512_setzero_ps();
        const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(values, inverse));
        _mm_storeu_si128((__m128i*)(out + i), _mm512_cvtsepi32_epi8(_mm512_max_epi32(rounded, _mm512_set1_epi32(-127))));
    }
    return amax / 127.0f;
}

// ---------------------------------------------------------------- products of one group of outputs

#if defined(__AMX_TILE__)

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0 to 3 are sums (two of rows by two of outputs), 4 and 5 rows, 6 and 7 weights.
static void configure(int upper, int lower) {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = 64, config.rows[tile] = 16;
    config.rows[0] = config.rows[1] = config.rows[4] = uint8_t(upper);
    config.rows[2] = config.rows[3] = config.rows[5] = uint8_t(lower ? lower : 1);
    // Not _tile_loadconfig: GCC 12's says that it reads 8 bytes, and the rest of the structure is optimized away.
    asm volatile("ldtilecfg %0" ::"m"(config));
}

#define STEP(TYPE, OP)                                        \
    if (std::is_same<Packed, TYPE>::value) {                  \
        OP(0, 4, 6);                                          \
        OP(1, 4, 7);                                          \
        if (lower) { OP(2, 5, 6); OP(3, 5, 7); }              \
    }

// Up to 32 rows, those of `rows` [count, stride bytes], by a group: sums [count, 32].
template <typename Packed>
static void multiply(const char* rows, int64_t stride, int count, const char* group, int64_t chunks,
                     typename Kind<Packed>::Sum* sums, int& configured) {
    const int upper = std::min(count, 16), lower = count - upper;
    if (configured != count) configure(upper, lower), configured = count;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t c = 0; c < chunks; ++c) {
        const char* block = group + c * 2 * TILE;
        for (int i = 0; i < 2 * TILE; i += 64) _mm_prefetch(block + PREFETCH * 2 * TILE + i, _MM_HINT_T0);
        _tile_loadd(6, block, 64);
        _tile_loadd(7, block + TILE, 64);
        _tile_loadd(4, rows + c * CHUNK, stride);
        if (lower) _tile_loadd(5, rows + 16 * stride + c * CHUNK, stride);
        STEP(bf16, _tile_dpbf16ps)
        STEP(int8_t, _tile_dpbssd)
    }
    _tile_stored(0, sums, GROUP * 4);
    _tile_stored(1, sums + BLOCK, GROUP * 4);
    if (lower) {
        _tile_stored(2, sums + 16 * GROUP, GROUP * 4);
        _tile_stored(3, sums + 16 * GROUP + BLOCK, GROUP * 4);
    }
}

static void finish_multiplying() { _tile_release(); }

#else

static inline void step(__m512& sum, const char* row, __m512i weights, bf16) {
    int32_t pair;
    std::memcpy(&pair, row, 4);
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)weights);
}

// The instruction wants one factor unsigned: rows are 128 too high here, which `multiply` takes off again.
static inline void step(__m512i& sum, const char* row, __m512i weights, int8_t) {
    int32_t four;
    std::memcpy(&four, row, 4);
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(four ^ int32_t(0x80808080)), weights);
}

template <typename Packed> struct Register { using type = __m512; };
template <> struct Register<int8_t> { using type = __m512i; };

template <typename Packed, int ROWS>
static void multiply_rows(const char* rows, int64_t stride, const char* group, int64_t chunks,
                          typename Kind<Packed>::Sum* sums) {
    typename Register<Packed>::type sum[ROWS][2] = {};
    for (int64_t c = 0; c < chunks; ++c) {
        const char* block = group + c * 2 * TILE;
        for (int line = 0; line < 16; ++line) {
            _mm_prefetch(block + PREFETCH * 2 * TILE + line * 64, _MM_HINT_T0);
            _mm_prefetch(block + PREFETCH * 2 * TILE + TILE + line * 64, _MM_HINT_T0);
            const __m512i left = _mm512_loadu_si512(block + line * 64);
            const __m512i right = _mm512_loadu_si512(block + TILE + line * 64);
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; ++row) {
                step(sum[row][0], rows + row * stride + c * CHUNK + line * 4, left, Packed());
                step(sum[row][1], rows + row * stride + c * CHUNK + line * 4, right, Packed());
            }
        }
    }
    for (int row = 0; row < ROWS; ++row) std::memcpy(sums + row * GROUP, sum[row], sizeof sum[row]);
}

template <typename Packed>
static void multiply(const char* rows, int64_t stride, int count, const char* group, int64_t chunks,
                     typename Kind<Packed>::Sum* sums, int&) {
    for (int row = 0; row < count;) {
        const int left = count - row;
        const char* from = rows + row * stride;
        auto* to = sums + row * GROUP;
        if (left >= 8) multiply_rows<Packed, 8>(from, stride, group, chunks, to), row += 8;
        else if (left >= 4) multiply_rows<Packed, 4>(from, stride, group, chunks, to), row += 4;
        else if (left >= 2) multiply_rows<Packed, 2>(from, stride, group, chunks, to), row += 2;
        else multiply_rows<Packed, 1>(from, stride, group, chunks, to), row += 1;
    }
}

static void finish_multiplying() {}

#endif

// ---------------------------------------------------------------- what becomes of the sums

struct Scaled {
    __m512 left, right;
};

static inline Scaled scaled(const float* sums, const Linear&, int64_t, float) {
    return {_mm512_loadu_ps(sums), _mm512_loadu_ps(sums + BLOCK)};
}

static inline Scaled scaled(const int32_t* sums, const Linear& weight, int64_t output, float row_scale) {
    __m512i left = _mm512_loadu_si512(sums), right = _mm512_loadu_si512(sums + BLOCK);
#if !defined(__AMX_TILE__)
    left = _mm512_sub_epi32(left, _mm512_slli_epi32(_mm512_loadu_si512(weight.sums + output), 7));
    right = _mm512_sub_epi32(right, _mm512_slli_epi32(_mm512_loadu_si512(weight.sums + output + BLOCK), 7));
#endif
    const __m512 row = _mm512_set1_ps(row_scale);
    return {_mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(left), row), _mm512_loadu_ps(weight.scales + output)),
            _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(right), row), _mm512_loadu_ps(weight.scales + output + BLOCK))};
}

static inline void store_output(void* row, int dtype, int64_t i, __mmask16 mask, __m512 values) {
    if (dtype == FLOAT32) _mm512_mask_storeu_ps((float*)row + i, mask, values);
    else _mm256_mask_storeu_epi16((bf16*)row + i, mask, (__m256i)_mm512_cvtneps_pbh(values));
}

static void store(__m512 values, const Linear& weight, const LinearCall& call, int64_t row, int64_t output) {
    if (output >= weight.outputs) return;
    const __mmask16 mask = tail_mask(weight.outputs - output);
    if (weight.bias) values = _mm512_add_ps(values, _mm512_maskz_loadu_ps(mask, weight.bias + output));
    char* out = (char*)call.out + row * call.out_stride;
    if (call.adds) values = _mm512_add_ps(values, load_row(out, call.dtype, output, mask));
    store_output(out, call.dtype, output, mask, values);
}

template <typename Packed>
static void store_group(const typename Kind<Packed>::Sum* sums, int count, const Linear& weight, const LinearCall& call,
                        int64_t first_row, int64_t output) {
    for (int i = 0; i < count; ++i) {
        const int64_t row = first_row + i;
        const Scaled values = scaled(sums + i * GROUP, weight, output, call.row_scales ? call.row_scales[row] : 0.0f);
        store(values.left, weight, call, row, output);
        store(values.right, weight, call, row, output + BLOCK);
    }
}

template <typename Packed>
static void multiply_part(const Linear& weight, const LinearCall& call, const char* rows, int64_t stride, int thread,
                          int threads) {
    constexpr int64_t chunk = CHUNK / sizeof(Packed);
    const int64_t chunks = (weight.inputs + chunk - 1) / chunk;
    const Range groups((weight.outputs + GROUP - 1) / GROUP, thread, threads);
    alignas(64) typename Kind<Packed>::Sum sums[32 * GROUP];
    int configured = 0;
    for (int64_t group = groups.first; group < groups.last; ++group)
        for (int64_t row = 0; row < call.rows; row += 32) {
            const int count = int(std::min<int64_t>(32, call.rows - row));
            const char* packed = (const char*)weight.packed + group * chunks * 2 * TILE;
            multiply<Packed>(rows + row * stride, stride, count, packed, chunks, sums, configured);
            store_group<Packed>(sums, count, weight, call, row, group * GROUP);
        }
    finish_multiplying();
}

void quantize_part(const Linear& weight, const LinearCall& call, int thread, int threads) {
    const Range rows(call.rows, thread, threads);
    const int64_t padded = padded_inputs(weight);
    for (int64_t row = rows.first; row < rows.last; ++row)
        call.row_scales[row] = quantize_row((const char*)call.x + row * call.x_stride, call.dtype, weight.inputs, padded,
                                            call.quantized + row * padded);
}

void linear_part(const Linear& weight, const LinearCall& call, int thread, int threads) {
    if (weight.is_int8) multiply_part<int8_t>(weight, call, (const char*)call.quantized, padded_inputs(weight), thread, threads);
    else multiply_part<bf16>(weight, call, (const char*)call.x, call.x_stride, thread, threads);
}

}  // namespace penstock

using namespace penstock;

EXPORT void penstock_pack_bf16(const bf16* weight, int64_t outputs, int64_t inputs, bf16* packed) {
    pack(weight, outputs, inputs, packed);
}

EXPORT void penstock_pack_int8(const int8_t* weight, int64_t outputs, int64_t inputs, int8_t* packed, int32_t* sums) {
    pack(weight, outputs, inputs, packed);
#pragma omp parallel for
    for (int64_t output = 0; output < outputs; ++output) {
        int32_t sum = 0;
        for (int64_t k = 0; k < inputs; ++k) sum += weight[output * inputs + k];
        sums[output] = sum;
    }
}

// Rows of a packed matrix, as an embedding reads them: out [count, inputs] of `dtype`.
EXPORT void penstock_rows(const Linear* weight, const int64_t* ids, int64_t count, void* out, int32_t dtype) {
    const int64_t inputs = weight->inputs;
#pragma omp parallel if (count > 8)
    {
        std::vector<char> scratch(inputs * 2);
#pragma omp for
        for (int64_t i = 0; i < count; ++i)
            if (weight->is_int8) {
                int8_t* row = (int8_t*)scratch.data();
                unpack_row((const int8_t*)weight->packed, ids[i], inputs, row);
                for (int64_t k = 0; k < inputs; ++k) {
                    const float value = float(row[k]) * weight->scales[ids[i]];
                    if (dtype == FLOAT32) ((float*)out)[i * inputs + k] = value;
                    else ((bf16*)out)[i * inputs + k] = to_bf16(value);
                }
            } else {
                unpack_row((const bf16*)weight->packed, ids[i], inputs, (bf16*)out + i * inputs);
            }
    }
}

EXPORT void penstock_linear(const Linear* weight, const LinearCall* call) {
#pragma omp parallel
    {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        if (weight->is_int8) {
            quantize_part(*weight, *call, thread, threads);
#pragma omp barrier
        }
        linear_part(*weight, *call, thread, threads);
    }
}

// Whether linear layers have kernels at this level.
EXPORT int32_t penstock_has_linear() { return 1; }

EXPORT int32_t penstock_init() {
#if defined(__AMX_TILE__)
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return 1;
#endif
}

#else

EXPORT int32_t penstock_has_linear() { return 0; }
EXPORT int32_t penstock_init() { return 1; }

#endif
