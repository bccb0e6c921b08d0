// The parts of attention: keys and values packed (keys turned: [head_dim, keys], so that 16 of them are scored at a
// time), scores, the online softmax over blocks of keys, sums of values.
#pragma once


struct Scratch {
    float *keys, *values, *scores, *queries, *outputs;
    int32_t* slots;
    int64_t wide;  // head_dim rounded up
};

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

// What scores and sums are made of, in words of 32 bits: numbers of fp32, or (where the CPU multiplies them) pairs of
// bf16, whose products are added in fp32.
struct Single {
    static constexpr int64_t PER_WORD = 1;
    static inline V word(V first, V) { return first; }
    static inline V add(V word, V other, V sum) { return fma(word, other, sum); }
};
#ifdef __AVX512BF16__
struct Pairs {
    static constexpr int64_t PER_WORD = 2;
    // The lower half of word i is first[i], the upper one second[i].
    static inline V word(V first, V second) { return paired_bf16(first, second); }
    // 32 numbers in their order.
    static inline V neighbours(V first, V second) { return neighbours_bf16(first, second); }
    static inline V add(V word, V other, V sum) { return dot_bf16(sum, bits_of(word), bits_of(other)); }
};
#else
using Pairs = Single;
#endif

// The places of `attention_scratch`.
static Scratch scratch_at(float* p, int64_t heads, int64_t head_dim) {
    Scratch s{};
    s.wide = round_up(head_dim, PANEL);
    s.keys = p;
    s.values = s.keys + s.wide * KEYS;
    s.scores = s.values + s.wide * KEYS;
    s.queries = s.scores + MOST_QUERIES * KEYS;
    s.outputs = s.queries + most_queries(heads) * s.wide;
    s.slots = reinterpret_cast<int32_t*>(s.outputs + QUERIES * s.wide);
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

// The word of a token's columns from i on: 16 of them, and of pairs 16 more. `numbers(j, i)`: as in `pack_tokens`.
template <class Form, class Numbers>
HASTEN_INLINE static inline V word_at_column(Numbers numbers, int64_t j, int64_t i, int64_t d) {
    const V second = Form::PER_WORD == 2 && i + PANEL < d ? numbers(j, i + PANEL) : set1(0);
    return Form::word(numbers(j, i), second);
}

// Keys [count, head_dim] to words [of head_dim, padded], values to words [of count, wide]; what fills up is zero.
// `key(j, i)` and `value(j, i)` give 16 numbers of token j from column i on. A word of keys holds columns i and i + 16
// of 32, and `take_query` puts its own together likewise.
template <class Form, class Key, class Value>
HASTEN_INLINE static inline void pack_tokens(const Scratch& s, int64_t d, int64_t count, Key key, Value value) {
    const int64_t padded = round_up(count, PANEL);
    for (int64_t first = 0; first < count; first += PANEL) {
        const int64_t some = least_of(count - first, PANEL);
        for (int64_t i = 0; i < d; i += PANEL * Form::PER_WORD) {
            V tokens[PANEL];
            each<PANEL>([&](auto j) HASTEN_INLINE {
                tokens[j.value] = j.value < some ? word_at_column<Form>(key, first + j.value, i, d) : set1(0);
            });
            transpose(tokens);
            const int64_t columns = least_of(d - i, PANEL);
            each<PANEL>([&](auto c) HASTEN_INLINE {
                if (c.value < columns)
                    store(s.keys + (i / Form::PER_WORD + c.value) * padded + first, tokens[c.value]);
            });
        }
    }
    for (int64_t j = 0; j < count; j += Form::PER_WORD)
        for (int64_t i = 0; i < s.wide; i += PANEL) {
            const bool last = j + 1 == count;
            const V next = Form::PER_WORD == 1 || last ? set1(0) : value(j + 1, i);
            store(s.values + j / Form::PER_WORD * s.wide + i, Form::word(value(j, i), next));
        }
}

template <class Form>
static void pack_keys(const AttentionTask& t, const Scratch& s, int64_t sequence, int64_t kv_head, int64_t from,
                      int64_t count) {
    const int64_t d = t.head_dim;
    if (!t.cache) {
        const float* k = t.input.data + (t.starts[sequence] + from) * t.input.stride + (t.heads + kv_head) * d;
        const float* v = k + t.kv_heads * d;
        const int64_t stride = t.input.stride;
        pack_tokens<Form>(
            s, d, count, [&](int64_t j, int64_t i) HASTEN_INLINE { return load_n(k + j * stride + i, d - i); },
            [&](int64_t j, int64_t i) HASTEN_INLINE { return load_n(v + j * stride + i, d - i); });
        return;
    }
    const Cache& c = *t.cache;
    find_slots(c, sequence, from, from + count, s.slots);
    const auto read = [&](const uint8_t* data, const float* scales, int64_t j, int64_t i) HASTEN_INLINE {
        const int64_t row = s.slots[j] * t.kv_heads + kv_head;
        return numbers_at(c.kind, data, row * d + i, d - i) * set1(scale_of(c, scales, row));
    };
    pack_tokens<Form>(s, d, count, [&](int64_t j, int64_t i) { return read(c.keys, c.key_scales, j, i); },
                      [&](int64_t j, int64_t i) { return read(c.values, c.value_scales, j, i); });
}

// Words of `columns` numbers: 16 of every 32, and what is left.
template <class Form>
static inline int64_t words_of(int64_t columns) {
    return columns / (PANEL * Form::PER_WORD) * PANEL + least_of(columns % (PANEL * Form::PER_WORD), PANEL);
}

template <class Form, int ROWS, int PANELS>
HASTEN_INLINE static inline void score_at(const Scratch& s, int64_t words, int64_t padded, int64_t j) {
    V acc[ROWS][PANELS];
    each_of<ROWS, PANELS>([&](auto r, auto p) HASTEN_INLINE { acc[r.value][p.value] = set1(0); });
    const float* keys = s.keys + j;
    for (int64_t i = 0; i < words; i++, keys += padded) {
        V k[PANELS];
        each<PANELS>([&](auto p) HASTEN_INLINE { k[p.value] = load(keys + p.value * PANEL); });
        each<ROWS>([&](auto r) HASTEN_INLINE {
            const V q = set1(s.queries[r.value * s.wide + i]);
            each<PANELS>([&](auto p) HASTEN_INLINE {
                V& sum = acc[r.value][p.value];
                sum = Form::add(q, k[p.value], sum);
            });
        });
    }
    each_of<ROWS, PANELS>([&](auto r, auto p) HASTEN_INLINE {
        store(s.scores + r.value * KEYS + j + p.value * PANEL, acc[r.value][p.value]);
    });
}

template <class Form, int ROWS>
static void score(const Scratch& s, int64_t head_dim, int64_t padded) {
    const int64_t words = words_of<Form>(head_dim);
    int64_t j = 0;
    for (; j + 2 * PANEL <= padded; j += 2 * PANEL) score_at<Form, ROWS, 2>(s, words, padded, j);
    if (j < padded) score_at<Form, ROWS, 1>(s, words, padded, j);
}

// A row's weights, which are 0 from `padded` on, as words of two neighbours each, in their own place.
template <class Form>
static void pair_up(float* weights, int64_t padded) {
    if constexpr (Form::PER_WORD == 2)
        for (int64_t j = 0; j < padded; j += 2 * PANEL) {
            const V second = j + PANEL < padded ? load(weights + j + PANEL) : set1(0);
            store(weights + j / 2, Form::neighbours(load(weights + j), second));
        }
}

// outputs [r] = outputs[r] shrink[r] + weights values, for columns from i on.
template <class Form, int ROWS, int PANELS>
HASTEN_INLINE static inline void mix_at(const Scratch& s, const float* shrink, int64_t words, int64_t i) {
    V acc[ROWS][PANELS];
    each_of<ROWS, PANELS>([&](auto r, auto p) HASTEN_INLINE {
        acc[r.value][p.value] = load(s.outputs + r.value * s.wide + i + p.value * PANEL) * set1(shrink[r.value]);
    });
    const float* values = s.values + i;
    for (int64_t j = 0; j < words; j++, values += s.wide) {
        V v[PANELS];
        each<PANELS>([&](auto p) HASTEN_INLINE { v[p.value] = load(values + p.value * PANEL); });
        each<ROWS>([&](auto r) HASTEN_INLINE {
            const V weight = set1(s.scores[r.value * KEYS + j]);
            each<PANELS>([&](auto p) HASTEN_INLINE {
                V& sum = acc[r.value][p.value];
                sum = Form::add(weight, v[p.value], sum);
            });
        });
    }
    each_of<ROWS, PANELS>([&](auto r, auto p) HASTEN_INLINE {
        store(s.outputs + r.value * s.wide + i + p.value * PANEL, acc[r.value][p.value]);
    });
}

template <class Form, int ROWS>
static void mix(const Scratch& s, const float* shrink, int64_t count) {
    const int64_t words = (count + Form::PER_WORD - 1) / Form::PER_WORD;
    int64_t i = 0;
    for (; i + 2 * PANEL <= s.wide; i += 2 * PANEL) mix_at<Form, ROWS, 2>(s, shrink, words, i);
    if (i < s.wide) mix_at<Form, ROWS, 1>(s, shrink, words, i);
}

static void cap_scores(float* scores, const float cap, int64_t low, int64_t high) {
    for (int64_t j = low / PANEL * PANEL; j < high; j += PANEL) store(scores + j, capped(load(scores + j), cap));
}

// Scores [low, high) of a row become exp(score - largest so far), the others 0; gives what earlier sums shrink by.
static float soften(float* scores, int64_t low, int64_t high, int64_t padded, float& top, float& total) {
    if (low >= high) {
        for (int64_t j = 0; j < padded; j += PANEL) store(scores + j, set1(0));
        return 1;
    }
    const V nothing = set1(-LARGEST);
    const int64_t begin = low / PANEL * PANEL;
    // Scores that are not seen count for nothing: before `low` and from `high` on.
    const auto seen = [&](int64_t j, V x, V other) HASTEN_INLINE {
        if (j < low) x = fill_from(other, low - j, x);
        return j + PANEL > high ? fill_from(x, high - j, other) : x;
    };
    V most = nothing;
    for (int64_t j = begin; j < high; j += PANEL) most = vmax(most, seen(j, load(scores + j), nothing));
    const float above = largest(most), now = above > top ? above : top;
    V sums = set1(0);
    for (int64_t j = begin; j < high; j += PANEL) {
        const V p = seen(j, exponential(load(scores + j) - set1(now)), set1(0));
        store(scores + j, p);
        sums = sums + p;
    }
    for (int64_t j = 0; j < begin; j += PANEL) store(scores + j, set1(0));
    for (int64_t j = round_up(high, PANEL); j < padded; j += PANEL) store(scores + j, set1(0));
    float shrunk[PANEL];
    store(shrunk, exponential(set1(top - now)));
    const float shrink = total > 0 ? shrunk[0] : 0;
    total = total * shrink + sum(sums);
    top = now;
    return shrink;
}
