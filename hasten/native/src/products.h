// The inner loops: a few rows times one or two panels of 16 outputs, over all inputs. Every accumulator is a register.
//
// Integer sums are exact. A row's fp32 sums are added in the same order however many rows are computed beside it.
#pragma once

#if defined(__clang__)
#define HASTEN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HASTEN_UNROLL _Pragma("GCC unroll 16")
#endif

static inline const uint8_t* panel_at(const Matrix& w, int64_t panel) { return w.data + panel * w.panel_bytes; }
static inline int32_t word_at(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return word;
}

// Panels of int8 [k / 4, 16, 4] and rows of u8.
struct Int8Product {
    static constexpr int64_t MOST_ROWS = MAX_ROWS;

    // With few rows, several sums at once: one would wait for itself.
    template <int ROWS, int PANELS>
    static inline void tile(const LinearTask& task, int64_t row, int64_t panel, float* values) {
        constexpr int SUMS = ROWS * PANELS >= 8 ? 1 : ROWS * PANELS >= 4 ? 2 : MAX_ROWS >= 8 ? 4 : 2;
        const Matrix& w = *task.weight;
        const uint8_t* a = task.codes.data + row * task.codes.stride;
        const uint8_t* b = panel_at(w, panel);
        const int64_t steps = (w.k + 3) / 4, stride = task.codes.stride;
        I acc[SUMS][ROWS][PANELS];
        HASTEN_UNROLL for (int s = 0; s < SUMS; s++) HASTEN_UNROLL for (int r = 0; r < ROWS; r++)
            HASTEN_UNROLL for (int p = 0; p < PANELS; p++) acc[s][r][p] = set1_i(0);
        int64_t k = 0;
        for (; k + SUMS <= steps; k += SUMS)
            HASTEN_UNROLL for (int s = 0; s < SUMS; s++) step<ROWS, PANELS>(acc[s], a, stride, b, w.panel_bytes, k + s);
        for (; k < steps; k++) step<ROWS, PANELS>(acc[0], a, stride, b, w.panel_bytes, k);
        HASTEN_UNROLL for (int r = 0; r < ROWS; r++) {
            const I zero = set1_i(task.codes.zeros[row + r]);
            const V scale = set1(task.codes.scales[row + r]);
            HASTEN_UNROLL for (int p = 0; p < PANELS; p++) {
                I total = acc[0][r][p];
                HASTEN_UNROLL for (int s = 1; s < SUMS; s++) total = total + acc[s][r][p];
                const int64_t column = (panel + p) * PANEL;
                total = total - zero * load_i(w.sums + column);
                store(values + r * 2 * PANEL + p * PANEL, to_float(total) * (scale * load(w.scales + column)));
            }
        }
    }

    template <int ROWS, int PANELS>
    static inline void step(I (&acc)[ROWS][PANELS], const uint8_t* a, int64_t stride, const uint8_t* b,
                            int64_t panel_bytes, int64_t k) {
        I weights[PANELS];
        HASTEN_UNROLL for (int p = 0; p < PANELS; p++) weights[p] = load_i(b + p * panel_bytes + k * 64);
        HASTEN_UNROLL for (int r = 0; r < ROWS; r++) {
            const I four = set1_i(word_at(a + r * stride + k * 4));
            HASTEN_UNROLL for (int p = 0; p < PANELS; p++) acc[r][p] = dot(acc[r][p], four, weights[p]);
        }
    }
};

// Panels of 4-bit codes [k / 8, 16, 4], the first four inputs of eight in the lower halves, and rows of s8.
struct Int4Product {
    static constexpr int64_t MOST_ROWS = MAX_ROWS / 2;

    template <int ROWS, int PANELS>
    static inline void tile(const LinearTask& task, int64_t row, int64_t panel, float* values) {
        const Matrix& w = *task.weight;
        const uint8_t* a = task.codes.data + row * task.codes.stride;
        const uint8_t* b = panel_at(w, panel);
        V total[ROWS][PANELS];
        HASTEN_UNROLL for (int r = 0; r < ROWS; r++)
            HASTEN_UNROLL for (int p = 0; p < PANELS; p++) total[r][p] = set1(0);
        for (int64_t g = 0; g < w.groups; g++) {
            I acc[ROWS][PANELS];
            start<ROWS, PANELS>(acc, task, row, panel, g);
            for (int64_t k = g * w.group / 8; k < (g + 1) * w.group / 8; k++)
                step<ROWS, PANELS>(acc, a, task.codes.stride, b, w.panel_bytes, k);
            HASTEN_UNROLL for (int p = 0; p < PANELS; p++) {
                const V scale = load_half(w.halves + ((panel + p) * w.groups + g) * PANEL);
                HASTEN_UNROLL for (int r = 0; r < ROWS; r++) total[r][p] = fma(to_float(acc[r][p]), scale, total[r][p]);
            }
        }
        HASTEN_UNROLL for (int r = 0; r < ROWS; r++) HASTEN_UNROLL for (int p = 0; p < PANELS; p++)
            store(values + r * 2 * PANEL + p * PANEL, total[r][p] * set1(task.codes.scales[row + r]));
    }

    // Sums begin at what the zero points take away.
    template <int ROWS, int PANELS>
    static inline void start(I (&acc)[ROWS][PANELS], const LinearTask& task, int64_t row, int64_t panel, int64_t g) {
        const Matrix& w = *task.weight;
        HASTEN_UNROLL for (int p = 0; p < PANELS; p++) {
            I zeros = set1_i(8);
            if (w.zeros) zeros = load_bytes(w.zeros + ((panel + p) * w.groups + g) * PANEL);
            HASTEN_UNROLL for (int r = 0; r < ROWS; r++)
                acc[r][p] = zeros * set1_i(-task.codes.sums[(row + r) * w.groups + g]);
        }
    }

    template <int ROWS, int PANELS>
    static inline void step(I (&acc)[ROWS][PANELS], const uint8_t* a, int64_t stride, const uint8_t* b,
                            int64_t panel_bytes, int64_t k) {
        I low[PANELS], high[PANELS];
        HASTEN_UNROLL for (int p = 0; p < PANELS; p++) {
            const I codes = load_i(b + p * panel_bytes + k * 64);
            low[p] = low_nibbles(codes), high[p] = high_nibbles(codes);
        }
        HASTEN_UNROLL for (int r = 0; r < ROWS; r++) {
            const uint8_t* row = a + r * stride + k * 8;
            const I first = set1_i(word_at(row)), second = set1_i(word_at(row + 4));
            HASTEN_UNROLL for (int p = 0; p < PANELS; p++)
                acc[r][p] = dot(dot(acc[r][p], low[p], first), high[p], second);
        }
    }
};

// What fp32 and bf16 products share: one accumulator a row and panel, `Step` inputs at a time.
template <class Steps>
struct FloatTiles {
    static constexpr int64_t MOST_ROWS = MAX_ROWS;

    template <int ROWS, int PANELS>
    static inline void tile(const LinearTask& task, int64_t row, int64_t panel, float* values) {
        const Matrix& w = *task.weight;
        V acc[ROWS][PANELS];
        HASTEN_UNROLL for (int r = 0; r < ROWS; r++) HASTEN_UNROLL for (int p = 0; p < PANELS; p++) acc[r][p] = set1(0);
        const auto* a = Steps::row(task, row);
        const int64_t stride = Steps::stride(task);
        for (int64_t k = 0; k < w.k; k += Steps::INPUTS)
            Steps::template step<ROWS, PANELS>(acc, a, stride, panel_at(w, panel), w.panel_bytes, k);
        HASTEN_UNROLL for (int r = 0; r < ROWS; r++) HASTEN_UNROLL for (int p = 0; p < PANELS; p++)
            store(values + r * 2 * PANEL + p * PANEL, acc[r][p]);
    }
};

struct PlainRows {
    static inline const float* row(const LinearTask& task, int64_t row) {
        return task.input.data + row * task.input.stride;
    }
    static inline int64_t stride(const LinearTask& task) { return task.input.stride; }
};

// Panels of fp32 [k, 16].
struct FloatSteps : PlainRows {
    static constexpr int64_t INPUTS = 1;
    template <int ROWS, int PANELS>
    static inline void step(V (&acc)[ROWS][PANELS], const float* a, int64_t stride, const uint8_t* b,
                            int64_t panel_bytes, int64_t k) {
        V weights[PANELS];
        HASTEN_UNROLL for (int p = 0; p < PANELS; p++)
            weights[p] = load(reinterpret_cast<const float*>(b + p * panel_bytes) + k * PANEL);
        HASTEN_UNROLL for (int r = 0; r < ROWS; r++) {
            const V x = set1(a[r * stride + k]);
            HASTEN_UNROLL for (int p = 0; p < PANELS; p++) acc[r][p] = fma(x, weights[p], acc[r][p]);
        }
    }
};

// Panels of bf16 [k / 2, 16, 2] and rows of fp32.
struct WideSteps : PlainRows {
    static constexpr int64_t INPUTS = 2;
    template <int ROWS, int PANELS>
    static inline void step(V (&acc)[ROWS][PANELS], const float* a, int64_t stride, const uint8_t* b,
                            int64_t panel_bytes, int64_t k) {
        V even[PANELS], odd[PANELS];
        HASTEN_UNROLL for (int p = 0; p < PANELS; p++) {
            const I pairs = load_i(b + p * panel_bytes + k * 32);
            even[p] = first_bf16(pairs), odd[p] = second_bf16(pairs);
        }
        HASTEN_UNROLL for (int r = 0; r < ROWS; r++) {
            const V x = set1(a[r * stride + k]), y = set1(a[r * stride + k + 1]);
            HASTEN_UNROLL for (int p = 0; p < PANELS; p++) acc[r][p] = fma(y, odd[p], fma(x, even[p], acc[r][p]));
        }
    }
};

using FloatProduct = FloatTiles<FloatSteps>;
using WideProduct = FloatTiles<WideSteps>;

#ifdef __AVX512BF16__
// The same panels and rows of bf16.
struct Bf16Steps {
    static constexpr int64_t INPUTS = 2;
    static inline const uint8_t* row(const LinearTask& task, int64_t row) {
        return task.codes.data + row * task.codes.stride;
    }
    static inline int64_t stride(const LinearTask& task) { return task.codes.stride; }
    template <int ROWS, int PANELS>
    static inline void step(V (&acc)[ROWS][PANELS], const uint8_t* a, int64_t stride, const uint8_t* b,
                            int64_t panel_bytes, int64_t k) {
        I weights[PANELS];
        HASTEN_UNROLL for (int p = 0; p < PANELS; p++) weights[p] = load_i(b + p * panel_bytes + k * 32);
        HASTEN_UNROLL for (int r = 0; r < ROWS; r++) {
            const I pair = set1_i(word_at(a + r * stride + k * 2));
            HASTEN_UNROLL for (int p = 0; p < PANELS; p++) acc[r][p] = dot_bf16(acc[r][p], pair, weights[p]);
        }
    }
};
using Bf16Product = FloatTiles<Bf16Steps>;
#else
using Bf16Product = WideProduct;
#endif
