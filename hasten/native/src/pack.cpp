#include "pack.h"

#include <cstring>

namespace hasten {
namespace {

// Which row of the tensor stands at a place of the panels; -1 for filling.
struct Order {
    int64_t rows;
    bool gated;

    int64_t half() const { return rows / 2; }
    int64_t panels() const { return gated ? 2 * (up_to(half(), PANEL) / PANEL) : up_to(rows, PANEL) / PANEL; }
    // Products take two panels at a time.
    int64_t filled() const { return up_to(panels(), 2); }
    int64_t row(int64_t panel, int64_t column) const {
        if (!gated) return panel * PANEL + column < rows ? panel * PANEL + column : -1;
        const int64_t output = panel / 2 * PANEL + column;
        return output < half() ? output + panel % 2 * half() : -1;
    }
};

// Where the pieces came with their contents there is nothing to write.
template <class Write>
void each_row(const Order& order, const Store& store, Write write) {
    if (store.filled()) return;
    for (int64_t panel = 0; panel < order.panels(); panel++)
        for (int64_t column = 0; column < PANEL; column++)
            if (const int64_t row = order.row(panel, column); row >= 0) write(panel, column, row);
}

// fp32, bf16 and int8 lie alike: of each output four bytes (1, 2 or 4 inputs), then those of the next.
uint8_t* pack_bytes(const TensorSpec& t, const Order& order, int64_t size, Matrix& m, Store& store) {
    const int64_t bytes = m.k * size, words = bytes / 4, left = bytes % 4;
    m.lines = words + (left > 0);
    auto* data = store.take_of<uint8_t>(order.filled() * m.lines * LINE);
    each_row(order, store, [&](int64_t panel, int64_t column, int64_t row) {
        const uint8_t* from = t.values + row * bytes;
        uint8_t* to = data + line_place(m, panel, 0) * LINE + column * 4;
        for (int64_t w = 0; w < words; w++) std::memcpy(to + w * 2 * LINE, from + w * 4, 4);
        if (left) std::memcpy(to + words * 2 * LINE, from + words * 4, static_cast<size_t>(left));
    });
    return data;
}

void pack_int8(const TensorSpec& t, const Order& order, Matrix& m, Store& store) {
    m.data = pack_bytes(t, order, 1, m, store);
    auto* scales = store.take_of<float>(order.filled() * PANEL);
    auto* sums = store.take_of<int32_t>(order.filled() * PANEL);
    each_row(order, store, [&](int64_t panel, int64_t column, int64_t row) {
        const auto* codes = reinterpret_cast<const int8_t*>(t.values) + row * m.k;
        int32_t sum = 0;
        for (int64_t k = 0; k < m.k; k++) sum += codes[k];
        std::memcpy(scales + panel * PANEL + column, t.scales + row * 4, 4);
        sums[panel * PANEL + column] = sum;
    });
    m.scales = scales, m.sums = sums;
}

// Four nibbles to four bytes.
uint32_t spread(uint32_t nibbles) {
    nibbles = (nibbles | nibbles << 8) & 0x00ff00ffu;
    return (nibbles | nibbles << 4) & 0x0f0f0f0fu;
}

void pack_codes(const uint8_t* from, int64_t bytes, int64_t columns, Kind kind, uint8_t* to) {
    for (int64_t eight = 0; eight * 4 < bytes; eight++) {
        uint8_t four[4] = {0};
        const int64_t left = bytes - eight * 4;
        std::memcpy(four, from + eight * 4, static_cast<size_t>(left < 4 ? left : 4));
        // Half a byte behind the last column is nobody's.
        if (left <= 4 && columns % 2) four[left - 1] &= 15;
        const uint32_t first = four[0] | uint32_t{four[1]} << 8, last = four[2] | uint32_t{four[3]} << 8;
        const uint32_t both = spread(first) | spread(last) << 4;
        uint8_t* line = to + line_of_codes(kind, eight * 8) * 2 * LINE;
        for (int byte = 0; byte < 4; byte++) line[byte] = static_cast<uint8_t>(both >> (8 * byte));
    }
}

// The fifth bits of an output, whose place within a line is its column: bit 4 column + i of word w is input 4 w + i's.
void pack_fifths(const uint8_t* from, int64_t columns, int64_t column, uint8_t* to) {
    for (int64_t k = 0; k < columns; k++) {
        const int64_t bit = column * 4 + k % 4;
        uint8_t* word = to + line_of_fifths(k) * 2 * LINE + k % 32 / 4 * 8;
        if (from[k / 8] >> (k % 8) & 1) word[bit / 8] = static_cast<uint8_t>(word[bit / 8] | 1 << bit % 8);
    }
}

void pack_groups(const TensorSpec& t, const Order& order, Matrix& m, Store& store) {
    m.group = t.group, m.groups = t.groups();
    const int64_t inputs = m.groups * m.group;
    m.lines = t.kind == Kind::int5 ? line_of_fifths(inputs) : line_of_codes(t.kind, inputs);
    const int64_t numbers = order.filled() * m.groups * PANEL;
    auto* data = store.take_of<uint8_t>(order.filled() * m.lines * LINE);
    auto* halves = store.take_of<uint16_t>(numbers);
    auto* zeros = t.zeros ? store.take_of<uint8_t>(numbers) : nullptr;
    auto* offsets = t.offsets ? store.take_of<uint16_t>(numbers) : nullptr;
    const int64_t bytes = (m.k + 1) / 2;
    each_row(order, store, [&](int64_t panel, int64_t column, int64_t row) {
        uint8_t* lines = data + line_place(m, panel, 0) * LINE;
        pack_codes(t.values + row * bytes, bytes, m.k, t.kind, lines + column * 4);
        if (t.fifths) pack_fifths(t.fifths + row * ((m.k + 7) / 8), m.k, column, lines);
        for (int64_t g = 0; g < m.groups; g++) {
            const int64_t place = (panel * m.groups + g) * PANEL + column;
            std::memcpy(halves + place, t.scales + (row * m.groups + g) * 2, 2);
            if (zeros) zeros[place] = t.zeros[row * m.groups + g];
            if (offsets) std::memcpy(offsets + place, t.offsets + (row * m.groups + g) * 2, 2);
        }
    });
    m.data = data, m.halves = halves, m.zeros = zeros, m.offsets = offsets;
}

}  // namespace

Matrix pack(const TensorSpec& tensor, bool gated, Store& store) {
    const Order order{tensor.rows, gated};
    Matrix m;
    m.kind = tensor.kind, m.n = tensor.rows, m.k = tensor.columns, m.panels = order.panels();
    switch (tensor.kind) {
        case Kind::int8: pack_int8(tensor, order, m, store); break;
        case Kind::int4:
        case Kind::int5: pack_groups(tensor, order, m, store); break;
        case Kind::bf16: m.data = pack_bytes(tensor, order, 2, m, store); break;
        default: m.data = pack_bytes(tensor, order, 4, m, store);
    }
    return m;
}

const float* pack_vector(const uint8_t* values, int64_t rows, bool gated, Store& store) {
    const Order order{rows, gated};
    auto* to = store.take_of<float>(order.filled() * PANEL);
    each_row(order, store, [&](int64_t panel, int64_t column, int64_t row) {
        std::memcpy(to + panel * PANEL + column, values + row * 4, 4);
    });
    return to;
}

Table pack_table(const TensorSpec& tensor, Store& store) {
    Table table;
    table.kind = tensor.kind, table.rows = tensor.rows, table.width = tensor.columns;
    const int64_t size = tensor.kind == Kind::floats ? 4 : tensor.kind == Kind::bf16 ? 2 : 1;
    const int64_t bytes = tensor.rows * tensor.columns * size;
    auto* data = store.take_of<uint8_t>(bytes);
    if (bytes && !store.filled()) std::memcpy(data, tensor.values, static_cast<size_t>(bytes));
    table.data = data;
    if (tensor.kind == Kind::int8) {
        auto* scales = store.take_of<float>(tensor.rows);
        if (tensor.rows && !store.filled()) std::memcpy(scales, tensor.scales, static_cast<size_t>(tensor.rows * 4));
        table.scales = scales;
    }
    return table;
}

}  // namespace hasten
