// The inner loops: a few rows times one or two panels of 16 outputs, over all inputs. Every accumulator is a register.
//
// Integer sums are exact. A row's fp32 sums are added in the same order however many rows are computed beside it.
#pragma once

// What is asked for while weights are multiplied. One block of rows asks for what comes SOON behind them, two lines at
// a time; of several the first two ask for the next panels, half of them each, so that memory is busy all the time.
struct Ahead {
    const uint8_t* at;
    int64_t step, second;  // bytes from line to line, and between the two

    const uint8_t* line(int64_t number) const { return at + number * step; }
};
constexpr int64_t SOON = 5120;
// Up to so many rows are mostly all rows there are, and no weight is read twice; blocks that follow each other are
// mostly larger.
constexpr int READ_ONCE = MAX_ROWS / 3;

static inline int32_t word_at(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return word;
}
// The first line of a panel; its next one lies two lines on, those of its neighbour between.
static inline const uint8_t* panel_at(const Matrix& w, int64_t panel) {
    return w.data + line_place(w, panel, 0) * LINE;
}
// A line of each of some panels. What a few rows multiply is read once: it must not drive keys, values and the code out
// of the caches.
template <int ROWS, int PANELS>
HASTEN_INLINE static inline void take_line(I (&weights)[PANELS], const uint8_t* lines, const uint8_t* ahead,
                                           int64_t second) {
    each<PANELS>([&](auto p) HASTEN_INLINE {
        __builtin_prefetch(ahead + p.value * second, 0, ROWS <= READ_ONCE ? 0 : 3);
        weights[p.value] = load_i(lines + p.value * LINE);
    });
}
template <int R, int P>
static inline float* place_in(float* values, Number<R>, Number<P>) {
    return values + R * 2 * PANEL + P * PANEL;
}

// Panels of int8 [k / 4, 16, 4] and rows of u8.
struct Int8Product {
    static constexpr int64_t MOST_ROWS = MAX_ROWS;

    // With few rows, several sums at once: one would wait for itself.
    template <int ROWS, int PANELS>
    HASTEN_INLINE static inline void tile(const LinearTask& task, int64_t row, int64_t panel, const Ahead& ahead,
                                          float* values) {
        constexpr int SUMS = ROWS * PANELS >= 8 ? 1 : ROWS * PANELS >= 4 ? 2 : MAX_ROWS >= 8 ? 4 : 2;
        const Matrix& w = *task.weight;
        const uint8_t* a = task.codes.data + row * task.codes.stride;
        const uint8_t* b = panel_at(w, panel);
        const int64_t steps = w.lines, stride = task.codes.stride;
        I acc[SUMS][ROWS][PANELS];
        each<SUMS>([&](auto s) HASTEN_INLINE {
            each_of<ROWS, PANELS>([&](auto r, auto p) HASTEN_INLINE { acc[s.value][r.value][p.value] = set1_i(0); });
        });
        const auto step = [&](auto s, int64_t k) HASTEN_INLINE {
            I weights[PANELS];
            take_line<ROWS>(weights, b + k * 2 * LINE, ahead.line(k), ahead.second);
            each<ROWS>([&](auto r) HASTEN_INLINE {
                const I four = set1_i(word_at(a + r.value * stride + k * 4));
                each<PANELS>([&](auto p) HASTEN_INLINE {
                    I& sum = acc[s.value][r.value][p.value];
                    sum = dot(sum, four, weights[p.value]);
                });
            });
        };
        int64_t k = 0;
        for (; k + SUMS <= steps; k += SUMS) each<SUMS>([&](auto s) HASTEN_INLINE { step(s, k + s.value); });
        for (; k < steps; k++) step(Number<0>{}, k);
        each<ROWS>([&](auto r) HASTEN_INLINE {
            const I zero = set1_i(task.codes.zeros[row + r.value]);
            const V scale = set1(task.codes.scales[row + r.value]);
            each<PANELS>([&](auto p) HASTEN_INLINE {
                I total = acc[0][r.value][p.value];
                each<SUMS - 1>([&](auto s) HASTEN_INLINE { total = total + acc[s.value + 1][r.value][p.value]; });
                const int64_t column = (panel + p.value) * PANEL;
                total = total - zero * load_i(w.sums + column);
                store(place_in(values, r, p), to_float(total) * (scale * load(w.scales + column)));
            });
        });
    }
};

// Panels of codes of 4 or 5 bits in groups, as pack.h says, and rows of s8.
template <int BITS>
struct GroupProduct {
    static constexpr int64_t MOST_ROWS = MAX_ROWS / 2;
    static constexpr int MIDDLE = 1 << (BITS - 1);

    template <int ROWS, int PANELS>
    HASTEN_INLINE static inline void tile(const LinearTask& task, int64_t row, int64_t panel, const Ahead& ahead,
                                          float* values) {
        const Matrix& w = *task.weight;
        V total[ROWS][PANELS];
        each_of<ROWS, PANELS>([&](auto r, auto p) HASTEN_INLINE { total[r.value][p.value] = set1(0); });
        for (int64_t g = 0; g < w.groups; g++) {
            I acc[ROWS][PANELS];
            add_group<ROWS, PANELS>(acc, task, row, panel, g, ahead);
            each<PANELS>([&](auto p) HASTEN_INLINE {
                const int64_t at = ((panel + p.value) * w.groups + g) * PANEL;
                const V scale = load_half(w.halves + at);
                each<ROWS>([&](auto r) HASTEN_INLINE {
                    V& sum = total[r.value][p.value];
                    sum = fma(to_float(acc[r.value][p.value]), scale * set1(scale_of(task, row + r.value, g)), sum);
                });
                if (!w.offsets) return;
                const V offset = load_half(w.offsets + at);
                each<ROWS>([&](auto r) HASTEN_INLINE {
                    const float inputs = static_cast<float>(sum_of(task, row + r.value, g));
                    V& sum = total[r.value][p.value];
                    sum = fma(set1(inputs * scale_of(task, row + r.value, g)), offset, sum);
                });
            });
        }
        each_of<ROWS, PANELS>([&](auto r, auto p) HASTEN_INLINE {
            store(place_in(values, r, p), total[r.value][p.value]);
        });
    }

    static inline float scale_of(const LinearTask& task, int64_t row, int64_t g) {
        return task.codes.scales[row * task.weight->groups + g];
    }

    static inline int32_t sum_of(const LinearTask& task, int64_t row, int64_t g) {
        return task.codes.sums[row * task.weight->groups + g];
    }

    // Sums begin at what the zero points take away.
    template <int ROWS, int PANELS>
    HASTEN_INLINE static inline void add_group(I (&acc)[ROWS][PANELS], const LinearTask& task, int64_t row,
                                               int64_t panel, int64_t g, const Ahead& ahead) {
        constexpr int64_t STEPS = BITS == 5 ? 4 : 1, LINES = BITS == 5 ? 5 : 1;  // of 8 inputs between fifth bits
        const Matrix& w = *task.weight;
        const int64_t stride = task.codes.stride, units = w.group / (8 * STEPS);
        const uint8_t* a = task.codes.data + row * stride + g * w.group;
        const uint8_t* b = panel_at(w, panel) + g * units * LINES * 2 * LINE;
        each<PANELS>([&](auto p) HASTEN_INLINE {
            I zeros = set1_i(w.offsets ? 0 : MIDDLE);
            if (w.zeros) zeros = load_bytes(w.zeros + ((panel + p.value) * w.groups + g) * PANEL);
            each<ROWS>([&](auto r) HASTEN_INLINE {
                acc[r.value][p.value] = zeros * set1_i(-sum_of(task, row + r.value, g));
            });
        });
        for (int64_t unit = 0; unit < units; unit++, a += 8 * STEPS, b += LINES * 2 * LINE) {
            each<STEPS>([&](auto step) HASTEN_INLINE {
                I codes[PANELS], low[PANELS], high[PANELS];
                take_line<ROWS>(codes, b + (step.value + LINES - STEPS) * 2 * LINE,
                                ahead.line((g * units + unit) * LINES + step.value), ahead.second);
                each<PANELS>([&](auto p) HASTEN_INLINE {
                    low[p.value] = low_nibbles(codes[p.value]), high[p.value] = high_nibbles(codes[p.value]);
                    if constexpr (BITS == 5) {
                        const uint8_t* fifths = b + p.value * LINE + step.value * 16;
                        low[p.value] = sixteen_more(low[p.value], fifths);
                        high[p.value] = sixteen_more(high[p.value], fifths + 8);
                    }
                });
                each<ROWS>([&](auto r) HASTEN_INLINE {
                    const uint8_t* x = a + r.value * stride + step.value * 8;
                    const I first = set1_i(word_at(x)), second = set1_i(word_at(x + 4));
                    each<PANELS>([&](auto p) HASTEN_INLINE {
                        I& sum = acc[r.value][p.value];
                        sum = dot(dot(sum, low[p.value], first), high[p.value], second);
                    });
                });
            });
        }
    }
};
using Int4Product = GroupProduct<4>;
using Int5Product = GroupProduct<5>;

// What fp32 and bf16 products share: one accumulator a row and panel, `Step::INPUTS` inputs at a time.
template <class Step>
struct FloatTiles {
    static constexpr int64_t MOST_ROWS = MAX_ROWS;

    template <int ROWS, int PANELS>
    HASTEN_INLINE static inline void tile(const LinearTask& task, int64_t row, int64_t panel, const Ahead& ahead,
                                          float* values) {
        const Matrix& w = *task.weight;
        V acc[ROWS][PANELS];
        each_of<ROWS, PANELS>([&](auto r, auto p) HASTEN_INLINE { acc[r.value][p.value] = set1(0); });
        const auto* a = Step::row(task, row);
        const uint8_t* b = panel_at(w, panel);
        const int64_t stride = Step::stride(task);
        for (int64_t line = 0; line < w.lines; line++) {
            const int64_t k = line * Step::INPUTS;
            I words[PANELS];
            take_line<ROWS>(words, b + line * 2 * LINE, ahead.line(line), ahead.second);
            typename Step::Weights weights[PANELS];
            each<PANELS>([&](auto p) HASTEN_INLINE { weights[p.value] = Step::weights(words[p.value]); });
            each<ROWS>([&](auto r) HASTEN_INLINE {
                const auto x = Step::inputs(a + r.value * stride, k);
                each<PANELS>([&](auto p) HASTEN_INLINE {
                    V& sum = acc[r.value][p.value];
                    sum = Step::add(sum, x, weights[p.value]);
                });
            });
        }
        each_of<ROWS, PANELS>([&](auto r, auto p) HASTEN_INLINE {
            store(place_in(values, r, p), acc[r.value][p.value]);
        });
    }
};

struct PlainRows {
    static inline const float* row(const LinearTask& task, int64_t row) {
        return task.input.data + row * task.input.stride;
    }
    static inline int64_t stride(const LinearTask& task) { return task.input.stride; }
};

struct Two {
    V first, second;
};

// Panels of fp32 [k, 16].
struct FloatStep : PlainRows {
    using Weights = V;
    static constexpr int64_t INPUTS = 1;
    static inline V weights(I words) { return floats_of(words); }
    static inline V inputs(const float* a, int64_t k) { return set1(a[k]); }
    static inline V add(V sum, V x, V w) { return fma(x, w, sum); }
};

// Panels of bf16 [k / 2, 16, 2] and rows of fp32.
struct WideStep : PlainRows {
    using Weights = Two;
    static constexpr int64_t INPUTS = 2;
    static inline Two weights(I pairs) { return {first_bf16(pairs), second_bf16(pairs)}; }
    static inline Two inputs(const float* a, int64_t k) { return {set1(a[k]), set1(a[k + 1])}; }
    static inline V add(V sum, const Two& x, const Two& w) {
        return fma(x.second, w.second, fma(x.first, w.first, sum));
    }
};

using FloatProduct = FloatTiles<FloatStep>;
using WideProduct = FloatTiles<WideStep>;

#ifdef __AVX512BF16__
// The same panels and rows of bf16.
struct Bf16Step {
    using Weights = I;
    static constexpr int64_t INPUTS = 2;
    static inline const uint8_t* row(const LinearTask& task, int64_t row) {
        return task.codes.data + row * task.codes.stride;
    }
    static inline int64_t stride(const LinearTask& task) { return task.codes.stride; }
    static inline I weights(I pairs) { return pairs; }
    static inline I inputs(const uint8_t* a, int64_t k) { return set1_i(word_at(a + k * 2)); }
    static inline V add(V sum, I x, I w) { return dot_bf16(sum, x, w); }
};
using Bf16Product = FloatTiles<Bf16Step>;
#else
using Bf16Product = WideProduct;
#endif
