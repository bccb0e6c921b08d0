// Loops that are written out while compiling, so that arrays of accumulators become registers. (A pragma comes too late
// for that in GCC: it unrolls loops after it has decided what may live in a register.)
#pragma once

#define HASTEN_INLINE __attribute__((always_inline))

template <int N>
struct Number {
    static constexpr int value = N;
};

// f(Number<0>), f(Number<1>), ... f(Number<COUNT - 1>).
template <int COUNT, int FIRST = 0, class F>
HASTEN_INLINE static inline void each(F f) {
    if constexpr (FIRST < COUNT) {
        f(Number<FIRST>{});
        each<COUNT, FIRST + 1>(f);
    }
}

// f(r, p) for all rows and panels of a tile.
template <int ROWS, int PANELS, class F>
HASTEN_INLINE static inline void each_of(F f) {
    each<ROWS>([&](auto r) HASTEN_INLINE { each<PANELS>([&](auto p) HASTEN_INLINE { f(r, p); }); });
}
