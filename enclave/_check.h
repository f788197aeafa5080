/* Freivalds' check (1977) of one answer, in floats: for secret vectors s, s Y must be (s W) X.
 *
 * The right-hand side is a convolution with one filter per vector; it is computed from the enclave's own copy of what
 * was sent, line by line while there is nothing else to do, or when it is needed. enclave/integrity.py derives the tolerance.
 */
enum { VECTORS = 2, TAPS = 3 };

typedef struct {
    int64_t active, batch, height, width, channels, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width, dilation_height, dilation_width, top, left;
    const float *vectors; /* [VECTORS, slots] */
    const float *filters; /* [VECTORS, kernel_height, kernel_width, channels] */
    const float *input;   /* private [batch, height, width, channels], as it was sent */
    float *expected;      /* [VECTORS, rows]: right-hand sides */
    float *sums;          /* [VECTORS, rows]: left-hand sides */
    float *products;      /* [TAPS * VECTORS, width + 4]: scratch */
    double tolerance;     /* in units of the largest norm of an input position */
    double least;         /* allowed besides: what numbers too small for a float lose */
    /* Instead, of integer layers (see _check_exact.h): vectors, filters, right-hand sides and left-hand sides. */
    const int32_t *numbers;
    const double *folded;
    double *exact_expected;
    int64_t *exact_sums;
} Check;

enum { LANES = 16, NARROW = 32 };
enum { SAMPLED = 32 }; /* of so many input positions the norm of one is looked at first */

/* The columns first to last of a window at column x that lie inside the image. */
static inline int64_t first_column(int64_t ix) { return ix < 0 ? -ix : 0; }
static inline int64_t last_column(const Check *c, int64_t ix, int64_t step) {
    return ix + step > c->width ? c->width - ix : step;
}

/* a += x s0 and b += x s1 over a run of floats. */
static inline __attribute__((always_inline)) void add_run(float *restrict a, float *restrict b,
                                                          const float *restrict x, const float *restrict s0,
                                                          const float *restrict s1, int64_t length) {
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
CLONES static void expect_one(const Check *c, int64_t b, int64_t y, int64_t x, int64_t p) {
    const int64_t rows = c->batch * c->out_height * c->out_width;
    const int64_t size = c->kernel_height * c->kernel_width * c->channels;
    const int64_t step = c->dilation_width == 1 ? c->kernel_width : 1; /* columns that lie side by side */
    float s[VECTORS][LANES] = {{0}};
    for (int64_t ky = 0; ky < c->kernel_height; ky++) {
        const int64_t iy = y * c->stride_height + ky * c->dilation_height - c->top;
        if (iy < 0 || iy >= c->height) continue;
        for (int64_t kx = 0; kx < c->kernel_width; kx += step) {
            const int64_t ix = x * c->stride_width + kx * c->dilation_width - c->left;
            const int64_t first = first_column(ix), last = last_column(c, ix, step);
            if (first >= last) continue;
            const float *from = c->input + ((b * c->height + iy) * c->width + ix + first) * c->channels;
            const float *filter = c->filters + (ky * c->kernel_width + kx + first) * c->channels;
            add_run(s[0], s[1], from, filter, filter + size, (last - first) * c->channels);
        }
    }
    for (int v = 0; v < VECTORS; v++) {
        float sum = 0;
        for (int i = 0; i < LANES; i++) sum += s[v][i];
        c->expected[v * rows + p] = sum;
    }
}

#if HAVE_AVX512
/* The sums of four vectors. */
AVX512_INLINE __m128 reduce4(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m256 e = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m256 f = _mm256_add_ps(_mm512_castps512_ps256(b), _mm512_extractf32x8_ps(b, 1));
    const __m256 g = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(d), _mm512_extractf32x8_ps(d, 1));
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(e, f), _mm256_hadd_ps(g, h));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

/* As expect_one for four positions whose windows lie inside the image's columns: filters are loaded once for all.
 * For few channels, where the columns of a window make one vector. */
AVX512 static void expect4(const Check *c, int64_t b, int64_t y, int64_t x, int64_t p) {
    const int64_t rows = c->batch * c->out_height * c->out_width, apart = c->stride_width * c->channels;
    const int64_t size = c->kernel_height * c->kernel_width * c->channels;
    const int64_t step = c->dilation_width == 1 ? c->kernel_width : 1, length = step * c->channels;
    __m512 a0 = _mm512_setzero_ps(), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0; /* in registers */
    for (int64_t ky = 0; ky < c->kernel_height; ky++) {
        const int64_t iy = y * c->stride_height + ky * c->dilation_height - c->top;
        if (iy < 0 || iy >= c->height) continue;
        for (int64_t kx = 0; kx < c->kernel_width; kx += step) {
            const int64_t ix = x * c->stride_width + kx * c->dilation_width - c->left;
            const float *from = c->input + ((b * c->height + iy) * c->width + ix) * c->channels;
            const float *filter = c->filters + (ky * c->kernel_width + kx) * c->channels;
            for (int64_t i = 0; i < length; i += 16) {
                const __mmask16 some = length - i < 16 ? (__mmask16)((1u << (length - i)) - 1) : 0xffff;
                const __m512 f0 = _mm512_maskz_loadu_ps(some, filter + i);
                const __m512 f1 = _mm512_maskz_loadu_ps(some, filter + size + i);
                const __m512 x0 = _mm512_maskz_loadu_ps(some, from + i);
                const __m512 x1 = _mm512_maskz_loadu_ps(some, from + apart + i);
                const __m512 x2 = _mm512_maskz_loadu_ps(some, from + 2 * apart + i);
                const __m512 x3 = _mm512_maskz_loadu_ps(some, from + 3 * apart + i);
                a0 = _mm512_fmadd_ps(x0, f0, a0), b0 = _mm512_fmadd_ps(x0, f1, b0);
                a1 = _mm512_fmadd_ps(x1, f0, a1), b1 = _mm512_fmadd_ps(x1, f1, b1);
                a2 = _mm512_fmadd_ps(x2, f0, a2), b2 = _mm512_fmadd_ps(x2, f1, b2);
                a3 = _mm512_fmadd_ps(x3, f0, a3), b3 = _mm512_fmadd_ps(x3, f1, b3);
            }
        }
    }
    _mm_storeu_ps(c->expected + p, reduce4(a0, a1, a2, a3));
    _mm_storeu_ps(c->expected + rows + p, reduce4(b0, b1, b2, b3));
}

/* Products of four input positions with the filters of up to TAPS columns of the kernel: each input is loaded once for
 * all of them. `apart` is the distance of two such filters; products of one filter lie in one row of `out`. */
AVX512_INLINE void products4(const float *const x[4], const float *filter, int64_t apart, int64_t size, int taps,
                             int64_t channels, float *out, int64_t row) {
    __m512 sums[TAPS * VECTORS][4]; /* in registers */
    UNROLL for (int f = 0; f < taps * VECTORS; f++) UNROLL for (int k = 0; k < 4; k++) sums[f][k] = _mm512_setzero_ps();
    for (int64_t i = 0; i < channels; i += 16) {
        const __mmask16 some = channels - i < 16 ? (__mmask16)((1u << (channels - i)) - 1) : 0xffff;
        __m512 v[4];
        UNROLL for (int k = 0; k < 4; k++) v[k] = _mm512_maskz_loadu_ps(some, x[k] + i);
        UNROLL for (int f = 0; f < taps * VECTORS; f++) {
            const __m512 w = _mm512_maskz_loadu_ps(some, filter + f / VECTORS * apart + f % VECTORS * size + i);
            UNROLL for (int k = 0; k < 4; k++) sums[f][k] = _mm512_fmadd_ps(v[k], w, sums[f][k]);
        }
    }
    UNROLL for (int f = 0; f < taps * VECTORS; f++)
        _mm_storeu_ps(out + f * row, reduce4(sums[f][0], sums[f][1], sums[f][2], sums[f][3]));
}

/* Add to the right-hand sides at `expected`, one row of the image, what `taps` columns of the kernel from kx on, `every`
 * apart, make of the input's row at `from`. Such columns meet the same columns of the input. */
AVX512 static void expect_taps(const Check *c, float *expected, const float *from, int64_t ky, int64_t kx, int64_t every,
                               int taps) {
    const int64_t size = c->kernel_height * c->kernel_width * c->channels, row = c->width + 4, stride = c->stride_width;
    const int64_t begin = (kx * c->dilation_width - c->left) % stride, column = begin < 0 ? begin + stride : begin;
    const int64_t count = (c->width - column + stride - 1) / stride;
    const float *filter = c->filters + (ky * c->kernel_width + kx) * c->channels;
    for (int64_t j = 0; j < count; j += 4) {
        const float *x[4];
        for (int k = 0; k < 4; k++) /* what lies behind the last one is made of it, and not used */
            x[k] = from + (column + stride * (j + k < count ? j + k : count - 1)) * c->channels;
        if (taps == 3)
            products4(x, filter, every * c->channels, size, 3, c->channels, c->products + j, row);
        else if (taps == 2)
            products4(x, filter, every * c->channels, size, 2, c->channels, c->products + j, row);
        else
            products4(x, filter, every * c->channels, size, 1, c->channels, c->products + j, row);
    }
    for (int f = 0; f < taps * VECTORS; f++) {
        const int64_t later = ((kx + f / VECTORS * every) * c->dilation_width - c->left - column) / stride;
        const int64_t first = later < 0 ? -later : 0, last = c->out_width < count - later ? c->out_width : count - later;
        float *to = expected + f % VECTORS * c->batch * c->out_height * c->out_width;
        const float *products = c->products + f * row + later;
        for (int64_t p = first; p < last; p++) to[p] += products[p];
    }
}

/* The right-hand sides of line r of all images, for more than NARROW channels: below, adding up vectors would take most
 * of the time. */
AVX512 static void expect_wide(const Check *c, int64_t r) {
    const int64_t rows = c->batch * c->out_height * c->out_width;
    float *expected = c->expected + r * c->out_width;
    for (int v = 0; v < VECTORS; v++) memset(expected + v * rows, 0, (size_t)c->out_width * sizeof *expected);
    int64_t every = 1; /* columns of the kernel so far apart meet the same columns of the input */
    while (every * c->dilation_width % c->stride_width) every++;
    for (int64_t ky = 0; ky < c->kernel_height; ky++) {
        const int64_t iy = r % c->out_height * c->stride_height + ky * c->dilation_height - c->top;
        if (iy < 0 || iy >= c->height) continue;
        const float *from = c->input + (r / c->out_height * c->height + iy) * c->width * c->channels;
        for (int64_t start = 0; start < every && start < c->kernel_width; start++)
            for (int64_t kx = start; kx < c->kernel_width; kx += TAPS * every) {
                const int64_t left = (c->kernel_width - kx + every - 1) / every;
                expect_taps(c, expected, from, ky, kx, every, left < TAPS ? (int)left : TAPS);
            }
    }
}
#endif

/* The largest squared norm of every `step`-th input position. */
CLONES static float largest_norm(const Check *c, int64_t step) {
    const int64_t positions = c->batch * c->height * c->width;
    float most = 0;
    for (int64_t p = 0; p < positions; p += step) {
        const float *x = c->input + p * c->channels;
        float lane[LANES] = {0}, sum = 0;
        int64_t i = 0;
        for (; i + LANES <= c->channels; i += LANES)
            for (int k = 0; k < LANES; k++) lane[k] += x[i + k] * x[i + k];
        for (; i < c->channels; i++) sum += x[i] * x[i];
        for (int k = 0; k < LANES; k++) sum += lane[k];
        most = sum > most ? sum : most;
    }
    return most;
}

/* The same in doubles, for inputs whose squares leave the range of floats. */
static double largest_norm_wide(const Check *c) {
    const int64_t positions = c->batch * c->height * c->width;
    double most = 0;
    for (int64_t p = 0; p < positions; p++) {
        double sum = 0;
        for (int64_t i = 0; i < c->channels; i++) {
            const double x = c->input[p * c->channels + i];
            sum += x * x;
        }
        most = sum <= most ? most : sum; /* what is not a number stays */
    }
    return most;
}

static double largest_norm_of(const Check *c) {
    const float most = largest_norm(c, 1);
    return most > 1e-28f && most < 1e37f ? most : largest_norm_wide(c);
}

/* Lines that right-hand sides are made of, one at a time. */
static int64_t lines_of(const Check *c) { return c->batch * c->out_height; }

/* How many lines need no more than the first `rows` positions of the input. */
static int64_t lines_within(const Check *c, int64_t rows) {
    const int64_t image = c->height * c->width, whole = rows / image * c->out_height;
    const int64_t reach = (c->kernel_height - 1) * c->dilation_height - c->top, there = rows % image / c->width;
    if (rows / image == c->batch || there <= reach) return whole;
    return whole + (there - reach - 1) / c->stride_height + 1;
}

/* The left-hand sides of `count` rows from `first` on, from the private copy of these [count, slots]. */
CLONES static void sum_rows(const Check *c, const float *copy, int64_t first, int64_t count, int64_t rows, int64_t slots) {
    for (int64_t r = 0; r < count; r++)
        for (int v = 0; v < VECTORS; v++) {
            const float *restrict s = c->vectors + v * slots, *restrict y = copy + r * slots;
            float lanes[LANES] = {0}, sum = 0;
            int64_t i = 0;
            for (; i + LANES <= slots; i += LANES)
                for (int k = 0; k < LANES; k++) lanes[k] += s[i + k] * y[i + k];
            for (; i < slots; i++) sum += s[i] * y[i];
            for (int k = 0; k < LANES; k++) sum += lanes[k];
            c->sums[v * rows + first + r] = sum;
        }
}

/* By how much both sides may differ if the largest squared norm is this. */
static double allowed_by(const Check *c, double norm) { return c->tolerance * sqrt(norm) + c->least; }

/* Whether both sides of `count` rows agree. Written so that what is not a number does not, nor what was sent not
 * finite. */
static int agree_within(const Check *c, int64_t rows, int64_t first, int64_t count, double allowed) {
    int good = allowed < INFINITY;
    for (int v = 0; v < VECTORS; v++) {
        const float *sums = c->sums + v * rows + first, *expected = c->expected + v * rows + first;
        for (int64_t i = 0; i < count; i++) good &= fabs((double)sums[i] - (double)expected[i]) <= allowed;
    }
    return good;
}

/* Whether both sides of `count` rows agree. `allowed` begins with the largest norm of a few positions. It is no larger
 * than that of all, so an answer that passes by it passes; honest answers stay far below the tolerance, and the rest
 * is hardly ever looked at. */
static int agree(const Check *c, int64_t rows, int64_t first, int64_t count, double *allowed) {
    if (agree_within(c, rows, first, count, *allowed)) return 1;
    *allowed = allowed_by(c, largest_norm_of(c));
    return agree_within(c, rows, first, count, *allowed);
}
