// The two matrix products of attention, of up to 32 queries and a block of 128 keys, by vectors or by AMX tiles.
//
// What a query's row becomes depends on that row and on the keys alone, never on how many rows come with it.
#pragma once

#include <algorithm>

#include "attention.h"
#include "vectors.h"

namespace penstock {

constexpr int KEYS = 128;      // of a block, at positions that are multiples of it
constexpr int ROWS = 32;       // query rows
constexpr int STRIPE = 32;     // keys: blocks are computed by whole stripes

// Where a block's keys and values lie, by group of 16 keys and by `VALUE_GROUP` keys.
template <typename T> struct KeyBlock {
    const T* keys[KEYS / KEY_GROUP];
    const T* values[KEYS / KEY_GROUP];
};

// How a line of the pool is multiplied by the factors of its PAIR.
template <typename T> struct Line;

template <> struct Line<float> {
    using Factor = float;
    static Floats add(Floats sum, const float* factor, const float* line) {
        return fma(all(*factor), load<Floats>(line), sum);
    }
};

template <> struct Line<bf16> {
#if defined(__AVX512BF16__)
    using Factor = bf16;
    static Floats add(Floats sum, const bf16* factors, const bf16* line) {
        int32_t pair;
        std::memcpy(&pair, factors, 4);
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(line));
    }
#else
    using Factor = float;
    static Floats add(Floats sum, const float* factors, const bf16* line) {
        const Ints pairs = load<Ints>(line);
        sum = fma(all(factors[0]), (Floats)(pairs << 16), sum);
        return fma(all(factors[1]), (Floats)(pairs & ~0xffff), sum);
    }
#endif
};

template <typename T> struct VectorProducts {
    using Factor = typename Line<T>::Factor;
    static constexpr int VALUE_GROUP = KEY_GROUP;
    static constexpr int PAIR = Pool<T>::PAIR;
    static constexpr int WIDE = LANES == 16 ? 2 : KEY_GROUP / LANES;  // vectors of keys or of dimensions at a time

    // Scores of the stripes [first, last): queries [rows, key_dim], scores [rows, KEYS].
    static void scores(const Factor* queries, int rows, const KeyBlock<T>& block, int64_t key_dim, int first, int last,
                       float* scores) {
        for (int key = first * STRIPE; key < last * STRIPE; key += WIDE * LANES)
            by_rows(rows, [&](auto count, int row) {
                score<count>(queries + row * key_dim, block.keys + key / KEY_GROUP, key_dim, scores + row * KEYS + key);
            });
    }

    template <int COUNT> static void score(const Factor* queries, const T* const* keys, int64_t dim, float* scores) {
        constexpr int PARTS = KEY_GROUP / LANES;
        Floats sums[COUNT][WIDE] = {};
        for (int64_t d = 0; d < dim; d += PAIR)
            for (int i = 0; i < WIDE; ++i)
                for (int row = 0; row < COUNT; ++row)
                    sums[row][i] = Line<T>::add(sums[row][i], queries + row * dim + d,
                                                keys[i / PARTS] + d * KEY_GROUP + i % PARTS * LANES * PAIR);
        for (int row = 0; row < COUNT; ++row) std::memcpy(scores + row * KEYS, sums[row], sizeof sums[row]);
    }

    // Weighted sums of the values of the stripes: weights [rows, KEYS], out [rows, value_dim].
    static void values(const Factor* weights, int rows, const KeyBlock<T>& block, int64_t value_dim, int first, int last,
                       float* out) {
        const int from = first * STRIPE / KEY_GROUP, to = last * STRIPE / KEY_GROUP;
        by_rows(rows, [&](auto count, int row) {
            const Factor* weight = weights + row * KEYS;
            int64_t d = 0;
            for (; d + 2 * LANES <= value_dim; d += 2 * LANES)
                weigh<count, 2>(weight, block.values, value_dim, d, from, to, out + row * value_dim + d);
            for (; d < value_dim; d += LANES)
                weigh<count, 1>(weight, block.values, value_dim, d, from, to, out + row * value_dim + d);
        });
    }

    template <int COUNT, int VECTORS>
    static void weigh(const Factor* weights, const T* const* values, int64_t dim, int64_t d, int from, int to, float* out) {
        Floats sums[COUNT][VECTORS] = {};
        for (int group = from; group < to; ++group)
            for (int key = 0; key < KEY_GROUP; key += PAIR)
                for (int i = 0; i < VECTORS; ++i)
                    for (int row = 0; row < COUNT; ++row)
                        sums[row][i] = Line<T>::add(sums[row][i], weights + row * KEYS + group * KEY_GROUP + key,
                                                    values[group] + key * dim + (d + i * LANES) * PAIR);
        for (int row = 0; row < COUNT; ++row) std::memcpy(out + row * dim, sums[row], sizeof sums[row]);
    }

    template <typename Function> static void by_rows(int rows, Function function) {
        int row = 0;
        for (; row + 4 <= rows; row += 4) function(std::integral_constant<int, 4>(), row);
        if (rows - row >= 2) function(std::integral_constant<int, 2>(), row), row += 2;
        if (rows - row == 1) function(std::integral_constant<int, 1>(), row);
    }
};

#if defined(__AMX_BF16__)

// Tiles 0 to 3 are sums (two of rows by two of keys or dimensions), 4 and 5 rows, 6 and 7 keys or values.
struct TileProducts {
    using Factor = bf16;
    static constexpr int VALUE_GROUP = STRIPE;

    TileProducts() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        _tile_loadconfig(&config);
    }
    ~TileProducts() { _tile_release(); }

    static void scores(const bf16* queries, int rows, const KeyBlock<bf16>& block, int64_t dim, int first, int last,
                       float* scores) {
        const bool both = rows > 16;
        memory_is_read();
        for (int stripe = first; stripe < last; ++stripe) {
            const bf16 *left = block.keys[stripe * 2], *right = block.keys[stripe * 2 + 1];
            clear(both);
            for (int64_t d = 0; d < dim; d += 32) {
                _tile_loadd(6, left + d * KEY_GROUP, 64);
                _tile_loadd(7, right + d * KEY_GROUP, 64);
                multiply(queries + d, dim, both);
            }
            keep(scores + stripe * STRIPE, KEYS, both, true);
        }
    }

    static void values(const bf16* weights, int rows, const KeyBlock<bf16>& block, int64_t dim, int first, int last,
                       float* out) {
        const bool both = rows > 16;
        memory_is_read();
        for (int64_t d = 0; d < dim; d += 32) {
            const bool is_whole = d + 16 < dim;
            clear(both);
            for (int stripe = first; stripe < last; ++stripe) {
                const bf16* values = block.values[stripe] + d * 2;
                _tile_loadd(6, values, dim * 4);
                _tile_loadd(7, values + (is_whole ? 32 : 0), dim * 4);
                multiply(weights + stripe * STRIPE, KEYS, both);
            }
            keep(out + d, dim, both, is_whole);
        }
    }

  private:
    // The intrinsics don't tell the compiler what tiles are loaded from.
    static void memory_is_read() { asm volatile("" ::: "memory"); }

    static void clear(bool both) {
        _tile_zero(0);
        _tile_zero(1);
        if (both) {
            _tile_zero(2);
            _tile_zero(3);
        }
    }

    static void multiply(const bf16* rows, int64_t stride, bool both) {
        _tile_loadd(4, rows, stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (both) {
            _tile_loadd(5, rows + 16 * stride, stride * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }

    static void keep(float* out, int64_t stride, bool both, bool right) {
        _tile_stored(0, out, stride * 4);
        if (right) _tile_stored(1, out + 16, stride * 4);
        if (both) {
            _tile_stored(2, out + 16 * stride, stride * 4);
            if (right) _tile_stored(3, out + 16 * stride + 16, stride * 4);
        }
    }
};

#endif

template <typename T> struct ProductsOf { using type = VectorProducts<T>; };
#if defined(__AMX_BF16__)
template <> struct ProductsOf<bf16> { using type = TileProducts; };
#endif
template <typename T> using Products = typename ProductsOf<T>::type;

}  // namespace penstock
