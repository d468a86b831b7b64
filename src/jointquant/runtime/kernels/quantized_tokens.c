/* Tokens on their way to a product of integers: turned by a Hadamard matrix (R4), less a mean, rounded, and arranged.

   A row passes all of it in a core's cache. */

#include <stdlib.h>
#include <string.h>

#include "rounding.h"
#include "tokens.h"
#include "values.h"

#define CHUNK 32
#define MIDDLE 128

/* ---- x H / sqrt(n) ---------------------------------------------------------------------------------------------- */

static inline __m256 eight(__m256 v) { /* Sylvester's matrix of order 8, within a register */
    const __m256 odd1 = _mm256_castsi256_ps(_mm256_set_epi32(1 << 31, 0, 1 << 31, 0, 1 << 31, 0, 1 << 31, 0));
    const __m256 odd2 = _mm256_castsi256_ps(_mm256_set_epi32(1 << 31, 1 << 31, 0, 0, 1 << 31, 1 << 31, 0, 0));
    const __m256 odd4 = _mm256_castsi256_ps(_mm256_set_epi32(1 << 31, 1 << 31, 1 << 31, 1 << 31, 0, 0, 0, 0));
    v = _mm256_add_ps(_mm256_permute_ps(v, 0xb1), _mm256_xor_ps(v, odd1));
    v = _mm256_add_ps(_mm256_permute_ps(v, 0x4e), _mm256_xor_ps(v, odd2));
    return _mm256_add_ps(_mm256_permute2f128_ps(v, v, 1), _mm256_xor_ps(v, odd4));
}

static inline void butterflies(float *x, int64_t size, int64_t stride) {
    for (int64_t start = 0; start < size; start += 2 * stride)
        for (int64_t i = start; i < start + stride; i++) {
            const float a = x[i], b = x[i + stride];
            x[i] = a + b;
            x[i + stride] = a - b;
        }
}

static void multiply_base(float *x, int64_t size, int64_t base, const float *matrix, float *scratch) {
    for (int64_t start = 0; start < size; start += base) {
        for (int64_t j = 0; j < base; j++) scratch[j] = 0;
        for (int64_t i = 0; i < base; i++)
            for (int64_t j = 0; j < base; j++) scratch[j] += x[start + i] * matrix[i * base + j];
        memcpy(x + start, scratch, base * sizeof(float));
    }
}

/* In place, the blocks of a row one after the other. */
static void turn(float *x, int64_t in, const Way *way, float *scratch) {
    const float scale = 1.0f / sqrtf((float)way->block);
    for (int64_t at = 0; at < in; at += way->block) {
        float *row = x + at;
        int64_t stride = way->base;
        if (way->base > 1) multiply_base(row, way->block, way->base, way->matrix, scratch);
        else if (way->block >= LANES) {
            for (int64_t i = 0; i < way->block; i += LANES) _mm256_storeu_ps(row + i, eight(_mm256_loadu_ps(row + i)));
            stride = LANES;
        }
        for (; stride < way->block; stride *= 2) butterflies(row, way->block, stride);
        for (int64_t i = 0; i < way->block; i++) row[i] *= scale;
    }
}

/* In place, each block of a row by a matrix of its own. */
static void turn_blocks(float *x, int64_t in, const Way *way, float *scratch) {
    const int64_t size = way->inner_size;
    for (int64_t at = 0; at < in; at += size) {
        const int8_t *matrix = way->inner + at * size;
        for (int64_t j = 0; j < size; j++) scratch[j] = 0;
        for (int64_t i = 0; i < size; i++) {
            const float value = x[at + i] * (1.0f / 127);
            for (int64_t j = 0; j < size; j++) scratch[j] += value * (float)matrix[i * size + j];
        }
        memcpy(x + at, scratch, size * sizeof(float));
    }
}

/* A row on its way to its product, in place: all but the rounding. */
void pass(float *row, int64_t in, const Way *way, float *scratch) {
    if (way->block) turn(row, in, way, scratch);
    if (way->inner_size) turn_blocks(row, in, way, scratch);
    if (way->mean) for (int64_t i = 0; i < in; i++) row[i] -= way->mean[i];
}

/* x [rows, in] turned, and no more; `out` is of the same kind. 1: out of memory. */
int turn_rows(const void *x, int32_t kind, int64_t rows, int64_t in, const Way *way, void *out) {
    int failed = 0;
#pragma omp parallel if (rows * in > 65536)
    {
        float *row = malloc((in + MOST_BASE) * sizeof(float));
        if (!row) failed = 1;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            if (!row) continue;
            read_values(x, kind, r * in, in, row);
            turn(row, in, way, row + in);
            write_values(row, in, out, kind, r * in);
        }
        free(row);
    }
    return failed;
}

/* ---- rounding --------------------------------------------------------------------------------------------------- */

/* A row of `in` values (room for whole chunks behind it) as bytes, moved up by 128, evens before odds for 4 bits. */
static void round_row(float *x, int64_t in, Range range, const Grid *grid, int32_t bits, uint8_t *out) {
    const int64_t columns = (in + CHUNK - 1) / CHUNK * CHUNK;
    const __m256 scale = _mm256_set1_ps(range.scale), zero = _mm256_set1_ps(range.zero);
    const __m256 least = _mm256_set1_ps(grid->q_min), most = _mm256_set1_ps(grid->q_max);
    const __m256i order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0), up = _mm256_set1_epi8((char)MIDDLE);
    const __m256i apart = _mm256_broadcastsi128_si256(_mm_set_epi8(15, 13, 11, 9, 7, 5, 3, 1, 14, 12, 10, 8, 6, 4, 2, 0));
    for (int64_t i = in; i < columns; i++) x[i] = 0;
    for (int64_t c = 0; c < columns; c += CHUNK) {
        const __m256i a = eight_integers(x + c, scale, zero, least, most);
        const __m256i b = eight_integers(x + c + 8, scale, zero, least, most);
        const __m256i d = eight_integers(x + c + 16, scale, zero, least, most);
        const __m256i e = eight_integers(x + c + 24, scale, zero, least, most);
        __m256i v = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(d, e));
        v = _mm256_permutevar8x32_epi32(v, order);
        if (bits == 4) v = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, apart), 0xd8);
        _mm256_storeu_si256((__m256i *)(out + c), _mm256_xor_si256(v, up));
    }
}

/* x [rows, in] as integers [rows, chunks * 32], arranged for a weight of `bits`, with zero points and scales [rows].
   1: out of memory. */
int encode_tokens(const void *x, int32_t kind, int64_t rows, int64_t in, const Way *way, const Grid *grid, int32_t bits,
                  uint8_t *out, int32_t *zero, float *scale) {
    const int64_t columns = (in + CHUNK - 1) / CHUNK * CHUNK;
    int failed = 0;
#pragma omp parallel if (rows > 1)
    {
        float *row = malloc((columns + room_of(way)) * sizeof(float));
        if (!row) failed = 1;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            if (!row) continue;
            read_values(x, kind, r * in, in, row);
            pass(row, in, way, row + columns);
            const Range range = range_of(row, in, grid);
            scale[r] = range.scale;
            zero[r] = (int32_t)range.zero;
            round_row(row, in, range, grid, bits, out + r * columns);
        }
        free(row);
    }
    return failed;
}
