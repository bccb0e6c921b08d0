// Functions of 16 floats: exponential, activations. NaN stays NaN.
#pragma once

// Cephes' expf; a relative error of 2e-7. Beyond fp32 it gives its largest and smallest normal numbers.
static inline V exponential(V x) {
    x = vmax(set1(-87.33f), vmin(set1(88.37f), x));
    const V n = nearest(x * set1(1.44269504f));
    const V r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), x));
    V p = fma(set1(1.9875691500e-4f), r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    return times_power(fma(p * r, r, r + set1(1.0f)), n);
}

// x Phi(x), with Abramowitz and Stegun's 7.1.26 for 1 - erf (absolute error 1.5e-7): max(x, 0) - |x| (1 - Phi(|x|)).
static inline V gelu_erf(V x) {
    const V size = vmin(set1(20.0f), vabs(x)), z = size * set1(0.70710678f);
    const V t = set1(1.0f) / fma(z, set1(0.3275911f), set1(1.0f));
    V p = fma(set1(1.061405429f), t, set1(-1.453152027f));
    p = fma(p, t, set1(1.421413741f));
    p = fma(p, t, set1(-0.284496736f));
    p = fma(p, t, set1(0.254829592f)) * t;
    const V beyond = set1(0.5f) * p * exponential(set1(0.0f) - z * z);
    return vmax(set1(0.0f), x) - size * beyond;
}

static inline V sigmoid_times(V x, V u) { return x / (set1(1.0f) + exponential(set1(0.0f) - u)); }

static inline V gelu_tanh(V x) {
    const V cube = x * x * x;
    return sigmoid_times(x, set1(1.5957691216f) * fma(set1(0.044715f), cube, x));
}

static inline V hyperbolic_tangent(V x) {
    const V e = exponential(set1(2.0f) * vabs(x));
    return with_sign(set1(1.0f) - set1(2.0f) / (e + set1(1.0f)), x);
}

// Softly bounded by +-cap; above 0 only.
static inline V capped(V x, float cap) { return set1(cap) * hyperbolic_tangent(x / set1(cap)); }

static inline V activated(V x, Act act) {
    switch (act) {
        case Act::gelu_erf: return gelu_erf(x);
        case Act::gelu_tanh: return gelu_tanh(x);
        case Act::relu: return vmax(set1(0.0f), x);
        case Act::silu: return sigmoid_times(x, x);
        case Act::tanh: return hyperbolic_tangent(x);
        default: return x;
    }
}
