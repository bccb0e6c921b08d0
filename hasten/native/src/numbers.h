// Numbers of any kind from memory: tables, caches, panels of weights.
#pragma once

static inline V short_numbers(Kind kind, const uint8_t* at) {
    if (kind == Kind::bf16) return load_bf16(reinterpret_cast<const uint16_t*>(at));
    return to_float(load_signed_bytes(at));
}

// 16 numbers from a place on as fp32, those of int8 as whole numbers; from `left` on they are 0.
static inline V numbers_at(Kind kind, const uint8_t* data, int64_t place, int64_t left) {
    if (kind == Kind::floats) return load_n(reinterpret_cast<const float*>(data) + place, left);
    const int64_t size = kind == Kind::bf16 ? 2 : 1;
    const uint8_t* at = data + place * size;
    if (left >= 16) return short_numbers(kind, at);
    alignas(64) uint8_t last[32] = {0};
    __builtin_memcpy(last, at, static_cast<size_t>(left * size));
    return short_numbers(kind, last);
}

// A line of an output's panel.
static inline const uint8_t* line_at(const Matrix& m, int64_t row, int64_t line) {
    return m.data + line_place(m, row / PANEL, line) * LINE;
}
// The bytes of an output in the line of its input k, of which a line has `together`.
static inline const uint8_t* bytes_of(const Matrix& m, int64_t row, int64_t k, int64_t together, int64_t size) {
    return line_at(m, row, k / together) + row % PANEL * together * size;
}

static inline float half_number(uint16_t bits) {
    alignas(64) uint16_t half[16] = {bits};
    alignas(64) float number[16];
    store(number, load_half(half));
    return number[0];
}

// One weight of those in groups.
static float group_number(const Matrix& m, int64_t row, int64_t k) {
    const int64_t at = (row / PANEL * m.groups + k / m.group) * PANEL + row % PANEL, byte = row % PANEL * 4 + k % 4;
    const bool five = m.kind == Kind::int5;
    int code = (line_at(m, row, line_of_codes(m.kind, k))[byte] >> (k % 8 / 4 * 4)) & 15;
    if (five) code |= (line_at(m, row, line_of_fifths(k))[k % 32 / 4 * 8 + byte / 8] >> byte % 8 & 1) << 4;
    const float scale = half_number(m.halves[at]);
    if (m.offsets) return static_cast<float>(code) * scale + half_number(m.offsets[at]);
    return static_cast<float>(code - (m.zeros ? m.zeros[at] : five ? 16 : 8)) * scale;
}

// Inputs column.. of one output of packed weights.
static V panel_numbers(const Matrix& m, int64_t row, int64_t column) {
    alignas(64) float found[16] = {0};
    const int64_t last = m.k - column < 16 ? m.k - column : 16;
    for (int64_t i = 0; i < last; i++) {
        const int64_t k = column + i;
        if (m.kind == Kind::int8) {
            found[i] = static_cast<float>(static_cast<int8_t>(bytes_of(m, row, k, 4, 1)[k % 4])) * m.scales[row];
        } else if (in_groups(m.kind)) {
            found[i] = group_number(m, row, k);
        } else if (m.kind == Kind::bf16) {
            uint32_t bits = 0;
            __builtin_memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, bytes_of(m, row, k, 2, 2) + k % 2 * 2, 2);
            __builtin_memcpy(found + i, &bits, 4);
        } else {
            __builtin_memcpy(found + i, bytes_of(m, row, k, 1, 4), 4);
        }
    }
    return load(found);
}

// 16 numbers of a table's row from a column on; those beyond its width are 0.
static inline V table_at(const Table& t, int64_t row, int64_t column) {
    if (t.panels) return panel_numbers(*t.panels, row, column);
    const V found = numbers_at(t.kind, t.data, row * t.width + column, t.width - column);
    return t.kind == Kind::int8 ? found * set1(t.scales[row]) : found;
}
