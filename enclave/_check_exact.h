/* Freivalds' check of integer layers, which is exact: both sides are compared modulo the prime Q.
 *
 * Left-hand sides are below 2^62, at most MOST_SLOTS products of 25 and 24 bits; right-hand sides are below 2^53, at most
 * MOST_TERMS of 25 and 9, so that doubles hold them. See enclave/integrity.py.
 */
enum { Q = 67108859 };

/* a += x s0 and b += x s1 over a run of floats. */
static inline __attribute__((always_inline)) void add_run_exact(double *restrict a, double *restrict b,
                                                                const float *restrict x, const double *restrict s0,
                                                                const double *restrict s1, int64_t length) {
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES)
        for (int k = 0; k < LANES; k++) {
            a[k] += x[i + k] * s0[i + k];
            b[k] += x[i + k] * s1[i + k];
        }
    for (; i < length; i++) {
        a[0] += x[i] * s0[i];
        b[0] += x[i] * s1[i];
    }
}

/* The right-hand sides of one position: column x in row y of image b, written at p. */
CLONES static void expect_one_exact(const Check *c, int64_t b, int64_t y, int64_t x, int64_t p) {
    const int64_t rows = c->batch * c->out_height * c->out_width;
    const int64_t size = c->kernel_height * c->kernel_width * c->channels;
    const int64_t step = c->dilation_width == 1 ? c->kernel_width : 1; /* columns that lie side by side */
    double s[VECTORS][LANES] = {{0}};
    for (int64_t ky = 0; ky < c->kernel_height; ky++) {
        const int64_t iy = y * c->stride_height + ky * c->dilation_height - c->top;
        if (iy < 0 || iy >= c->height) continue;
        for (int64_t kx = 0; kx < c->kernel_width; kx += step) {
            const int64_t ix = x * c->stride_width + kx * c->dilation_width - c->left;
            const int64_t first = first_column(ix), last = last_column(c, ix, step);
            if (first >= last) continue;
            const float *from = c->input + ((b * c->height + iy) * c->width + ix + first) * c->channels;
            const double *filter = c->folded + (ky * c->kernel_width + kx + first) * c->channels;
            add_run_exact(s[0], s[1], from, filter, filter + size, (last - first) * c->channels);
        }
    }
    for (int v = 0; v < VECTORS; v++) {
        double sum = 0;
        for (int k = 0; k < LANES; k++) sum += s[v][k];
        c->exact_expected[v * rows + p] = sum;
    }
}

#if HAVE_AVX512
/* The sums of four vectors. */
AVX512_INLINE __m256d reduce4_exact(const __m512d v[4]) {
    __m256d half[4];
    UNROLL for (int k = 0; k < 4; k++)
        half[k] = _mm256_add_pd(_mm512_castpd512_pd256(v[k]), _mm512_extractf64x4_pd(v[k], 1));
    const __m256d a = _mm256_hadd_pd(half[0], half[1]), b = _mm256_hadd_pd(half[2], half[3]);
    return _mm256_add_pd(_mm256_blend_pd(a, b, 12), _mm256_permute2f128_pd(a, b, 0x21));
}

/* The same of four positions whose windows lie inside the image's columns: filters are loaded once for all. */
AVX512 static void expect4_exact(const Check *c, int64_t b, int64_t y, int64_t x, int64_t p) {
    const int64_t rows = c->batch * c->out_height * c->out_width, apart = c->stride_width * c->channels;
    const int64_t size = c->kernel_height * c->kernel_width * c->channels;
    const int64_t step = c->dilation_width == 1 ? c->kernel_width : 1, length = step * c->channels;
    __m512d sums[VECTORS][4]; /* in registers */
    UNROLL for (int v = 0; v < VECTORS; v++) UNROLL for (int k = 0; k < 4; k++) sums[v][k] = _mm512_setzero_pd();
    for (int64_t ky = 0; ky < c->kernel_height; ky++) {
        const int64_t iy = y * c->stride_height + ky * c->dilation_height - c->top;
        if (iy < 0 || iy >= c->height) continue;
        for (int64_t kx = 0; kx < c->kernel_width; kx += step) {
            const int64_t ix = x * c->stride_width + kx * c->dilation_width - c->left;
            const float *from = c->input + ((b * c->height + iy) * c->width + ix) * c->channels;
            const double *filter = c->folded + (ky * c->kernel_width + kx) * c->channels;
            for (int64_t i = 0; i < length; i += 8) {
                const __mmask8 some = length - i < 8 ? (__mmask8)((1u << (length - i)) - 1) : 0xff;
                const __m512d f0 = _mm512_maskz_loadu_pd(some, filter + i);
                const __m512d f1 = _mm512_maskz_loadu_pd(some, filter + size + i);
                UNROLL for (int k = 0; k < 4; k++) {
                    const __m512d value = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(some, from + k * apart + i));
                    sums[0][k] = _mm512_fmadd_pd(value, f0, sums[0][k]);
                    sums[1][k] = _mm512_fmadd_pd(value, f1, sums[1][k]);
                }
            }
        }
    }
    UNROLL for (int v = 0; v < VECTORS; v++)
        _mm256_storeu_pd(c->exact_expected + v * rows + p, reduce4_exact(sums[v]));
}
#endif

/* The left-hand sides of `count` rows from `first` on, from the private copy of these [count, slots]. */
CLONES static void sum_rows_exact(const Check *c, const int32_t *copy, int64_t first, int64_t count, int64_t rows,
                                  int64_t slots) {
    for (int64_t r = 0; r < count; r++)
        for (int v = 0; v < VECTORS; v++) {
            const int32_t *restrict s = c->numbers + v * slots, *restrict y = copy + r * slots;
            int64_t sum = 0;
            for (int64_t i = 0; i < slots; i++) sum += (int64_t)s[i] * y[i];
            c->exact_sums[v * rows + first + r] = sum;
        }
}

/* Whether both sides of `count` rows agree; where what was sent is not finite, no answer does. */
static int agree_exact(const Check *c, int64_t rows, int64_t first, int64_t count) {
    int good = 1;
    for (int v = 0; v < VECTORS; v++)
        for (int64_t p = v * rows + first; p < v * rows + first + count; p++) {
            const double expected = c->exact_expected[p];
            const int bounded = fabs(expected) < 0x1p53;
            good &= bounded && (c->exact_sums[p] - (int64_t)(bounded ? expected : 0)) % Q == 0;
        }
    return good;
}

/* One position, or four that `fit`, of either kind of layer. */
static void expect_at(const Check *c, int64_t b, int64_t y, int64_t x, int64_t p, int fit) {
#if HAVE_AVX512
    if (fit) {
        (c->numbers ? expect4_exact : expect4)(c, b, y, x, p);
        return;
    }
#endif
    (void)fit;
    if (c->numbers)
        expect_one_exact(c, b, y, x, p);
    else
        expect_one(c, b, y, x, p);
}

/* The right-hand sides of line r of all images. */
static void expect_line(const Check *c, int64_t r, int wide) {
#if HAVE_AVX512
    if (wide && c->channels > NARROW && !c->numbers) {
        expect_wide(c, r);
        return;
    }
#endif
    const int64_t reach = (c->kernel_width - 1) * c->dilation_width, b = r / c->out_height, y = r % c->out_height;
    for (int64_t x = 0, p = r * c->out_width; x < c->out_width;) {
        const int64_t ix = x * c->stride_width - c->left, end = ix + 3 * c->stride_width + reach;
        const int fit = wide && ix >= 0 && end < c->width && x + 4 <= c->out_width;
        expect_at(c, b, y, x, p, fit);
        x += fit ? 4 : 1, p += fit ? 4 : 1;
    }
}
