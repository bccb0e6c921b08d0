// Attention within each sequence: fp32 scores and sums (of products of bf16, where a task says so), online softmax over
// blocks of keys.
//
// One item of work is a few queries of one head; a part takes items that lie together, so that keys and values are
// packed once a head. Sequences of a few rows over a cache read it as it lies, a few heads at once.
#pragma once

constexpr int64_t FEW_ROWS = 3;    // of a sequence that reads the cache as it lies
constexpr int HEADS_AT_ONCE = ATTEND_ROWS >= 4 ? 4 : 2;

struct Packed {
    int64_t sequence = -1, kv_head = -1, block = -1;
};

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

// Some rows of an item and one block of keys, of which scores are made, weights, and what they add to the outputs.
template <class Form, int ROWS>
static void attend(const AttentionTask& t, const Scratch& s, int64_t sequence, int64_t row, int64_t from, int64_t count,
                   float* top, float* total) {
    const int64_t padded = round_up(count, PANEL);
    float shrink[ROWS];
    score<Form, ROWS>(s, t.head_dim, padded);
    for (int r = 0; r < ROWS; r++) {
        const Sight sight = sight_of(t, place_of(t, sequence, row + r), from, count);
        if (t.cap > 0) cap_scores(s.scores + r * KEYS, t.cap, sight.low, sight.high);
        shrink[r] = soften(s.scores + r * KEYS, sight.low, sight.high, padded, top[r], total[r]);
        pair_up<Form>(s.scores + r * KEYS, padded);
    }
    mix<Form, ROWS>(s, shrink, count);
}

template <class Form>
static void attend_item(const AttentionTask& t, const Scratch& s, int64_t sequence, int64_t head, int64_t first,
                        Packed& packed) {
    const int64_t start = t.starts[sequence], rows = least_of(rows_of(t, sequence) - first, QUERIES);
    const int64_t all = keys_of(t, sequence), kv_head = head / (t.heads / t.kv_heads);
    float top[QUERIES], total[QUERIES];
    for (int64_t r = 0; r < rows; r++) {
        take_query<Form>(t, s, start + first + r, head, r);
        top[r] = -LARGEST, total[r] = 0;
    }
    const int64_t low = sight_of(t, place_of(t, sequence, first), 0, all).low;
    const int64_t high = sight_of(t, place_of(t, sequence, first + rows - 1), 0, all).high;
    for (int64_t block = low / KEYS; block * KEYS < high; block++) {
        const int64_t from = block * KEYS, count = least_of(all - from, KEYS);
        if (packed.sequence != sequence || packed.kv_head != kv_head || packed.block != block)
            pack_keys<Form>(t, s, sequence, kv_head, from, count);
        packed = {sequence, kv_head, block};
        Scratch group = s;
        int64_t r = 0;
        const auto go = [&](auto number) {
            constexpr int ROWS = decltype(number)::value;
            for (; r + ROWS <= rows; r += ROWS, group.queries += ROWS * s.wide, group.outputs += ROWS * s.wide)
                attend<Form, ROWS>(t, group, sequence, first + r, from, count, top + r, total + r);
        };
        go(Number<ATTEND_ROWS>{});
        if constexpr (ATTEND_ROWS > 2) go(Number<2>{});
        go(Number<1>{});
    }
    for (int64_t r = 0; r < rows; r++) give_output(t, s, start + first + r, head, r, total[r]);
}

// One row of a few heads that share keys, over the cache as it lies. Scores first, then the softmax, then values.
template <int HEADS>
static void read_block(const AttentionTask& t, const Scratch& s, int64_t kv_head, int64_t count, const Sight& sight,
                       float* top, float* total) {
    const Cache& c = *t.cache;
    const int64_t d = t.head_dim;
    for (int64_t j = sight.low; j < sight.high; j++) {
        const int64_t row = s.slots[j] * t.kv_heads + kv_head;
        V acc[HEADS];
        each<HEADS>([&](auto h) HASTEN_INLINE { acc[h.value] = set1(0); });
        for (int64_t i = 0; i < d; i += PANEL) {
            const V key = numbers_at(c.kind, c.keys, row * d + i, d - i);
            each<HEADS>([&](auto h) HASTEN_INLINE {
                acc[h.value] = fma(load(s.queries + h.value * s.wide + i), key, acc[h.value]);
            });
        }
        const float scale = scale_of(c, c.key_scales, row);
        each<HEADS>([&](auto h) HASTEN_INLINE { s.scores[h.value * KEYS + j] = sum(acc[h.value]) * scale; });
    }
    float shrink[HEADS];
    for (int h = 0; h < HEADS; h++) {
        if (t.cap > 0) cap_scores(s.scores + h * KEYS, t.cap, sight.low, sight.high);
        shrink[h] = soften(s.scores + h * KEYS, sight.low, sight.high, round_up(count, PANEL), top[h], total[h]);
    }
    for (int64_t i = 0; i < s.wide; i += PANEL) {
        V acc[HEADS];
        each<HEADS>([&](auto h) HASTEN_INLINE {
            acc[h.value] = load(s.outputs + h.value * s.wide + i) * set1(shrink[h.value]);
        });
        for (int64_t j = sight.low; j < sight.high; j++) {
            const int64_t row = s.slots[j] * t.kv_heads + kv_head;
            const V value = numbers_at(c.kind, c.values, row * d + i, d - i) * set1(scale_of(c, c.value_scales, row));
            each<HEADS>([&](auto h) HASTEN_INLINE {
                acc[h.value] = fma(set1(s.scores[h.value * KEYS + j]), value, acc[h.value]);
            });
        }
        each<HEADS>([&](auto h) HASTEN_INLINE { store(s.outputs + h.value * s.wide + i, acc[h.value]); });
    }
}

template <int HEADS>
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
            for (int64_t j = sight.low; j < sight.high; j++)
                s.slots[j] = static_cast<int32_t>(slot_of(*t.cache, sequence, from + j));
            read_block<HEADS>(t, s, kv_head, count, sight, top, total);
        }
        for (int h = 0; h < HEADS; h++) give_output(t, s, start + row, head + h, h, total[h]);
    }
}

// Heads [begin, end) of a sequence of a few rows.
static void read_cache(const AttentionTask& t, const Scratch& s, int64_t sequence, int64_t begin, int64_t end) {
    const int64_t shared = t.heads / t.kv_heads;
    while (begin < end) {
        const int64_t together = least_of(least_of(end - begin, HEADS_AT_ONCE), shared - begin % shared);
        if (together >= HEADS_AT_ONCE) read_heads<HEADS_AT_ONCE>(t, s, sequence, begin), begin += HEADS_AT_ONCE;
        else if (together >= 2) read_heads<2>(t, s, sequence, begin), begin += 2;
        else read_heads<1>(t, s, sequence, begin), begin += 1;
    }
}

// Items are dealt by what they cost: queries times keys.
static void attention(const AttentionTask& t, float* memory, int64_t part, int64_t parts) {
    const Scratch s = scratch_at(memory, t.head_dim);
    double all = 0, before = 0;
    for (int64_t q = 0; q < t.sequences; q++)
        all += static_cast<double>(rows_of(t, q)) * static_cast<double>(keys_of(t, q) * t.heads);
    const double begin = all * static_cast<double>(part) / static_cast<double>(parts);
    const double share = all * static_cast<double>(part + 1) / static_cast<double>(parts);
    const double end = part + 1 == parts ? all * 2 + 1 : share;
    Packed packed;
    for (int64_t q = 0; q < t.sequences; q++) {
        const int64_t length = rows_of(t, q), keys = keys_of(t, q);
        const bool few = t.cache && length <= FEW_ROWS, narrow = t.bf16 && keys >= MANY_KEYS;
        int64_t first_head = t.heads, last_head = -1;
        for (int64_t head = 0; head < t.heads; head++) {
            for (int64_t first = 0; first < length; first += QUERIES) {
                const bool mine = before >= begin && before < end;
                if (mine && !few && narrow) attend_item<Pairs>(t, s, q, head, first, packed);
                if (mine && !few && !narrow) attend_item<Single>(t, s, q, head, first, packed);
                if (mine && few) first_head = least_of(first_head, head), last_head = head;
                before += static_cast<double>(least_of(length - first, QUERIES)) * static_cast<double>(keys);
            }
        }
        if (few) read_cache(t, s, q, first_head, last_head + 1);
    }
}
