// Keys and values of earlier tokens: one row of one head in, or out.
#pragma once

// Where the tokens [from, to) of a sequence lie.
static void find_slots(const Cache& c, int64_t sequence, int64_t from, int64_t to, int32_t* slots) {
    const int32_t* table = c.tables + sequence * c.table_width;
    int64_t block = from / c.block_size, within = from % c.block_size;
    for (int64_t token = from; token < to; token++) {
        slots[token - from] = static_cast<int32_t>(table[block] * c.block_size + within);
        if (++within == c.block_size) within = 0, block++;
    }
}

// `which`: keys or values; `row`: slot kv_heads + head.
static inline float scale_of(const Cache& c, const float* scales, int64_t row) {
    return c.kind == Kind::int8 ? scales[row] : 1.0f;
}

static void keep_row(const Cache& c, const float* x, int64_t d, uint8_t* data, float* scales, int64_t row) {
    if (c.kind == Kind::floats) {
        __builtin_memcpy(data + row * d * 4, x, static_cast<size_t>(d) * 4);
        return;
    }
    const int64_t size = c.kind == Kind::bf16 ? 2 : 1;
    V most = set1(0), flaw = set1(0);
    for (int64_t i = 0; i < d; i += 16) {
        const V v = load_n(x + i, d - i);
        most = vmax(vabs(v), most);
        flaw = fma(v, set1(0), flaw);
    }
    const float top = largest(most);
    const bool finite = sum(flaw) == 0, nothing = !finite || top < SMALLEST_RANGE;
    const V inverse = set1(nothing ? 0.0f : 127.0f / top);
    for (int64_t i = 0; i < d; i += 16) {
        alignas(64) uint8_t piece[32];
        const V v = load_n(x + i, d - i);
        if (c.kind == Kind::bf16) store_bf16(reinterpret_cast<uint16_t*>(piece), v);
        else store_bytes(piece, nothing ? set1_i(0) : to_int(nearest(v * inverse)));
        __builtin_memcpy(data + (row * d + i) * size, piece, static_cast<size_t>((d - i < 16 ? d - i : 16) * size));
    }
    if (c.kind == Kind::int8) scales[row] = finite ? (nothing ? 0.0f : top / 127.0f) : not_a_number();
}

static void keep(const AttentionTask& t, int64_t begin, int64_t end) {
    const Cache& c = *t.cache;
    for (int64_t row = begin; row < end; row++) {
        if (c.slots[row] < 0) continue;
        const float* keys = t.input.data + row * t.input.stride + t.heads * t.head_dim;
        const float* values = keys + t.kv_heads * t.head_dim;
        for (int64_t head = 0; head < t.kv_heads; head++) {
            const int64_t at = c.slots[row] * t.kv_heads + head;
            keep_row(c, keys + head * t.head_dim, t.head_dim, c.keys, c.key_scales, at);
            keep_row(c, values + head * t.head_dim, t.head_dim, c.values, c.value_scales, at);
        }
    }
}
