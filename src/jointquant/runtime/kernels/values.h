/* Values in the dtypes of tensors: read as float32, which is exact, and written as the nearest. */

#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

static inline float widened(uint16_t half, int32_t kind) {
    if (kind == FLOAT16) return _cvtsh_ss(half);
    const uint32_t whole = (uint32_t)half << 16;
    float value;
    memcpy(&value, &whole, 4);
    return value;
}

static inline uint16_t narrowed(float value, int32_t kind) {
    if (kind == FLOAT16) return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
    if (value != value) return 0x7fc0;
    uint32_t whole;
    memcpy(&whole, &value, 4);
    return (uint16_t)((whole + 0x7fff + (whole >> 16 & 1)) >> 16); /* ties to even */
}

/* n values from `at` on. */
static inline void read_values(const void *from, int32_t kind, int64_t at, int64_t n, float *out) {
    if (kind == FLOAT32) memcpy(out, (const float *)from + at, n * sizeof(float));
    else if (kind == BFLOAT16)
        for (int64_t i = 0; i < n; i++) out[i] = widened(((const uint16_t *)from)[at + i], BFLOAT16);
    else
        for (int64_t i = 0; i < n; i++) out[i] = widened(((const uint16_t *)from)[at + i], FLOAT16);
}

static inline void write_values(const float *from, int64_t n, void *out, int32_t kind, int64_t at) {
    if (kind == FLOAT32) memcpy((float *)out + at, from, n * sizeof(float));
    else
        for (int64_t i = 0; i < n; i++) ((uint16_t *)out)[at + i] = narrowed(from[i], kind);
}
