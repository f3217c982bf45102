#pragma once

#include <memory>

#include "common.h"
#include "team.h"

namespace penstock {

// The sequences of one step, whose tokens are packed in one row: what ctypes knows as engines.torch.cpu.attention._Step.
struct Step {
    const int64_t *starts, *lengths;  // [count]: the positions that are computed
    const int64_t* tables;            // [count, table_stride] blocks
    int64_t count, table_stride, block_size;
};

// One layer of it. Arrays are of `dtype`, with elements of a head side by side; strides are elements.
struct AttentionCall {
    const void *query, *key, *value;  // [heads, tokens, dim] by their strides
    void* out;                        // [tokens, heads, value_dim]
    void* pool;
    const float* sinks;  // [heads] or null
    int64_t query_head, query_token, key_head, key_token, value_head, value_token;
    int64_t heads, kv_heads, key_dim, value_dim;
    int64_t window;  // keys that a query sees, its own included; 0: all
    float scaling, softcap;  // softcap 0: none
    int32_t dtype;
};

constexpr int KEY_GROUP = 16;  // keys that lie together; the block size is a multiple

inline int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// A layer's KV memory: by block and head, first the keys and then the values of its tokens.
//
// Keys lie in groups of 16, each as lines of 16 keys x PAIR dimensions; values as lines of PAIR keys x all dimensions.
// A PAIR of two bfloat16 is what dot products and tiles take at once. Of bfloat16, keys are padded to whole tiles with
// zeros that nobody overwrites.
template <typename T> struct Pool {
    static constexpr int PAIR = sizeof(T) == 2 ? 2 : 1;
    T* memory;
    int64_t heads, block_size, key_dim, value_dim;

    Pool(void* memory, int64_t heads, int64_t block_size, int64_t key_dim, int64_t value_dim)
        : memory((T*)memory), heads(heads), block_size(block_size), key_dim(rounded_up(key_dim, PAIR == 2 ? 32 : 1)),
          value_dim(rounded_up(value_dim, 16)) {}

    int64_t token_elements() const { return key_dim + value_dim; }
    T* head(int64_t block, int64_t head) const { return memory + (block * heads + head) * block_size * token_elements(); }
    T* keys(int64_t block, int64_t head, int64_t slot) const { return this->head(block, head) + slot * key_dim; }
    T* values(int64_t block, int64_t head, int64_t slot) const {
        return this->head(block, head) + block_size * key_dim + slot * value_dim;
    }
};

// Stores positions [first, last) of one sequence, all of one group of 16, and one KV head. `row` is that of `first`.
template <typename T>
void write_keys(const Pool<T>& pool, const AttentionCall& call, const int64_t* table, int64_t head, int64_t first,
                int64_t last, int64_t row) {
    constexpr int PAIR = Pool<T>::PAIR;
    const int64_t block = table[first / pool.block_size], slot = first % pool.block_size;
    const int64_t group = slot / KEY_GROUP * KEY_GROUP, pairs = call.key_dim / PAIR;
    T *keys = pool.keys(block, head, group), *values = pool.values(block, head, group);
    for (int64_t i = 0; i < last - first; ++i) {
        const T* key = (const T*)call.key + head * call.key_head + (row + i) * call.key_token;
        const T* value = (const T*)call.value + head * call.value_head + (row + i) * call.value_token;
        const int64_t k = slot - group + i;
        for (int64_t pair = 0; pair < pairs; ++pair)
            std::memcpy(keys + (pair * KEY_GROUP + k) * PAIR, key + pair * PAIR, sizeof(T) * PAIR);
        if (pairs * PAIR < call.key_dim) keys[(pairs * KEY_GROUP + k) * PAIR] = key[call.key_dim - 1];
        T* line = values + k / PAIR * pool.value_dim * PAIR + k % PAIR;
        for (int64_t d = 0; d < call.value_dim; ++d) line[d * PAIR] = value[d];
    }
}

// One layer's attention, for a team of threads that is there already. It refers to what it was planned from.
struct PlannedAttention {
    virtual ~PlannedAttention() = default;
    virtual void run(int thread, Team& team) = 0;
};
// Throws std::bad_alloc. Scratch memory belongs to the calling thread, and to its latest plan alone.
std::unique_ptr<PlannedAttention> plan_attention(const Step& step, const AttentionCall& call, int threads);

}  // namespace penstock
