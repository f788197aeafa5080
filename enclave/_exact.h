/* Integer layers: what crosses are integers in floats, and what is restored from them is exact.
 *
 * Sums are made modulo 2^32. A true one fits into 32 bits and comes out right, whatever its terms are.
 */
enum { COLUMNS = 64 };
enum { INFINITE = 0x7f800000, LIMIT = 0x4b800000 }; /* bits of infinity and of 2^24, a bound of honest sums */

/* What an answer is of whose values `worst` has the largest exponent. */
static int possible(uint32_t worst, int whole) {
    if (worst >= INFINITE) return NOT_FINITE;
    return worst < LIMIT && whole ? OK : NOT_RIGHT;
}

/* Copy shared memory into private memory as integers: each byte is read once. */
CLONES static int copy_exact(int32_t *restrict private_, const float *restrict shared, int64_t count) {
    uint32_t worst = 0;
    int whole = 1;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        const float value = shared[i];
        memcpy(&bits, &value, sizeof bits);
        const uint32_t exponent = bits & INFINITE;
        worst = exponent > worst ? exponent : worst;
        private_[i] = exponent < LIMIT ? (int32_t)value : 0;
        whole &= (float)private_[i] == value;
    }
    return possible(worst, whole);
}

/* What the sums of row r are multiplied by, besides the multiplier. */
static float step_of(const Finish *f, int64_t r) { return f->scales ? f->scales[r / f->scope].step : 1.0f; }

/* t = step multiplier (sum of coefficient y[slot] + bias - pop), the sum modulo 2^32. */
static inline __attribute__((always_inline)) void restore_row_exact(const Finish *f, const int32_t *restrict y,
                                                                    const uint32_t *restrict pop, float step,
                                                                    float *restrict t) {
    const uint32_t *coefficient = (const uint32_t *)(const void *)f->coefficient;
    const uint32_t *bias = (const uint32_t *)(const void *)f->bias;
    for (int64_t at = 0; at < f->n; at += COLUMNS) {
        const int64_t width = f->n - at < COLUMNS ? f->n - at : COLUMNS;
        uint32_t sum[COLUMNS] = {0};
        for (int64_t k = 0; k < f->terms; k++) {
            const int32_t *restrict slot = f->slot + k * f->n + at;
            const uint32_t *restrict c = coefficient + k * f->n + at;
            for (int64_t i = 0; i < width; i++) sum[i] += c[i] * (uint32_t)y[slot[i]];
        }
        if (bias)
            for (int64_t i = 0; i < width; i++) sum[i] += bias[at + i];
        if (pop)
            for (int64_t i = 0; i < width; i++) sum[i] -= pop[at + i];
        for (int64_t i = 0; i < width; i++) t[at + i] = (float)(int32_t)sum[i] * step * f->multiplier[at + i];
    }
}

#if HAVE_AVX512
/* Sums of the even and the odd positions of a block of 16, for each vector. */
typedef struct {
    __m512i even[VECTORS], odd[VECTORS];
} Sums;

/* Store a slot's answers of a block as integers, and add them to the sums; returns which are none. */
AVX512_INLINE __mmask16 take_slot(Sums *sums, int32_t *to, __m512 answers, const int32_t *numbers, int64_t slots) {
    const __m512i value = _mm512_cvtps_epi32(answers), high = _mm512_srli_epi64(value, 32);
    _mm512_storeu_si512(to, value);
    if (numbers)
        UNROLL for (int v = 0; v < VECTORS; v++) {
            const __m512i number = _mm512_set1_epi32(numbers[v * slots]);
            sums->even[v] = _mm512_add_epi64(sums->even[v], _mm512_mul_epi32(value, number));
            sums->odd[v] = _mm512_add_epi64(sums->odd[v], _mm512_mul_epi32(high, number));
        }
    return _mm512_cmp_ps_mask(_mm512_cvtepi32_ps(value), answers, _CMP_NEQ_UQ);
}

AVX512_INLINE void store_sums(const Sums *sums, int64_t *to, int64_t rows) {
    const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    UNROLL for (int v = 0; v < VECTORS; v++) {
        _mm512_storeu_si512(to + v * rows, _mm512_permutex2var_epi64(sums->even[v], low, sums->odd[v]));
        _mm512_storeu_si512(to + v * rows + 8, _mm512_permutex2var_epi64(sums->even[v], high, sums->odd[v]));
    }
}

/* As copy_blocks, to integers; `numbers` are the check's, or NULL. Returns what the answer is. */
AVX512_INLINE int copy_blocks_exact_(int32_t *private_, const float *shared, int64_t blocks, int64_t slots,
                                     const int32_t *numbers, int64_t *to, int64_t rows) {
    __m512i worst = _mm512_setzero_si512();
    __mmask16 broken = 0;
    for (int64_t b = 0; b < blocks; b++, shared += 16 * slots, private_ += 16 * slots) {
        Sums sums;
        UNROLL for (int v = 0; v < VECTORS; v++) sums.even[v] = sums.odd[v] = _mm512_setzero_si512();
        for (int64_t s = 0; s < slots; s += 16) {
            const int64_t width = slots - s < 16 ? slots - s : 16;
            const __mmask16 some = (__mmask16)((1u << width) - 1);
            const int32_t *from = numbers ? numbers + s : 0;
            int32_t *target = private_ + 16 * s;
            __m512 v[16];
            const float *next = b + 1 < blocks ? shared + 16 * (slots + s) : 0; /* in the block behind this one */
            worst = load_block(v, shared + s, slots, some, next, worst);
            if (width == 16)
                UNROLL for (int r = 0; r < 16; r++)
                    broken |= take_slot(&sums, target + 16 * r, v[r], from ? from + r : 0, slots);
            else
                for (int r = 0; r < width; r++)
                    broken |= take_slot(&sums, target + 16 * r, v[r], from ? from + r : 0, slots);
        }
        if (numbers) store_sums(&sums, to + 16 * b, rows);
    }
    return possible(_mm512_reduce_max_epu32(worst), !broken);
}

/* One instance without a check, one with it. */
AVX512 static int copy_blocks_exact(int32_t *private_, const float *shared, int64_t blocks, int64_t slots,
                                    const int32_t *numbers, int64_t *sums, int64_t rows) {
    if (!numbers) return copy_blocks_exact_(private_, shared, blocks, slots, 0, 0, 0);
    return copy_blocks_exact_(private_, shared, blocks, slots, numbers, sums, rows);
}
#endif
