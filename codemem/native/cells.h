/* The search of an inverted file whose entries have 8 bits a number. FAISS makes the file and keeps it; it would score what
   it searches in float32. Here queries are rounded to 8 bits too, so that products are of integers. Each query is
   searched by itself, and its cells in PARTS, however many threads there are. */

#pragma once

#include <stdlib.h>

#include "best.h"
#include "vectors.h"

enum { PARTS = 4 };

/* Entries [count, size] of a cell, and their rows. */
typedef struct {
    const uint8_t *codes;
    const int64_t *rows;
    long count;
} Cell;

/* A query as entries are scored with it: numbers [size] of 8 bits, what a score is multiplied with, and what is added to
   it; the rows that may be found, a bit for each, or NULL for all; and how many are wanted, at most. */
typedef struct {
    int8_t *numbers;
    float step, shift;
    const uint8_t *shown;
    int k;
} Query;

INLINE int may_be_found(const Query *query, int64_t row) {
    return !query->shown || query->shown[row / 8] >> row % 8 & 1;
}

/* Inner product of the numbers of an entry, 0 to 255, with a query's, in some parts. */
INLINE Floats product(const uint8_t *codes, const int8_t *numbers, long size) {
    Ints total = {0};
    for (long i = 0; i < size; i += 4 * WIDE) total = dot_bytes(total, codes + i, numbers + i);
    return __builtin_convertvector(total, Floats);
}

/* The best entries of a cell join those of a heap. Returns how many it has. */
INLINE int scan(const Cell *cell, const Query *query, long size, Found *heap, int held) {
    for (long first = 0; first < cell->count; first += WIDE) {
        long count = cell->count - first < WIDE ? cell->count - first : WIDE;
        Floats products[WIDE];
        for (int i = 0; i < WIDE; i++) {
            const uint8_t *codes = cell->codes + (first + i) * size;
            prefetch(codes + WIDE * size, size); /* behind a cell's end nothing is read */
            products[i] = i < count ? product(codes, query->numbers, size) : all(0.0f);
        }
        Floats scores = sums(products) * query->step + query->shift;
        unsigned better = held < query->k ? (1u << count) - 1 : lanes_of(scores > all(heap[0].score));
        for (unsigned left = better & ((1u << count) - 1); left; left &= left - 1) {
            int lane = __builtin_ctz(left);
            int64_t row = cell->rows[first + lane];
            if (!may_be_found(query, row)) continue;
            held = keep(heap, held, query->k, (Found){scores[lane], row});
        }
    }
    return held;
}

/* The file, and what stands behind it. centroids: [count, size], bf16, and halves [count], half of the squares of their
   lengths; cells: [count], of which `probed` are searched; low, step: [size], what a number's code is multiplied with is
   step, and low is added then; behind: [more, size], entries that are in no cell, whose rows begin with `settled`. */
typedef struct {
    const uint16_t *centroids;
    const float *halves;
    const Cell *cells;
    long count, probed;
    const float *low, *step, *behind;
    long settled, more;
} File;

/* The entries that are in no cell join those of a heap. Returns how many it has. */
INLINE int scan_behind(const File *file, const float *numbers, const Query *query, long size, Found *heap, int held) {
    for (long i = 0; i < file->more; i++) {
        long row = file->settled + i;
        if (!may_be_found(query, row)) continue;
        Floats total = all(0.0f);
        for (long c = 0; c < size; c += WIDE) total += load(numbers + c) * load(file->behind + i * size + c);
        held = keep(heap, held, query->k, (Found){sum(total), row});
    }
    return held;
}

/* The best entries for each of queries [n, size], size a multiple of 64, of the cells that are nearest to it and of those
   in no cell, best first, but for what rounding does. shown: as in `Query`. Leaves rows [n, k], -1 for none. */
INLINE void search_file(const File *file, const float *queries, long n, long size, const uint8_t *shown, long k,
                        int64_t *rows) {
    long count = file->count, probed = file->probed, parts = PARTS + (file->more > 0);
    float *near = malloc(n * count * sizeof *near), *turned = malloc(n * size * sizeof *turned);
    Found *nearest = malloc(n * probed * sizeof *nearest), *found = malloc(n * parts * k * sizeof *found);
    int8_t *numbers = malloc(n * size);
    int *held = malloc(n * parts * sizeof *held);
    Query asked[n];
#pragma omp parallel
    {
#pragma omp for
        for (long at = 0; at < n * count; at++) {
            const float *query = queries + at / count * size;
            const uint16_t *centroid = file->centroids + at % count * size;
            Floats total = all(0.0f);
            for (long i = 0; i < size; i += WIDE) total += load(query + i) * widen(centroid + i);
            near[at] = sum(total) - file->halves[at % count];
        }
#pragma omp for
        for (long q = 0; q < n; q++) {
            int chosen = 0;
            for (long i = 0; i < count; i++)
                chosen = keep(nearest + q * probed, chosen, probed, (Found){near[q * count + i], i});
            const float *query = queries + q * size;
            float *own = turned + q * size;
            Floats shift = all(0.0f);
            for (long i = 0; i < size; i += WIDE) {
                store(own + i, load(query + i) * load(file->step + i));
                shift += load(query + i) * load(file->low + i);
            }
            int32_t total;
            asked[q] = (Query){numbers + q * size, 0, sum(shift), shown, k};
            asked[q].step = rounded(own, size, 127, asked[q].numbers, &total);
        }
#pragma omp for schedule(dynamic, 1)
        for (long task = 0; task < n * parts; task++) {
            long q = task / parts, part = task % parts;
            held[task] = 0;
            if (part == PARTS) held[task] = scan_behind(file, queries + q * size, asked + q, size, found + task * k, 0);
            for (long i = part; part < PARTS && i < probed; i += PARTS)
                held[task] = scan(file->cells + nearest[q * probed + i].place, asked + q, size, found + task * k, held[task]);
        }
#pragma omp for
        for (long q = 0; q < n; q++) {
            Found *best = found + q * parts * k;
            int have = held[q * parts];
            for (int part = 1; part < parts; part++)
                for (int i = 0; i < held[q * parts + part]; i++) have = keep(best, have, k, best[part * k + i]);
            order(best, have);
            for (long i = 0; i < k; i++) rows[q * k + i] = i < have ? best[i].place : -1;
        }
    }
    free(near), free(turned), free(nearest), free(found), free(numbers), free(held);
}
