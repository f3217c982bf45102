// What the kernels share: numbers, and how a team of threads divides work.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace penstock {

using bf16 = uint16_t;
enum DType : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };

inline float to_float(bf16 value) {
    uint32_t bits = uint32_t(value) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

// Round to nearest even, as torch does; NaN stays NaN.
inline bf16 to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return bf16((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// Part `thread` of `threads` of the range [0, count).
struct Range {
    int64_t first, last;
    Range(int64_t count, int thread, int threads)
        : first(count * thread / threads), last(count * (thread + 1) / threads) {}
};

#if defined(__AVX512F__)
inline __m512 load_bf16(const bf16* source) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)source)), 16));
}
#endif
#if defined(__AVX512BF16__)
inline void store_bf16(bf16* target, __m512 values) {
    _mm256_storeu_si256((__m256i*)target, (__m256i)_mm512_cvtneps_pbh(values));
}
#endif

}  // namespace penstock
