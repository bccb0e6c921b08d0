// Products of rows with packed weights: which part of the work, tiles, and what follows a product (bias, activation,
// gate, residual). The products themselves stand in products.h.
#pragma once

// A tile: up to MAX_ROWS rows and two panels. Rows of a tile are 32 floats.
struct Tile {
    alignas(64) float values[MAX_ROWS * 2 * PANEL];
};

static inline void store_result(const LinearTask& task, int64_t row, int64_t panel, V value) {
    const int64_t column = panel * PANEL;
    if (task.cap > 0) value = capped(value, task.cap);
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
static void fill(const LinearTask& task, int64_t row, int64_t panel, const Ahead& ahead, Tile& tile) {
    if constexpr (ROWS <= Product::MOST_ROWS) {
        each<2 / MAX_PANELS>([&](auto p) HASTEN_INLINE {
            constexpr int64_t offset = decltype(p)::value * MAX_PANELS;
            Product::template tile<ROWS, MAX_PANELS>(task, row, panel + offset, ahead, tile.values + offset * PANEL);
        });
    }
}

template <class Product>
__attribute__((noinline)) static void fill_rows(const LinearTask& task, int64_t row, int64_t rows, int64_t panel,
                                                const Ahead& ahead, Tile& tile) {
    switch (rows) {
        case 1: return fill<Product, 1>(task, row, panel, ahead, tile);
        case 2: return fill<Product, 2>(task, row, panel, ahead, tile);
        case 3: return fill<Product, 3>(task, row, panel, ahead, tile);
        case 4: return fill<Product, 4>(task, row, panel, ahead, tile);
        case 5: return fill<Product, 5>(task, row, panel, ahead, tile);
        case 6: return fill<Product, 6>(task, row, panel, ahead, tile);
        case 7: return fill<Product, 7>(task, row, panel, ahead, tile);
        case 8: return fill<Product, 8>(task, row, panel, ahead, tile);
        case 9: return fill<Product, 9>(task, row, panel, ahead, tile);
        case 10: return fill<Product, 10>(task, row, panel, ahead, tile);
        case 11: return fill<Product, 11>(task, row, panel, ahead, tile);
        case 12: return fill<Product, 12>(task, row, panel, ahead, tile);
        default: return;
    }
}

static inline Ahead ahead_of(const Matrix& w, int64_t panel, int64_t block, int64_t blocks) {
    const uint8_t* here = panel_at(w, panel);
    if (blocks == 1) return {here + SOON, 2 * LINE, LINE};
    if (block > 1) return {here, 0, 0};
    return {here + (2 + block) * w.lines * LINE, LINE, 0};
}

// Tiles are numbered block of rows by block of rows within a pair of panels, so that a share reads its weights once.
template <class Product>
static void linear_with(const LinearTask& task, int64_t from, int64_t to, const Share& share) {
    const int64_t all = to - from, most = Product::MOST_ROWS, blocks = (all + most - 1) / most;
    const int64_t pairs = (task.weight->panels + 1) / 2, tiles = pairs * blocks;
    Tile tile;
    for (int64_t t = tiles * share.from / share.of; t < tiles * share.to / share.of; t++) {
        const int64_t panel = t / blocks * 2, block = t % blocks;
        const int64_t panels = task.weight->panels - panel < 2 ? 1 : 2;
        const int64_t begin = from + all * block / blocks, rows = from + all * (block + 1) / blocks - begin;
        fill_rows<Product>(task, begin, rows, panel, ahead_of(*task.weight, panel, block, blocks), tile);
        finish(task, tile, begin, rows, panel, panels);
    }
}

// Puts 16 outputs of a row among its best; `base` is the number of the first.
static inline void take_best(const Best& best, int64_t row, V outputs, int64_t base, int64_t count) {
    float* values = best.values + row * best.count;
    int32_t* numbers = best.numbers + row * best.count;
    if (!(largest(outputs) > values[best.count - 1])) return;
    alignas(64) float all[PANEL];
    store(all, outputs);
    for (int64_t i = 0; i < count; i++) {
        if (!(all[i] > values[best.count - 1])) continue;
        int64_t place = best.count - 1;
        for (; place > 0 && all[i] > values[place - 1]; place--)
            values[place] = values[place - 1], numbers[place] = numbers[place - 1];
        values[place] = all[i], numbers[place] = static_cast<int32_t>(base + i);
    }
}

// Makes the products of a share and gives `take(row, outputs, number of the first, how many)`.
template <class Product, class Take>
HASTEN_INLINE static inline void products_of(const LinearTask& task, const Share& share, Take take) {
    const int64_t most = Product::MOST_ROWS, blocks = (task.rows + most - 1) / most;
    const int64_t pairs = (task.weight->panels + 1) / 2;
    Tile tile;
    for (int64_t pair = pairs * share.from / share.of; pair < pairs * share.to / share.of; pair++) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t begin = task.rows * block / blocks, rows = task.rows * (block + 1) / blocks - begin;
            fill_rows<Product>(task, begin, rows, pair * 2, ahead_of(*task.weight, pair * 2, block, blocks), tile);
            for (int64_t r = 0; r < rows; r++) {
                for (int64_t p = 0; p < 2; p++) {
                    const int64_t base = (pair * 2 + p) * PANEL, left = task.weight->n - base;
                    const V outputs = with_bias(task, pair * 2 + p, load(tile.values + (r * 2 + p) * PANEL));
                    if (left > 0) take(begin + r, outputs, base, left < PANEL ? left : PANEL);
                }
            }
        }
    }
}

template <class Product>
static void top_with(const LinearTask& task, const Best& best, const Share& share) {
    for (int64_t i = 0; i < task.rows * best.count; i++) best.values[i] = -LARGEST, best.numbers[i] = -1;
    products_of<Product>(task, share, [&](int64_t row, V outputs, int64_t base, int64_t count) HASTEN_INLINE {
        take_best(best, row, outputs, base, count);
    });
}

// The softmax goes on with 16 more outputs. NaN and infinity make the sum NaN.
static inline void take_said(const Said& said, int64_t row, V outputs, int64_t base, int64_t count, int64_t asked) {
    const V seen = fill_from(outputs, count, set1(-LARGEST));
    const float most = largest(seen);
    alignas(64) float all[PANEL];
    store(all, seen);
    if (most > said.top[row]) {
        alignas(64) float shrink[PANEL];
        store(shrink, exponential(set1(said.top[row] - most)));
        said.total[row] *= shrink[0], said.top[row] = most;
        int64_t place = 0;
        while (place + 1 < count && all[place] != most) place++;
        said.number[row] = static_cast<int32_t>(base + place);
    }
    said.total[row] += sum(keep_n(exponential(seen - set1(said.top[row])), count));
    if (asked >= base && asked < base + count) said.asked[row] = all[asked - base];
}

template <class Product>
static void foretell_with(const LinearTask& task, const int32_t* asked, const Said& said, const Share& share) {
    for (int64_t i = 0; i < task.rows; i++)
        said.top[i] = -LARGEST, said.total[i] = said.asked[i] = 0, said.number[i] = 0;
    products_of<Product>(task, share, [&](int64_t row, V outputs, int64_t base, int64_t count) HASTEN_INLINE {
        if (task.cap > 0) outputs = capped(outputs, task.cap);
        take_said(said, row, outputs, base, count, asked[row]);
    });
}

// use(product) with the product for a task's weights.
template <class Use>
HASTEN_INLINE static inline void with_product(const LinearTask& task, Use use) {
    switch (task.weight->kind) {
        case Kind::int8: return use(Int8Product{});
        case Kind::int4: return use(Int4Product{});
        case Kind::int5: return use(Int5Product{});
        case Kind::bf16: return task.codes.form == Form::bf16 ? use(Bf16Product{}) : use(WideProduct{});
        default: return use(FloatProduct{});
    }
}

static void foretell(const LinearTask& task, const int32_t* asked, const Said& said, const Share& share) {
    with_product(task, [&](auto product) { foretell_with<decltype(product)>(task, asked, said, share); });
}

static void top(const LinearTask& task, const Best& best, const Share& share) {
    with_product(task, [&](auto product) { top_with<decltype(product)>(task, best, share); });
}

static void linear(const LinearTask& task, int64_t begin, int64_t end, const Share& share) {
    with_product(task, [&](auto product) { linear_with<decltype(product)>(task, begin, end, share); });
}
