/* Products with packed weights, read as an artifact stores them: no second form of a weight is made.

   A row of W is ceil(in * bits / 32) words; an integer q of `bits` stands there as u = q + 2^(bits - 1). Of 4 bits, a
   byte holds the columns 2j (low half) and 2j + 1 (high half). Columns are taken in chunks of 32: of 4 bits, a chunk is
   16 bytes, whose low halves and high halves fill one register; the left side is arranged alike, evens before odds.
   Integers of x are moved up by 128: 255 times |w| <= 8 (15 with a zero point), in pairs, eight (four) times over, is below
   2^15, so sums of integers are exact. */

#include <stdlib.h>

#include "values.h"
#include "weight.h"

#define CHUNK 32
#define TILE 16   /* rows of W that are expanded together; they stay in a core's cache */
#define MIDDLE 128
#define FEW 4     /* rows of x that are multiplied together */

static inline int64_t chunks_of(const Weight *w) { return (w->in + CHUNK - 1) / CHUNK; }

static inline float scale_at(const Weight *w, int64_t i) {
    return w->scale_kind == FLOAT32 ? ((const float *)w->scale)[i]
                                    : widened(((const uint16_t *)w->scale)[i], w->scale_kind);
}

/* What is taken off every u of a group: 2^(bits - 1) and the zero point. */
static inline int32_t offset_at(const Weight *w, int64_t row, int64_t group) {
    int32_t middle = 1 << (w->bits - 1);
    if (!w->zero) return middle;
    int64_t bit = row * w->bits;
    uint32_t word = w->zero[bit / 32 * w->groups + group];
    return (int32_t)((word >> (bit % 32)) & ((1u << w->bits) - 1)); /* stored with 2^(bits - 1) on top */
}

/* How many chunks of a row may be read whole; the one behind them is cut off. */
static inline int64_t whole_chunks(const Weight *w, const int bits) { return w->row_bytes / (CHUNK / 8 * bits); }

/* The bytes of the chunk that is cut off, zeros behind them: those behind the end of a row are not read. */
static const uint8_t *cut_chunk(const Weight *w, int64_t row, const int bits, uint8_t *rest) {
    const int64_t size = CHUNK / 8 * bits, start = whole_chunks(w, bits) * size;
    memset(rest, 0, CHUNK);
    memcpy(rest, w->words + row * w->row_bytes + start, w->row_bytes - start);
    return rest;
}

/* The u of a chunk, as bytes in the order of the left side. */
static inline __m256i bytes_at(const uint8_t *from, const int bits) {
    if (bits == 8) return _mm256_loadu_si256((const __m256i *)from);
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)from));
    return _mm256_and_si256(_mm256_srlv_epi64(both, _mm256_set_epi64x(4, 4, 0, 0)), _mm256_set1_epi8(15));
}

static inline __m256i chunk_at(const Weight *w, int64_t row, int64_t chunk, const int bits) {
    uint8_t rest[CHUNK];
    const uint8_t *from = w->words + row * w->row_bytes + chunk * (CHUNK / 8 * bits);
    return bytes_at(chunk < whole_chunks(w, bits) ? from : cut_chunk(w, row, bits, rest), bits);
}

static inline float sum_of_floats(__m256 v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}

static inline int32_t sum_of_integers(__m256i v) {
    __m128i x = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- the left side ---------------------------------------------------------------------------------------------- */

/* Where column c of a row of integers stands. */
static inline int64_t place_of(int64_t c, int32_t bits) {
    return bits == 4 ? c / CHUNK * CHUNK + (c & 1) * (CHUNK / 2) + c % CHUNK / 2 : c;
}

/* Parts of a chunk: its words of 32 bits are lanes, and part k is bits [k * bits, ..) of every lane. Of 4 bits, the upper
   lanes are the upper halves of the four words. What is left where it stands in a lane is too large by 2^(k * bits),
   which x is made smaller by: a shift is saved, and nothing is rounded. */
#define PARTS 4
static inline int shift_of(int part, int32_t bits) { return bits == 8 && part == 3 ? 0 : part * bits; }

/* Where column c of a row of floats stands. */
static inline int64_t float_place_of(int64_t c, int32_t bits) {
    const int64_t within = c % CHUNK, part = within % PARTS;
    const int64_t lane = bits == 4 ? within / 8 + within % 8 / 4 * 4 : within / 4;
    return c / CHUNK * CHUNK + part * 8 + lane;
}

/* A row of values in the order of the parts: [chunks * 32], zeros behind the end. */
static void arrange_row(const void *x, int32_t kind, int64_t row, int64_t in, int32_t bits, float *out) {
    int64_t place[CHUNK];
    float factor[CHUNK], part[CHUNK];
    for (int c = 0; c < CHUNK; c++) {
        place[c] = float_place_of(c, bits);
        factor[c] = 1.0f / (float)(1 << shift_of(c % PARTS, bits));
    }
    for (int64_t start = 0; start < in; start += CHUNK) {
        const int64_t count = smaller(in - start, CHUNK);
        if (count < CHUNK) memset(part, 0, sizeof(part));
        read_values(x, kind, row * in + start, count, part);
        for (int64_t c = 0; c < CHUNK; c++) out[start + place[c]] = part[c] * factor[c];
    }
}

/* Integers [rows, in] alike, moved up by 128, zero points behind the end. */
void arrange_integers(const int8_t *q, const int32_t *zero, int64_t rows, int64_t in, int32_t bits, uint8_t *out) {
    const int64_t columns = (in + CHUNK - 1) / CHUNK * CHUNK;
#pragma omp parallel for if (rows > 1) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        memset(out + r * columns + columns - CHUNK, zero[r] + MIDDLE, CHUNK);
        for (int64_t c = 0; c < in; c++) out[r * columns + place_of(c, bits)] = (uint8_t)(q[r * in + c] + MIDDLE);
    }
}

/* ---- floating-point left sides ---------------------------------------------------------------------------------- */

/* The words of a chunk, a part of 4 bits in the low halves of all lanes. */
static inline __m256i words_at(const uint8_t *from, const int bits) {
    if (bits == 8) return _mm256_loadu_si256((const __m256i *)from);
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)from));
    return _mm256_srlv_epi32(both, _mm256_set_epi32(16, 16, 16, 16, 0, 0, 0, 0));
}

/* Adds a chunk's products with `count` rows of x to sum [2][count]. */
static inline __attribute__((always_inline)) void float_chunk(const uint8_t *from, const float *x, int64_t columns,
                                                              __m256i offset, const int bits, const int count,
                                                              __m256 *sum) {
    const __m256i words = words_at(from, bits);
    for (int part = 0; part < PARTS; part++) {
        const int up = shift_of(part, bits);
        const __m256i u = _mm256_and_si256(_mm256_srli_epi32(words, part * bits - up),
                                           _mm256_set1_epi32((int32_t)(((1u << bits) - 1) << up)));
        const __m256 v = _mm256_cvtepi32_ps(_mm256_sub_epi32(u, _mm256_slli_epi32(offset, up)));
        for (int r = 0; r < count; r++) {
            __m256 *to = sum + (part & 1) * count + r;
            *to = _mm256_fmadd_ps(v, _mm256_loadu_ps(x + r * columns + 8 * part), *to);
        }
    }
}

/* y of `count` rows of x and `width` rows of W of `bits`. */
static inline __attribute__((always_inline)) void float_block(const Weight *w, int64_t o, const float *x,
                                                              const int bits, const int count, const int width,
                                                              float *y) {
    const int64_t chunks = chunks_of(w), columns = chunks * CHUNK, whole = whole_chunks(w, bits);
    __m256 total[FEW];
    uint8_t rest[CHUNK];
    for (int i = 0; i < count * width; i++) total[i] = _mm256_setzero_ps();
    for (int64_t g = 0; g < w->groups; g++) {
        const int64_t begin = g * w->group_chunks, last = smaller(chunks, begin + w->group_chunks);
        __m256 sum[2][2 * FEW];
        __m256i offset[2];
        for (int i = 0; i < 2 * count; i++) sum[0][i] = sum[1][i] = _mm256_setzero_ps();
        for (int i = 0; i < width; i++) offset[i] = _mm256_set1_epi32(offset_at(w, o + i, g));
        for (int64_t c = begin; c < smaller(last, whole); c++)
            for (int i = 0; i < width; i++) {
                const uint8_t *from = w->words + (o + i) * w->row_bytes + c * (CHUNK / 8 * bits);
                float_chunk(from, x + c * CHUNK, columns, offset[i], bits, count, sum[i]);
            }
        if (last > whole)
            for (int i = 0; i < width; i++)
                float_chunk(cut_chunk(w, o + i, bits, rest), x + whole * CHUNK, columns, offset[i], bits, count, sum[i]);
        for (int i = 0; i < width; i++) {
            const __m256 scale = _mm256_set1_ps(scale_at(w, (o + i) * w->groups + g));
            for (int r = 0; r < count; r++)
                total[r * width + i] = _mm256_fmadd_ps(scale, _mm256_add_ps(sum[i][r], sum[i][count + r]),
                                                       total[r * width + i]);
        }
    }
    for (int r = 0; r < count; r++)
        for (int i = 0; i < width; i++) y[r * w->out + o + i] = sum_of_floats(total[r * width + i]);
}

static inline __attribute__((always_inline)) void float_tile(const Weight *w, int64_t start, int64_t stop,
                                                             const float *x, int64_t rows, const int bits, float *y) {
    int64_t o = start;
    switch (rows) {
    case 1:
        for (; o + 1 < stop; o += 2) float_block(w, o, x, bits, 1, 2, y);
        if (o < stop) float_block(w, o, x, bits, 1, 1, y);
        break;
    case 2: for (; o < stop; o++) float_block(w, o, x, bits, 2, 1, y); break;
    case 3: for (; o < stop; o++) float_block(w, o, x, bits, 3, 1, y); break;
    default: for (; o < stop; o++) float_block(w, o, x, bits, 4, 1, y);
    }
}

/* y [rows, out] of x [rows, in]. W is read once for every four rows. 1: out of memory. */
int product_of_floats(const Weight *given, const void *x, int32_t x_kind, int64_t rows, void *y, int32_t y_kind) {
    const Weight w = *given;
    const int64_t columns = chunks_of(&w) * CHUNK;
    float *left = malloc(rows * (columns + w.out) * sizeof(float)), *right = left + rows * columns;
    if (!left) return 1;
    for (int64_t r = 0; r < rows; r++) arrange_row(x, x_kind, r, w.in, w.bits, left + r * columns);
#pragma omp parallel for schedule(static)
    for (int64_t start = 0; start < w.out; start += TILE)
        for (int64_t r = 0; r < rows; r += FEW) {
            const int64_t stop = smaller(w.out, start + TILE), count = smaller(rows - r, FEW);
            if (w.bits == 4) float_tile(&w, start, stop, left + r * columns, count, 4, right + r * w.out);
            else float_tile(&w, start, stop, left + r * columns, count, 8, right + r * w.out);
        }
    write_values(right, rows * w.out, y, y_kind, 0);
    free(left);
    return 0;
}

/* Rows [start, stop) of W as values [stop - start, in] in the order of their columns. */
void expand(const Weight *given, int64_t start, int64_t stop, float *out) {
    const Weight w = *given;
    const int64_t chunks = chunks_of(&w);
#pragma omp parallel for schedule(static)
    for (int64_t o = start; o < stop; o++) {
        float *to = out + (o - start) * w.in;
        for (int64_t c = 0; c < chunks; c++) {
            const int64_t g = c / w.group_chunks;
            const __m256i offset = _mm256_set1_epi32(offset_at(&w, o, g));
            const __m256 scale = _mm256_set1_ps(scale_at(&w, o * w.groups + g));
            __m256i bytes = w.bits == 4 ? chunk_at(&w, o, c, 4) : chunk_at(&w, o, c, 8);
            if (w.bits == 4) { /* back to pairs of columns */
                const __m128i even = _mm256_castsi256_si128(bytes), odd = _mm256_extracti128_si256(bytes, 1);
                bytes = _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
            }
            const __m128i first = _mm256_castsi256_si128(bytes), second = _mm256_extracti128_si256(bytes, 1);
            const __m128i eights[4] = {first, _mm_srli_si128(first, 8), second, _mm_srli_si128(second, 8)};
            float values[CHUNK], *at = w.in - c * CHUNK < CHUNK ? values : to + c * CHUNK;
            for (int part = 0; part < 4; part++)
                _mm256_storeu_ps(at + 8 * part, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_sub_epi32(
                                                                 _mm256_cvtepu8_epi32(eights[part]), offset))));
            if (at == values) memcpy(to + c * CHUNK, values, (w.in - c * CHUNK) * sizeof(float));
        }
    }
}

/* ---- integers on both sides ------------------------------------------------------------------------------------- */

/* Adds the sums of w * q of some chunks, for some rows of expanded W by some rows of x, to acc [r * width + o]. */
static inline __attribute__((always_inline)) void integer_sums(const int8_t *w, const uint8_t *q, int64_t columns,
                                                               int64_t chunks, int64_t steps, const int count,
                                                               const int width, __m256i *acc) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t begin = 0; begin < chunks; begin += steps) {
        __m256i pairs[FEW * 2];
        for (int i = 0; i < count * width; i++) pairs[i] = _mm256_setzero_si256();
        const int64_t end = smaller(chunks, begin + steps);
        for (int64_t c = begin; c < end; c++)
            for (int o = 0; o < width; o++) {
                const __m256i right = _mm256_loadu_si256((const __m256i *)(w + o * columns + c * CHUNK));
                for (int r = 0; r < count; r++) {
                    const __m256i left = _mm256_loadu_si256((const __m256i *)(q + r * columns + c * CHUNK));
                    pairs[r * width + o] = _mm256_add_epi16(pairs[r * width + o], _mm256_maddubs_epi16(left, right));
                }
            }
        for (int i = 0; i < count * width; i++)
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(pairs[i], ones));
    }
}

typedef struct {
    const uint8_t *q;       /* [rows, chunks * 32], arranged and moved up by 128 */
    const int32_t *zero;    /* [rows] */
    const float *scale;     /* [rows] */
    int64_t rows;
} Left;

/* A tile of W: its integers less their zero points, and by row and group their sums, lane by lane, and the scale. */
typedef struct {
    int8_t *w;
    __m256i *sums;
    float *scale;
} Tile;

static void expand_tile(const Weight *w, int64_t start, int64_t stop, const Tile *to) {
    const int64_t chunks = chunks_of(w);
    const __m256i ones = _mm256_set1_epi8(1), pairs = _mm256_set1_epi16(1);
    for (int64_t o = start; o < stop; o++)
        for (int64_t g = 0; g < w->groups; g++) {
            const int64_t end = smaller(chunks, (g + 1) * w->group_chunks), i = (o - start) * w->groups + g;
            const __m256i offset = _mm256_set1_epi8((int8_t)offset_at(w, o, g));
            __m256i sum = _mm256_setzero_si256();
            for (int64_t c = g * w->group_chunks; c < end; c++) {
                const __m256i v = _mm256_sub_epi8(chunk_at(w, o, c, 4), offset);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(ones, v), pairs));
                _mm256_storeu_si256((__m256i *)(to->w + ((o - start) * chunks + c) * CHUNK), v);
            }
            _mm256_storeu_si256(to->sums + i, sum);
            to->scale[i] = scale_at(w, o * w->groups + g);
        }
}

/* y of `count` rows of x and `width` rows of W. A group's sum is exact; the sum over groups is one of floats. */
static inline __attribute__((always_inline)) void integer_block(const Weight *w, const Tile *tile, int64_t first,
                                                                const Left *x, int64_t row, const int count,
                                                                const int width, float *y) {
    const int64_t chunks = chunks_of(w), columns = chunks * CHUNK, steps = w->zero ? 4 : 8;
    __m256i acc[FEW * 2];
    __m256 total[FEW * 2];
    for (int i = 0; i < count * width; i++) total[i] = _mm256_setzero_ps();
    for (int64_t g = 0; g < w->groups; g++) {
        const int64_t begin = g * w->group_chunks, size = smaller(chunks - begin, w->group_chunks);
        for (int r = 0; r < count; r++)
            for (int o = 0; o < width; o++) { /* what x was moved up by, and its zero point, are taken off beforehand */
                const __m256i sums = _mm256_loadu_si256(tile->sums + (first + o) * w->groups + g);
                acc[r * width + o] = _mm256_mullo_epi32(sums, _mm256_set1_epi32(-MIDDLE - x->zero[row + r]));
            }
        integer_sums(tile->w + first * columns + begin * CHUNK, x->q + row * columns + begin * CHUNK, columns, size,
                     steps, count, width, acc);
        if (w->groups == 1) break;
        for (int o = 0; o < width; o++) {
            const __m256 scale = _mm256_set1_ps(tile->scale[(first + o) * w->groups + g]);
            for (int r = 0; r < count; r++)
                total[r * width + o] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r * width + o]), scale, total[r * width + o]);
        }
    }
    for (int r = 0; r < count; r++)
        for (int o = 0; o < width; o++) {
            const int i = r * width + o;
            const float sum = w->groups > 1 ? sum_of_floats(total[i])
                                            : (float)sum_of_integers(acc[i]) * tile->scale[first + o];
            y[r * w->out + o] = sum * x->scale[row + r];
        }
}

static void integer_tile(const Weight *w, const Tile *tile, int64_t start, int64_t stop, const Left *x, float *y) {
    for (int64_t row = 0; row < x->rows; row += FEW)
        for (int64_t o = 0; o < stop - start; o += 2) {
            const int count = (int)smaller(x->rows - row, FEW), pair = stop - start - o > 1;
            float *to = y + row * w->out + start + o;
            switch (2 * count + pair) {
            case 2: integer_block(w, tile, o, x, row, 1, 1, to); break;
            case 3: integer_block(w, tile, o, x, row, 1, 2, to); break;
            case 4: integer_block(w, tile, o, x, row, 2, 1, to); break;
            case 5: integer_block(w, tile, o, x, row, 2, 2, to); break;
            case 6: integer_block(w, tile, o, x, row, 3, 1, to); break;
            case 7: integer_block(w, tile, o, x, row, 3, 2, to); break;
            case 8: integer_block(w, tile, o, x, row, 4, 1, to); break;
            default: integer_block(w, tile, o, x, row, 4, 2, to);
            }
        }
}

/* Adds a chunk's products with `count` rows of x to sum [count], and the sum of its own integers to `alone`. */
static inline __attribute__((always_inline)) void direct_chunk(const uint8_t *from, const uint8_t *q, int64_t columns,
                                                               __m256i offset, const int count, __m256i *sum,
                                                               __m256i *alone) {
    const __m256i v = _mm256_sub_epi8(bytes_at(from, 4), offset);
    *alone = _mm256_add_epi16(*alone, _mm256_maddubs_epi16(_mm256_set1_epi8(1), v));
    for (int r = 0; r < count; r++) {
        const __m256i left = _mm256_loadu_si256((const __m256i *)(q + r * columns));
        sum[r] = _mm256_add_epi16(sum[r], _mm256_maddubs_epi16(left, v));
    }
}

/* y of W as it is stored, for so few rows of x that a tile would not be read often enough to be made. */
static inline __attribute__((always_inline)) void direct_block(const Weight *w, int64_t o, const Left *x,
                                                               const int64_t steps, const int count, const int width,
                                                               float *y) {
    const int64_t chunks = chunks_of(w), columns = chunks * CHUNK, whole = whole_chunks(w, 4);
    const __m256i pairs = _mm256_set1_epi16(1);
    __m256 total[FEW];
    uint8_t rest[CHUNK];
    for (int i = 0; i < count * width; i++) total[i] = _mm256_setzero_ps();
    for (int64_t g = 0; g < w->groups; g++) {
        const int64_t last = smaller(chunks, (g + 1) * w->group_chunks);
        __m256i acc[2][FEW], own[2], offset[2];
        for (int i = 0; i < width; i++) {
            for (int r = 0; r < count; r++) acc[i][r] = _mm256_setzero_si256();
            own[i] = _mm256_setzero_si256();
            offset[i] = _mm256_set1_epi8((int8_t)offset_at(w, o + i, g));
        }
        for (int64_t begin = g * w->group_chunks; begin < last; begin += steps) {
            const int64_t end = smaller(last, begin + steps);
            __m256i sum[2][FEW], alone[2];
            for (int i = 0; i < width; i++) {
                for (int r = 0; r < count; r++) sum[i][r] = _mm256_setzero_si256();
                alone[i] = _mm256_setzero_si256();
            }
            for (int64_t c = begin; c < smaller(end, whole); c++)
                for (int i = 0; i < width; i++) {
                    const uint8_t *from = w->words + (o + i) * w->row_bytes + c * (CHUNK / 2);
                    direct_chunk(from, x->q + c * CHUNK, columns, offset[i], count, sum[i], alone + i);
                }
            if (end > whole)
                for (int i = 0; i < width; i++)
                    direct_chunk(cut_chunk(w, o + i, 4, rest), x->q + whole * CHUNK, columns, offset[i], count, sum[i],
                                 alone + i);
            for (int i = 0; i < width; i++) {
                for (int r = 0; r < count; r++)
                    acc[i][r] = _mm256_add_epi32(acc[i][r], _mm256_madd_epi16(sum[i][r], pairs));
                own[i] = _mm256_add_epi32(own[i], _mm256_madd_epi16(alone[i], pairs));
            }
        }
        for (int i = 0; i < width; i++) {
            const float scale = scale_at(w, (o + i) * w->groups + g);
            for (int r = 0; r < count; r++) { /* what x was moved up by, and its zero point, are taken off */
                const __m256i moved = _mm256_mullo_epi32(own[i], _mm256_set1_epi32(MIDDLE + x->zero[r]));
                const __m256i exact = _mm256_sub_epi32(acc[i][r], moved);
                if (w->groups == 1) y[r * w->out + o + i] = (float)sum_of_integers(exact) * scale * x->scale[r];
                else total[r * width + i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), _mm256_set1_ps(scale),
                                                            total[r * width + i]);
            }
        }
    }
    if (w->groups == 1) return;
    for (int r = 0; r < count; r++)
        for (int i = 0; i < width; i++) y[r * w->out + o + i] = sum_of_floats(total[r * width + i]) * x->scale[r];
}

static void direct_tile(const Weight *w, int64_t start, int64_t stop, const Left *x, float *y) {
    const int64_t steps = w->zero ? 4 : 8;
    int64_t o = start;
    switch (x->rows) {
    case 1:
        for (; o + 1 < stop; o += 2) direct_block(w, o, x, steps, 1, 2, y);
        if (o < stop) direct_block(w, o, x, steps, 1, 1, y);
        break;
    case 2: for (; o < stop; o++) direct_block(w, o, x, steps, 2, 1, y); break;
    case 3: for (; o < stop; o++) direct_block(w, o, x, steps, 3, 1, y); break;
    default: for (; o < stop; o++) direct_block(w, o, x, steps, 4, 1, y);
    }
}

/* y [rows, out] of integers q [rows, chunks * 32] less zero [rows], times scale [rows]; 4-bit W. 1: out of memory. */
int product_of_integers(const Weight *given, const uint8_t *q, const int32_t *zero, const float *scale,
                        int64_t rows, void *y, int32_t y_kind) {
    const Weight w = *given;
    const Left x = {q, zero, scale, rows};
    int failed = 0;
    float *right = y_kind == FLOAT32 ? y : malloc(rows * w.out * sizeof(float));
    if (!right) return 1;
#pragma omp parallel
    {
        Tile tile = {NULL, NULL, NULL};
        if (rows > FEW) {
            tile.w = malloc(TILE * (chunks_of(&w) * CHUNK + w.groups * (sizeof(__m256i) + sizeof(float))));
            tile.sums = (__m256i *)(tile.w + TILE * chunks_of(&w) * CHUNK);
            tile.scale = (float *)(tile.sums + TILE * w.groups);
            if (!tile.w) failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t start = 0; start < w.out; start += TILE) {
            const int64_t stop = smaller(w.out, start + TILE);
            if (rows <= FEW) direct_tile(&w, start, stop, &x, right);
            else if (tile.w) {
                expand_tile(&w, start, stop, &tile);
                integer_tile(&w, &tile, start, stop, &x, right);
            }
        }
        free(tile.w);
    }
    if (right != y) {
        write_values(right, rows * w.out, y, y_kind, 0);
        free(right);
    }
    return failed;
}
