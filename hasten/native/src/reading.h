// What a query sees and where its output goes; and attention of a few rows over a cache as it lies.
//
// A decoder's single rows wait for memory. What a row sees is cut into spans, each with a softmax of its own, of which
// `gather` makes one: they depend on the row's place alone, so results do not depend on who computed which. Keys and
// values are first touched in the order in which they lie, in nothing but loads, since that is what processors fetch
// ahead best (measured: asking for them between the sums, by prefetches or loads, takes twice as long), and then read
// from the second cache, head by head (docs/decisions/0012).
#pragma once

constexpr int HEADS_AT_ONCE = ATTEND_ROWS >= 4 ? 4 : 2;
// Tokens, or panels of columns, whose sums for so many heads fit into registers.
template <int HEADS>
constexpr int AT_ONCE = HEADS_AT_ONCE < HEADS ? 2 : HEADS_AT_ONCE / HEADS * 2;
constexpr int64_t LEAST_SPAN = 32;             // tokens: with fewer, sums that are kept cost more than balance gains
constexpr int64_t FETCHED_BYTES = 256 << 10;  // of keys and values, before they are read
static_assert(HEADS_AT_ONCE * TILE <= MOST_QUERIES * KEYS && TILE <= KEYS, "there is room for a tile's scores");
static_assert(SPANS == PANEL, "the spans of a row are put together in one register");

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

// `mixed(i)`: sums of 16 columns from i on, of weights whose sum is `total`.
template <class Mixed>
HASTEN_INLINE static inline void give_output(const AttentionTask& t, int64_t row, int64_t head, float total,
                                             Mixed mixed) {
    float* out = t.output.data + row * t.output.stride;
    for (int64_t i = 0; i < t.head_dim; i += PANEL)
        store_n(out + head * t.head_dim + i, mixed(i) / set1(total), t.head_dim - i);
    if (head + 1 == t.heads)
        for (int64_t i = t.output.width; i % PANEL; i++) out[i] = 0;
}

// Tokens that a row sees: [low, high), in spans of so many tokens.
struct Spans {
    int64_t low, high, length, count;
};

static inline Spans spans_of(const AttentionTask& t, int64_t place) {
    const int64_t low = sight_of(t, place, 0, place + 1).low, seen = place + 1 - low;
    const int64_t length = most_of((seen + SPANS - 1) / SPANS, LEAST_SPAN);
    return {low, place + 1, length, (seen + length - 1) / length};
}

// What the spans of a row found: sums of values [span, heads, wide]; largest scores and sums of weights [span, heads].
struct Found {
    float *outputs, *tops, *totals;
};

static inline Found found_at(const AttentionTask& t, int64_t wide, int64_t row, int64_t span) {
    float* p = t.found + t.few[row] * found_floats(t.heads, wide);
    float* tops = p + SPANS * t.heads * wide + span * t.heads;
    return {p + span * t.heads * wide, tops, tops + SPANS * t.heads};
}

// Keys or values of one head.
template <Kind KIND>
struct Lying {
    const uint8_t* data;
    const float* scales;
    const int32_t* slots;  // of a tile's tokens
    int64_t heads, head, width;

    int64_t row(int64_t token) const { return slots[token] * heads + head; }
    V numbers(int64_t row, int64_t column) const {
        return numbers_at(KIND, data, row * width + column, width - column);
    }
    float scale(int64_t row) const { return KIND == Kind::int8 ? scales[row] : 1.0f; }
};

template <int HEADS, int TOKENS, Kind KIND>
HASTEN_INLINE static inline void score_tokens(const Scratch& s, const Lying<KIND>& keys, int64_t token) {
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
        s.scores[h.value * TILE + token + j.value] = sum(acc[j.value][h.value]) * keys.scale(rows[j.value]);
    });
}

template <int HEADS, Kind KIND>
static void score_heads(const Scratch& s, const Lying<KIND>& keys, int64_t count) {
    constexpr int TOKENS = AT_ONCE<HEADS>;
    int64_t j = 0;
    for (; j + TOKENS <= count; j += TOKENS) score_tokens<HEADS, TOKENS>(s, keys, j);
    for (; j < count; j++) score_tokens<HEADS, 1>(s, keys, j);
}

// outputs = outputs shrink + weights values, in columns from i on.
template <int HEADS, int PANELS, Kind KIND>
HASTEN_INLINE static inline void mix_columns(const Scratch& s, const Lying<KIND>& values, const float* shrink,
                                             int64_t count, int64_t i) {
    V acc[HEADS][PANELS];
    each_of<HEADS, PANELS>([&](auto h, auto p) HASTEN_INLINE {
        acc[h.value][p.value] = load(s.outputs + h.value * s.wide + i + p.value * PANEL) * set1(shrink[h.value]);
    });
    for (int64_t j = 0; j < count; j++) {
        const int64_t row = values.row(j);
        V weights[HEADS];
        each<HEADS>([&](auto h) HASTEN_INLINE { weights[h.value] = set1(s.scores[h.value * TILE + j]); });
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
static void mix_heads(const Scratch& s, const Lying<KIND>& values, const float* shrink, int64_t count) {
    constexpr int PANELS = AT_ONCE<HEADS>;
    int64_t i = 0;
    for (; i + PANELS * PANEL <= s.wide; i += PANELS * PANEL)
        mix_columns<HEADS, PANELS>(s, values, shrink, count, i);
    for (; i < s.wide; i += PANEL) mix_columns<HEADS, 1>(s, values, shrink, count, i);
}

// Heads from `head` on, which share one of keys, over a tile of tokens: scores first, then the softmax, then values.
template <int HEADS, Kind KIND>
static void read_heads(const AttentionTask& t, const Scratch& scratch, const int32_t* slots, int64_t count,
                       int64_t head, const Found& found) {
    const Cache& c = *t.cache;
    const int64_t kv_head = head / (t.heads / t.kv_heads);
    Scratch s = scratch;
    s.queries += head * s.wide, s.outputs += head * s.wide;
    float shrink[HEADS];
    score_heads<HEADS>(s, Lying<KIND>{c.keys, c.key_scales, slots, t.kv_heads, kv_head, t.head_dim}, count);
    for (int h = 0; h < HEADS; h++) {
        float* scores = s.scores + h * TILE;
        if (t.cap > 0) cap_scores(scores, t.cap, 0, count);
        shrink[h] = soften(scores, 0, count, round_up(count, PANEL), found.tops[head + h], found.totals[head + h]);
    }
    mix_heads<HEADS>(s, Lying<KIND>{c.values, c.value_scales, slots, t.kv_heads, kv_head, t.head_dim}, shrink, count);
}

template <Kind KIND>
static void read_tile(const AttentionTask& t, const Scratch& s, const int32_t* slots, int64_t count,
                      const Found& found) {
    const int64_t shared = t.heads / t.kv_heads;
    for (int64_t head = 0; head < t.heads;) {
        const int64_t together = least_of(shared - head % shared, HEADS_AT_ONCE);
        const auto go = [&](auto number) {
            if (together != number.value) return;
            read_heads<number.value, KIND>(t, s, slots, count, head, found);
        };
        go(Number<1>{}), go(Number<2>{});
        if constexpr (HEADS_AT_ONCE > 2) go(Number<3>{}), go(Number<4>{});
        head += together;
    }
}

static int64_t bytes_of_slot(const AttentionTask& t) {
    const Kind kind = t.cache->kind;
    return t.kv_heads * t.head_dim * (kind == Kind::floats ? 4 : kind == Kind::bf16 ? 2 : 1);
}

// Tokens [from, to) of a sequence whose keys and values are in the second cache, and their slots.
struct Fetched {
    int64_t from = 0, to = 0;
    int32_t* slots;
};

// A line of each is loaded, and nothing is done with it.
static void touch(const uint8_t* data, int64_t bytes, const Fetched& fetched) {
    for (int64_t token = 0; token < fetched.to - fetched.from; token++) {
        const volatile uint8_t* at = data + fetched.slots[token] * bytes;
        for (int64_t byte = 0; byte < bytes; byte += LINE) static_cast<void>(at[byte]);
    }
}

static void fetch(const AttentionTask& t, int64_t sequence, int64_t from, int64_t end, Fetched& fetched) {
    const int64_t bytes = bytes_of_slot(t), fit = FETCHED_BYTES / (2 * bytes) / TILE * TILE;
    fetched.from = from, fetched.to = least_of(end, from + least_of(fit < TILE ? TILE : fit, KEYS));
    find_slots(*t.cache, sequence, from, fetched.to, fetched.slots);
    touch(t.cache->keys, bytes, fetched);
    touch(t.cache->values, bytes, fetched);
}

// Spans [begin, end) of a row.
static void read_spans(const AttentionTask& t, const Scratch& scratch, int64_t sequence, int64_t row,
                       const Spans& spans, int64_t begin, int64_t end) {
    Scratch s = scratch;
    const int64_t last = least_of(spans.low + end * spans.length, spans.high);
    Fetched fetched{0, 0, s.slots};
    for (int64_t span = begin; span < end; span++) {
        const Found found = found_at(t, s.wide, row, span);
        s.outputs = found.outputs;
        for (int64_t head = 0; head < t.heads; head++) {
            take_query<Single>(t, s, row, head, head);
            found.tops[head] = -LARGEST, found.totals[head] = 0;
        }
        const int64_t high = least_of(spans.low + (span + 1) * spans.length, spans.high);
        for (int64_t from = spans.low + span * spans.length; from < high; from += TILE) {
            const int64_t count = least_of(high - from, TILE);
            if (from + count > fetched.to) fetch(t, sequence, from, last, fetched);
            const int32_t* slots = fetched.slots + from - fetched.from;
            switch (t.cache->kind) {
                case Kind::floats: read_tile<Kind::floats>(t, s, slots, count, found); break;
                case Kind::bf16: read_tile<Kind::bf16>(t, s, slots, count, found); break;
                default: read_tile<Kind::int8>(t, s, slots, count, found);
            }
        }
    }
}

// What the spans of each row found becomes its outputs.
static void gather(const AttentionTask& t, int64_t begin, int64_t end) {
    const int64_t wide = round_up(t.head_dim, PANEL);
    for (int64_t row = begin; row < end; row++) {
        if (t.few[row] < 0) continue;
        const int64_t count = spans_of(t, t.cache->places[row]).count;
        const Found first = found_at(t, wide, row, 0);
        for (int64_t head = 0; head < t.heads; head++) {
            alignas(64) float shares[SPANS] = {0}, totals[SPANS] = {0};
            for (int64_t n = 0; n < count; n++)
                shares[n] = first.tops[n * t.heads + head], totals[n] = first.totals[n * t.heads + head];
            const V tops = fill_from(load(shares), count, set1(-LARGEST));
            store(shares, exponential(tops - set1(largest(tops))));
            const float total = sum(keep_n(load(shares), count) * load(totals));
            give_output(t, row, head, total, [&](int64_t i) HASTEN_INLINE {
                V mixed = set1(0);
                for (int64_t n = 0; n < count; n++)
                    mixed = fma(set1(shares[n]), load(first.outputs + (n * t.heads + head) * wide + i), mixed);
                return mixed;
            });
        }
    }
}
