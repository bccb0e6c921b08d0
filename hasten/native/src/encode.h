// Rows of fp32 into the form that a product wants; the formulas stand in tensors.py beside Int8 and Int4.
#pragma once

constexpr float SMALLEST_RANGE = 1e-30f, LARGEST = 3.402823466e38f;

static inline float not_a_number() { return __builtin_nanf(""); }

struct Extent {
    float low, high;
    bool finite;
};

static inline Extent extent_of(const float* x, int64_t width) {
    V low = set1(0), high = set1(0), flaw = set1(0);
    for (int64_t k = 0; k < width; k += 16) {
        const V v = load(x + k);
        low = vmin(v, low);
        high = vmax(v, high);
        flaw = fma(v, set1(0), flaw);
    }
    const Extent found{smallest(low), largest(high), sum(flaw) == 0};
    return {found.low, found.high, found.finite && found.high - found.low <= LARGEST};
}

static void encode_u8(const float* x, int64_t width, const Codes& to, int64_t row) {
    const Extent extent = extent_of(x, width);
    const float range = extent.high - extent.low;
    uint8_t* codes = to.data + row * to.stride;
    if (!extent.finite || range < SMALLEST_RANGE) {
        for (int64_t k = 0; k < width; k += 16) store_bytes(codes + k, set1_i(0));
        to.scales[row] = extent.finite ? 0.0f : not_a_number();
        to.zeros[row] = 0;
        return;
    }
    const V inverse = set1(255.0f / range);
    const V zero = nearest(set1(-extent.low) * inverse);
    for (int64_t k = 0; k < width; k += 16) {
        const V q = nearest(load(x + k) * inverse) + zero;
        store_bytes(codes + k, to_int(vmin(vmax(q, set1(0)), set1(255))));
    }
    to.scales[row] = range / 255.0f;
    float whole[16];
    store(whole, zero);
    to.zeros[row] = static_cast<int32_t>(whole[0]);
}

static void encode_s8(const float* x, int64_t width, const Codes& to, int64_t row) {
    auto* codes = to.data + row * to.stride;
    for (int64_t g = 0; g < to.groups; g++) {
        const int64_t first = g * to.group, left = width - first;
        const Extent extent = extent_of(x + first, left < to.group ? left : to.group);
        const float size = -extent.low > extent.high ? -extent.low : extent.high;
        const bool nothing = !extent.finite || size < SMALLEST_RANGE;
        const V inverse = set1(nothing ? 0.0f : 127.0f / size);
        I total = set1_i(0);
        for (int64_t k = first; k < first + to.group; k += 16) {
            I q = set1_i(0);
            if (k < width && !nothing) q = to_int(vmin(vmax(nearest(load(x + k) * inverse), set1(-127)), set1(127)));
            total = total + q;
            store_bytes(codes + k, q);
        }
        to.sums[row * to.groups + g] = sum_i(total);
        to.scales[row * to.groups + g] = extent.finite ? (nothing ? 0.0f : size / 127.0f) : not_a_number();
    }
}

static void encode_rows(const Rows& from, const Codes& to, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
        const float* x = from.data + row * from.stride;
        if (to.form == Form::u8) encode_u8(x, from.width, to, row);
        if (to.form == Form::s8) encode_s8(x, from.width, to, row);
        if (to.form != Form::bf16) continue;
        auto* halves = reinterpret_cast<uint16_t*>(to.data + row * to.stride);
        for (int64_t k = 0; k < from.width; k += 16) store_bf16(halves + k, load(x + k));
    }
}
