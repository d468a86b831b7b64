/* The grid of quantization/integer.py, operation by operation, in float32. A row that is not finite gets the scale NaN, so
   that all that is computed of it is NaN. */

#pragma once

#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define LANES 8

typedef struct {
    float ratio, levels, q_min, q_max;  /* the part of the range that is kept; the range's steps; the grid's ends */
    int32_t symmetric;
} Grid;

typedef struct { float scale, zero; } Range;

static Range range_of(const float *x, int64_t in, const Grid *grid) {
    float low = INFINITY, high = -INFINITY, lows[LANES], highs[LANES];
    __m256 least = _mm256_set1_ps(INFINITY), most = _mm256_set1_ps(-INFINITY), nan = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES) {
        const __m256 v = _mm256_loadu_ps(x + i);
        least = _mm256_min_ps(least, v);
        most = _mm256_max_ps(most, v);
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    _mm256_storeu_ps(lows, least);
    _mm256_storeu_ps(highs, most);
    int unordered = _mm256_movemask_ps(nan);
    for (int l = 0; l < LANES; l++) {
        low = lows[l] < low ? lows[l] : low;
        high = highs[l] > high ? highs[l] : high;
    }
    for (; i < in; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        unordered |= x[i] != x[i];
    }
    if (grid->ratio != 1.0f) { low *= grid->ratio; high *= grid->ratio; }
    low = low > 0 ? 0 : low;
    high = high < 0 ? 0 : high;
    const float span = grid->symmetric ? 2.0f * (-low > high ? -low : high) : high - low;
    if (unordered || !(span < INFINITY)) return (Range){NAN, 0};
    Range found = {span > FLT_MIN * grid->levels ? span / grid->levels : 1.0f, 0};
    if (!grid->symmetric) {
        found.zero = rintf(grid->q_min - low / found.scale);
        found.zero = found.zero < grid->q_min ? grid->q_min : found.zero > grid->q_max ? grid->q_max : found.zero;
    }
    return found;
}

static inline __m256i eight_integers(const float *x, __m256 scale, __m256 zero, __m256 least, __m256 most) {
    __m256 v = _mm256_add_ps(_mm256_div_ps(_mm256_loadu_ps(x), scale), zero);
    v = _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, least), most));
}

