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

template <class Write>
void each_row(const Order& order, Write write) {
    for (int64_t panel = 0; panel < order.panels(); panel++)
        for (int64_t column = 0; column < PANEL; column++)
            if (const int64_t row = order.row(panel, column); row >= 0) write(panel, column, row);
}

void pack_int8(const TensorSpec& t, const Order& order, Matrix& m, Store& store) {
    m.panel_bytes = up_to(m.k, 4) * PANEL;
    auto* data = store.take_of<uint8_t>(order.filled() * m.panel_bytes);
    auto* scales = store.take_of<float>(order.filled() * PANEL);
    auto* sums = store.take_of<int32_t>(order.filled() * PANEL);
    each_row(order, [&](int64_t panel, int64_t column, int64_t row) {
        const auto* codes = reinterpret_cast<const int8_t*>(t.values) + row * m.k;
        uint8_t* to = data + panel * m.panel_bytes + column * 4;
        int32_t sum = 0;
        for (int64_t k = 0; k < m.k; k++) {
            to[k / 4 * 64 + k % 4] = static_cast<uint8_t>(codes[k]);
            sum += codes[k];
        }
        std::memcpy(scales + panel * PANEL + column, t.scales + row * 4, 4);
        sums[panel * PANEL + column] = sum;
    });
    m.data = data, m.scales = scales, m.sums = sums;
}

void pack_int4(const TensorSpec& t, const Order& order, Matrix& m, Store& store) {
    m.group = t.group, m.groups = t.groups();
    m.panel_bytes = m.groups * m.group / 2 * PANEL;
    auto* data = store.take_of<uint8_t>(order.filled() * m.panel_bytes);
    auto* halves = store.take_of<uint16_t>(order.filled() * m.groups * PANEL);
    auto* zeros = t.zeros ? store.take_of<uint8_t>(order.filled() * m.groups * PANEL) : nullptr;
    each_row(order, [&](int64_t panel, int64_t column, int64_t row) {
        const uint8_t* codes = t.values + row * ((m.k + 1) / 2);
        uint8_t* to = data + panel * m.panel_bytes + column * 4;
        for (int64_t k = 0; k < m.k; k++) {
            const int code = (codes[k / 2] >> (k % 2 * 4)) & 15;
            to[k / 8 * 64 + k % 4] |= static_cast<uint8_t>(code << (k % 8 / 4 * 4));
        }
        for (int64_t g = 0; g < m.groups; g++) {
            const int64_t place = (panel * m.groups + g) * PANEL + column;
            std::memcpy(halves + place, t.scales + (row * m.groups + g) * 2, 2);
            if (zeros) zeros[place] = t.zeros[row * m.groups + g];
        }
    });
    m.data = data, m.halves = halves, m.zeros = zeros;
}

// Elements of `size` bytes, `together` inputs of an output side by side.
void pack_floats(const TensorSpec& t, const Order& order, int64_t size, int64_t together, Matrix& m, Store& store) {
    m.panel_bytes = up_to(m.k, together) * PANEL * size;
    auto* data = store.take_of<uint8_t>(order.filled() * m.panel_bytes);
    each_row(order, [&](int64_t panel, int64_t column, int64_t row) {
        uint8_t* to = data + panel * m.panel_bytes;
        for (int64_t k = 0; k < m.k; k++) {
            const int64_t place = (k / together * PANEL + column) * together + k % together;
            std::memcpy(to + place * size, t.values + (row * m.k + k) * size, static_cast<size_t>(size));
        }
    });
    m.data = data;
}

}  // namespace

Matrix pack(const TensorSpec& tensor, bool gated, Store& store) {
    const Order order{tensor.rows, gated};
    Matrix m;
    m.kind = tensor.kind, m.n = tensor.rows, m.k = tensor.columns, m.panels = order.panels();
    switch (tensor.kind) {
        case Kind::int8: pack_int8(tensor, order, m, store); break;
        case Kind::int4: pack_int4(tensor, order, m, store); break;
        case Kind::bf16: pack_floats(tensor, order, 2, 2, m, store); break;
        default: pack_floats(tensor, order, 4, 1, m, store);
    }
    return m;
}

const float* pack_vector(const uint8_t* values, int64_t rows, bool gated, Store& store) {
    const Order order{rows, gated};
    auto* to = store.take_of<float>(order.filled() * PANEL);
    each_row(order, [&](int64_t panel, int64_t column, int64_t row) {
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
    if (bytes) std::memcpy(data, tensor.values, static_cast<size_t>(bytes));
    table.data = data;
    if (tensor.kind == Kind::int8) {
        auto* scales = store.take_of<float>(tensor.rows);
        if (tensor.rows) std::memcpy(scales, tensor.scales, static_cast<size_t>(tensor.rows * 4));
        table.scales = scales;
    }
    return table;
}

}  // namespace hasten
