/* What tokens pass on their way to a product, and their integers (quantized_tokens.c). */

#pragma once

#include <stdint.h>

#include "rounding.h"

#define MOST_BASE 64

typedef struct {
    int64_t block, base;  /* H is of order `block`: Sylvester's of block / base, times `matrix` [base, base]; 0: none */
    const float *matrix;
    int64_t inner_size;   /* behind it matrices [in / inner_size, inner_size, inner_size] in parts of 1 / 127; 0: none */
    const int8_t *inner;
    const float *mean;    /* [in], or NULL */
} Way;

/* Floats that `pass` needs beside a row. */
static inline int64_t room_of(const Way *way) { return MOST_BASE + way->inner_size; }

void pass(float *row, int64_t in, const Way *way, float *scratch);
int encode_tokens(const void *x, int32_t kind, int64_t rows, int64_t in, const Way *way, const Grid *grid, int32_t bits,
                  uint8_t *out, int32_t *zero, float *scale);
