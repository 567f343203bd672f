/* The layers of a Llama-shaped decoder for a few positions, and the search of a focus: each in one call, where PyTorch
   needs ten or thirty, whose starts take longer than their arithmetic.

   Nothing here depends on how many positions are computed together: each is computed by itself, in the same order.
   Numbers are float32 in between. `library.py` compiles this where it runs, for one shape of heads: D is the size of a
   head, a multiple of 32, and GROUP the number of query heads that share a key/value head. */

#include <stdlib.h>

#include "matrix.h"

enum { PARTS = D / WIDE };

/* norm, mlp_norm: [size]; query_norm, key_norm: [D], or NULL; keys, values: the cache, [kv_heads, ., D], with room behind
   the last position to the next multiple of WIDE. */
typedef struct {
    const uint16_t *norm, *query_norm, *key_norm, *mlp_norm;
    Matrix qkv, output, gate_up, down;
    uint16_t *keys, *values;
} Layer;

/* What n positions from `start` on compute with. cos, sin: [., D] of all positions, the first half of the sines negated;
   stride: numbers between two heads of the cache.

   x: [n, size], the hidden states; placeless: [n, heads, D], queries before they are turned; local: [n, heads, D], what
   is attended to; mass: [n, heads], the logarithm of the sum of the exponentials of the scores. rows, wide, room: room
   for n times the most inputs, and outputs, of a layer's matrices, and for n rows in 8 bits. */
typedef struct {
    long n, start, size, kv_heads, stride;
    float epsilon, scaling;
    const float *cos, *sin;
    float *x, *placeless, *local, *mass, *rows, *wide;
    Rounded room;
} Pass;

/* RMS norm (Zhang and Sennrich, 2019) of one row. */
INLINE void normalised(const float *x, long size, const uint16_t *weight, float epsilon, float *out) {
    Floats squares = all(0.0f);
    for (long i = 0; i < size; i += WIDE) squares += load(x + i) * load(x + i);
    Floats scale = all(1.0f / sqrtf(sum(squares) / size + epsilon));
    for (long i = 0; i < size; i += WIDE) store(out + i, load(x + i) * scale * widen(weight + i));
}

/* The norm of the hidden states, to which `more` [n, size] is added first, if it is not NULL: out [n, size]. */
INLINE void add_and_norm(const Pass *pass, const float *more, const uint16_t *weight, float *out) {
    long size = pass->size;
    for (long r = 0; r < pass->n; r++) {
        float *x = pass->x + r * size;
        for (long i = 0; more && i < size; i += WIDE) store(x + i, load(x + i) + load(more + r * size + i));
        normalised(x, size, weight, pass->epsilon, out + r * size);
    }
}

/* silu(gate) * up of gate_up [n, 2, inner]: out [n, inner]. */
INLINE void gated(const float *gate_up, long n, long inner, float *out) {
#pragma omp parallel for
    for (long i = 0; i < n * inner; i += WIDE) {
        const float *from = gate_up + i + i / inner * inner;
        Floats gate = load(from);
        store(out + i, gate / (1.0f + power(-gate)) * load(from + inner));
    }
}

/* A query or key [D] turned by the angles whose cosines and sines [D] are given, the first half of the sines negated. */
INLINE void turn(const float *x, const float *cos, const float *sin, float *out) {
    for (long i = 0; i < D; i += WIDE) {
        long partner = i < D / 2 ? i + D / 2 : i - D / 2;
        store(out + i, load(x + i) * load(cos + i) + load(x + partner) * load(sin + i));
    }
}

/* What a head's projection [D] is before it is turned. norm: [D], or NULL. */
INLINE void head_of(const float *from, const uint16_t *norm, float epsilon, float *out) {
    if (norm) normalised(from, D, norm, epsilon, out);
    else memcpy(out, from, D * sizeof *out);
}

/* Inner products of a group's queries [GROUP, D] with WIDE keys [WIDE, D]. */
INLINE void products(const float *query, const uint16_t *keys, Floats *found) {
    Floats each[GROUP][WIDE];
    for (int i = 0; i < WIDE; i++) {
        Floats key[PARTS];
        for (int c = 0; c < PARTS; c++) key[c] = widen(keys + (i * PARTS + c) * WIDE);
        for (int g = 0; g < GROUP; g++) {
            Floats product = load(query + g * PARTS * WIDE) * key[0];
            for (int c = 1; c < PARTS; c++) product += load(query + (g * PARTS + c) * WIDE) * key[c];
            each[g][i] = product;
        }
    }
    for (int g = 0; g < GROUP; g++) found[g] = sums(each[g]);
}

/* Attention of a group's queries [GROUP, D] over `length` keys and values [., D]: out [GROUP, D], and mass [GROUP], the
   logarithm of the sum of the exponentials of the scores. Of the keys, room to the next multiple of WIDE is read.
   scores: room for [GROUP, length and WIDE more]. */
INLINE void seen(const float *query, const uint16_t *keys, const uint16_t *values, long length,
                 float scaling, float *scores, float *out, float *mass) {
    Ints lanes;
    for (int i = 0; i < WIDE; i++) lanes[i] = i;
    Floats most[GROUP], found[GROUP], total[GROUP], mixed[GROUP][PARTS];
    for (int g = 0; g < GROUP; g++) most[g] = all(-INFINITY);
    for (long first = 0; first < length; first += WIDE) {
        products(query, keys + first * D, found);
        Ints there = lanes < (int32_t)(length - first);
        for (int g = 0; g < GROUP; g++) {
            Floats s = choose(there, found[g] * scaling, all(-INFINITY));
            most[g] = choose(s > most[g], s, most[g]);
            store(scores + first * GROUP + g * WIDE, s);
        }
    }
    float best[GROUP];
    for (int g = 0; g < GROUP; g++) {
        best[g] = largest(most[g]);
        total[g] = all(0.0f);
        for (int c = 0; c < PARTS; c++) mixed[g][c] = all(0.0f);
    }
    for (long first = 0; first < length; first += WIDE) {
        float *weights = scores + first * GROUP;
        for (int g = 0; g < GROUP; g++) {
            Floats w = power(load(weights + g * WIDE) - best[g]);
            total[g] += w;
            store(weights + g * WIDE, w);
        }
        long count = length - first < WIDE ? length - first : WIDE;
        for (long i = 0; i < count; i++)
            for (int c = 0; c < PARTS; c++) {
                Floats value = widen(values + (first + i) * D + c * WIDE);
                for (int g = 0; g < GROUP; g++) mixed[g][c] += weights[g * WIDE + i] * value;
            }
    }
    for (int g = 0; g < GROUP; g++) {
        float whole = sum(total[g]);
        mass[g] = best[g] + logf(whole);
        for (int c = 0; c < PARTS; c++) store(out + g * D + c * WIDE, mixed[g][c] / whole);
    }
}

/* What positions attend to, whose queries, keys and values are qkv [n, heads + 2 * kv_heads, D]: leaves `placeless`,
   `local` and `mass`, and keys and values in the cache. */
INLINE void attend(const Layer *layer, const Pass *pass, const float *qkv) {
    long kv_heads = pass->kv_heads, heads = GROUP * kv_heads, every = heads + 2 * kv_heads, n = pass->n;
    const float *cos = pass->cos + pass->start * D, *sin = pass->sin + pass->start * D;
    for (long r = 0; r < n; r++)
        for (long kv = 0; kv < kv_heads; kv++) {
            const float *key = qkv + (r * every + heads + kv) * D, *value = key + kv_heads * D;
            long place = kv * pass->stride + (pass->start + r) * D;
            float own[D], turned[D];
            head_of(key, layer->key_norm, pass->epsilon, own);
            turn(own, cos + r * D, sin + r * D, turned);
            for (long i = 0; i < D; i += WIDE) {
                narrow(layer->keys + place + i, load(turned + i));
                narrow(layer->values + place + i, load(value + i));
            }
        }
#pragma omp parallel for
    for (long task = 0; task < n * kv_heads; task++) {
        long r = task / kv_heads, kv = task % kv_heads, head = r * heads + kv * GROUP, length = pass->start + r + 1;
        float turned[GROUP * D], scores[GROUP * (length + WIDE)], *placeless = pass->placeless + head * D;
        for (long g = 0; g < GROUP; g++) {
            head_of(qkv + (r * every + kv * GROUP + g) * D, layer->query_norm, pass->epsilon, placeless + g * D);
            turn(placeless + g * D, cos + r * D, sin + r * D, turned + g * D);
        }
        seen(turned, layer->keys + kv * pass->stride, layer->values + kv * pass->stride, length, pass->scaling, scores,
             pass->local + head * D, pass->mass + head);
    }
}

/* A layer until its positions have attended. */
void begin(const Layer *layer, const Pass *pass) {
    add_and_norm(pass, NULL, layer->norm, pass->rows);
    product(pass->rows, pass->n, &layer->qkv, pass->room, pass->wide);
    attend(layer, pass, pass->wide);
}

/* A layer from there on: the hidden states grow by it. mixed: [n, heads, D], what was attended to. */
void finish(const Layer *layer, const Pass *pass, const float *mixed) {
    long n = pass->n;
    product(mixed, n, &layer->output, pass->room, pass->wide);
    add_and_norm(pass, pass->wide, layer->mlp_norm, pass->rows);
    product(pass->rows, n, &layer->gate_up, pass->room, pass->wide);
    gated(pass->wide, n, layer->down.inputs, pass->rows);
    product(pass->rows, n, &layer->down, pass->room, pass->wide);
    for (long i = 0; i < n * pass->size; i += WIDE) store(pass->x + i, load(pass->x + i) + load(pass->wide + i));
}

/* All of some layers. */
void layers(const Layer *layer, long count, const Pass *pass) {
    for (; count > 0; count--, layer++) {
        begin(layer, pass);
        finish(layer, pass, pass->local);
    }
}

/* The norm of the hidden states, in bf16: out [n, size]. */
void norm(const Pass *pass, const uint16_t *weight, uint16_t *out) {
    add_and_norm(pass, NULL, weight, pass->rows);
    for (long i = 0; i < pass->n * pass->size; i += WIDE) narrow(out + i, load(pass->rows + i));
}

/* A key's inner product with a query, and its place among the keys. */
typedef struct {
    float score;
    int32_t place;
} Found;

/* Of each of a group's queries [GROUP, D] the k keys [., D] from `first` to `end` - 1 with the largest inner products:
   best [GROUP, k], largest first, and how many there are. */
INLINE int nearest(const float *query, const uint16_t *keys, long first, long end, int k, Found *best) {
    Floats found[GROUP];
    float weakest[GROUP];
    int held[GROUP] = {0}, worst[GROUP] = {0};
    uint16_t last[WIDE * D];
    for (int g = 0; g < GROUP; g++) weakest[g] = -INFINITY;
    for (; first < end; first += WIDE) {
        const uint16_t *block = keys + first * D;
        int count = end - first < WIDE ? end - first : WIDE;
        if (count < WIDE) { /* behind the last there may be nothing */
            memset(last, 0, sizeof last);
            block = memcpy(last, block, count * D * sizeof *last);
        }
        products(query, block, found);
        for (int g = 0; g < GROUP; g++) {
            Found *own = best + g * k;
            Ints better = found[g] > all(weakest[g]);
            int some = held[g] < k;
            for (int i = 0; i < WIDE; i++) some |= better[i];
            for (int i = 0; some && i < count; i++) {
                if (held[g] == k && !(found[g][i] > weakest[g])) continue;
                own[held[g] < k ? held[g]++ : worst[g]] = (Found){found[g][i], first + i};
                if (held[g] < k) continue;
                worst[g] = 0;
                for (int j = 1; j < k; j++) worst[g] = own[j].score < own[worst[g]].score ? j : worst[g];
                weakest[g] = own[worst[g]].score;
            }
        }
    }
    for (int g = 0; g < GROUP; g++) /* by insertion: they are few */
        for (int i = 1; i < held[g]; i++) {
            Found *own = best + g * k, now = own[i];
            int j = i;
            for (; j > 0 && own[j - 1].score < now.score; j--) own[j] = own[j - 1];
            own[j] = now;
        }
    return held[0];
}

/* The k best of two lists, largest first, of the first of which all are there. */
INLINE void merged(const Found *a, int in_a, const Found *b, int in_b, int k, Found *best) {
    for (int i = 0, j = 0; i + j < k;) {
        int from_a = j == in_b || (i < in_a && a[i].score >= b[j].score);
        best[i + j] = from_a ? a[i] : b[j];
        if (from_a) i++; else j++;
    }
}

/* Attention over local context and a focus of n entries at once, as `attention.MemoryGate` of the kind "joint" has it.

   placeless, local: [positions, heads, D]; mass: [positions, heads], as `begin` leaves them; cos, sin: [D], of the memory
   angle; keys: [kv_heads, n, D]; pairs: [kv_heads, n, 2, D], keys and values; rows: [n], those of the memory; k: at most
   n; temperature, bias, discount: [heads]. Leaves mixed [positions, heads, D], and found and weights [heads, positions,
   k]. */
void read_focus(const float *placeless, const float *local, const float *mass, long positions, long kv_heads,
                float scaling, const float *cos, const float *sin, const uint16_t *keys, const uint16_t *pairs,
                const int64_t *rows, long n, long k, const float *temperature, const float *bias, const float *discount,
                float *mixed, int64_t *found, float *weights) {
    long heads = GROUP * kv_heads, tasks = positions * kv_heads, middle = n / 2 / WIDE * WIDE;
    Found *halves = malloc(tasks * 2 * GROUP * k * sizeof *halves);
    int held[tasks * 2];
#pragma omp parallel for
    for (long half = 0; half < tasks * 2; half++) { /* so that threads have as many of them */
        long task = half / 2, kv = task % kv_heads, at = (task / kv_heads * heads + kv * GROUP) * D;
        float turned[GROUP * D];
        for (long g = 0; g < GROUP; g++) turn(placeless + at + g * D, cos, sin, turned + g * D);
        Found *best = halves + half * GROUP * k;
        held[half] = nearest(turned, keys + kv * n * D, half % 2 ? middle : 0, half % 2 ? n : middle, k, best);
    }
    for (long task = 0; task < tasks; task++)
        for (long g = 0; g < GROUP; g++) {
            long r = task / kv_heads, kv = task % kv_heads, head = kv * GROUP + g, at = (r * heads + head) * D;
            Found best[k], *own = halves + (2 * task * GROUP + g) * k;
            merged(own, held[2 * task], own + GROUP * k, held[2 * task + 1], k, best);
            float *weight = weights + (head * positions + r) * k;
            float here = mass[r * heads + head], weakest = best[k - 1].score * scaling;
            float shift = bias[head] - discount[head] * (weakest > 0 ? weakest : 0), most = here;
            for (long i = 0; i < k; i++) {
                weight[i] = temperature[head] * (best[i].score * scaling) + shift;
                most = weight[i] > most ? weight[i] : most;
            }
            float share = expf(here - most), total = share;
            for (long i = 0; i < k; i++) total += weight[i] = expf(weight[i] - most);
            Floats sum[PARTS];
            for (long c = 0; c < PARTS; c++) sum[c] = load(local + at + c * WIDE) * (share / total);
            for (long i = 0; i < k; i++) {
                const uint16_t *value = pairs + ((kv * n + best[i].place) * 2 + 1) * D;
                weight[i] /= total;
                found[(head * positions + r) * k + i] = rows[best[i].place];
                for (long c = 0; c < PARTS; c++) sum[c] += weight[i] * widen(value + c * WIDE);
            }
            for (long c = 0; c < PARTS; c++) store(mixed + at + c * WIDE, sum[c]);
        }
    free(halves);
}
