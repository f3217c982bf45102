// A stack of decoder layers as Llama has them, over packed weights, in one parallel region for all of a step:
//
//     x += o(attention(rope(norm(q(n))), rope(norm(k(n))), v(n)))     n = norm(x)
//     x += down(silu(gate(n)) * up(n))                                n = norm(x)
//
// Between its parts the threads meet. Each part is divided by rows, by outputs or by heads.
#include "attention.h"
#include "linear.h"
#include "team.h"

#if defined(__AVX512BF16__)

#include <initializer_list>
#include <memory>
#include <new>

#include <omp.h>

namespace penstock {

// What ctypes knows as engines.torch.cpu.decoder._Layer.
struct Layer {
    const Linear *q, *k, *v, *o, *gate, *up, *down;
    const float *input_norm, *middle_norm;  // [hidden]
    const float *q_norm, *k_norm;           // [head_dim], or null
    const float* sinks;                     // [heads], or null
    void* pool;
    int64_t window;  // 0: none
    float scaling, softcap;
};

// ... and as _Stack.
struct Stack {
    const Layer* layers;
    int64_t count, hidden, inner, heads, kv_heads, head_dim, rotary_dim;
    float epsilon;
    int32_t dtype;
};

// ... and as _Buffers: of one step of `rows` rows.
struct Buffers {
    void *x, *normed, *qkv, *attended, *gate, *up;  // of the stack's dtype
    const void *cos, *sin;                          // [rows, rotary_dim], of the stack's dtype
    int8_t* quantized;
    float* row_scales;
    int64_t rows;
};

static inline __m512 load16(const float* source) { return _mm512_loadu_ps(source); }
static inline __m512 load16(const bf16* source) { return load_bf16(source); }
static inline void store16(float* target, __m512 values) { _mm512_storeu_ps(target, values); }
static inline void store16(bf16* target, __m512 values) { store_bf16(target, values); }
template <typename T> static inline __m512 rounded16(__m512 values) {
    if (sizeof(T) == 4) return values;
    const __m512i bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(values));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

// RMSNorm of `size` numbers, a multiple of 16; rounded before the weight as transformers does. In place or not.
template <typename T> static void rms_norm(const T* x, const float* weight, int64_t size, float epsilon, T* out) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) {
        const __m512 values = load16(x + i);
        squares = _mm512_fmadd_ps(values, values, squares);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / float(size) + epsilon));
    for (int64_t i = 0; i < size; i += 16) {
        const __m512 normal = rounded16<T>(_mm512_mul_ps(load16(x + i), factor));
        store16(out + i, _mm512_mul_ps(normal, _mm512_loadu_ps(weight + i)));
    }
}

// The halves of the first `size` numbers, a multiple of 32, are turned against each other.
template <typename T> static void rotate(T* x, const T* cos, const T* sin, int64_t size) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; i += 16) {
        const __m512 left = load16(x + i), right = load16(x + half + i);
        const __m512 turned = _mm512_mul_ps(right, load16(sin + i));
        store16(x + i, _mm512_fmsub_ps(left, load16(cos + i), turned));
        store16(x + half + i, _mm512_fmadd_ps(right, load16(cos + half + i), _mm512_mul_ps(left, load16(sin + half + i))));
    }
}

// e^x for x <= 0 within 2 ulp; 0 far below.
static inline __m512 exp_negative(__m512 x) {
    const __m512 y = _mm512_mul_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)), _mm512_set1_ps(1.44269504f));
    const __m512 whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_mul_ps(_mm512_sub_ps(y, whole), _mm512_set1_ps(0.693147181f));
    __m512 sum = _mm512_set1_ps(1.0f / 5040);
    for (float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(term));
    return _mm512_scalef_ps(sum, whole);
}

static inline __m512 silu(__m512 x) {
    const __m512 small = exp_negative(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
    const __m512 one = _mm512_set1_ps(1.0f);
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 numerator = _mm512_mask_blend_ps(negative, one, small);
    return _mm512_mul_ps(x, _mm512_div_ps(numerator, _mm512_add_ps(one, small)));
}

template <typename T> class Decoder {
  public:
    Decoder(const Stack& stack, const Buffers& buffers, const Step& step, Team& team)
        : s(stack), b(buffers), step(step), team(team) {}

    // Throws std::bad_alloc here rather than among the threads.
    void reserve() {
        for (int64_t i = 0; i < s.count; ++i)
            if (i == 0 || s.layers[i].window != s.layers[i - 1].window) plan(s.layers[i]);
    }

    void run(int thread) {
        for (int64_t i = 0; i < s.count; ++i) attention(s.layers[i], thread), feed_forward(s.layers[i], thread);
    }

  private:
    const Stack& s;
    const Buffers& b;
    const Step& step;
    Team& team;
    AttentionCall call;
    std::unique_ptr<PlannedAttention> planned;

    T* qkv(int64_t row) const { return (T*)b.qkv + row * (s.heads + 2 * s.kv_heads) * s.head_dim; }

    void attention(const Layer& layer, int thread) {
        norm(layer.input_norm, *layer.q, thread);
        const int64_t stride = (s.heads + 2 * s.kv_heads) * s.head_dim, queries = s.heads * s.head_dim;
        const int64_t keys = s.kv_heads * s.head_dim;
        multiply(*layer.q, b.normed, s.hidden, qkv(0), stride, false, thread);
        multiply(*layer.k, b.normed, s.hidden, qkv(0) + queries, stride, false, thread);
        multiply(*layer.v, b.normed, s.hidden, qkv(0) + queries + keys, stride, false, thread);
        team.wait();
        if (thread == 0) plan(layer);
        place(layer, thread);
        team.wait();
        planned->run(thread, team);
        team.wait();
        quantize(*layer.o, b.attended, queries, thread);
        multiply(*layer.o, b.attended, queries, b.x, s.hidden, true, thread);
        team.wait();
    }

    void feed_forward(const Layer& layer, int thread) {
        norm(layer.middle_norm, *layer.gate, thread);
        multiply(*layer.gate, b.normed, s.hidden, b.gate, s.inner, false, thread);
        multiply(*layer.up, b.normed, s.hidden, b.up, s.inner, false, thread);
        team.wait();
        activate(thread);
        team.wait();
        quantize(*layer.down, b.gate, s.inner, thread);
        multiply(*layer.down, b.gate, s.inner, b.x, s.hidden, true, thread);
        team.wait();
    }

    // x, normed, is ready for `next` when this returns.
    void norm(const float* weight, const Linear& next, int thread) {
        const Range rows(b.rows, thread, team.threads);
        for (int64_t row = rows.first; row < rows.last; ++row)
            rms_norm((const T*)b.x + row * s.hidden, weight, s.hidden, s.epsilon, (T*)b.normed + row * s.hidden);
        if (next.is_int8) quantize_part(next, linear_call(b.normed, s.hidden, nullptr, 0, false), thread, team.threads);
        team.wait();
    }

    void quantize(const Linear& next, const void* x, int64_t stride, int thread) {
        if (!next.is_int8) return;
        quantize_part(next, linear_call(x, stride, nullptr, 0, false), thread, team.threads);
        team.wait();
    }

    void multiply(const Linear& weight, const void* x, int64_t x_stride, void* out, int64_t out_stride, bool adds, int thread) {
        linear_part(weight, linear_call(x, x_stride, out, out_stride, adds), thread, team.threads);
    }

    LinearCall linear_call(const void* x, int64_t x_stride, void* out, int64_t out_stride, bool adds) const {
        const int64_t size = sizeof(T);
        return {x, out, b.rows, x_stride * size, out_stride * size, s.dtype, adds, b.quantized, b.row_scales};
    }

    // Norms and positions of queries and keys.
    void place(const Layer& layer, int thread) {
        const int64_t heads = s.heads + s.kv_heads;
        const Range all(b.rows * heads, thread, team.threads);
        for (int64_t i = all.first; i < all.last; ++i) {
            const int64_t row = i / heads, head = i % heads;
            T* states = qkv(row) + head * s.head_dim;
            const float* weight = head < s.heads ? layer.q_norm : layer.k_norm;
            if (weight) rms_norm(states, weight, s.head_dim, s.epsilon, states);
            rotate(states, (const T*)b.cos + row * s.rotary_dim, (const T*)b.sin + row * s.rotary_dim, s.rotary_dim);
        }
    }

    void plan(const Layer& layer) {
        call = attention_call(layer);
        planned = plan_attention(step, call, team.threads);
    }

    AttentionCall attention_call(const Layer& layer) const {
        const int64_t stride = (s.heads + 2 * s.kv_heads) * s.head_dim, dim = s.head_dim;
        const T* first = qkv(0);
        return {first, first + s.heads * dim, first + (s.heads + s.kv_heads) * dim, b.attended, layer.pool, layer.sinks,
                dim, stride, dim, stride, dim, stride, s.heads, s.kv_heads, dim, dim, layer.window,
                layer.scaling, layer.softcap, s.dtype};
    }

    void activate(int thread) const {
        const Range all(b.rows * s.inner / 16, thread, team.threads);
        T *gate = (T*)b.gate, *up = (T*)b.up;
        for (int64_t i = all.first * 16; i < all.last * 16; i += 16) {
            const __m512 opened = rounded16<T>(silu(load16(gate + i)));
            store16(gate + i, _mm512_mul_ps(opened, load16(up + i)));
        }
    }
};

}  // namespace penstock

using namespace penstock;

template <typename T> static bool decode(const Stack& stack, const Buffers& buffers, const Step& step) {
    std::unique_ptr<Team> team;
    std::unique_ptr<Decoder<T>> decoder;
    bool has_memory = true;
#pragma omp parallel
    {
#pragma omp master
        try {
            team = std::make_unique<Team>(omp_get_num_threads());
            decoder = std::make_unique<Decoder<T>>(stack, buffers, step, *team);
            decoder->reserve();
        } catch (const std::bad_alloc&) {
            has_memory = false;
        }
#pragma omp barrier
        if (has_memory) decoder->run(omp_get_thread_num());
    }
    return has_memory;
}

// 0: there is too little memory, and nothing was done.
EXPORT int32_t penstock_decode(const Stack* stack, const Buffers* buffers, const Step* step) {
    if (stack->dtype == BFLOAT16) return decode<bf16>(*stack, *buffers, *step);
    return decode<float>(*stack, *buffers, *step);
}

#endif
