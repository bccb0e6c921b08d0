// Numbers of any kind from memory: tables, caches, panels of weights.
#pragma once

// 16 numbers from a place on as fp32, those of int8 as whole numbers; from `left` on they are 0.
static inline V numbers_at(Kind kind, const uint8_t* data, int64_t place, int64_t left) {
    if (kind == Kind::floats) return load_n(reinterpret_cast<const float*>(data) + place, left);
    const int64_t size = kind == Kind::bf16 ? 2 : 1;
    const uint8_t* at = data + place * size;
    alignas(64) uint8_t last[32] = {0};
    if (left < 16) {
        __builtin_memcpy(last, at, static_cast<size_t>(left * size));
        at = last;
    }
    if (kind == Kind::bf16) return load_bf16(reinterpret_cast<const uint16_t*>(at));
    return to_float(load_signed_bytes(at));
}

// Four bytes of an output's column, from which its inputs k.. come.
static inline const uint8_t* bytes_of(const Matrix& m, int64_t row, int64_t k, int64_t together, int64_t size) {
    const int64_t panel = row / PANEL, line = (panel / 2 * m.lines + k / together) * 2 + panel % 2;
    return m.data + line * LINE + row % PANEL * together * size;
}

// Inputs column.. of one output of packed weights.
static V panel_numbers(const Matrix& m, int64_t row, int64_t column) {
    alignas(64) float found[16] = {0};
    const int64_t last = m.k - column < 16 ? m.k - column : 16;
    for (int64_t i = 0; i < last; i++) {
        const int64_t k = column + i;
        if (m.kind == Kind::int8) {
            found[i] = static_cast<float>(static_cast<int8_t>(bytes_of(m, row, k, 4, 1)[k % 4])) * m.scales[row];
        } else if (m.kind == Kind::int4) {
            const int64_t group = (row / PANEL * m.groups + k / m.group) * PANEL + row % PANEL;
            const int code = (bytes_of(m, row, k / 8 * 4, 4, 1)[k % 4] >> (k % 8 / 4 * 4)) & 15;
            alignas(64) uint16_t half[16] = {m.halves[group]};
            alignas(64) float scale[16];
            store(scale, load_half(half));
            found[i] = static_cast<float>(code - (m.zeros ? m.zeros[group] : 8)) * scale[0];
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
