// What is done row by row: norms, embeddings, activations, sums, rotary places.
#pragma once

struct Moments {
    float shift, factor;
};

static Moments moments_of(const float* x, int64_t width, float eps, NormKind kind) {
    const float count = static_cast<float>(width);
    V total = set1(0), squares = set1(0);
    float mean = 0;
    if (kind == NormKind::layer) {
        for (int64_t k = 0; k < width; k += 16) total = total + load_n(x + k, width - k);
        mean = sum(total) / count;
    }
    for (int64_t k = 0; k < width; k += 16) {
        const V off = keep_n(load(x + k) - set1(mean), width - k);
        squares = fma(off, off, squares);
    }
    return {mean, 1.0f / __builtin_sqrtf(sum(squares) / count + eps)};
}

static void norm(const NormTask& t, int64_t begin, int64_t end) {
    const int64_t width = t.input.width;
    const V one = set1(t.kind == NormKind::rms_plus_one ? 1.0f : 0.0f);
    for (int64_t row = begin; row < end; row++) {
        const float* x = t.input.data + row * t.input.stride;
        float* y = t.output.data + row * t.output.stride;
        if (t.residual) {
            const float* other = t.residual + row * t.residual_stride;
            float* total = t.total ? t.total + row * t.total_stride : y;
            for (int64_t k = 0; k < width; k += 16) store(total + k, load(x + k) + load(other + k));
            x = total;
        } else if (t.total) {
            for (int64_t k = 0; k < width; k += 16) store(t.total + row * t.total_stride + k, load(x + k));
        }
        const Moments m = moments_of(x, width, t.eps, t.kind);
        const V shift = set1(m.shift), factor = set1(m.factor);
        for (int64_t k = 0; k < width; k += 16) {
            V v = (load(x + k) - shift) * factor;
            if (t.weight) v = v * (load(t.weight + k) + one);
            if (t.bias) v = v + load(t.bias + k);
            store(y + k, keep_n(v, width - k));
        }
    }
}

static void embed(const EmbedTask& t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
        float* out = t.output.data + row * t.output.stride;
        for (int64_t k = 0; k < t.output.width; k += 16) {
            V v = table_at(t.words, t.ids[row], k) * set1(t.scale);
            if (t.positions.rows) v = v + table_at(t.positions, t.places[row] + t.first_position, k);
            if (t.types.rows) v = v + table_at(t.types, t.kinds ? t.kinds[row] : 0, k);
            store(out + k, v);
        }
    }
}

static void head_norm(const HeadNormTask& t, int64_t begin, int64_t end) {
    const int64_t d = t.head_dim;
    const V one = set1(t.kind == NormKind::rms_plus_one ? 1.0f : 0.0f);
    for (int64_t row = begin; row < end; row++) {
        for (int64_t head = t.first; head < t.first + t.heads; head++) {
            float* x = t.input.data + row * t.input.stride + head * d;
            V total = set1(0), squares = set1(0);
            for (int64_t k = 0; k < d && t.kind == NormKind::layer; k += 16) total = total + load_n(x + k, d - k);
            const V shift = set1(sum(total) / static_cast<float>(d));
            for (int64_t k = 0; k < d; k += 16) {
                const V off = keep_n(load_n(x + k, d - k) - shift, d - k);
                squares = fma(off, off, squares);
            }
            const V factor = set1(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(d) + t.eps));
            for (int64_t k = 0; k < d; k += 16) {
                const V y = (load_n(x + k, d - k) - shift) * factor * (load(t.weight + k) + one);
                store_n(x + k, y, d - k);
            }
        }
    }
}

static void activate(const Rows& input, const Rows& output, Act act, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
        for (int64_t k = 0; k < input.width; k += 16)
            store(output.data + row * output.stride + k, activated(load(input.data + row * input.stride + k), act));
}

static void add(const Rows& input, const Rows& other, const Rows& output, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
        for (int64_t k = 0; k < input.width; k += 16)
            store(output.data + row * output.stride + k,
                  load(input.data + row * input.stride + k) + load(other.data + row * other.stride + k));
}

static void normalize(const Rows& input, const Rows& output, float eps, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
        const float* x = input.data + row * input.stride;
        V squares = set1(0);
        for (int64_t k = 0; k < input.width; k += 16) {
            const V v = load_n(x + k, input.width - k);
            squares = fma(v, v, squares);
        }
        const float size = __builtin_sqrtf(sum(squares));
        const V divisor = set1(size < eps ? eps : size);
        for (int64_t k = 0; k < input.width; k += 16)
            store(output.data + row * output.stride + k, load(x + k) / divisor);
    }
}

static void rotary(const RotaryTask& t, int64_t begin, int64_t end) {
    const int64_t half = t.half;
    for (int64_t row = begin; row < end; row++) {
        const float* cosines = t.cosines + t.places[row] * half;
        const float* sines = t.sines + t.places[row] * half;
        for (int64_t head = 0; head < t.heads; head++) {
            float* first = t.input.data + row * t.input.stride + head * t.head_dim;
            float* second = first + half;
            for (int64_t i = 0; i < half; i += 16) {
                const int64_t left = half - i;
                const V a = load_n(first + i, left), b = load_n(second + i, left);
                const V c = load_n(cosines + i, left), s = load_n(sines + i, left);
                store_n(first + i, a * c - b * s, left);
                store_n(second + i, b * c + a * s, left);
            }
        }
    }
}
