// 16 floats or 16 integers as vectors of the compiler's own (GCC, clang); NEON adds its dot product.
#pragma once

typedef float Floats16 __attribute__((vector_size(64)));
typedef int32_t Ints16 __attribute__((vector_size(64)));
typedef uint32_t Bits16 __attribute__((vector_size(64)));

struct V {
    Floats16 v;
};
struct I {
    Ints16 v;
};

template <class T>
static inline T read_as(const void* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}
static inline Bits16 bits(V a) { return (Bits16)a.v; }
static inline V from_bits(Bits16 a) { return {(Floats16)a}; }

static inline V load(const float* p) { return read_as<V>(p); }
static inline void store(float* p, V a) { std::memcpy(p, &a, sizeof a); }
static inline V set1(float x) { return {Floats16{} + x}; }
static inline V load_n(const float* p, int64_t n) {
    V a = set1(0);
    std::memcpy(&a, p, static_cast<size_t>(n < 16 ? n : 16) * sizeof(float));
    return a;
}
static inline void store_n(float* p, V a, int64_t n) {
    std::memcpy(p, &a, static_cast<size_t>(n < 16 ? n : 16) * sizeof(float));
}
static inline V operator+(V a, V b) { return {a.v + b.v}; }
static inline V operator-(V a, V b) { return {a.v - b.v}; }
static inline V operator*(V a, V b) { return {a.v * b.v}; }
static inline V operator/(V a, V b) { return {a.v / b.v}; }
static inline V fma(V a, V b, V c) { return {a.v * b.v + c.v}; }
static inline V vmax(V a, V b) { return {a.v > b.v ? a.v : b.v}; }
static inline V vmin(V a, V b) { return {a.v < b.v ? a.v : b.v}; }
static inline V vabs(V a) { return from_bits(bits(a) & 0x7fffffffu); }
static inline V with_sign(V a, V b) { return from_bits(bits(a) | (bits(b) & 0x80000000u)); }
static inline V fill_from(V a, int64_t n, V b) {
    for (int64_t i = n < 0 ? 0 : n; i < 16; i++) a.v[i] = b.v[i];
    return a;
}
static inline V keep_n(V a, int64_t n) { return fill_from(a, n, set1(0)); }
// Adding 1.5 2^23 leaves no place for a fraction; beyond 2^22 there is none.
static inline V nearest(V a) {
    const Floats16 shift = Floats16{} + 12582912.0f;
    const Floats16 rounded = (a.v + shift) - shift;
    return {vabs(a).v < 4194304.0f ? rounded : a.v};
}
static inline I to_int(V a) {
    return {__builtin_convertvector(nearest(a).v, Ints16)};
}
static inline V times_power(V p, V n) {
    return {p.v * from_bits((Bits16)(to_int(n).v + 127) << 23).v};
}
static inline float sum(V a) {
    float total[8];
    for (int i = 0; i < 8; i++) total[i] = a.v[i] + a.v[i + 8];
    return ((total[0] + total[4]) + (total[2] + total[6])) + ((total[1] + total[5]) + (total[3] + total[7]));
}
static inline float largest(V a) {
    float found = a.v[0];
    for (int i = 1; i < 16; i++) found = found > a.v[i] ? found : a.v[i];
    return found;
}
static inline float smallest(V a) {
    float found = a.v[0];
    for (int i = 1; i < 16; i++) found = found < a.v[i] ? found : a.v[i];
    return found;
}

static inline I load_i(const void* p) { return read_as<I>(p); }
static inline void store_i(void* p, I a) { std::memcpy(p, &a, sizeof a); }
static inline I set1_i(int32_t x) { return {Ints16{} + x}; }
static inline I operator+(I a, I b) { return {a.v + b.v}; }
static inline I operator-(I a, I b) { return {a.v - b.v}; }
static inline I operator*(I a, I b) { return {a.v * b.v}; }
static inline V floats_of(I a) { return from_bits((Bits16)a.v); }
static inline V to_float(I a) { return {__builtin_convertvector(a.v, Floats16)}; }
static inline int32_t sum_i(I a) {
    int32_t total = 0;
    for (int i = 0; i < 16; i++) total += a.v[i];
    return total;
}
static inline void store_bytes(uint8_t* p, I a) {
    for (int i = 0; i < 16; i++) p[i] = static_cast<uint8_t>(a.v[i]);
}
static inline I load_bytes(const uint8_t* p) {
    I a = set1_i(0);
    for (int i = 0; i < 16; i++) a.v[i] = p[i];
    return a;
}
static inline I load_signed_bytes(const uint8_t* p) {
    I a = set1_i(0);
    for (int i = 0; i < 16; i++) a.v[i] = static_cast<int8_t>(p[i]);
    return a;
}
static inline I low_nibbles(I a) { return {a.v & 0x0f0f0f0f}; }
static inline I high_nibbles(I a) { return {(a.v >> 4) & 0x0f0f0f0f}; }
// Bytes below 16, and 16 more where their bit is set.
static inline I sixteen_more(I a, const uint8_t* bits) {
    Bits16 more = {};
    for (int i = 0; i < 16; i++) {
        const uint32_t four = static_cast<uint32_t>(bits[i / 2] >> i % 2 * 4) & 15u;
        more[i] = ((four * 0x00204081u) & 0x01010101u) << 4;
    }
    return {a.v | (decltype(a.v))more};
}
static inline V first_bf16(I a) { return from_bits((Bits16)a.v << 16); }
static inline V second_bf16(I a) { return from_bits((Bits16)a.v & 0xffff0000u); }
static inline V load_bf16(const uint16_t* p) {
    I a = set1_i(0);
    for (int i = 0; i < 16; i++) a.v[i] = p[i];
    return first_bf16(a);
}
static inline void store_bf16(uint16_t* p, V a) {
    const Bits16 all = bits(a);
    for (int i = 0; i < 16; i++) {
        const bool nan = (all[i] & 0x7fffffffu) > 0x7f800000u;
        p[i] = static_cast<uint16_t>((nan ? 0x7fc00000u : all[i] + 0x7fffu + ((all[i] >> 16) & 1u)) >> 16);
    }
}
// Exact: an exponent of 0 counts in units of 2^-24, one of 31 is infinity or NaN.
static inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 31u, part = half & 1023u;
    if (exponent == 0) {
        const float size = static_cast<float>(part) * 5.9604644775390625e-8f;
        return sign ? -size : size;
    }
    const uint32_t word = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (part << 13);
    return read_as<float>(&word);
}
static inline V load_half(const uint16_t* p) {
    V a = set1(0);
    for (int i = 0; i < 16; i++) a.v[i] = half_to_float(p[i]);
    return a;
}
// Rows become columns.
static inline void transpose(V (&r)[16]) {
    alignas(64) float from[16][16], to[16][16];
    for (int i = 0; i < 16; i++) store(from[i], r[i]);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to[j][i] = from[i][j];
    for (int i = 0; i < 16; i++) r[i] = load(to[i]);
}
static inline I dot(I acc, I u, I s) {
#ifdef HASTEN_ISA_NEON
    // Bytes without sign become bytes with sign less 128, which 128 times the sum of the others gives back.
    const auto* ub = reinterpret_cast<const uint8_t*>(&u);
    const auto* sb = reinterpret_cast<const int8_t*>(&s);
    auto* out = reinterpret_cast<int32_t*>(&acc);
    for (int i = 0; i < 4; i++) {
        const int8x16_t w = vld1q_s8(sb + 16 * i);
        const int8x16_t a = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(ub + 16 * i), vdupq_n_u8(128)));
        const int32x4_t sums = vdotq_s32(vdupq_n_s32(0), w, vdupq_n_s8(1));
        vst1q_s32(out + 4 * i, vaddq_s32(vdotq_s32(vld1q_s32(out + 4 * i), a, w), vshlq_n_s32(sums, 7)));
    }
    return acc;
#else
    const Bits16 ub = (Bits16)u.v;
    for (int byte = 0; byte < 4; byte++)
        acc.v += (Ints16)((ub >> (8 * byte)) & 255u) * ((Ints16)((Bits16)s.v << (24 - 8 * byte)) >> 24);
    return acc;
#endif
}
