// What a query sees and where its output goes; and attention of a few rows over a cache as it lies, a few heads at
// once.
//
// A decoder's single rows wait for memory: keys and values are asked for in the order in which they lie, once for all
// heads that share them, some tokens ahead.
#pragma once

constexpr int64_t FEW_ROWS = 3;  // of a sequence that reads the cache as it lies
constexpr int HEADS_AT_ONCE = ATTEND_ROWS >= 4 ? 4 : 2;
// Tokens, or panels of columns, whose sums for so many heads fit into registers.
template <int HEADS>
constexpr int AT_ONCE = HEADS_AT_ONCE < HEADS ? 2 : HEADS_AT_ONCE / HEADS * 2;
constexpr int64_t TOKENS_TOGETHER = 16, BYTES_AHEAD = 12288;

// Keys [low, high) of a block that begins at `from` and has `count`, for a row at a place.
struct Sight {
    int64_t low, high;
};

static inline Sight sight_of(const AttentionTask& t, int64_t place, int64_t from, int64_t count) {
    int64_t low = t.window ? place - t.window + 1 - from : 0, high = count;
    if (t.causal || t.cache) high = least_of(high, place + 1 - from);
    else if (t.window) high = least_of(high, place + t.window - from);
    return {low < 0 ? 0 : low, high < 0 ? 0 : high};
}

template <class Form>
static inline void take_query(const AttentionTask& t, const Scratch& s, int64_t row, int64_t head, int64_t r) {
    const float* q = t.input.data + row * t.input.stride + head * t.head_dim;
    const auto scaled = [&](int64_t, int64_t i) { return load_n(q + i, t.head_dim - i) * set1(t.scale); };
    for (int64_t i = 0; i < t.head_dim; i += PANEL * Form::PER_WORD)
        store(s.queries + r * s.wide + i / Form::PER_WORD, word_at_column<Form>(scaled, 0, i, t.head_dim));
    for (int64_t i = 0; i < s.wide; i += PANEL) store(s.outputs + r * s.wide + i, set1(0));
}

static inline void give_output(const AttentionTask& t, const Scratch& s, int64_t row, int64_t head, int64_t r,
                               float total) {
    float* out = t.output.data + row * t.output.stride;
    for (int64_t i = 0; i < t.head_dim; i += PANEL) {
        const V mixed = load(s.outputs + r * s.wide + i) / set1(total);
        store_n(out + head * t.head_dim + i, mixed, t.head_dim - i);
    }
    if (head + 1 == t.heads)
        for (int64_t i = t.output.width; i % PANEL; i++) out[i] = 0;
}

// Rows of one head in a cache: keys, or values.
template <Kind KIND>
struct Lying {
    static constexpr int64_t SIZE = KIND == Kind::floats ? 4 : KIND == Kind::bf16 ? 2 : 1;
    const uint8_t* data;
    const float* scales;
    const int32_t* slots;  // of a block's tokens
    int64_t heads, head, width;

    int64_t row(int64_t token) const { return slots[token] * heads + head; }
    V numbers(int64_t row, int64_t column) const {
        return numbers_at(KIND, data, row * width + column, width - column);
    }
    float scale(int64_t row) const { return KIND == Kind::int8 ? scales[row] : 1.0f; }
    // How many tokens before it is read a row is asked for.
    int64_t ahead() const { return BYTES_AHEAD / (width * SIZE) + 1; }
    void ask(int64_t begin, int64_t end) const {
        for (int64_t token = begin; token < end; token++) {
            const uint8_t* at = data + row(token) * width * SIZE;
            for (int64_t byte = 0; byte < width * SIZE; byte += LINE) __builtin_prefetch(at + byte, 0, 3);
        }
    }
};

template <int HEADS, int TOKENS, Kind KIND>
static inline void score_tokens(const Scratch& s, const Lying<KIND>& keys, int64_t token) {
    V acc[TOKENS][HEADS];
    int64_t rows[TOKENS];
    each<TOKENS>([&](auto j) HASTEN_INLINE { rows[j.value] = keys.row(token + j.value); });
    each_of<TOKENS, HEADS>([&](auto j, auto h) HASTEN_INLINE { acc[j.value][h.value] = set1(0); });
    for (int64_t i = 0; i < keys.width; i += PANEL) {
        V query[HEADS];
        each<HEADS>([&](auto h) HASTEN_INLINE { query[h.value] = load(s.queries + h.value * s.wide + i); });
        each<TOKENS>([&](auto j) HASTEN_INLINE {
            const V key = keys.numbers(rows[j.value], i);
            each<HEADS>([&](auto h) HASTEN_INLINE {
                V& sum = acc[j.value][h.value];
                sum = fma(query[h.value], key, sum);
            });
        });
    }
    each_of<TOKENS, HEADS>([&](auto j, auto h) HASTEN_INLINE {
        s.scores[h.value * KEYS + token + j.value] = sum(acc[j.value][h.value]) * keys.scale(rows[j.value]);
    });
}

template <int HEADS, Kind KIND>
static void score_few(const Scratch& s, const Lying<KIND>& keys, const Sight& sight) {
    constexpr int TOKENS = AT_ONCE<HEADS>;
    const int64_t ahead = keys.ahead();
    int64_t j = sight.low;
    for (; j + TOKENS <= sight.high; j += TOKENS) {
        keys.ask(j + ahead, least_of(j + ahead + TOKENS, sight.high));
        score_tokens<HEADS, TOKENS>(s, keys, j);
    }
    for (; j < sight.high; j++) score_tokens<HEADS, 1>(s, keys, j);
}

// outputs += weights values of the tokens [low, high), in columns from i on.
template <int HEADS, int PANELS, Kind KIND>
static inline void mix_tokens(const Scratch& s, const Lying<KIND>& values, int64_t low, int64_t high, int64_t i) {
    V acc[HEADS][PANELS];
    each_of<HEADS, PANELS>([&](auto h, auto p) HASTEN_INLINE {
        acc[h.value][p.value] = load(s.outputs + h.value * s.wide + i + p.value * PANEL);
    });
    for (int64_t j = low; j < high; j++) {
        const int64_t row = values.row(j);
        V weights[HEADS];
        each<HEADS>([&](auto h) HASTEN_INLINE { weights[h.value] = set1(s.scores[h.value * KEYS + j]); });
        each<PANELS>([&](auto p) HASTEN_INLINE {
            V value = values.numbers(row, i + p.value * PANEL);
            if constexpr (KIND == Kind::int8) value = value * set1(values.scale(row));
            each<HEADS>([&](auto h) HASTEN_INLINE {
                V& sum = acc[h.value][p.value];
                sum = fma(weights[h.value], value, sum);
            });
        });
    }
    each_of<HEADS, PANELS>([&](auto h, auto p) HASTEN_INLINE {
        store(s.outputs + h.value * s.wide + i + p.value * PANEL, acc[h.value][p.value]);
    });
}

template <int HEADS, Kind KIND>
static void mix_few(const Scratch& s, const Lying<KIND>& values, const Sight& sight) {
    constexpr int PANELS = AT_ONCE<HEADS>;
    const int64_t ahead = values.ahead();
    for (int64_t low = sight.low; low < sight.high; low += TOKENS_TOGETHER) {
        const int64_t high = least_of(low + TOKENS_TOGETHER, sight.high);
        values.ask(low + ahead, least_of(high + ahead, sight.high));
        int64_t i = 0;
        for (; i + PANELS * PANEL <= s.wide; i += PANELS * PANEL) mix_tokens<HEADS, PANELS>(s, values, low, high, i);
        for (; i < s.wide; i += PANEL) mix_tokens<HEADS, 1>(s, values, low, high, i);
    }
}

// A block of keys: scores first, then the softmax, then values.
template <int HEADS, Kind KIND>
static void read_block(const AttentionTask& t, const Scratch& s, int64_t kv_head, int64_t count, const Sight& sight,
                       float* top, float* total) {
    const Cache& c = *t.cache;
    const Lying<KIND> keys{c.keys, c.key_scales, s.slots, t.kv_heads, kv_head, t.head_dim};
    const Lying<KIND> values{c.values, c.value_scales, s.slots, t.kv_heads, kv_head, t.head_dim};
    keys.ask(sight.low, least_of(sight.low + keys.ahead(), sight.high));
    score_few<HEADS>(s, keys, sight);
    values.ask(sight.low, least_of(sight.low + values.ahead(), sight.high));
    for (int h = 0; h < HEADS; h++) {
        float* scores = s.scores + h * KEYS;
        if (t.cap > 0) cap_scores(scores, t.cap, sight.low, sight.high);
        const float shrink = soften(scores, sight.low, sight.high, round_up(count, PANEL), top[h], total[h]);
        float* outputs = s.outputs + h * s.wide;
        for (int64_t i = 0; i < s.wide; i += PANEL) store(outputs + i, load(outputs + i) * set1(shrink));
    }
    mix_few<HEADS>(s, values, sight);
}

static void find_slots(const Cache& c, int64_t sequence, int64_t from, const Sight& sight, int32_t* slots) {
    const int32_t* table = c.tables + sequence * c.table_width;
    int64_t block = (from + sight.low) / c.block_size, within = (from + sight.low) % c.block_size;
    for (int64_t j = sight.low; j < sight.high; j++) {
        slots[j] = static_cast<int32_t>(table[block] * c.block_size + within);
        if (++within == c.block_size) within = 0, block++;
    }
}

template <int HEADS, Kind KIND>
static void read_heads(const AttentionTask& t, const Scratch& s, int64_t sequence, int64_t head) {
    const int64_t start = t.starts[sequence], kv_head = head / (t.heads / t.kv_heads);
    for (int64_t row = 0; row < rows_of(t, sequence); row++) {
        float top[HEADS], total[HEADS];
        for (int h = 0; h < HEADS; h++) {
            take_query<Single>(t, s, start + row, head + h, h);
            top[h] = -LARGEST, total[h] = 0;
        }
        const int64_t place = place_of(t, sequence, row), low = sight_of(t, place, 0, place + 1).low;
        for (int64_t from = low / KEYS * KEYS; from <= place; from += KEYS) {
            const int64_t count = least_of(place + 1 - from, KEYS);
            const Sight sight = sight_of(t, place, from, count);
            find_slots(*t.cache, sequence, from, sight, s.slots);
            read_block<HEADS, KIND>(t, s, kv_head, count, sight, top, total);
        }
        for (int h = 0; h < HEADS; h++) give_output(t, s, start + row, head + h, h, total[h]);
    }
}

template <int HEADS>
static void read_heads(const AttentionTask& t, const Scratch& s, int64_t sequence, int64_t head) {
    switch (t.cache->kind) {
        case Kind::floats: return read_heads<HEADS, Kind::floats>(t, s, sequence, head);
        case Kind::bf16: return read_heads<HEADS, Kind::bf16>(t, s, sequence, head);
        default: return read_heads<HEADS, Kind::int8>(t, s, sequence, head);
    }
}

// Heads [begin, end) of a sequence of a few rows.
static void read_cache(const AttentionTask& t, const Scratch& s, int64_t sequence, int64_t begin, int64_t end) {
    const int64_t shared = t.heads / t.kv_heads;
    while (begin < end) {
        const int64_t together = least_of(least_of(end - begin, HEADS_AT_ONCE), shared - begin % shared);
        if (together >= HEADS_AT_ONCE) read_heads<HEADS_AT_ONCE>(t, s, sequence, begin), begin += HEADS_AT_ONCE;
        else if (together == 3) read_heads<3>(t, s, sequence, begin), begin += 3;
        else if (together == 2) read_heads<2>(t, s, sequence, begin), begin += 2;
        else read_heads<1>(t, s, sequence, begin), begin += 1;
    }
}
