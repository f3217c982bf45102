// Attention straight over paged KV memory: decodes and prefill chunks of one step in one call, each at its own length.
//
// Keys are taken in blocks of 128 at fixed positions. A block gives each query row its greatest score, its sum and its
// weighted values; these are merged from the first block to the last, by whichever threads they were made. So the bits
// of a row depend neither on what else is in the step nor on how a prompt was cut in chunks.
//
// A row is one head's query of one token; the heads that share a KV head are rows of the same tile.
#include "attention.h"

#include <memory>
#include <new>
#include <vector>

#include <omp.h>

#include "attention_products.h"

namespace penstock {

constexpr int TILE_ROWS = 128;        // query rows that read a block of keys together
constexpr int64_t LEAST_SPLIT = 4;    // blocks of keys
constexpr int64_t TASKS_A_THREAD = 4;
constexpr float LOG2_E = 1.44269504f;

// What some blocks make of a row: [value_dim] weighted values, the greatest score, the sum of weights (0: no key seen).
struct RowState {
    float* memory;
    int64_t dim;

    static int64_t size(int64_t dim) { return dim + 16; }
    float& greatest() const { return memory[dim]; }
    float& sum() const { return memory[dim + 1]; }
    void clear() const { sum() = 0; }

    void merge(const float* values, float greatest_there, float sum_there) const {
        if (sum_there == 0) return;
        if (sum() == 0) {
            std::memcpy(memory, values, dim * sizeof(float));
            greatest() = greatest_there, sum() = sum_there;
            return;
        }
        const float highest = std::max(greatest(), greatest_there);
        const float here = exp2(greatest() - highest), there = exp2(greatest_there - highest);
        for (int64_t d = 0; d < dim; d += LANES)
            penstock::store(memory + d, fma(load<Floats>(memory + d), all(here), load<Floats>(values + d) * all(there)));
        greatest() = highest, sum() = sum() * here + sum_there * there;
    }
};

// Rows [first_row, first_row + rows) of one sequence and one KV head, and the blocks of keys that they see.
struct Unit {
    int64_t sequence, head, first_row, rows, first_block, last_block;
    float* partial;  // [blocks, rows] row states where several tasks share it, else null
    int tasks_left;
};

struct Task {
    Unit* unit;
    int64_t first_block, last_block;
};

template <typename T> class Attention {
  public:
    // For a team of up to `threads`. Uses memory of the calling thread: its next one may come when this one is done.
    Attention(const Step& step, const AttentionCall& call, int threads)
        : step(step), call(call), pool(call.pool, call.kv_heads, step.block_size, call.key_dim, call.value_dim),
          group(call.heads / call.kv_heads), state_size(RowState::size(pool.value_dim)), first_tokens(step.count) {
        for (int64_t i = 0, token = 0; i < step.count; token += step.lengths[i++]) {
            first_tokens[i] = token;
            has_chunks |= step.lengths[i] > 1;
        }
        list_units();
        const int64_t partials = list_tasks(threads);
        static thread_local Memory memory;
        scratch = memory.at_least(Worker::bytes(*this) * threads + partials * sizeof(float));
        place_partials((float*)(scratch + Worker::bytes(*this) * threads));
    }

    int64_t num_tasks() const { return int64_t(tasks.size()); }

    // What one thread of the team does: `barrier` waits for the others.
    template <typename Barrier> void run(int thread, int threads, Barrier barrier) {
        if (has_chunks) {
            write_chunks(thread, threads);
            barrier();
        }
        Worker worker(*this, scratch + Worker::bytes(*this) * thread);
        for (size_t i; (i = __atomic_fetch_add(&next_task, 1, __ATOMIC_RELAXED)) < tasks.size();) worker.run(tasks[i]);
    }

  private:
    using Factor = typename Products<T>::Factor;
    const Step& step;
    const AttentionCall& call;
    const Pool<T> pool;
    const int64_t group, state_size;
    std::vector<int64_t> first_tokens;
    std::vector<Unit> units;
    std::vector<Task> tasks;
    char* scratch = nullptr;
    bool has_chunks = false;
    size_t next_task = 0;

    const int64_t* table(int64_t sequence) const { return step.tables + sequence * step.table_stride; }
    int64_t context(int64_t sequence) const { return step.starts[sequence] + step.lengths[sequence]; }
    int64_t position(int64_t sequence, int64_t row) const { return step.starts[sequence] + row / group; }
    int64_t first_seen(int64_t position) const {
        return call.window ? std::max<int64_t>(0, position - call.window + 1) : 0;
    }

    void list_units() {
        for (int64_t sequence = 0; sequence < step.count; ++sequence)
            for (int64_t head = 0; head < call.kv_heads; ++head)
                for (int64_t row = 0, all = step.lengths[sequence] * group; row < all; row += TILE_ROWS) {
                    const int64_t rows = std::min<int64_t>(TILE_ROWS, all - row);
                    const int64_t first = first_seen(position(sequence, row)) / KEYS;
                    const int64_t last = position(sequence, row + rows - 1) / KEYS + 1;
                    units.push_back({sequence, head, row, rows, first, last, nullptr, 1});
                }
    }

    static int64_t cost(const Unit& unit) { return (unit.rows + ROWS - 1) / ROWS; }  // of a block

    // Units are cut where there would be too few tasks to keep all threads busy to the end.
    // Answers how many floats they need for partial results.
    int64_t list_tasks(int threads) {
        int64_t whole = 0, floats = 0;
        for (const Unit& unit : units) whole += cost(unit) * (unit.last_block - unit.first_block);
        const int64_t part = whole / (threads * TASKS_A_THREAD) + 1;
        for (Unit& unit : units) {
            const int64_t blocks = unit.last_block - unit.first_block;
            const int64_t most = std::max<int64_t>(1, blocks / LEAST_SPLIT);
            const int64_t count = threads == 1 ? 1 : std::min(most, (cost(unit) * blocks + part - 1) / part);
            for (int64_t i = 0; i < count; ++i)
                tasks.push_back({&unit, unit.first_block + blocks * i / count, unit.first_block + blocks * (i + 1) / count});
            unit.tasks_left = int(count);
            if (count > 1) floats += blocks * unit.rows * state_size;
        }
        return floats;
    }

    void place_partials(float* next) {
        for (Unit& unit : units)
            if (unit.tasks_left > 1) {
                unit.partial = next;
                next += (unit.last_block - unit.first_block) * unit.rows * state_size;
            }
    }

    // A decode's keys are written by the task that reads them; those of chunks before any task runs.
    void write_chunks(int thread, int threads) const {
        int64_t turn = 0;
        for (int64_t sequence = 0; sequence < step.count; ++sequence) {
            if (step.lengths[sequence] == 1) continue;
            for (int64_t first = step.starts[sequence]; first < context(sequence);) {
                const int64_t last = std::min(context(sequence), (first / KEY_GROUP + 1) * KEY_GROUP);
                if (turn++ % threads == thread)
                    for (int64_t head = 0; head < call.kv_heads; ++head) write(sequence, head, first, last);
                first = last;
            }
        }
    }

    void write(int64_t sequence, int64_t head, int64_t first, int64_t last) const {
        const int64_t row = first_tokens[sequence] + first - step.starts[sequence];
        write_keys(pool, call, table(sequence), head, first, last, row);
    }

    float* partial(const Unit& unit, int64_t block, int64_t row) const {
        return unit.partial + ((block - unit.first_block) * unit.rows + row) * state_size;
    }

    struct Memory {
        std::unique_ptr<char[]> memory;
        int64_t size = 0;

        char* at_least(int64_t needed) {  // aligned to 64
            if (needed > size) {
                memory.reset(), size = 0;
                memory.reset(new char[needed + 64]);
                size = needed;
            }
            return (char*)rounded_up(int64_t(memory.get()), 64);
        }
    };

    class Worker;
};

// One thread's scratch memory, and what it does with a task.
template <typename T> class Attention<T>::Worker {
  public:
    Worker(const Attention& attention, char* next)
        : a(attention), call(attention.call), pool(attention.pool), dim(pool.value_dim) {
        queries = take<Factor>(next, TILE_ROWS * pool.key_dim);
        weights = take<Factor>(next, ROWS * KEYS);
        scores = take<float>(next, ROWS * KEYS);
        sums = take<float>(next, ROWS * dim);
        states = take<float>(next, TILE_ROWS * a.state_size);
        copies = take<T>(next, KEYS * dim);
    }

    static int64_t bytes(const Attention& a) {
        const int64_t factors = TILE_ROWS * a.pool.key_dim + ROWS * KEYS;
        const int64_t floats = ROWS * KEYS + ROWS * a.pool.value_dim + TILE_ROWS * a.state_size;
        const int64_t values = KEYS * a.pool.value_dim;
        return rounded_up(factors * sizeof(Factor) + floats * sizeof(float) + values * sizeof(T) + 6 * 64, 64);
    }

    void run(const Task& task) {
        Unit& unit = *task.unit;
        if (a.step.lengths[unit.sequence] == 1 && task.last_block == unit.last_block)
            a.write(unit.sequence, unit.head, a.context(unit.sequence) - 1, a.context(unit.sequence));
        load_queries(unit);
        clear();
        for (int64_t block = task.first_block; block < task.last_block; ++block) attend(unit, block);
        if (unit.partial == nullptr) return finish(unit);
        if (__atomic_sub_fetch(&unit.tasks_left, 1, __ATOMIC_ACQ_REL) == 0) {
            merge_partials(unit);
            finish(unit);
        }
    }

  private:
    const Attention& a;
    const AttentionCall& call;
    const Pool<T>& pool;
    const int64_t dim;
    Products<T> products;
    Factor *queries, *weights;
    float *scores, *sums, *states;
    T* copies;  // of a block's values that can't be read where they are

    template <typename Item> static Item* take(char*& next, int64_t count) {
        Item* taken = (Item*)next;
        next += rounded_up(count * sizeof(Item), 64);
        return taken;
    }

    RowState state(int64_t row) const { return {states + row * a.state_size, dim}; }

    void clear() const {
        for (int row = 0; row < TILE_ROWS; ++row) state(row).clear();
    }

    void load_queries(const Unit& unit) const {
        for (int64_t i = 0; i < unit.rows; ++i) {
            const int64_t row = unit.first_row + i, head = unit.head * a.group + row % a.group;
            const int64_t token = a.first_tokens[unit.sequence] + row / a.group;
            const T* source = (const T*)call.query + head * call.query_head + token * call.query_token;
            Factor* target = queries + i * pool.key_dim;
            for (int64_t d = 0; d < call.key_dim; ++d) convert(source[d], target[d]);
            for (int64_t d = call.key_dim; d < pool.key_dim; ++d) target[d] = 0;
        }
    }

    static void convert(float from, float& to) { to = from; }
    static void convert(bf16 from, bf16& to) { to = from; }
    static void convert(bf16 from, float& to) { to = to_float(from); }
    static void convert(float from, bf16& to) { to = to_bf16(from); }

    // The part of a block that some rows of a unit see, as offsets.
    struct Seen {
        int first, last;
        int first_stripe() const { return first / STRIPE; }
        int last_stripe() const { return (last + STRIPE - 1) / STRIPE; }
    };

    Seen seen(const Unit& unit, int64_t block, int64_t first_row, int64_t last_row) const {
        const int64_t from = a.first_seen(a.position(unit.sequence, unit.first_row + first_row)) - block * KEYS;
        const int64_t to = a.position(unit.sequence, unit.first_row + last_row) + 1 - block * KEYS;
        return {int(std::clamp<int64_t>(from, 0, KEYS)), int(std::clamp<int64_t>(to, 0, KEYS))};
    }

    void attend(const Unit& unit, int64_t block) const {
        KeyBlock<T> found;
        if (block + 1 < unit.last_block) fetch_ahead(unit, (block + 1) * KEYS);
        find(unit, block, seen(unit, block, 0, unit.rows - 1), found);
        for (int64_t first = 0; first < unit.rows; first += ROWS) {
            const int rows = int(std::min<int64_t>(ROWS, unit.rows - first));
            attend_rows(unit, block, found, first, rows);
        }
    }

    void attend_rows(const Unit& unit, int64_t block, const KeyBlock<T>& found, int64_t first_row, int rows) const {
        const Seen range = seen(unit, block, first_row, first_row + rows - 1);
        const int first = range.first_stripe(), last = range.last_stripe();
        float greatest[ROWS], total[ROWS] = {};
        if (range.first < range.last) {
            products.scores(queries + first_row * pool.key_dim, rows, found, pool.key_dim, first, last, scores);
            for (int row = 0; row < rows; ++row)
                weigh(row, first * STRIPE, last * STRIPE, seen(unit, block, first_row + row, first_row + row),
                      greatest[row], total[row]);
            products.values(weights, rows, found, dim, first, last, sums);
        }
        for (int row = 0; row < rows; ++row) {
            RowState target = state(first_row + row);
            if (unit.partial) {
                target.memory = a.partial(unit, block, first_row + row);
                target.clear();
            }
            target.merge(sums + row * dim, greatest[row], total[row]);
        }
    }

    // The scores [first, last) of a row become its weights, 0 for keys that it does not see.
    void weigh(int row, int first, int last, Seen range, float& greatest, float& total) const {
        float* score = scores + row * KEYS;
        Factor* weight = weights + row * KEYS;
        if (range.first >= range.last) {
            std::memset(weight + first, 0, (last - first) * sizeof(Factor));
            total = 0;
            return;
        }
        Floats highest = all(-INFINITE), sum = {};
        for (int key = first; key < last; key += LANES) {
            Floats values = scaled(load<Floats>(score + key));
            if (key < range.first || key + LANES > range.last) {
                const Ints keys = lane_numbers() + key;
                values = choose((keys >= range.first) & (keys < range.last), values, all(-INFINITE));
            }
            penstock::store(score + key, values);
            highest = penstock::greater(values, highest);  // passes NaN over: the sum will have it
        }
        greatest = penstock::greatest(highest);
        for (int key = first; key < last; key += LANES) {
            const Floats values = exp2(load<Floats>(score + key) - all(greatest));
            sum += values;
            put(weight + key, values);
        }
        total = penstock::total(sum);
    }

    // Scores as powers of 2.
    Floats scaled(Floats products) const {
        if (call.softcap == 0) return products * all(call.scaling * LOG2_E);
        const Floats doubled = products * all(call.scaling * 2 * LOG2_E / call.softcap);
        const Floats raised = exp2(choose(doubled > all(126), all(126), doubled));
        return all(call.softcap * LOG2_E) * (all(1) - all(2) / (raised + all(1)));  // tanh
    }

    static void put(float* target, Floats values) { penstock::store(target, values); }
    static void put(bf16* target, Floats values) {
#if defined(__AVX512BF16__)
        store_bf16(target, values);
#else
        for (int i = 0; i < LANES; ++i) target[i] = to_bf16(values[i]);
#endif
    }

    // Into the second level of cache, while this block is computed: no hardware foresees where the next one lies.
    void fetch_ahead(const Unit& unit, int64_t first) const {
        const int64_t* table = a.table(unit.sequence);
        const int64_t last = std::min(first + KEYS, a.context(unit.sequence));
        for (int64_t position = first; position < last; position += KEY_GROUP) {
            const int64_t block = table[position / pool.block_size], slot = position % pool.block_size;
            fetch(pool.keys(block, unit.head, slot), KEY_GROUP * pool.key_dim);
            fetch(pool.values(block, unit.head, slot), KEY_GROUP * dim);
        }
    }

    static void fetch(const T* memory, int64_t count) {
        for (const char *line = (const char*)memory, *end = (const char*)(memory + count); line < end; line += 64)
            __builtin_prefetch(line, 0, 2);
    }

    void find(const Unit& unit, int64_t block, Seen range, KeyBlock<T>& found) const {
        constexpr int VALUES = Products<T>::VALUE_GROUP;
        const int64_t* table = a.table(unit.sequence);
        for (int key = range.first_stripe() * STRIPE; key < range.last_stripe() * STRIPE; key += KEY_GROUP) {
            const int64_t position = block * KEYS + key, group = key / KEY_GROUP;
            if (position >= a.context(unit.sequence)) found.keys[group] = found.keys[group - 1];  // hidden from all rows
            else found.keys[group] = pool.keys(table[position / pool.block_size], unit.head, position % pool.block_size);
        }
        for (int key = range.first_stripe() * STRIPE; key < range.last_stripe() * STRIPE; key += VALUES)
            found.values[key / VALUES] = values_at(unit, block * KEYS + key, copies + key * dim);
    }

    // The values of VALUE_GROUP keys: where they are if they lie together and all belong to the sequence, else a copy.
    // What lies behind a sequence's end may be NaN, which a weight of 0 would not stop.
    const T* values_at(const Unit& unit, int64_t position, T* copy) const {
        constexpr int VALUES = Products<T>::VALUE_GROUP;
        const int64_t* table = a.table(unit.sequence);
        const int64_t left = a.context(unit.sequence) - position;
        if (left >= VALUES && pool.block_size % VALUES == 0)
            return pool.values(table[position / pool.block_size], unit.head, position % pool.block_size);
        for (int key = 0; key < VALUES; key += KEY_GROUP) {
            const int64_t there = position + key;
            const T* source = key < left ? pool.values(table[there / pool.block_size], unit.head, there % pool.block_size) : nullptr;
            copy_values(source, std::clamp<int64_t>(left - key, 0, KEY_GROUP), copy + key * dim);
        }
        return copy;
    }

    void copy_values(const T* source, int64_t count, T* target) const {
        constexpr int PAIR = Pool<T>::PAIR;
        const int64_t whole = count / PAIR * PAIR * dim;
        if (whole) std::memcpy(target, source, whole * sizeof(T));
        std::memset(target + whole, 0, (KEY_GROUP * dim - whole) * sizeof(T));
        if (count % PAIR)
            for (int64_t d = 0; d < dim; ++d) target[whole + d * PAIR] = source[whole + d * PAIR];
    }

    void merge_partials(const Unit& unit) const {
        clear();
        for (int64_t block = unit.first_block; block < unit.last_block; ++block)
            for (int64_t row = 0; row < unit.rows; ++row) {
                const RowState part{a.partial(unit, block, row), dim};
                state(row).merge(part.memory, part.greatest(), part.sum());
            }
    }

    void finish(const Unit& unit) const {
        for (int64_t i = 0; i < unit.rows; ++i) {
            const int64_t row = unit.first_row + i, head = unit.head * a.group + row % a.group;
            const int64_t token = a.first_tokens[unit.sequence] + row / a.group;
            finish_row(state(i), head, (T*)call.out + (token * call.heads + head) * call.value_dim);
        }
    }

    void finish_row(const RowState& row, int64_t head, T* out) const {
        float factor = 1 / row.sum();
        if (call.sinks) {
            const float sink = call.sinks[head] * LOG2_E, highest = std::max(sink, row.greatest());
            const float here = exp2(row.greatest() - highest);
            factor = here / (row.sum() * here + exp2(sink - highest));
        }
        int64_t d = 0;
        for (; d + LANES <= call.value_dim; d += LANES) put(out + d, load<Floats>(row.memory + d) * all(factor));
        for (; d < call.value_dim; ++d) convert(row.memory[d] * factor, out[d]);
    }
};

template <typename T> static void attend(const Step& step, const AttentionCall& call) {
    Attention<T> attention(step, call, omp_get_max_threads());
    const int threads = int(std::min<int64_t>(omp_get_max_threads(), attention.num_tasks()));
    if (threads <= 1) return attention.run(0, 1, [] {});
#pragma omp parallel num_threads(threads)
    attention.run(omp_get_thread_num(), omp_get_num_threads(), [] {
#pragma omp barrier
    });
}

template <typename T> struct Planned : PlannedAttention {
    Planned(const Step& step, const AttentionCall& call, int threads) : attention(step, call, threads) {}
    void run(int thread, Team& team) override {
        attention.run(thread, team.threads, [&] { team.wait(); });
    }
    Attention<T> attention;
};

std::unique_ptr<PlannedAttention> plan_attention(const Step& step, const AttentionCall& call, int threads) {
    if (call.dtype == BFLOAT16) return std::make_unique<Planned<bf16>>(step, call, threads);
    return std::make_unique<Planned<float>>(step, call, threads);
}

}  // namespace penstock

using namespace penstock;

// Elements of `dtype` that a token takes in a layer's pool, for each KV head.
EXPORT int64_t penstock_kv_elements(int64_t key_dim, int64_t value_dim, int32_t dtype) {
    if (dtype == BFLOAT16) return Pool<bf16>(nullptr, 1, KEY_GROUP, key_dim, value_dim).token_elements();
    return Pool<float>(nullptr, 1, KEY_GROUP, key_dim, value_dim).token_elements();
}

// Writes the step's keys and values to the pool, and attends. Answers 0 if there is too little memory.
EXPORT int32_t penstock_attend(const Step* step, const AttentionCall* call) {
    try {
        if (call->dtype == BFLOAT16) attend<bf16>(*step, *call);
        else attend<float>(*step, *call);
        return 1;
    } catch (const std::bad_alloc&) {
        return 0;
    }
}
