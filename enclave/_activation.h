/* Activations of a layer's epilogue. Loops that the compiler makes vectors of. */
enum { CLAMP = 0, LEAKY = 1, ELU = 2, HARD_SWISH = 3 }; /* numbered as in enclave/formats.py */

/* Clamp to [low, high], or leaky with slope low; the others have no parameters. */
typedef struct {
    int64_t kind;
    float low, high;
} Activation;

static inline __attribute__((always_inline)) void clamp_row(float *restrict t, float low, float high, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const float v = t[i] < low ? low : t[i];
        t[i] = v > high ? high : v;
    }
}

/* exp(x) - 1 for x <= 0: with x = k log 2 + r, 2^k - 1 and 2^k times a polynomial of r, which for k = 0 is all there is. */
static inline __attribute__((always_inline)) float expm1_below(float x) {
    const float low = x > -87.0f ? x : -87.0f, k = rintf(low * 1.44269504f);
    const float r = (low - k * 0.693145752f) - k * 1.42860677e-6f;
    const float tail = 1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720 + r * (1.0f / 5040))));
    const uint32_t bits = (uint32_t)((int32_t)k + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power * (r + r * r * (0.5f + r * tail)) + (power - 1.0f);
}

static inline __attribute__((always_inline)) void activate_row(float *restrict t, Activation a, int64_t n) {
    if (a.kind == LEAKY)
        for (int64_t i = 0; i < n; i++) t[i] = t[i] < 0 ? t[i] * a.low : t[i];
    else if (a.kind == ELU)
        for (int64_t i = 0; i < n; i++) t[i] = t[i] < 0 ? expm1_below(t[i] < 0 ? t[i] : 0) : t[i];
    else if (a.kind == HARD_SWISH)
        for (int64_t i = 0; i < n; i++) {
            const float up = t[i] + 3 > 0 ? t[i] + 3 : 0;
            t[i] *= (up < 6 ? up : 6) * (1.0f / 6);
        }
    else if (a.low > -INFINITY || a.high < INFINITY)
        clamp_row(t, a.low, a.high, n);
}
