/* Keys and values of past tokens, and the attention of a new one (packed_attention.c). */

#pragma once

#include <stdint.h>

#include "rounding.h"

enum { PACKED = -1 }; /* beside the kinds of values.h */

typedef struct {
    const uint8_t *records;                    /* [batch, heads, tokens, record] */
    int64_t batch_stride, head_stride, record; /* in bytes */
    int32_t has_zero, kind;                    /* a record is PACKED, or a vector of values of a kind */
} Kept;

void write_records(const float *x, int64_t rows, int64_t size, const Grid *grid, uint8_t *out, int64_t record);
int attend(const float *query, const Kept *key, const Kept *value, int64_t batch, int64_t heads, int64_t group,
           int64_t tokens, int64_t size, float *out);
