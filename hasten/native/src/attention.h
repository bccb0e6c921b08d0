// Attention within each sequence: fp32 scores and sums, online softmax over blocks of keys.
//
// One item of work is a few queries of one head; a part takes items that lie together, so that keys and values are
// packed once a head (keys turned: [head_dim, keys], so that 16 keys are scored at a time).
#pragma once

constexpr int64_t TURN = 32;     // blocks of keys are filled up to a multiple of it
constexpr int64_t QUERIES = 48; // of an item

struct Scratch {
    float *keys, *values, *scores, *queries, *outputs;
    int64_t wide;  // head_dim rounded up
};

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static Scratch scratch_at(float* p, int64_t head_dim) {
    Scratch s{};
    s.wide = round_up(head_dim, PANEL);
    s.keys = p;
    s.values = s.keys + s.wide * KEYS;
    s.scores = s.values + s.wide * KEYS;
    s.queries = s.scores + ATTEND_ROWS * KEYS;
    s.outputs = s.queries + ATTEND_ROWS * s.wide;
    return s;
}

// Keys [count, head_dim] to [head_dim, padded], values to [count, wide]; what fills up is zero.
static void pack_keys(const AttentionTask& t, const Scratch& s, int64_t row, int64_t kv_head, int64_t count) {
    const int64_t padded = round_up(count, TURN), d = t.head_dim;
    const float* k = t.input.data + row * t.input.stride + (t.heads + kv_head) * d;
    const float* v = k + t.kv_heads * d;
    for (int64_t j = 0; j < count; j++, k += t.input.stride, v += t.input.stride) {
        for (int64_t i = 0; i < d; i++) s.keys[i * padded + j] = k[i];
        for (int64_t i = 0; i < s.wide; i += PANEL) store(s.values + j * s.wide + i, load_n(v + i, d - i));
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

struct Packed {
    int64_t sequence = -1, kv_head = -1, block = -1;
};

template <int ROWS>
static void attend(const AttentionTask& t, const Scratch& s, int64_t sequence, int64_t head, int64_t first,
                   Packed& packed) {
    const int64_t start = t.starts[sequence], length = t.starts[sequence + 1] - start, d = t.head_dim;
    float top[ROWS], total[ROWS], shrink[ROWS];
    for (int r = 0; r < ROWS; r++) {
        const float* q = t.input.data + (start + first + r) * t.input.stride + head * d;
        for (int64_t i = 0; i < s.wide; i += PANEL)
            store(s.queries + r * s.wide + i, load_n(q + i, d - i) * set1(t.scale));
        for (int64_t i = 0; i < s.wide; i += PANEL) store(s.outputs + r * s.wide + i, set1(0));
        top[r] = -LARGEST, total[r] = 0;
    }
    const int64_t kv_head = head / (t.heads / t.kv_heads);
    const int64_t least = t.window && first >= t.window ? first - t.window + 1 : 0;
    const int64_t reach = t.causal ? first + ROWS : t.window ? first + ROWS + t.window - 1 : length;
    const int64_t most = reach < length ? reach : length;
    for (int64_t block = least / KEYS; block * KEYS < most; block++) {
        const int64_t from = block * KEYS, count = length - from < KEYS ? length - from : KEYS;
        if (packed.sequence != sequence || packed.kv_head != kv_head || packed.block != block) {
            pack_keys(t, s, start + from, kv_head, count);
            packed = {sequence, kv_head, block};
        }
        const int64_t padded = round_up(count, TURN);
        score<ROWS>(s, d, padded);
        for (int r = 0; r < ROWS; r++) {
            const int64_t place = first + r;
            int64_t low = t.window ? place - t.window + 1 - from : 0, high = count;
            if (t.window && place + t.window - from < high) high = place + t.window - from;
            if (t.causal && place + 1 - from < high) high = place + 1 - from;
            low = low < 0 ? 0 : low;
            shrink[r] = soften(s.scores + r * KEYS, low, high < 0 ? 0 : high, padded, top[r], total[r]);
        }
        mix<ROWS>(s, shrink, count);
    }
    for (int r = 0; r < ROWS; r++) {
        float* out = t.output.data + (start + first + r) * t.output.stride;
        for (int64_t i = 0; i < d; i += PANEL)
            store_n(out + head * d + i, load(s.outputs + r * s.wide + i) / set1(total[r]), d - i);
        if (head + 1 == t.heads)
            for (int64_t i = t.output.width; i % PANEL; i++) out[i] = 0;
    }
}

static void attend_item(const AttentionTask& t, const Scratch& s, int64_t sequence, int64_t head, int64_t first,
                        Packed& packed) {
    const int64_t length = t.starts[sequence + 1] - t.starts[sequence];
    int64_t row = first;
    const int64_t end = first + QUERIES < length ? first + QUERIES : length;
    for (; row + ATTEND_ROWS <= end; row += ATTEND_ROWS) attend<ATTEND_ROWS>(t, s, sequence, head, row, packed);
    if constexpr (ATTEND_ROWS > 2) {
        if (row + 3 <= end) attend<3>(t, s, sequence, head, row, packed), row += 3;
    }
    for (; row < end; row++) attend<1>(t, s, sequence, head, row, packed);
}

// Items are dealt by what they cost: queries times keys.
static void attention(const AttentionTask& t, float* memory, int64_t part, int64_t parts) {
    const Scratch s = scratch_at(memory, t.head_dim);
    double all = 0, before = 0;
    for (int64_t q = 0; q < t.sequences; q++) {
        const double length = static_cast<double>(t.starts[q + 1] - t.starts[q]);
        all += length * length;
    }
    all *= static_cast<double>(t.heads);
    const double begin = all * static_cast<double>(part) / static_cast<double>(parts);
    const double share = all * static_cast<double>(part + 1) / static_cast<double>(parts);
    const double end = part + 1 == parts ? all * 2 + 1 : share;
    Packed packed;
    for (int64_t q = 0; q < t.sequences; q++) {
        const int64_t length = t.starts[q + 1] - t.starts[q];
        for (int64_t head = 0; head < t.heads; head++) {
            for (int64_t first = 0; first < length; first += QUERIES) {
                if (before >= begin && before < end) attend_item(t, s, q, head, first, packed);
                const int64_t queries = length - first < QUERIES ? length - first : QUERIES;
                before += static_cast<double>(queries) * static_cast<double>(length);
            }
        }
    }
}
