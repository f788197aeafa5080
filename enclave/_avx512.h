/* The two passes over an answer for AVX-512: 16 positions at a time, transposed in registers.
 *
 * Restoring looks up two of M slots for each output. As a gather that costs more than everything else together; with
 * 16 positions side by side ([slot][position]) a lookup is one aligned load. So the first pass, which copies and
 * checks, leaves blocks of 16 rows transposed in private memory, and the second transposes its results back.
 */
#if HAVE_AVX512
enum { AHEAD = 1024 }; /* floats: how far masks are prefetched */

/* Copy whole blocks of 16 rows, transposed to [block][slot][16]; returns whether every value is finite. With a check,
 * its left-hand sides are made on the way: `sums` [VECTORS, rows] from the first of these rows on. */
AVX512_INLINE int copy_blocks_(float *private_, const float *shared, int64_t blocks, int64_t slots, const Check *check,
                               float *sums, int64_t rows) {
    __m512i worst = _mm512_setzero_si512();
    for (int64_t b = 0; b < blocks; b++, shared += 16 * slots, private_ += 16 * slots) {
        __m512 even0 = _mm512_setzero_ps(), odd0 = even0, even1 = even0, odd1 = even0; /* sums of even and odd slots */
        for (int64_t s = 0; s < slots; s += 16) {
            const int64_t width = slots - s < 16 ? slots - s : 16;
            const __mmask16 some = (__mmask16)((1u << width) - 1);
            __m512 v[16];
            const float *next = b + 1 < blocks ? shared + 16 * (slots + s) : 0; /* in the block behind this one */
            worst = load_block(v, shared + s, slots, some, next, worst);
            if (width == 16)
                UNROLL for (int r = 0; r < 16; r++) _mm512_storeu_ps(private_ + (s + r) * 16, v[r]);
            else
                for (int r = 0; r < width; r++) _mm512_storeu_ps(private_ + (s + r) * 16, v[r]);
            if (!check) continue;
            const float *vector = check->vectors + s;
            if (width == 16)
                UNROLL for (int r = 0; r < 16; r += 2) {
                    even0 = _mm512_fmadd_ps(_mm512_set1_ps(vector[r]), v[r], even0);
                    odd0 = _mm512_fmadd_ps(_mm512_set1_ps(vector[r + 1]), v[r + 1], odd0);
                    even1 = _mm512_fmadd_ps(_mm512_set1_ps(vector[slots + r]), v[r], even1);
                    odd1 = _mm512_fmadd_ps(_mm512_set1_ps(vector[slots + r + 1]), v[r + 1], odd1);
                }
            else
                for (int r = 0; r < width; r++) {
                    const __m512 value = _mm512_loadu_ps(private_ + (s + r) * 16);
                    even0 = _mm512_fmadd_ps(_mm512_set1_ps(vector[r]), value, even0);
                    even1 = _mm512_fmadd_ps(_mm512_set1_ps(vector[slots + r]), value, even1);
                }
        }
        if (check) {
            _mm512_storeu_ps(sums + 16 * b, _mm512_add_ps(even0, odd0));
            _mm512_storeu_ps(sums + rows + 16 * b, _mm512_add_ps(even1, odd1));
        }
    }
    return _mm512_reduce_max_epu32(worst) != 0x7f800000u;
}

/* One instance without a check, one with it. */
AVX512 static int copy_blocks(float *private_, const float *shared, int64_t blocks, int64_t slots, const Check *check,
                              float *sums, int64_t rows) {
    if (!check) return copy_blocks_(private_, shared, blocks, slots, 0, 0, 0);
    return copy_blocks_(private_, shared, blocks, slots, check, sums, rows);
}

AVX512_INLINE __m512 activate16(__m512 t, Activation a) {
    if (a.kind == LEAKY) {
        const __mmask16 negative = _mm512_cmp_ps_mask(t, _mm512_setzero_ps(), _CMP_LT_OQ);
        return _mm512_mask_mul_ps(t, negative, t, _mm512_set1_ps(a.low));
    }
    if (a.kind != CLAMP) {
        float row[16];
        _mm512_storeu_ps(row, t);
        activate_row(row, a, 16);
        return _mm512_loadu_ps(row);
    }
    return _mm512_min_ps(_mm512_max_ps(t, _mm512_set1_ps(a.low)), _mm512_set1_ps(a.high));
}

/* Arithmetic modulo 2^32 on the bits of vectors. */
AVX512_INLINE __m512 add_exact(__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

AVX512_INLINE __m512 sub_exact(__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

AVX512_INLINE __m512 mul_exact(__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_mullo_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

AVX512_INLINE __m512 float_of(__m512 a) { return _mm512_cvtepi32_ps(_mm512_castps_si512(a)); }

/* Restore, unmask, finish and mask again, as finish_rows does, for whole blocks that copy_blocks left, from row `first`,
 * into `staged`, or straight to shared memory where rows are whole cache lines.
 *
 * Masks are used once, so they come from memory: enclave/native.py lays them out in the order in which this reads
 * them, [block][16 columns][row][column], one straight stream. */
AVX512_INLINE void finish_blocks_(const Finish *f, int64_t first, int64_t blocks, float *staged, const float *pop,
                                  const float *push, int exact) {
    const int64_t n = f->n;
    const int streamed = streams(f), stages = f->keep || (f->send && !streamed);
    for (int64_t b = first / 16; b < first / 16 + blocks; b++) {
        const float *y = f->copy + (b * 16 - first) * f->slots;
        float step[16];
        for (int r = 0; r < 16 && exact; r++) step[r] = step_of(f, b * 16 + r);
        for (int64_t i = 0; i < n; i += 16) {
            const int64_t width = n - i < 16 ? n - i : 16;
            const __mmask16 some = (__mmask16)((1u << width) - 1);
            __m512 v[16];
            UNROLL for (int k = 0; k < 16; k++) v[k] = _mm512_setzero_ps();
            for (int64_t t = 0; t < f->terms; t++) {
                const int32_t *slot = f->slot + t * n + i;
                const float *coefficient = f->coefficient + t * n + i;
                int32_t tail_slot[16];
                float tail_coefficient[16];
                if (width < 16) { /* the last columns: repeat the last one, its copies are not stored */
                    for (int k = 0; k < 16; k++) {
                        const int64_t c = k < width ? k : width - 1;
                        tail_slot[k] = slot[c], tail_coefficient[k] = coefficient[c];
                    }
                    slot = tail_slot, coefficient = tail_coefficient;
                }
                UNROLL for (int k = 0; k < 16; k++) {
                    const __m512 value = _mm512_loadu_ps(y + 16 * (int64_t)slot[k]), c = _mm512_set1_ps(coefficient[k]);
                    v[k] = exact ? add_exact(v[k], mul_exact(c, value)) : _mm512_fmadd_ps(c, value, v[k]);
                }
            }
            transpose16(v);
            const __m512 bias = f->bias ? _mm512_maskz_loadu_ps(some, f->bias + i) : _mm512_setzero_ps();
            const __m512 multiplier = exact ? _mm512_maskz_loadu_ps(some, f->multiplier + i) : _mm512_setzero_ps();
            const __m512 gain = f->gain ? _mm512_maskz_loadu_ps(some, f->gain + i) : _mm512_setzero_ps();
            const __m512 shift = f->gain ? _mm512_maskz_loadu_ps(some, f->shift + i) : _mm512_setzero_ps();
            UNROLL for (int r = 0; r < 16; r++) {
                const int64_t at = (b * 16 + r) * n + i, place = (b * n + i) * 16 + r * width;
                if (pop) _mm_prefetch((const char *)(pop + place + AHEAD), _MM_HINT_T0);
                if (push) _mm_prefetch((const char *)(push + place + AHEAD), _MM_HINT_T0);
                const __m512 mask = pop ? _mm512_maskz_loadu_ps(some, pop + place) : _mm512_setzero_ps();
                __m512 t;
                if (exact)
                    t = _mm512_mul_ps(_mm512_mul_ps(float_of(sub_exact(add_exact(v[r], bias), mask)),
                                                    _mm512_set1_ps(step[r])), multiplier);
                else
                    t = pop ? _mm512_sub_ps(_mm512_add_ps(v[r], bias), mask) : _mm512_add_ps(v[r], bias);
                t = activate16(t, f->first);
                if (exact && !f->scales) t = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
                if (f->gain) t = _mm512_fmadd_ps(t, gain, shift);
                if (f->residual) t = _mm512_add_ps(t, _mm512_maskz_loadu_ps(some, f->residual + at));
                t = activate16(t, f->second);
                if (f->result) _mm512_mask_storeu_ps(f->result + at, some, t);
                if (push) t = _mm512_add_ps(t, _mm512_maskz_loadu_ps(some, push + place));
                if (streamed) _mm512_stream_ps(f->send + at, t);
                if (stages) _mm512_mask_storeu_ps(staged + at - first * n, some, t);
            }
        }
    }
}

/* One instance for floats, one for integer layers. */
AVX512 static void finish_blocks(const Finish *f, int64_t first, int64_t blocks, float *staged, const float *pop,
                                 const float *push) {
    if (f->multiplier)
        finish_blocks_(f, first, blocks, staged, pop, push, 1);
    else
        finish_blocks_(f, first, blocks, staged, pop, push, 0);
}
#endif
