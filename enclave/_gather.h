/* The input of a layer put together while it is masked: channels of several tensors side by side, pooled or not. */
enum { COPY = 0, MAX = 1, MEAN = 2 };

typedef struct {
    const float *source; /* private [batch, height, width, channels] */
    int64_t channels, first, count;
} Piece;

typedef struct {
    int64_t way, count;
    const Piece *pieces;
    int64_t height, width, out_height, out_width, size_height, size_width, down, right; /* windows and their strides */
} Gather;

/* Combine `n` values of one more position of a window with those before. */
static inline __attribute__((always_inline)) void pool_run(float *restrict row, const float *restrict x, int64_t n,
                                                           int64_t way) {
    if (way == MAX)
        for (int64_t i = 0; i < n; i++) row[i] = row[i] < x[i] ? x[i] : row[i];
    else
        for (int64_t i = 0; i < n; i++) row[i] += x[i];
}

/* Row r of the result, its pieces one after the other. */
static inline __attribute__((always_inline)) void gather_row(const Gather *g, int64_t r, float *row) {
    const int64_t b = r / (g->out_height * g->out_width), y = r / g->out_width % g->out_height, x = r % g->out_width;
    const int64_t corner = (b * g->height + y * g->down) * g->width + x * g->right;
    for (const Piece *p = g->pieces; p < g->pieces + g->count; row += p->count, p++) {
        const float *from = p->source + corner * p->channels + p->first;
        memcpy(row, from, (size_t)p->count * sizeof *row);
        if (g->way == COPY) continue;
        for (int64_t ky = 0; ky < g->size_height; ky++)
            for (int64_t kx = !ky; kx < g->size_width; kx++)
                pool_run(row, from + (ky * g->width + kx) * p->channels, p->count, g->way);
        if (g->way != MEAN) continue;
        const float share = 1.0f / (float)(g->size_height * g->size_width);
        for (int64_t i = 0; i < p->count; i++) row[i] *= share;
    }
}
