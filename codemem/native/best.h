/* The best of many that are found one after the other. */

#pragma once

#include <stdint.h>

/* How good a row or a key is, and which it is. */
typedef struct {
    float score;
    int32_t place;
} Found;

/* Of some found, a heap that begins with the worst: give that up for another. */
static inline void exchange(Found *heap, int count, Found now) {
    int at = 0;
    for (int child; (child = 2 * at + 1) < count; at = child) {
        child += child + 1 < count && heap[child + 1].score < heap[child].score;
        if (!(heap[child].score < now.score)) break;
        heap[at] = heap[child];
    }
    heap[at] = now;
}

/* Keep one of those found, of which the heap has `held`, if it is among the k best. Returns how many it has now. */
static inline int keep(Found *heap, int held, int k, Found now) {
    if (held < k) {
        int at = held;
        for (; at > 0 && now.score < heap[(at - 1) / 2].score; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
        heap[at] = now;
        return held + 1;
    }
    if (now.score > heap[0].score) exchange(heap, k, now);
    return held;
}

/* Let a heap stand best first. */
static inline void order(Found *heap, int count) {
    for (int i = count - 1; i > 0; i--) {
        Found worst = heap[0];
        exchange(heap, i, heap[i]);
        heap[i] = worst;
    }
}
