/* AVX-512, where compiler and processor have it: what the passes over an answer are made of. */
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_AVX512 1
#define UNROLL _Pragma("GCC unroll 16")
#define AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl")))
#define AVX512_INLINE static inline __attribute__((always_inline, target("avx512f,avx512dq,avx512bw,avx512vl")))

/* Copy a run of floats, whole cache lines of it past the caches. */
AVX512 static void stream_run(float *to, const float *from, int64_t count) {
    int64_t i = 0;
    for (; i < count && (uintptr_t)(to + i) % 64; i++) to[i] = from[i];
    for (; i + 16 <= count; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
    for (; i < count; i++) to[i] = from[i];
}

/* Transpose 16 rows of 16 floats. */
AVX512_INLINE void transpose16(__m512 v[16]) {
    __m512 t[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4)
        UNROLL for (int h = 0; h < 2; h++) {
            const __m512d a = _mm512_castps_pd(t[i + h]), b = _mm512_castps_pd(t[i + h + 2]);
            v[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            v[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    UNROLL for (int c = 0; c < 4; c++) {
        const __m512 a = v[c], b = v[c + 4], d = v[c + 8], e = v[c + 12];
        const __m512 ab_low = _mm512_shuffle_f32x4(a, b, 0x88), ab_high = _mm512_shuffle_f32x4(a, b, 0xdd);
        const __m512 de_low = _mm512_shuffle_f32x4(d, e, 0x88), de_high = _mm512_shuffle_f32x4(d, e, 0xdd);
        t[c] = _mm512_shuffle_f32x4(ab_low, de_low, 0x88);
        t[c + 8] = _mm512_shuffle_f32x4(ab_low, de_low, 0xdd);
        t[c + 4] = _mm512_shuffle_f32x4(ab_high, de_high, 0x88);
        t[c + 12] = _mm512_shuffle_f32x4(ab_high, de_high, 0xdd);
    }
    UNROLL for (int i = 0; i < 16; i++) v[i] = t[i];
}

/* Read 16 columns of 16 rows of an answer, each byte once, transposed; 16 lines from `next` on, if
 * it is not NULL, are fetched. Returns the largest exponents, those of before included. */
AVX512_INLINE __m512i load_block(__m512 v[16], const float *shared, int64_t slots, __mmask16 some, const float *next,
                                 __m512i worst) {
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    if (next)
        UNROLL for (int r = 0; r < 16; r++) _mm_prefetch((const char *)(next + 16 * r), _MM_HINT_T0);
    UNROLL for (int r = 0; r < 16; r++) {
        v[r] = _mm512_maskz_loadu_ps(some, shared + r * slots);
        worst = _mm512_max_epu32(worst, _mm512_and_si512(_mm512_castps_si512(v[r]), exponent));
    }
    transpose16(v);
    return worst;
}
#else
#define HAVE_AVX512 0
#endif
