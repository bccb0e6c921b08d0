// 16 floats or 16 integers in one register of AVX-512.
#pragma once

struct V {
    __m512 v;
};
struct I {
    __m512i v;
};

static inline __mmask16 low_mask(int64_t n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

static inline V load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
static inline V load_n(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(low_mask(n), p)}; }
static inline void store_n(float* p, V a, int64_t n) { _mm512_mask_storeu_ps(p, low_mask(n), a.v); }
static inline V set1(float x) { return {_mm512_set1_ps(x)}; }
static inline V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// b where either is NaN, on every path.
static inline V vmax(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline V vmin(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline V vabs(V a) { return {_mm512_abs_ps(a.v)}; }
// The size of a with the sign of b.
static inline V with_sign(V a, V b) {
    const __m512i sign = _mm512_and_si512(_mm512_castps_si512(b.v), _mm512_set1_epi32(static_cast<int>(0x80000000u)));
    return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a.v), sign))};
}
static inline V keep_n(V a, int64_t n) { return {_mm512_maskz_mov_ps(low_mask(n), a.v)}; }
static inline V fill_from(V a, int64_t n, V b) { return {_mm512_mask_mov_ps(b.v, low_mask(n), a.v)}; }
static inline V nearest(V a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// p 2^n for whole n from -126 to 127.
static inline V times_power(V p, V n) { return {_mm512_scalef_ps(p.v, n.v)}; }
static inline float sum(V a) { return _mm512_reduce_add_ps(a.v); }
static inline float largest(V a) { return _mm512_reduce_max_ps(a.v); }
static inline float smallest(V a) { return _mm512_reduce_min_ps(a.v); }

static inline I load_i(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_i(void* p, I a) { _mm512_storeu_si512(p, a.v); }
static inline I set1_i(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline I operator-(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
static inline I operator*(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
static inline V floats_of(I a) { return {_mm512_castsi512_ps(a.v)}; }  // the same bits
static inline V to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline I to_int(V a) { return {_mm512_cvtps_epi32(a.v)}; }
static inline int32_t sum_i(I a) { return _mm512_reduce_add_epi32(a.v); }
// Lowest bytes of 16 integers.
static inline void store_bytes(uint8_t* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
static inline I load_bytes(const uint8_t* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
static inline I load_signed_bytes(const uint8_t* p) {
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
static inline I low_nibbles(I a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
static inline I high_nibbles(I a) { return {_mm512_and_si512(_mm512_srli_epi32(a.v, 4), _mm512_set1_epi8(15))}; }
// Bytes below 16, and 16 more where their bit is set.
static inline I sixteen_more(I a, const uint8_t* bits) {
    __mmask64 mask;
    __builtin_memcpy(&mask, bits, sizeof mask);
    return {_mm512_mask_add_epi8(a.v, mask, a.v, _mm512_set1_epi8(16))};
}
static inline V load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline V load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
static inline void store_bf16(uint16_t* p, V a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i even = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    even = _mm512_mask_mov_epi32(even, nan, _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(even, 16)));
}
// Of pairs of bf16: the first ones, the second ones.
static inline V first_bf16(I a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
static inline V second_bf16(I a) {
    return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}

// Rows become columns.
static inline void transpose(V (&r)[16]) {
    __m512 t[16], u[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v), t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
    }
    const auto low = [](__m512 a, __m512 b) {
        return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
    const auto high = [](__m512 a, __m512 b) {
        return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
    for (int i = 0; i < 16; i += 4) {
        u[i] = low(t[i], t[i + 2]), u[i + 1] = high(t[i], t[i + 2]);
        u[i + 2] = low(t[i + 1], t[i + 3]), u[i + 3] = high(t[i + 1], t[i + 3]);
    }
    for (int c = 0; c < 4; c++) {
        const __m512 even = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88);
        const __m512 odd = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd);
        const __m512 even8 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
        const __m512 odd8 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
        r[c].v = _mm512_shuffle_f32x4(even, even8, 0x88), r[8 + c].v = _mm512_shuffle_f32x4(even, even8, 0xdd);
        r[4 + c].v = _mm512_shuffle_f32x4(odd, odd8, 0x88), r[12 + c].v = _mm512_shuffle_f32x4(odd, odd8, 0xdd);
    }
}

// acc + sums of four products of bytes: the first operand without sign, the second with.
static inline I dot(I acc, I u, I s) {
#ifdef __AVX512VNNI__
    // Not the intrinsic: GCC 12 copies the accumulator before and after it.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(u.v), "v"(s.v));
    return acc;
#else
    const __m512i low = _mm512_set1_epi16(255);
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(u.v, low), _mm512_srai_epi16(_mm512_slli_epi16(s.v, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(u.v, 8), _mm512_srai_epi16(s.v, 8));
    return {_mm512_add_epi32(acc.v, _mm512_add_epi32(even, odd))};
#endif
}
#ifdef __AVX512BF16__
static inline V dot_bf16(V acc, I a, I b) { return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)}; }
static inline I bits_of(V a) { return {_mm512_castps_si512(a.v)}; }
// 32 numbers as bf16, in their order.
static inline V neighbours_bf16(V first, V second) {
    return {_mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(second.v, first.v))};
}
// Word i: first[i] in its lower half, second[i] in its upper one.
static inline V paired_bf16(V first, V second) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v);
    const __m512i lower = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
    const __m512i upper = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
    return {_mm512_castsi512_ps(_mm512_or_si512(lower, _mm512_slli_epi32(upper, 16)))};
}
#endif
