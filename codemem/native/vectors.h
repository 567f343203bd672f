/* Arithmetic on WIDE float32 numbers at a time, in the vectors of GCC and Clang; uint16_t holds bf16. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { WIDE = 16 };
#else
enum { WIDE = 8 };
#endif
typedef float Floats __attribute__((vector_size(4 * WIDE)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDE)));
typedef uint32_t Words __attribute__((vector_size(4 * WIDE)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDE)));
typedef int8_t Bytes __attribute__((vector_size(WIDE)));
#define INLINE static inline __attribute__((always_inline))

/* Ask for what will be read: it comes from memory, as far as the second cache, while others are computed with. */
INLINE void prefetch(const void *from, long bytes) {
    for (long i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)from + i, 0, 1);
}

INLINE Floats all(float x) { return x - (Floats){0}; }

INLINE Floats load(const float *from) {
    Floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float *to, Floats x) { memcpy(to, &x, sizeof x); }

INLINE Floats widen(const uint16_t *from) {
    Halves half;
    memcpy(&half, from, sizeof half);
    return (Floats)(__builtin_convertvector(half, Words) << 16);
}

/* Rounded to the nearest, ties to even. */
INLINE void narrow(uint16_t *to, Floats x) {
    Words bits = (Words)x;
    bits += 0x7fff + ((bits >> 16) & 1);
    Halves half = __builtin_convertvector(bits >> 16, Halves);
    memcpy(to, &half, sizeof half);
}

/* One bf16 number. */
INLINE float widened(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE Floats choose(Ints which, Floats yes, Floats no) { return (Floats)(((Ints)yes & which) | ((Ints)no & ~which)); }

/* The nearest integers of numbers below 2^22. */
INLINE Ints nearest(Floats x) {
    const Floats magic = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    return (Ints)(x + magic) - (Ints)magic;
}

/* A bit for each lane that is not 0. */
INLINE unsigned lanes_of(Ints x) {
#if __AVX512DQ__
    return _mm512_movepi32_mask((__m512i)(x != 0));
#elif __AVX2__
    return _mm256_movemask_ps((__m256)(x != 0));
#else
    unsigned lanes = 0;
    for (int i = 0; i < WIDE; i++) lanes |= (unsigned)(x[i] != 0) << i;
    return lanes;
#endif
}

/* Each lane grows by the sum of the products of its four bytes: of codes, 0 to 127, and of x, -127 to 127. */
INLINE Ints dot(Ints sum, Ints codes, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
#if __AVX512VNNI__
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(four));
#elif __AVX512BW__ /* two products together are a number of 16 bits */
    __m512i pairs = _mm512_maddubs_epi16((__m512i)codes, _mm512_set1_epi32(four));
    return sum + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif __AVX2__
    __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(four));
    return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for (int i = 0; i < 4; i++) sum += (codes >> 8 * i & 127) * x[i];
    return sum;
#endif
}

/* The lanes together grow by the sum of the products of 4 * WIDE bytes: of codes, 0 to 255, and of x, -127 to 127. */
INLINE Ints dot_bytes(Ints sum, const uint8_t *codes, const int8_t *x) {
#if __AVX512VNNI__
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(codes), _mm512_loadu_si512(x));
#elif __AVX512BW__
    for (int i = 0; i < 64; i += 32) {
        __m512i these = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(codes + i)));
        __m512i those = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)(x + i)));
        sum += (Ints)_mm512_madd_epi16(these, those);
    }
    return sum;
#elif __AVX2__
    for (int i = 0; i < 32; i += 16) {
        __m256i these = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(codes + i)));
        __m256i those = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(x + i)));
        sum += (Ints)_mm256_madd_epi16(these, those);
    }
    return sum;
#else
    uint8_t these[4];
    int8_t those[4];
    for (int i = 0; i < WIDE; i++) {
        memcpy(these, codes + 4 * i, sizeof these);
        memcpy(those, x + 4 * i, sizeof those);
        for (int j = 0; j < 4; j++) sum[i] += these[j] * those[j];
    }
    return sum;
#endif
}

/* exp, 2 units in the last place off at most; 0 below -87. */
INLINE Floats power(Floats x) {
    Ints none = x < all(-87.0f);
    Floats t = choose(none, all(0.0f), choose(x > all(88.0f), all(88.0f), x)) * 1.44269504f;
    Ints whole = nearest(t);
    Floats f = t - __builtin_convertvector(whole, Floats);
    Floats p = all(1.5403530e-4f);
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return choose(none, all(0.0f), (Floats)((Ints)p + (whole << 23)));
}

/* Halves of a and of b, each half's partner added to it: the sums of pairs of vectors stand beside each other. */
#if __AVX512F__
INLINE Floats halved8(Floats a, Floats b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
INLINE Floats halved4(Floats a, Floats b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
INLINE Floats halved2(Floats a, Floats b) {
    return __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
}
INLINE Floats halved1(Floats a, Floats b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
#else
INLINE Floats halved4(Floats a, Floats b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
INLINE Floats halved2(Floats a, Floats b) {
    return __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13) +
           __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15);
}
INLINE Floats halved1(Floats a, Floats b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}
#endif

/* The sums of WIDE vectors, in their order. */
INLINE Floats sums(Floats *v) {
#if __AVX512F__
    for (int i = 0; i < WIDE / 2; i++) v[i] = halved8(v[2 * i], v[2 * i + 1]);
#endif
    for (int i = 0; i < 4; i++) v[i] = halved4(v[2 * i], v[2 * i + 1]);
    for (int i = 0; i < 2; i++) v[i] = halved2(v[2 * i], v[2 * i + 1]);
    return halved1(v[0], v[1]);
}

/* The sum of its numbers: halves added to each other until one is left. */
INLINE float sum(Floats x) {
#if __AVX512F__
    return _mm512_reduce_add_ps((__m512)x);
#else
    for (int half = WIDE / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
#endif
}

/* The largest of its numbers. */
INLINE float largest(Floats x) {
#if __AVX512F__
    return _mm512_reduce_max_ps((__m512)x);
#else
    for (int half = WIDE / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] = x[i + half] > x[i] ? x[i + half] : x[i];
    return x[0];
#endif
}

/* Numbers [size] as integers of up to `most` either way. Returns what these are multiplied with; total: their sum. */
INLINE float rounded(const float *from, long size, int most, int8_t *to, int32_t *total) {
    Floats widest = all(0.0f);
    Ints sums = {0};
    for (long i = 0; i < size; i += WIDE) {
        Floats x = load(from + i), width = choose(x < 0, -x, x);
        widest = choose(width > widest, width, widest);
    }
    float step = largest(widest) / most, inverse = step > 0 ? 1 / step : 0;
    for (long i = 0; i < size; i += WIDE) {
        Ints whole = nearest(load(from + i) * inverse);
        Bytes bytes = __builtin_convertvector(whole, Bytes);
        memcpy(to + i, &bytes, sizeof bytes);
        sums += whole;
    }
    *total = 0;
    for (int i = 0; i < WIDE; i++) *total += sums[i];
    return step;
}
