// Attention within each sequence: fp32 scores and sums (of products of bf16, where a task says so), online softmax over
// blocks of keys.
//
// One item of work is a few queries of one head; a share takes items that lie together, so that keys and values are
// packed once a head. Sequences of a few rows over a cache read it as it lies (reading.h), some tokens an item.
#pragma once

struct Packed {
    int64_t sequence = -1, kv_head = -1, block = -1;
};

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
    for (int64_t r = 0; r < rows; r++)
        give_output(t, start + first + r, head, total[r],
                    [&](int64_t i) HASTEN_INLINE { return load(s.outputs + r * s.wide + i); });
}

// Work counted item by item, what it costs; ours are the items that begin in [begin, end).
struct Dealt {
    double begin, end, before = 0;

    bool next(int64_t cost) {
        const bool mine = before >= begin && before < end;
        before += static_cast<double>(cost);
        return mine;
    }
};

static double cost_of(const AttentionTask& t, int64_t sequence) {
    const int64_t start = t.starts[sequence], rows = rows_of(t, sequence);
    const auto heads = static_cast<double>(t.heads), keys = static_cast<double>(keys_of(t, sequence));
    if (!t.cache || t.few[start] < 0) return heads * static_cast<double>(rows) * keys;
    int64_t seen = 0;
    for (int64_t row = start; row < start + rows; row++) {
        const Spans spans = spans_of(t, t.cache->places[row]);
        seen += spans.high - spans.low;
    }
    return heads * static_cast<double>(seen);
}

// The spans of a sequence's rows that are ours.
static void attend_few(const AttentionTask& t, const Scratch& s, int64_t sequence, Dealt& dealt) {
    for (int64_t row = t.starts[sequence]; row < t.starts[sequence + 1]; row++) {
        const Spans spans = spans_of(t, t.cache->places[row]);
        int64_t first = spans.count, last = -1;
        for (int64_t n = 0; n < spans.count; n++) {
            const int64_t tokens = least_of(spans.length, spans.high - spans.low - n * spans.length);
            if (dealt.next(tokens * t.heads)) first = least_of(first, n), last = n;
        }
        read_spans(t, s, sequence, row, spans, first, last + 1);
    }
}

static void attend_many(const AttentionTask& t, const Scratch& s, int64_t sequence, Dealt& dealt, Packed& packed) {
    const int64_t rows = rows_of(t, sequence), keys = keys_of(t, sequence);
    const bool narrow = t.bf16 && keys >= MANY_KEYS;
    for (int64_t head = 0; head < t.heads; head++)
        for (int64_t first = 0; first < rows; first += QUERIES) {
            if (!dealt.next(least_of(rows - first, QUERIES) * keys)) continue;
            if (narrow) attend_item<Pairs>(t, s, sequence, head, first, packed);
            else attend_item<Single>(t, s, sequence, head, first, packed);
        }
}

// Items are dealt by what they cost: queries times keys.
static void attention(const AttentionTask& t, float* memory, const Share& share) {
    const Scratch s = scratch_at(memory, t.heads, t.head_dim);
    double all = 0;
    for (int64_t q = 0; q < t.sequences; q++) all += cost_of(t, q);
    const double end = all * static_cast<double>(share.to) / static_cast<double>(share.of);
    Dealt dealt{all * static_cast<double>(share.from) / static_cast<double>(share.of),
                share.to == share.of ? all * 2 + 1 : end};
    Packed packed;
    for (int64_t q = 0; q < t.sequences; q++) {
        if (t.cache && t.few[t.starts[q]] >= 0) attend_few(t, s, q, dealt);
        else attend_many(t, s, q, dealt, packed);
    }
}
