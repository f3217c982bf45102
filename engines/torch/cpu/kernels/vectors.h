// Vectors of floats, as wide as the CPU's registers. Without contraction (see library.py) each operation rounds as
// written, and `fma` once where the CPU has it: equal code gives equal bits wherever the compiler puts it.
#pragma once

#include <limits>

#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace penstock {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

constexpr float INFINITE = std::numeric_limits<float>::infinity();

template <typename Vector, typename Source> inline Vector load(const Source* source) {
    Vector values;
    std::memcpy(&values, source, sizeof values);
    return values;
}

inline void store(float* target, Floats values) { std::memcpy(target, &values, sizeof values); }

inline Floats all(float value) { return value - Floats{}; }

inline Ints lane_numbers() {
    Ints lanes;
    for (int i = 0; i < LANES; ++i) lanes[i] = i;
    return lanes;
}

inline Floats fma(Floats a, Floats b, Floats sum) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, sum);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, sum);
#elif defined(__ARM_NEON)
    return vfmaq_f32(sum, a, b);
#else
    return a * b + sum;
#endif
}

inline Floats choose(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }

// The greater of each; `b` where one of them is NaN.
inline Floats greater(Floats a, Floats b) { return choose(a > b, a, b); }

inline float greatest(Floats values) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) values[i] = values[i] > values[i + half] ? values[i] : values[i + half];
    return values[0];
}

// In pairs at a fixed distance.
inline float total(Floats values) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) values[i] += values[i + half];
    return values[0];
}

// 2^x for x < 127, to 1e-7 of the value; below 2^-126 it is 0, and NaN stays NaN.
inline Floats exp2(Floats x) {
    constexpr float LEAST = -126.0f, TO_INTEGER = 12582912.0f;  // 1.5 * 2^23
    const Ints is_zero = x < all(LEAST);
    const Floats clamped = choose(is_zero, all(LEAST), x);
    const Floats shifted = clamped + all(TO_INTEGER);
    const Floats rest = clamped - (shifted - all(TO_INTEGER));
    // Minimax in relative error on [-0.5, 0.5], with 1 at 0.
    Floats result = all(0x1.5bba14p-10f);
    for (float factor : {0x1.3cea88p-7f, 0x1.c6b752p-5f, 0x1.ebf9bcp-3f, 0x1.62e42ap-1f, 1.0f})
        result = fma(result, rest, all(factor));
    const Ints scaled = (Ints)result + ((Ints)shifted << 23);
    return (Floats)(scaled & ~is_zero);
}

inline float exp2(float x) { return exp2(all(x))[0]; }

}  // namespace penstock
