/* Heads of one shape, for which `library.py` compiles what includes this: D is the size of a head, a multiple of 32, and
   GROUP the number of query heads that share a key/value head. */

#pragma once

#include "vectors.h"

enum { PARTS = D / WIDE };

/* A query or key [D] turned by the angles whose cosines and sines [D] are given, the first half of the sines negated. */
INLINE void turn(const float *x, const float *cos, const float *sin, float *out) {
    for (long i = 0; i < D; i += WIDE) {
        long partner = i < D / 2 ? i + D / 2 : i - D / 2;
        store(out + i, load(x + i) * load(cos + i) + load(x + partner) * load(sin + i));
    }
}
