/* Freivalds' check (1977) of one answer, in floats: for secret vectors s, s Y must be (s W) X.
 *
 * The right-hand side is a convolution with one filter per vector; it is computed from the enclave's own copy of what
 * was sent while the accelerator works. enclave/integrity.py derives the tolerance.
 */
enum { VECTORS = 2 };

typedef struct {
    int64_t active, batch, height, width, channels, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width, dilation_height, dilation_width, top, left;
    const float *vectors; /* [VECTORS, slots] */
    const float *filters; /* [VECTORS, kernel_height, kernel_width, channels] */
    const float *input;   /* private [batch, height, width, channels], as it was sent */
    float *expected;      /* [VECTORS + 1, rows]: right-hand sides, and the squared norms of the inputs they cover */
    float *sums;          /* [VECTORS, rows]: left-hand sides */
    double tolerance;     /* in units of those norms */
} Check;

enum { LANES = 16 };
typedef struct {
    float lane[VECTORS + 1][LANES];
} Partial;

/* Add x s0, x s1 and x x over a run of floats. */
static inline __attribute__((always_inline)) void add_run(Partial *restrict p, const float *restrict x,
                                                          const float *restrict s0, const float *restrict s1,
                                                          int64_t length) {
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES)
        for (int k = 0; k < LANES; k++) {
            p->lane[0][k] += x[i + k] * s0[i + k];
            p->lane[1][k] += x[i + k] * s1[i + k];
            p->lane[2][k] += x[i + k] * x[i + k];
        }
    for (; i < length; i++) {
        p->lane[0][0] += x[i] * s0[i];
        p->lane[1][0] += x[i] * s1[i];
        p->lane[2][0] += x[i] * x[i];
    }
}

#if HAVE_AVX512
AVX512_INLINE void add_run512(__m512 a[VECTORS + 1], const float *x, const float *s0, const float *s1, int64_t length) {
    for (int64_t i = 0; i < length; i += 16) {
        const __mmask16 some = length - i < 16 ? (__mmask16)((1u << (length - i)) - 1) : 0xffff;
        const __m512 v = _mm512_maskz_loadu_ps(some, x + i);
        a[0] = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(some, s0 + i), a[0]);
        a[1] = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(some, s1 + i), a[1]);
        a[2] = _mm512_fmadd_ps(v, v, a[2]);
    }
}
#endif

/* Calls `run` for every run of input that lies side by side under output position (y, x) of image b. */
#define FOR_RUNS(c, b, y, x, run)                                                                                     \
    for (int64_t ky = 0; ky < (c)->kernel_height; ky++) {                                                             \
        const int64_t iy = (y) * (c)->stride_height + ky * (c)->dilation_height - (c)->top;                           \
        if (iy < 0 || iy >= (c)->height) continue;                                                                    \
        const int64_t step = (c)->dilation_width == 1 ? (c)->kernel_width : 1; /* columns in one run */               \
        for (int64_t kx = 0; kx < (c)->kernel_width; kx += step) {                                                    \
            const int64_t ix = (x) * (c)->stride_width + kx * (c)->dilation_width - (c)->left;                        \
            const int64_t first = ix < 0 ? -ix : 0, last = ix + step > (c)->width ? (c)->width - ix : step;           \
            if (first >= last) continue;                                                                              \
            const int64_t from = (((b) * (c)->height + iy) * (c)->width + ix + first) * (c)->channels;                \
            const int64_t at = (ky * (c)->kernel_width + kx + first) * (c)->channels;                                 \
            run((c)->input + from, (c)->filters + at, (c)->filters + size + at, (last - first) * (c)->channels);      \
        }                                                                                                             \
    }

#define FOR_POSITIONS(c, b, y, x)                                                                                     \
    for (int64_t b = 0; b < (c)->batch; b++)                                                                          \
        for (int64_t y = 0; y < (c)->out_height; y++)                                                                 \
            for (int64_t x = 0; x < (c)->out_width; x++)

CLONES static void expect(const Check *c) {
    const int64_t rows = c->batch * c->out_height * c->out_width;
    const int64_t size = c->kernel_height * c->kernel_width * c->channels;
    int64_t p = 0;
    FOR_POSITIONS(c, b, y, x) {
        Partial partial = {{{0}}};
#define RUN(data, s0, s1, length) add_run(&partial, data, s0, s1, length)
        FOR_RUNS(c, b, y, x, RUN)
#undef RUN
        for (int v = 0; v < VECTORS + 1; v++) {
            float sum = 0;
            for (int k = 0; k < LANES; k++) sum += partial.lane[v][k];
            c->expected[v * rows + p] = sum;
        }
        p++;
    }
}

#if HAVE_AVX512
AVX512 static void expect512(const Check *c) {
    const int64_t rows = c->batch * c->out_height * c->out_width;
    const int64_t size = c->kernel_height * c->kernel_width * c->channels;
    int64_t p = 0;
    FOR_POSITIONS(c, b, y, x) {
        __m512 a[VECTORS + 1] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
#define RUN(data, s0, s1, length) add_run512(a, data, s0, s1, length)
        FOR_RUNS(c, b, y, x, RUN)
#undef RUN
        for (int v = 0; v < VECTORS + 1; v++) c->expected[v * rows + p] = _mm512_reduce_add_ps(a[v]);
        p++;
    }
}
#endif

/* The left-hand sides of rows `first` on, from the private copy [rows, slots]. */
CLONES static void sum_rows(const Check *c, const float *copy, int64_t first, int64_t rows, int64_t slots) {
    for (int64_t r = first; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) {
            const float *restrict s = c->vectors + v * slots, *restrict y = copy + r * slots;
            float lanes[LANES] = {0}, sum = 0;
            int64_t i = 0;
            for (; i + LANES <= slots; i += LANES)
                for (int k = 0; k < LANES; k++) lanes[k] += s[i + k] * y[i + k];
            for (; i < slots; i++) sum += s[i] * y[i];
            for (int k = 0; k < LANES; k++) sum += lanes[k];
            c->sums[v * rows + r] = sum;
        }
}

/* Whether both sides agree everywhere. Written so that what is not a number does not. */
static int agree(const Check *c, int64_t rows) {
    int good = 1;
    for (int v = 0; v < VECTORS; v++)
        for (int64_t p = 0; p < rows; p++) {
            const double off = fabs((double)c->sums[v * rows + p] - (double)c->expected[v * rows + p]);
            good &= off <= c->tolerance * sqrt((double)c->expected[VECTORS * rows + p]);
        }
    return good;
}
