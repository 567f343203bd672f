/* One product, for those that no layer needs. */

#include <stdlib.h>

#include "matrix.h"

/* rows [n, inputs], bf16, times a matrix: out [n, outputs]. */
void multiply(const uint16_t *rows, long n, const Matrix *matrix, float *out) {
    long count = n * matrix->inputs;
    float *wide = malloc(count * sizeof *wide + 2 * count / NUMBERS * sizeof *wide + count);
    Rounded room = {(int8_t *)(wide + count + 2 * count / NUMBERS), wide + count};
    for (long i = 0; i < count; i += WIDE) store(wide + i, widen(rows + i));
    product(wide, n, matrix, room, out);
    free(wide);
}
