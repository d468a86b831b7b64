/* A decoder layer for one new token, between its hidden state and the next layer's: for few bits the calls of a layer's
   many small operations would take longer than reading its weights.

   All is computed in float32; hidden states, and keys and values that stay as they are, are rounded to their dtype. */

#include <stdlib.h>
#include <string.h>

#include "records.h"
#include "rounding.h"
#include "tokens.h"
#include "values.h"
#include "vectors.h"
#include "weight.h"

#define CHUNK 32
#define MOST_LINEARS 3

/* The linears that read one input. */
typedef struct {
    Way way;
    Grid grid;
    int32_t rounded, bits;  /* of x, whether it is; of the weights */
    int64_t in, count;
    const Weight *weight[MOST_LINEARS];
    const float *bias[MOST_LINEARS];  /* or NULL */
} Site;

typedef struct {
    const void *weight;  /* NULL: there is no norm */
    float eps;
    int32_t kind;
} Norm;

typedef struct {
    Site attn_in, o_in, mlp_in, down_in;
    Norm attn_norm, mlp_norm, query_norm, key_norm;
    int64_t hidden, heads, kv_heads, head_dim, intermediate;
    float scaling;                                        /* of the scores */
    const float *key_mean, *key_basis, *query_basis;      /* [kv_heads, head_dim], twice [.., head_dim, head_dim]; or NULL */
    Way turn;                                             /* R3 */
    Grid key_grid, value_grid;                            /* of records */
} Layer;

/* ---- parts ------------------------------------------------------------------------------------------------------ */

static void normed(const float *x, int64_t size, const Norm *norm, float *out) {
    float squares = 0, weight[CHUNK];
    for (int64_t i = 0; i < size; i += CHUNK) { /* sums of chunks: a sum of thousands one by one would lose digits */
        float sum = 0;
        const int64_t count = size - i < CHUNK ? size - i : CHUNK;
        for (int64_t j = 0; j < count; j++) sum += x[i + j] * x[i + j];
        squares += sum;
    }
    const float scale = 1.0f / sqrtf(squares / (float)size + norm->eps);
    for (int64_t i = 0; i < size; i += CHUNK) {
        const int64_t count = size - i < CHUNK ? size - i : CHUNK;
        read_values(norm->weight, norm->kind, i, count, weight);
        for (int64_t j = 0; j < count; j++) out[i + j] = weight[j] * (x[i + j] * scale);
    }
}

/* The products of a site's linears with x [in], one behind the other; x is overwritten. 1: out of memory. */
static int products(const Site *site, float *x, float *y) {
    const int64_t columns = (site->in + CHUNK - 1) / CHUNK * CHUNK;
    uint8_t *codes = malloc(columns + room_of(&site->way) * sizeof(float));
    int32_t zero;
    float scale;
    int failed = !codes;
    if (failed) return 1;
    if (site->rounded)
        failed = encode_tokens(x, FLOAT32, 1, site->in, &site->way, &site->grid, site->bits, codes, &zero, &scale);
    else pass(x, site->in, &site->way, (float *)(codes + columns));
    for (int64_t i = 0; i < site->count && !failed; i++) {
        const Weight *w = site->weight[i];
        failed = site->rounded ? product_of_integers(w, codes, &zero, &scale, 1, y, FLOAT32)
                               : product_of_floats(w, x, FLOAT32, 1, y, FLOAT32);
        if (site->bias[i]) for (int64_t o = 0; o < w->out; o++) y[o] += site->bias[i][o];
        y += w->out;
    }
    free(codes);
    return failed;
}

/* Rotary positions, in place: [heads, size], the halves of a head paired. */
static void turned_by_place(float *x, int64_t heads, int64_t size, const float *cosine, const float *sine) {
    const int64_t half = size / 2;
    for (int64_t h = 0; h < heads; h++, x += size)
        for (int64_t i = 0; i < half; i++) {
            const float a = x[i], b = x[half + i];
            x[i] = a * cosine[i] - b * sine[i];
            x[half + i] = b * cosine[half + i] + a * sine[half + i];
        }
}

/* x A in place, for `rows` rows [size]. */
static void multiplied(float *x, int64_t rows, int64_t size, const float *matrix, float *scratch) {
    for (int64_t r = 0; r < rows; r++, x += size) {
        memset(scratch, 0, size * sizeof(float));
        for (int64_t i = 0; i < size; i++)
            for (int64_t j = 0; j < size; j++) scratch[j] += x[i] * matrix[i * size + j];
        memcpy(x, scratch, size * sizeof(float));
    }
}

/* What attention's queries and keys pass behind the rotary positions. */
static void in_the_keys_basis(const Layer *layer, float *query, float *key, float *scratch) {
    const int64_t size = layer->head_dim, group = layer->heads / layer->kv_heads;
    for (int64_t h = 0; h < layer->kv_heads; h++) {
        float *own = key + h * size;
        if (layer->key_mean) for (int64_t i = 0; i < size; i++) own[i] -= layer->key_mean[h * size + i];
        if (layer->key_basis) multiplied(own, 1, size, layer->key_basis + h * size * size, scratch);
        if (layer->query_basis)
            multiplied(query + h * group * size, group, size, layer->query_basis + h * size * size, scratch);
    }
    if (!layer->turn.block) return;
    for (int64_t h = 0; h < layer->kv_heads; h++) pass(key + h * size, size, &layer->turn, scratch);
    for (int64_t h = 0; h < layer->heads; h++) pass(query + h * size, size, &layer->turn, scratch);
}

/* x σ(x) y, in place of x. */
static void gated(float *x, const float *y, int64_t size) {
    const __m256 one = _mm256_set1_ps(1), sign = _mm256_set1_ps(-0.0f);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        const __m256 v = _mm256_loadu_ps(x + i), e = exponential(_mm256_or_ps(v, sign)); /* e^-|x| */
        const __m256 top = _mm256_blendv_ps(one, e, v);                                   /* by the sign of x */
        const __m256 share = _mm256_div_ps(top, _mm256_add_ps(one, e));
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_mul_ps(v, share), _mm256_loadu_ps(y + i)));
    }
    for (; i < size; i++) x[i] = x[i] / (1.0f + expf(-x[i])) * y[i];
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

/* Up to attention: queries, scaled, in `query` [heads, head_dim]; the token's keys and values where they are to be kept:
   records, or values of a kind. 1: out of memory. */
int step_to_attention(const Layer *layer, const void *hidden, int32_t kind, const void *cosine, const void *sine,
                      float *query, uint8_t *keys, uint8_t *values, const Kept *key, const Kept *value) {
    const int64_t size = layer->head_dim, own = layer->kv_heads * size, all = layer->heads * size;
    const int64_t room = layer->attn_in.in + room_of(&layer->turn) + all + 2 * own + 3 * size;
    float *x = malloc(room * sizeof(float));
    if (!x) return 1;
    float *made = x + layer->attn_in.in, *places = made + all + 2 * own, *scratch = places + 2 * size;
    read_values(hidden, kind, 0, layer->hidden, x);
    normed(x, layer->hidden, &layer->attn_norm, x);
    const int failed = products(&layer->attn_in, x, made);
    float *k = made + all, *v = k + own;
    if (layer->query_norm.weight)
        for (int64_t h = 0; h < layer->heads; h++) normed(made + h * size, size, &layer->query_norm, made + h * size);
    if (layer->key_norm.weight)
        for (int64_t h = 0; h < layer->kv_heads; h++) normed(k + h * size, size, &layer->key_norm, k + h * size);
    read_values(cosine, kind, 0, size, places);
    read_values(sine, kind, 0, size, places + size);
    turned_by_place(made, layer->heads, size, places, places + size);
    turned_by_place(k, layer->kv_heads, size, places, places + size);
    in_the_keys_basis(layer, made, k, scratch);
    for (int64_t i = 0; i < all; i++) query[i] = made[i] * layer->scaling;
    for (int64_t h = 0; h < layer->kv_heads; h++) {
        if (key->kind == PACKED) write_records(k + h * size, 1, size, &layer->key_grid, keys + h * key->head_stride, key->record);
        else write_values(k + h * size, size, keys + h * key->head_stride, key->kind, 0);
        if (value->kind == PACKED)
            write_records(v + h * size, 1, size, &layer->value_grid, values + h * value->head_stride, value->record);
        else write_values(v + h * size, size, values + h * value->head_stride, value->kind, 0);
    }
    free(x);
    return failed;
}

/* From attention on: the layer's output, of the kind of its input. 1: out of memory. */
int step_from_attention(const Layer *layer, const void *hidden, int32_t kind, const float *query, const Kept *key,
                        const Kept *value, int64_t tokens, void *out) {
    const int64_t all = layer->heads * layer->head_dim, width = layer->intermediate;
    float *x = malloc((all + 3 * layer->hidden + 2 * width) * sizeof(float));
    if (!x) return 1;
    float *seen = x + layer->hidden, *read = seen + all, *added = read + layer->hidden, *gate = added + layer->hidden;
    int failed = attend(query, key, value, 1, layer->kv_heads, layer->heads / layer->kv_heads, tokens, layer->head_dim, seen);
    failed |= products(&layer->o_in, seen, added);
    read_values(hidden, kind, 0, layer->hidden, x);
    for (int64_t i = 0; i < layer->hidden; i++) x[i] += added[i];
    normed(x, layer->hidden, &layer->mlp_norm, read);
    failed |= products(&layer->mlp_in, read, gate);
    gated(gate, gate + width, width);
    failed |= products(&layer->down_in, gate, added);
    for (int64_t i = 0; i < layer->hidden; i++) x[i] += added[i];
    write_values(x, layer->hidden, out, kind, 0);
    free(x);
    return failed;
}
