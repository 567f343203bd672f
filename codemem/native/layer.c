/* The layers of a Llama-shaped decoder for a few positions: one call for all between two that read memory, where PyTorch
   needs some fifteen for each, whose starts take longer than their arithmetic.

   Nothing here depends on how many positions are computed together: each is computed by itself, in the same order.
   Numbers are float32 in between. */

#include "focus.h"
#include "matrix.h"

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

/* The hidden states that tokens begin with: their rows of table [., size]. */
void embed(const Pass *pass, const uint16_t *table, const int64_t *tokens) {
    for (long r = 0; r < pass->n; r++)
        for (long i = 0; i < pass->size; i += WIDE)
            store(pass->x + r * pass->size + i, widen(table + tokens[r] * pass->size + i));
}

enum { FEW = 8 }; /* rows for which it takes less time not to share them out */

/* RMS norm (Zhang and Sennrich, 2019) of one row. */
INLINE void normalised(const float *x, long size, const uint16_t *weight, float epsilon, float *out) {
    Floats squares = all(0.0f);
    for (long i = 0; i < size; i += WIDE) squares += load(x + i) * load(x + i);
    Floats scale = all(1.0f / sqrtf(sum(squares) / size + epsilon));
    for (long i = 0; i < size; i += WIDE) store(out + i, load(x + i) * scale * widen(weight + i));
}

/* The norm of the hidden states, to which `more` [n, size] is added first, if it is not NULL: out [n, size]. */
void add_and_norm(const Pass *pass, const float *more, const uint16_t *weight, float *out) {
    long size = pass->size;
#pragma omp parallel for if (pass->n >= FEW)
    for (long r = 0; r < pass->n; r++) {
        float *x = pass->x + r * size;
        for (long i = 0; more && i < size; i += WIDE) store(x + i, load(x + i) + load(more + r * size + i));
        normalised(x, size, weight, pass->epsilon, out + r * size);
    }
}

/* silu(gate) * up of gate_up [n, 2, inner]: out [n, inner]. */
void gated(const float *gate_up, long n, long inner, float *out) {
#pragma omp parallel for
    for (long i = 0; i < n * inner; i += WIDE) {
        const float *from = gate_up + i + i / inner * inner;
        Floats gate = load(from);
        store(out + i, gate / (1.0f + power(-gate)) * load(from + inner));
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
void attend(const Layer *layer, const Pass *pass, const float *qkv) {
    long kv_heads = pass->kv_heads, heads = GROUP * kv_heads, every = heads + 2 * kv_heads, n = pass->n;
    const float *cos = pass->cos + pass->start * D, *sin = pass->sin + pass->start * D;
#pragma omp parallel for if (n >= FEW)
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
#pragma omp parallel for schedule(static, 1) /* later positions attend to more */
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

/* All of some layers. focus: what each of them reads, or NULL; or NULL for all of them. */
void layers(const Layer *layer, long count, const Pass *pass, Focus *const *focus) {
    for (long i = 0; i < count; i++) {
        begin(layer + i, pass);
        if (focus && focus[i])
            read_focus(focus[i], pass->placeless, pass->local, pass->mass, pass->n, pass->kv_heads, pass->scaling,
                       pass->local);
        finish(layer + i, pass, pass->local);
    }
}

/* The norm of the hidden states, in bf16: out [n, size]. */
void norm(const Pass *pass, const uint16_t *weight, uint16_t *out) {
    add_and_norm(pass, NULL, weight, pass->rows);
    for (long i = 0; i < pass->n * pass->size; i += WIDE) narrow(out + i, load(pass->rows + i));
}
