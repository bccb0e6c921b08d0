// The parts of attention: keys and values packed (keys turned: [head_dim, keys], so that 16 of them are scored at a
// time), scores, the online softmax over blocks of keys, sums of values.
#pragma once

constexpr int64_t TURN = 32;     // blocks of keys are filled up to a multiple of it

struct Scratch {
    float *keys, *values, *scores, *queries, *outputs, *row;
    int32_t* slots;
    int64_t wide;  // head_dim rounded up
};

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

static Scratch scratch_at(float* p, int64_t head_dim) {
    Scratch s{};
    s.wide = round_up(head_dim, PANEL);
    s.keys = p;
    s.values = s.keys + s.wide * KEYS;
    s.scores = s.values + s.wide * KEYS;
    s.queries = s.scores + MOST_QUERIES * KEYS;
    s.outputs = s.queries + QUERIES * s.wide;
    s.row = s.outputs + QUERIES * s.wide;
    s.slots = reinterpret_cast<int32_t*>(s.row + s.wide);
    return s;
}

// The place of a row in its sequence: it sees keys up to there where attention is causal.
static inline int64_t place_of(const AttentionTask& t, int64_t sequence, int64_t row) {
    return t.cache ? t.cache->places[t.starts[sequence] + row] : row;
}

static inline int64_t rows_of(const AttentionTask& t, int64_t sequence) {
    return t.starts[sequence + 1] - t.starts[sequence];
}

// Keys of a sequence, as far as its last row sees.
static inline int64_t keys_of(const AttentionTask& t, int64_t sequence) {
    const int64_t rows = rows_of(t, sequence);
    return t.cache ? place_of(t, sequence, rows - 1) + 1 : rows;
}

static inline void turn_key(const Scratch& s, const float* k, int64_t d, int64_t padded, int64_t j) {
    for (int64_t i = 0; i < d; i++) s.keys[i * padded + j] = k[i];
}

static void pack_cached(const AttentionTask& t, const Scratch& s, int64_t sequence, int64_t kv_head, int64_t from,
                        int64_t count, int64_t padded) {
    const Cache& c = *t.cache;
    const int64_t d = t.head_dim;
    for (int64_t j = 0; j < count; j++) {
        const int64_t row = slot_of(c, sequence, from + j) * t.kv_heads + kv_head;
        const V key_scale = set1(scale_of(c, c.key_scales, row)), value_scale = set1(scale_of(c, c.value_scales, row));
        for (int64_t i = 0; i < s.wide; i += PANEL) {
            store(s.row + i, numbers_at(c.kind, c.keys, row * d + i, d - i) * key_scale);
            store(s.values + j * s.wide + i, numbers_at(c.kind, c.values, row * d + i, d - i) * value_scale);
        }
        turn_key(s, s.row, d, padded, j);
    }
}

// Keys [count, head_dim] to [head_dim, padded], values to [count, wide]; what fills up is zero.
static void pack_keys(const AttentionTask& t, const Scratch& s, int64_t sequence, int64_t kv_head, int64_t from,
                      int64_t count) {
    const int64_t padded = round_up(count, TURN), d = t.head_dim;
    if (t.cache) {
        pack_cached(t, s, sequence, kv_head, from, count, padded);
    } else {
        const float* k = t.input.data + (t.starts[sequence] + from) * t.input.stride + (t.heads + kv_head) * d;
        const float* v = k + t.kv_heads * d;
        for (int64_t j = 0; j < count; j++, k += t.input.stride, v += t.input.stride) {
            turn_key(s, k, d, padded, j);
            for (int64_t i = 0; i < s.wide; i += PANEL) store(s.values + j * s.wide + i, load_n(v + i, d - i));
        }
    }
    for (int64_t j = count; j < padded; j++)
        for (int64_t i = 0; i < d; i++) s.keys[i * padded + j] = 0;
}

template <int ROWS>
static void score(const Scratch& s, int64_t head_dim, int64_t padded) {
    for (int64_t j = 0; j < padded; j += TURN) {
        V acc[ROWS][2];
        each_of<ROWS, 2>([&](auto r, auto p) HASTEN_INLINE { acc[r.value][p.value] = set1(0); });
        const float* keys = s.keys + j;
        for (int64_t i = 0; i < head_dim; i++, keys += padded) {
            const V k0 = load(keys), k1 = load(keys + PANEL);
            each<ROWS>([&](auto r) HASTEN_INLINE {
                const V q = set1(s.queries[r.value * s.wide + i]);
                acc[r.value][0] = fma(q, k0, acc[r.value][0]), acc[r.value][1] = fma(q, k1, acc[r.value][1]);
            });
        }
        each_of<ROWS, 2>([&](auto r, auto p) HASTEN_INLINE {
            store(s.scores + r.value * KEYS + j + p.value * PANEL, acc[r.value][p.value]);
        });
    }
}

// outputs [r] = outputs[r] shrink[r] + weights values, for columns from i on.
template <int ROWS, int PANELS>
HASTEN_INLINE static inline void mix_at(const Scratch& s, const float* shrink, int64_t count, int64_t i) {
    V acc[ROWS][PANELS];
    each_of<ROWS, PANELS>([&](auto r, auto p) HASTEN_INLINE {
        acc[r.value][p.value] = load(s.outputs + r.value * s.wide + i + p.value * PANEL) * set1(shrink[r.value]);
    });
    const float* values = s.values + i;
    for (int64_t j = 0; j < count; j++, values += s.wide) {
        V v[PANELS];
        each<PANELS>([&](auto p) HASTEN_INLINE { v[p.value] = load(values + p.value * PANEL); });
        each<ROWS>([&](auto r) HASTEN_INLINE {
            const V weight = set1(s.scores[r.value * KEYS + j]);
            each<PANELS>([&](auto p) HASTEN_INLINE {
                V& sum = acc[r.value][p.value];
                sum = fma(weight, v[p.value], sum);
            });
        });
    }
    each_of<ROWS, PANELS>([&](auto r, auto p) HASTEN_INLINE {
        store(s.outputs + r.value * s.wide + i + p.value * PANEL, acc[r.value][p.value]);
    });
}

template <int ROWS>
static void mix(const Scratch& s, const float* shrink, int64_t count) {
    int64_t i = 0;
    for (; i + 2 * PANEL <= s.wide; i += 2 * PANEL) mix_at<ROWS, 2>(s, shrink, count, i);
    if (i < s.wide) mix_at<ROWS, 1>(s, shrink, count, i);
}

// Scores [low, high) of a row become exp(score - largest so far), the others 0; gives what earlier sums shrink by.
static float soften(float* scores, int64_t low, int64_t high, int64_t padded, float& top, float& total) {
    if (low >= high) {
        for (int64_t j = 0; j < padded; j += PANEL) store(scores + j, set1(0));
        return 1;
    }
    const V nothing = set1(-LARGEST);
    for (int64_t j = 0; j < low; j++) scores[j] = -LARGEST;
    for (int64_t j = high; j < padded; j++) scores[j] = -LARGEST;
    V most = nothing;
    for (int64_t j = 0; j < padded; j += PANEL) most = vmax(most, load(scores + j));
    const float above = largest(most), now = above > top ? above : top;
    V sums = set1(0);
    for (int64_t j = low / PANEL * PANEL; j < high; j += PANEL) {
        V p = exponential(load(scores + j) - set1(now));
        if (j < low) p = fill_from(set1(0), low - j, p);
        if (j + PANEL > high) p = keep_n(p, high - j);
        store(scores + j, p);
        sums = sums + p;
    }
    for (int64_t j = 0; j < low / PANEL * PANEL; j += PANEL) store(scores + j, set1(0));
    for (int64_t j = round_up(high, PANEL); j < padded; j += PANEL) store(scores + j, set1(0));
    float shrunk[PANEL];
    store(shrunk, exponential(set1(top - now)));
    const float shrink = total > 0 ? shrunk[0] : 0;
    total = total * shrink + sum(sums);
    top = now;
    return shrink;
}
