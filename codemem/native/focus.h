/* The search of a focus, and the attention that reads what is found. All keys are compared with a query in 7 bits, and
   those that may be the best by themselves. Each position is computed by itself. */

#pragma once

#include <stdlib.h>
#include <time.h>

#include "best.h"
#include "heads.h"

enum {
    KEYS = 16,           /* beside each other in a tile */
    KEY_TILE = KEYS * D, /* bytes */
    AGAIN = 16,          /* more than are wanted are surely compared by themselves */
};

/* What a layer reads a focus of n entries with. codes, steps: as `pack_keys` leaves them; pairs: [kv_heads, n, 2, D], keys
   and values; rows: [n], those of the memory; k: neighbours, at most n; cos, sin: [D], of the memory angle; temperature,
   bias, discount: [heads], of the gate. What is read is left in found and weights, [heads, positions, k], and seconds
   grows by the time it took. */
typedef struct {
    const uint8_t *codes;
    const float *steps;
    const uint16_t *pairs;
    const int64_t *rows;
    long n, k;
    const float *cos, *sin, *temperature, *bias, *discount;
    int64_t *found;
    float *weights;
    double seconds;
} Focus;

/* Keys [kv_heads, n, 2, D], each beside its value, in 7 bits: codes [kv_heads, tiles, D / 4, KEYS, 4] and what 64 less
   than a code is multiplied with, steps [kv_heads, tiles, KEYS]. Both are zero before. */
void pack_keys(const uint16_t *pairs, long kv_heads, long n, uint8_t *codes, float *steps) {
    long tiles = (n + KEYS - 1) / KEYS;
#pragma omp parallel for
    for (long at = 0; at < kv_heads * n; at++) {
        long place = at % n, tile = at / n * tiles + place / KEYS;
        float numbers[D];
        int8_t key[D];
        int32_t total;
        uint8_t *own = codes + tile * KEY_TILE + place % KEYS * 4;
        for (long i = 0; i < D; i += WIDE) store(numbers + i, widen(pairs + at * 2 * D + i));
        steps[tile * KEYS + place % KEYS] = rounded(numbers, D, 63, key, &total);
        for (long i = 0; i < D; i++) key[i] += 64;
        for (long i = 0; i < D; i += 4) memcpy(own + i * KEYS, key + i, 4);
    }
}

/* Inner products, but for a factor, of `count` queries [count, D] in 8 bits with the keys of tiles `first` to `end` - 1,
   of n keys: scores [count, tiles * KEYS], and the greatest of those in each of KEYS places of a tile, greatest [count,
   groups]. */
INLINE void search(const int8_t *queries, const int32_t *totals, long count, const uint8_t *codes, const float *steps,
                   long first, long end, long n, long tiles, long groups, float *scores, float *greatest) {
    Ints lanes;
    for (int i = 0; i < WIDE; i++) lanes[i] = i;
    for (long q = 0; q < count; q++)
        for (long at = 0; at < KEYS; at += WIDE) store(greatest + q * groups + at, all(-INFINITY));
    for (long tile = first; tile < end; tile++)
        for (long at = 0; at < KEYS; at += WIDE) {
            long place = tile * KEYS + at;
            Ints key[D / 4], there = lanes < (int32_t)(n - place);
            Floats step = load(steps + place);
            for (int i = 0; i < D / 4; i++) memcpy(key + i, codes + tile * KEY_TILE + (i * KEYS + at) * 4, sizeof *key);
            for (long q = 0; q < count; q++) {
                Ints even = {0}, odd = {0};
                for (int i = 0; i < D / 4; i += 2) {
                    even = dot(even, key[i], queries + q * D + 4 * i);
                    odd = dot(odd, key[i + 1], queries + q * D + 4 * i + 4);
                }
                Floats score = __builtin_convertvector(even + odd - totals[q], Floats) * step;
                score = choose(there, score, all(-INFINITY));
                float *most = greatest + q * groups + at;
                store(scores + q * tiles * KEYS + place, score);
                store(most, choose(score > load(most), score, load(most)));
            }
        }
}

/* A number than which at least `most` of `groups` numbers are not less, and hardly more than these. */
INLINE float bound(const float *greatest, long groups, int most) {
    Floats lows = load(greatest), highs = lows;
    for (long i = WIDE; i < groups; i += WIDE) {
        Floats x = load(greatest + i);
        lows = choose(x < lows, x, lows), highs = choose(x > highs, x, highs);
    }
    float low = -largest(-lows), high = largest(highs);
    if (!(low > -INFINITY && high < INFINITY) || groups < most) return -INFINITY;
    for (int step = 0; step < 10; step++) {
        float middle = low + (high - low) / 2;
        int count = 0;
        for (long i = 0; i < groups; i += WIDE) count += __builtin_popcount(lanes_of(load(greatest + i) >= all(middle)));
        if (count >= most) low = middle;
        else high = middle;
    }
    return low;
}

/* Inner product of a query with a key [D]. */
INLINE float inner_product(const float *query, const uint16_t *key) {
    Floats each = load(query) * widen(key);
    for (int c = 1; c < PARTS; c++) each += load(query + c * WIDE) * widen(key + c * WIDE);
    return sum(each);
}

/* The k best keys, of pairs [n, 2, D], for a query [D] in `best`, best first, among those whose scores are not less than
   `least`. */
INLINE void chosen(const float *query, const float *scores, long n, float least, const uint16_t *pairs, int k,
                   Found *best) {
    int32_t places[n];
    int held = 0, count = 0;
    for (long place = 0; place < n; place += WIDE)
        for (unsigned left = lanes_of(load(scores + place) >= all(least)); left; left &= left - 1) {
            long at = place + __builtin_ctz(left);
            if (at >= n) break;
            prefetch(pairs + at * 2 * D, D * sizeof *pairs);
            places[count++] = at;
        }
    for (int i = 0; i < count; i++)
        held = keep(best, held, k, (Found){inner_product(query, pairs + (long)places[i] * 2 * D), places[i]});
    for (; held < k; held++) best[held] = (Found){-INFINITY, held}; /* of numbers that are none, any */
    order(best, k);
}

INLINE double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

/* Attention over local context and a focus at once, as `attention.MemoryGate` of the kind "joint" has it.

   placeless, local: [positions, heads, D]; mass: [positions, heads], as `begin` of layer.c leaves them. Leaves mixed
   [positions, heads, D], which may be `local`. */
void read_focus(Focus *focus, const float *placeless, const float *local, const float *mass, long positions, long kv_heads,
                float scaling, float *mixed) {
    double start = now();
    long n = focus->n, k = focus->k;
    const float *temperature = focus->temperature, *bias = focus->bias, *discount = focus->discount;
    const float *cos = focus->cos, *sin = focus->sin, *steps = focus->steps;
    const uint16_t *pairs = focus->pairs;
    const uint8_t *codes = focus->codes;
    long heads = GROUP * kv_heads, tiles = (n + KEYS - 1) / KEYS;
    long asked = positions * GROUP; /* by each key/value head's queries, in the order of positions */
    long blocks = 4 * k / KEYS + 1, groups = blocks * KEYS;
    float *turned = malloc(kv_heads * asked * (D + groups + tiles * KEYS) * sizeof *turned);
    float *greatest = turned + kv_heads * asked * D, *scores = greatest + kv_heads * asked * groups;
    int8_t *queries = malloc(kv_heads * asked * D);
    int32_t *totals = malloc(kv_heads * asked * sizeof *totals);
#pragma omp parallel
    {
#pragma omp for
        for (long q = 0; q < kv_heads * asked; q++) {
            long kv = q / asked, r = q % asked / GROUP, head = r * heads + kv * GROUP + q % GROUP;
            turn(placeless + head * D, cos, sin, turned + q * D);
            /* By what they are multiplied changes no order; a code is 64 more than what it stands for. */
            rounded(turned + q * D, D, 127, queries + q * D, totals + q);
            totals[q] *= 64;
        }
#pragma omp for
        for (long task = 0; task < kv_heads * blocks; task++) {
            long kv = task / blocks, block = task % blocks, q = kv * asked;
            search(queries + q * D, totals + q, asked, codes + kv * tiles * KEY_TILE, steps + kv * tiles * KEYS,
                   block * tiles / blocks, (block + 1) * tiles / blocks, n, tiles, groups, scores + q * tiles * KEYS,
                   greatest + q * groups + block * KEYS);
        }
#pragma omp for
        for (long q = 0; q < kv_heads * asked; q++) {
            long kv = q / asked, r = q % asked / GROUP, head = kv * GROUP + q % GROUP, at = (r * heads + head) * D;
            Found best[k];
            chosen(turned + q * D, scores + q * tiles * KEYS, n, bound(greatest + q * groups, groups, k + AGAIN),
                   pairs + kv * n * 2 * D, k, best);
            for (long i = 0; i < k; i++) prefetch(pairs + ((kv * n + best[i].place) * 2 + 1) * D, D * sizeof *pairs);
            float *weight = focus->weights + (head * positions + r) * k;
            float here = mass[r * heads + head], weakest = best[k - 1].score * scaling;
            float shift = bias[head] - discount[head] * (weakest > 0 ? weakest : 0), highest = here;
            for (long i = 0; i < k; i++) {
                weight[i] = temperature[head] * (best[i].score * scaling) + shift;
                highest = weight[i] > highest ? weight[i] : highest;
            }
            float share = expf(here - highest), total = share;
            for (long i = 0; i < k; i++) total += weight[i] = expf(weight[i] - highest);
            Floats sum[PARTS];
            for (long c = 0; c < PARTS; c++) sum[c] = load(local + at + c * WIDE) * (share / total);
            for (long i = 0; i < k; i++) {
                const uint16_t *value = pairs + ((kv * n + best[i].place) * 2 + 1) * D;
                weight[i] /= total;
                focus->found[(head * positions + r) * k + i] = focus->rows[best[i].place];
                for (long c = 0; c < PARTS; c++) sum[c] += weight[i] * widen(value + c * WIDE);
            }
            for (long c = 0; c < PARTS; c++) store(mixed + at + c * WIDE, sum[c]);
        }
    }
    free(turned), free(queries), free(totals);
    focus->seconds += now() - start;
}
