/* The search of token memory's index: what comes before it and behind it, as `state_index.py` says. Each position is
   computed by itself, in the same order, however many there are. */

#include "cells.h"

enum {
    TOGETHER = 8, /* positions for which a number of the basis is read once */
    COLUMNS = 16, /* of the basis, beside each other */
    SOON = 4,     /* entries whose codes are asked for before their turn */
    AGAIN = 16,   /* more than are wanted are scored again */
};

/* States [n, size] in bf16, turned by basis [size / COLUMNS, size, COLUMNS], bf16, the centre [size] taken off, and
   normalised: out [n, size]. */
void queries(const uint16_t *states, long n, long size, const uint16_t *basis, const float *centre, float *out) {
#pragma omp parallel for
    for (long c = 0; c < size; c += WIDE)
        for (long r = 0; r < n; r += TOGETHER) {
            int count = n - r < TOGETHER ? n - r : TOGETHER;
            Floats turned[TOGETHER] = {0};
            for (long i = 0; i < size; i++) {
                Floats row = widen(basis + (c / COLUMNS * size + i) * COLUMNS + c % COLUMNS);
                for (int j = 0; j < count; j++) turned[j] += widened(states[(r + j) * size + i]) * row;
            }
            for (int j = 0; j < count; j++) store(out + (r + j) * size + c, turned[j] - load(centre + c));
        }
    for (long r = 0; r < n; r++) {
        float *own = out + r * size;
        Floats squares = all(0.0f);
        for (long i = 0; i < size; i += WIDE) squares += load(own + i) * load(own + i);
        float length = sqrtf(sum(squares));
        for (long i = 0; i < size; i += WIDE) store(own + i, load(own + i) / (length > 1e-12f ? length : 1e-12f));
    }
}

/* The states of a bank's rows where each document has them: the first row of each of `count` pieces, ascending, and its
   codes [., size] and scales [.]. */
typedef struct {
    const int64_t *starts;
    const int8_t *const *codes;
    const float *const *scales;
    long count;
} States;

/* The piece that a row is in: the last one that begins at it or before it. */
static long piece_of(const States *states, int64_t row) {
    long piece = 0;
    for (long more = states->count - 1; more > 0;) {
        long half = (more + 1) / 2;
        if (states->starts[piece + half] <= row)
            piece += half, more -= half;
        else
            more = half - 1;
    }
    return piece;
}

/* Rows [n, k], -1 for none, by the cosine of their states to queries [n, size], best first; similarities: [n, k], -1 for
   none. */
void rank(const float *query, long n, long k, long size, const States *states, const float *centre, int64_t *rows,
          float *similarities) {
#pragma omp parallel for
    for (long at = 0; at < n * k; at++) {
        const float *asked = query + at / k * size;
        long soon = at + SOON < n * k ? at + SOON : at;
        if (rows[soon] >= 0) {
            long piece = piece_of(states, rows[soon]);
            prefetch(states->codes[piece] + (rows[soon] - states->starts[piece]) * size, size);
        }
        similarities[at] = -1.0f;
        if (rows[at] < 0) continue;
        long piece = piece_of(states, rows[at]), place = rows[at] - states->starts[piece];
        const int8_t *code = states->codes[piece] + place * size;
        float scale = states->scales[piece][place];
        Floats product = all(0.0f), squares = all(0.0f);
        for (long i = 0; i < size; i += WIDE) {
            Bytes bytes;
            memcpy(&bytes, code + i, sizeof bytes);
            Floats state = __builtin_convertvector(bytes, Floats) * scale - load(centre + i);
            product += state * load(asked + i);
            squares += state * state;
        }
        float length = sqrtf(sum(squares));
        similarities[at] = sum(product) / (length > 1e-12f ? length : 1e-12f);
    }
    for (long r = 0; r < n; r++) { /* by insertion: they are few, and nearly in order */
        float *similarity = similarities + r * k;
        int64_t *row = rows + r * k;
        for (long i = 1; i < k; i++) {
            float now = similarity[i];
            int64_t here = row[i];
            long j = i;
            for (; j > 0 && similarity[j - 1] < now; j--) similarity[j] = similarity[j - 1], row[j] = row[j - 1];
            similarity[j] = now, row[j] = here;
        }
    }
}

/* What token memory's index is, beside its file: as `queries` and `rank` want it. */
typedef struct {
    File file;
    long size;
    const uint16_t *basis;
    const float *centre;
    States states;
} Index;

/* Rows of a file for queries [n, size], as `search_file` leaves them. */
void search(const File *file, const float *query, long n, long size, const uint8_t *shown, long k, int64_t *rows) {
    search_file(file, query, n, size, shown, k, rows);
}

/* The k rows whose states are most similar to states [n, size], best first, -1 for none, and how similar: rows and
   similarities [n, k]. shown: the rows that may be found, a bit for each, or NULL for all. */
void nearest_states(const Index *index, const uint16_t *states, long n, const uint8_t *shown, long k, int64_t *rows,
                    float *similarities) {
    long size = index->size, more = k + AGAIN;
    float *query = malloc(n * (size + more) * sizeof *query), *similar = query + n * size;
    int64_t *found = malloc(n * more * sizeof *found);
    queries(states, n, size, index->basis, index->centre, query);
    search_file(&index->file, query, n, size, shown, more, found);
    rank(query, n, more, size, &index->states, index->centre, found, similar);
    for (long r = 0; r < n; r++) {
        memcpy(rows + r * k, found + r * more, k * sizeof *rows);
        memcpy(similarities + r * k, similar + r * more, k * sizeof *similarities);
    }
    free(query), free(found);
}
