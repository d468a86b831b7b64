/* Attention of one new token over keys and values that stay in 4 bits, or are values of a dtype: a vector is expanded in
   registers, never all.

   A record is a vector's integers (two's complement, the first half of the vector in the low four bits of its bytes), its
   scale (float32), and its zero point (int8) where the grid has one. */

#include <stdlib.h>
#include <string.h>

#include "records.h"
#include "rounding.h"
#include "values.h"
#include "vectors.h"

#define MIDDLE 8

/* ---- records ---------------------------------------------------------------------------------------------------- */

/* x [rows, size], rounded, as records. */
void write_records(const float *x, int64_t rows, int64_t size, const Grid *grid, uint8_t *out, int64_t record) {
    const int64_t half = size / 2;
#pragma omp parallel for if (rows > 256) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * size;
        uint8_t *to = out + r * record;
        const Range range = range_of(row, size, grid);
        const __m256 scale = _mm256_set1_ps(range.scale), zero = _mm256_set1_ps(range.zero);
        const __m256 least = _mm256_set1_ps(grid->q_min), most = _mm256_set1_ps(grid->q_max);
        for (int64_t i = 0; i < half; i += LANES) {
            const __m256i low = eight_integers(row + i, scale, zero, least, most);
            const __m256i high = eight_integers(row + half + i, scale, zero, least, most);
            const __m256i both = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)),
                                                 _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(15)), 4));
            const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
            _mm_storel_epi64((__m128i *)(to + i), _mm_packus_epi16(words, words));
        }
        memcpy(to + half, &range.scale, sizeof(float));
        if (!grid->symmetric) to[half + sizeof(float)] = (uint8_t)(int8_t)range.zero;
    }
}

/* The integers of a record less their zero point, [size]; its scale is returned. */
static inline float read_record(const uint8_t *from, int64_t size, int32_t has_zero, float *out) {
    const int64_t half = size / 2;
    const int32_t zero = has_zero ? (int8_t)from[half + sizeof(float)] : 0;
    const __m256i offset = _mm256_set1_epi32(MIDDLE + zero), four = _mm256_set1_epi32(15);
    const __m128i middle = _mm_set1_epi8((char)(MIDDLE | MIDDLE << 4));
    for (int64_t i = 0; i < half; i += LANES) {
        const __m128i eight = _mm_xor_si128(_mm_loadl_epi64((const __m128i *)(from + i)), middle);
        const __m256i both = _mm256_cvtepu8_epi32(eight);
        const __m256i low = _mm256_sub_epi32(_mm256_and_si256(both, four), offset);
        const __m256i high = _mm256_sub_epi32(_mm256_srli_epi32(both, 4), offset);
        _mm256_storeu_ps(out + i, _mm256_cvtepi32_ps(low));
        _mm256_storeu_ps(out + half + i, _mm256_cvtepi32_ps(high));
    }
    float scale;
    memcpy(&scale, from + half, sizeof(float));
    return scale;
}

/* The vector of a token, or its integers less their zero point, [size]; what it is to be multiplied by is returned. */
static inline float read_vector(const uint8_t *from, int64_t size, const Kept *kept, float *out) {
    if (kept->kind == PACKED) return read_record(from, size, kept->has_zero, out);
    read_values(from, kept->kind, 0, size, out);
    return 1;
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* Scores become weights that are not yet divided by their sum, which is returned. NaN stays. */
static float weigh(float *scores, int64_t tokens) {
    float most = -INFINITY, sum = 0;
    for (int64_t t = 0; t < tokens; t++) most = scores[t] > most ? scores[t] : most;
    for (int64_t t = 0; t < tokens; t += LANES) {
        float part[LANES] = {0};
        const int64_t count = tokens - t < LANES ? tokens - t : LANES;
        memcpy(part, scores + t, count * sizeof(float));
        const __m256 x = _mm256_sub_ps(_mm256_loadu_ps(part), _mm256_set1_ps(most));
        const __m256 odd = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
        _mm256_storeu_ps(part, _mm256_blendv_ps(exponential(x), x, odd));
        for (int64_t i = 0; i < count; i++) sum += scores[t + i] = part[i];
    }
    return sum;
}

/* What `group` queries [group, size] of a KV head see: [group, size]. */
static void attend_head(const float *query, const uint8_t *keys, const uint8_t *values, const Kept *key,
                        const Kept *value, int64_t group, int64_t tokens, int64_t size, float *scores, float *out) {
    float *vector = scores + group * tokens;
    for (int64_t t = 0; t < tokens; t++) {
        const float scale = read_vector(keys + t * key->record, size, key, vector);
        for (int64_t h = 0; h < group; h++) scores[h * tokens + t] = scale * product(query + h * size, vector, size);
    }
    memset(out, 0, group * size * sizeof(float));
    for (int64_t h = 0; h < group; h++) vector[size + h] = weigh(scores + h * tokens, tokens);
    for (int64_t t = 0; t < tokens; t++) {
        const float scale = read_vector(values + t * value->record, size, value, vector);
        for (int64_t h = 0; h < group; h++) {
            const __m256 weight = _mm256_set1_ps(scale * scores[h * tokens + t]);
            float *to = out + h * size;
            for (int64_t i = 0; i < size; i += LANES)
                _mm256_storeu_ps(to + i, _mm256_fmadd_ps(weight, _mm256_loadu_ps(vector + i), _mm256_loadu_ps(to + i)));
        }
    }
    for (int64_t h = 0; h < group; h++)
        for (int64_t i = 0; i < size; i++) out[h * size + i] /= vector[size + h];
}

/* Queries [batch, heads, group, size], scaled, over `tokens` records: out alike. 1: out of memory. */
int attend(const float *query, const Kept *key, const Kept *value, int64_t batch, int64_t heads, int64_t group,
           int64_t tokens, int64_t size, float *out) {
    int failed = 0;
#pragma omp parallel
    {
        float *scores = malloc((group * tokens + size + group) * sizeof(float));
        if (!scores) failed = 1;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < batch * heads; i++) {
            const int64_t b = i / heads, h = i % heads, at = i * group * size;
            if (scores)
                attend_head(query + at, key->records + b * key->batch_stride + h * key->head_stride,
                            value->records + b * value->batch_stride + h * value->head_stride, key, value, group, tokens,
                            size, scores, out + at);
        }
        free(scores);
    }
    return failed;
}
