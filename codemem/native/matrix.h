/* A matrix of 4-bit numbers times a few rows. The rows' numbers are rounded to 8 bits with a scale for every 32, so that
   products are of integers; what a row's result is does not depend on the other rows, bit by bit. */

#pragma once

#include "vectors.h"

enum {
    NUMBERS = 32,                 /* with one scale */
    OUTPUTS = 16,                 /* beside each other in a tile */
    TILE = OUTPUTS * NUMBERS / 2, /* bytes of OUTPUTS times NUMBERS 4-bit numbers */
    ROWS = 8,                     /* that are multiplied with a tile at once, at most */
};

/* `halves` matrices [outputs, inputs], one behind the other, whose sum is meant, and what is added to the product.
   codes: [halves, outputs / OUTPUTS, groups, NUMBERS / 8, OUTPUTS, 4] bytes, of which the low half stands for one of 4
   inputs and the high half for the one NUMBERS / 2 behind it; scales: [halves, outputs / OUTPUTS, groups, 2, OUTPUTS],
   bf16, what a code is multiplied with and what is added to that; bias: [outputs], bf16, or NULL. */
typedef struct {
    const uint8_t *codes;
    const uint16_t *scales, *bias;
    long inputs, outputs, halves;
} Matrix;

/* Rows in 8 bits, [rows, groups, NUMBERS], and of each group what they are multiplied with, and the sum that they then
   have: steps [rows, groups, 2]. */
typedef struct {
    int8_t *numbers;
    float *steps;
} Rounded;

/* sums [rows] of WIDE outputs grow by their products. codes, scales: those of a tile's first group, and of these WIDE of
   its outputs. */
INLINE void multiplied(const uint8_t *codes, const uint16_t *scales, long groups, const int8_t *x, const float *steps,
                       const int rows, Floats *sums) {
    const Ints low = (Ints)(0x0f0f0f0f + (Words){0});
    for (long g = 0; g < groups; g++, codes += TILE, scales += 2 * OUTPUTS) {
        Ints found[ROWS];
        for (int r = 0; r < rows; r++) found[r] = (Ints){0};
#pragma GCC unroll 4
        for (int i = 0; i < NUMBERS / 8; i++) {
            Ints both;
            memcpy(&both, codes + i * 4 * OUTPUTS, sizeof both);
            Ints first = both & low, second = both >> 4 & low;
            for (int r = 0; r < rows; r++) {
                const int8_t *own = x + (r * groups + g) * NUMBERS + 4 * i;
                found[r] = dot(dot(found[r], first, own), second, own + NUMBERS / 2);
            }
        }
        Floats scale = widen(scales), offset = widen(scales + OUTPUTS);
        for (int r = 0; r < rows; r++) {
            const float *step = steps + (r * groups + g) * 2;
            sums[r] += offset * step[1];
            sums[r] += __builtin_convertvector(found[r], Floats) * (scale * step[0]);
        }
    }
}

/* The same of a few rows, whose number the compiler knows where there is one function for each. */
INLINE void multiplied_by(const int rows, const uint8_t *codes, const uint16_t *scales, long groups, const int8_t *x,
                          const float *steps, Floats *sums) {
    switch (rows) {
        case 1: multiplied(codes, scales, groups, x, steps, 1, sums); break;
        case 2: multiplied(codes, scales, groups, x, steps, 2, sums); break;
        case 3: multiplied(codes, scales, groups, x, steps, 3, sums); break;
        case 4: multiplied(codes, scales, groups, x, steps, 4, sums); break;
        case 5: multiplied(codes, scales, groups, x, steps, 5, sums); break;
        case 6: multiplied(codes, scales, groups, x, steps, 6, sums); break;
        case 7: multiplied(codes, scales, groups, x, steps, 7, sums); break;
        default: multiplied(codes, scales, groups, x, steps, ROWS, sums);
    }
}

/* rows [n, inputs] times a matrix: out [n, outputs]. room: for n rows. */
INLINE void product(const float *rows, long n, const Matrix *matrix, Rounded room, float *out) {
    long groups = matrix->inputs / NUMBERS, tiles = matrix->outputs / OUTPUTS;
#pragma omp parallel
    {
#pragma omp for
        for (long g = 0; g < n * groups; g++) {
            int32_t total;
            float step = rounded(rows + g * NUMBERS, NUMBERS, 127, room.numbers + g * NUMBERS, &total);
            room.steps[2 * g] = step;
            room.steps[2 * g + 1] = step * total;
        }
#pragma omp for
        for (long tile = 0; tile < tiles; tile++)
            for (long r = 0; r < n; r += ROWS)
                for (long at = 0; at < OUTPUTS; at += WIDE) {
                    int count = n - r < ROWS ? n - r : ROWS;
                    long place = tile * OUTPUTS + at;
                    Floats sums[ROWS];
                    for (int i = 0; i < count; i++) sums[i] = matrix->bias ? widen(matrix->bias + place) : all(0.0f);
                    for (long half = 0; half < matrix->halves; half++) {
                        long first = (half * tiles + tile) * groups;
                        multiplied_by(count, matrix->codes + first * TILE + 4 * at,
                                      matrix->scales + first * 2 * OUTPUTS + at, groups,
                                      room.numbers + r * matrix->inputs, room.steps + r * groups * 2, sums);
                    }
                    for (int i = 0; i < count; i++) store(out + (r + i) * matrix->outputs + place, sums[i]);
                }
    }
}
