/* A packed weight, and its products (packed_rows.c). */

#pragma once

#include <stdint.h>

typedef struct {
    const uint8_t *words;      /* [out, row_bytes] */
    const void *scale;         /* [out, groups] */
    const uint32_t *zero;      /* [.., groups], dense along the rows of W; or NULL */
    int64_t out, in, row_bytes, groups, group_chunks; /* a group is so many chunks, the last may have fewer */
    int32_t bits, scale_kind;
} Weight;

int product_of_floats(const Weight *given, const void *x, int32_t x_kind, int64_t rows, void *y, int32_t y_kind);
int product_of_integers(const Weight *given, const uint8_t *q, const int32_t *zero, const float *scale, int64_t rows,
                        void *y, int32_t y_kind);
