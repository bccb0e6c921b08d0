// Products of rows with packed weights: which part of the work, tiles, and what follows a product (bias, activation,
// gate, residual). The products themselves stand in products.h.
#pragma once

// A tile: up to MAX_ROWS rows and two panels. Rows of a tile are 32 floats.
struct Tile {
    alignas(64) float values[MAX_ROWS * 2 * PANEL];
};

static inline void store_result(const LinearTask& task, int64_t row, int64_t panel, V value) {
    const int64_t column = panel * PANEL;
    if (task.residual) value = value + load(task.residual + row * task.residual_stride + column);
    store(task.output.data + row * task.output.stride + column, value);
}

static inline V with_bias(const LinearTask& task, int64_t panel, V value) {
    return task.bias ? value + load(task.bias + panel * PANEL) : value;
}

static void finish(const LinearTask& task, const Tile& tile, int64_t row0, int64_t rows, int64_t panel,
                   int64_t panels) {
    for (int64_t r = 0; r < rows; r++) {
        const float* values = tile.values + r * 2 * PANEL;
        if (task.gated) {
            const V gate = with_bias(task, panel, load(values)), up = with_bias(task, panel + 1, load(values + PANEL));
            store_result(task, row0 + r, panel / 2, activated(gate, task.act) * up);
            continue;
        }
        for (int64_t p = 0; p < panels; p++) {
            const V value = with_bias(task, panel + p, load(values + p * PANEL));
            store_result(task, row0 + r, panel + p, activated(value, task.act));
        }
    }
}

template <class Product, int ROWS>
static void fill(const LinearTask& task, int64_t row, int64_t panel, Tile& tile) {
    if constexpr (ROWS <= Product::MOST_ROWS) {
        each<2 / MAX_PANELS>([&](auto p) HASTEN_INLINE {
            constexpr int64_t offset = decltype(p)::value * MAX_PANELS;
            Product::template tile<ROWS, MAX_PANELS>(task, row, panel + offset, tile.values + offset * PANEL);
        });
    }
}

template <class Product>
static void fill_rows(const LinearTask& task, int64_t row, int64_t rows, int64_t panel, Tile& tile) {
    switch (rows) {
        case 1: return fill<Product, 1>(task, row, panel, tile);
        case 2: return fill<Product, 2>(task, row, panel, tile);
        case 3: return fill<Product, 3>(task, row, panel, tile);
        case 4: return fill<Product, 4>(task, row, panel, tile);
        case 5: return fill<Product, 5>(task, row, panel, tile);
        case 6: return fill<Product, 6>(task, row, panel, tile);
        case 7: return fill<Product, 7>(task, row, panel, tile);
        case 8: return fill<Product, 8>(task, row, panel, tile);
        case 9: return fill<Product, 9>(task, row, panel, tile);
        case 10: return fill<Product, 10>(task, row, panel, tile);
        case 11: return fill<Product, 11>(task, row, panel, tile);
        case 12: return fill<Product, 12>(task, row, panel, tile);
        default: return;
    }
}

// Tiles are numbered block of rows by block of rows within a pair of panels, so that a part reads its weights once.
template <class Product>
static void linear_with(const LinearTask& task, int64_t part, int64_t parts) {
    const int64_t most = Product::MOST_ROWS, blocks = (task.rows + most - 1) / most;
    const int64_t pairs = (task.weight->panels + 1) / 2, tiles = pairs * blocks;
    Tile tile;
    for (int64_t t = tiles * part / parts; t < tiles * (part + 1) / parts; t++) {
        const int64_t panel = t / blocks * 2, block = t % blocks;
        const int64_t panels = task.weight->panels - panel < 2 ? 1 : 2;
        const int64_t begin = task.rows * block / blocks, rows = task.rows * (block + 1) / blocks - begin;
        fill_rows<Product>(task, begin, rows, panel, tile);
        finish(task, tile, begin, rows, panel, panels);
    }
}

static void linear(const LinearTask& task, int64_t part, int64_t parts) {
    switch (task.weight->kind) {
        case Kind::int8: return linear_with<Int8Product>(task, part, parts);
        case Kind::int4: return linear_with<Int4Product>(task, part, parts);
        case Kind::bf16:
            if (task.codes.form == Form::bf16) return linear_with<Bf16Product>(task, part, parts);
            return linear_with<WideProduct>(task, part, parts);
        default: return linear_with<FloatProduct>(task, part, parts);
    }
}
