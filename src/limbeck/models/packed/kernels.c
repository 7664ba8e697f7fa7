/* Products of packed students on a CPU: ternary weights in 2 bits by inputs of 8 bits, and 8-bit tables by float32.
 *
 * Layout of ternary weights, one row of outputs after the other: blocks of 128 weights in 32 bytes; byte j of a block
 * holds weights j, j + 32, j + 64 and j + 96 in bits 0-1, 2-3, 4-5 and 6-7, each as weight + 1. Rows are filled up to
 * whole blocks with the code 1 (a weight of 0), and inputs with 0.
 *
 *     sum_i weight_i x_i = sum_i code_i x_i - sum_i x_i
 *
 * All sums are exact integers, whatever the instruction set: the sum of a block is at most 128 * 2 * 128 = 2^15 in
 * magnitude, so a row of 2^16 inputs fits 32 bits with room to spare. The set is chosen when the library is loaded.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__x86_64__) && defined(__GLIBC__)
#define CLONED __attribute__((target_clones("arch=haswell", "default")))
#else
#define CLONED
#endif
#if defined(__FLT16_MAX__)
typedef _Float16 half_t;
#endif

#define BLOCK 128
#define BYTES 32
#define TILE 4         /* tokens that share one unpacking of a row */
#define CHUNK 16       /* rows that share the inputs of a tile */

typedef void (*dots_t)(const uint8_t *, const int8_t *, long, int, int, int32_t *);
typedef float (*dot8_t)(const int8_t *, const float *, int);

/* Sums of one row of codes with up to TILE tokens, `stride` bytes apart. */
static void dots_plain(const uint8_t *codes, const int8_t *x, long stride, int blocks, int tokens, int32_t *out) {
    for (int t = 0; t < tokens; t++) {
        const int8_t *a = x + t * stride;
        int32_t sum = 0;
        for (int b = 0; b < blocks; b++)
            for (int j = 0; j < BYTES; j++) {
                int w = codes[b * BYTES + j];
                const int8_t *v = a + b * BLOCK + j;
                sum += (w & 3) * v[0] + (w >> 2 & 3) * v[32] + (w >> 4 & 3) * v[64] + (w >> 6 & 3) * v[96];
            }
        out[t] = sum;
    }
}

static float dot8_plain(const int8_t *w, const float *x, int n) {
    float part[8] = {0};
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) part[j] += w[i + j] * x[i + j];
    for (; i < n; i++) part[0] += w[i] * x[i];
    return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

#if defined(__x86_64__)
#define UNPACK(codes, b)                                                                   \
    __m256i w = _mm256_loadu_si256((const __m256i *)((codes) + (long)(b) * BYTES));        \
    __m256i w0 = _mm256_and_si256(w, three);                                               \
    __m256i w1 = _mm256_and_si256(_mm256_srli_epi16(w, 2), three);                         \
    __m256i w2 = _mm256_and_si256(_mm256_srli_epi16(w, 4), three);                         \
    __m256i w3 = _mm256_and_si256(_mm256_srli_epi16(w, 6), three);
#define INPUTS(a, k) _mm256_loadu_si256((const __m256i *)((a) + 32 * (k)))

__attribute__((target("avx2"))) static inline int32_t across(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* A pair of products is at most 2 * 2 * 128 and a block adds four to a lane: 15 blocks fit 16 bits. */
#define DOTS_AVX2(T)                                                                                             \
    __attribute__((target("avx2"))) static void dots_avx2_##T(const uint8_t *codes, const int8_t *x,             \
                                                              long stride, int blocks, int32_t *out) {           \
        const __m256i three = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);                                  \
        __m256i wide[T];                                                                                         \
        for (int t = 0; t < T; t++) wide[t] = _mm256_setzero_si256();                                            \
        for (int first = 0; first < blocks; first += 15) {                                                       \
            int last = first + 15 < blocks ? first + 15 : blocks;                                                \
            __m256i narrow[T];                                                                                   \
            for (int t = 0; t < T; t++) narrow[t] = _mm256_setzero_si256();                                      \
            for (int b = first; b < last; b++) {                                                                 \
                UNPACK(codes, b)                                                                                 \
                for (int t = 0; t < T; t++) {                                                                    \
                    const int8_t *a = x + t * stride + (long)b * BLOCK;                                          \
                    __m256i s = _mm256_add_epi16(_mm256_maddubs_epi16(w0, INPUTS(a, 0)),                         \
                                                 _mm256_maddubs_epi16(w1, INPUTS(a, 1)));                        \
                    __m256i r = _mm256_add_epi16(_mm256_maddubs_epi16(w2, INPUTS(a, 2)),                         \
                                                 _mm256_maddubs_epi16(w3, INPUTS(a, 3)));                        \
                    narrow[t] = _mm256_add_epi16(narrow[t], _mm256_add_epi16(s, r));                             \
                }                                                                                                \
            }                                                                                                    \
            for (int t = 0; t < T; t++) wide[t] = _mm256_add_epi32(wide[t], _mm256_madd_epi16(narrow[t], ones)); \
        }                                                                                                        \
        for (int t = 0; t < T; t++) out[t] = across(wide[t]);                                                    \
    }
DOTS_AVX2(1)
DOTS_AVX2(4)

static void dots_avx2(const uint8_t *codes, const int8_t *x, long stride, int blocks, int tokens, int32_t *out) {
    if (tokens == TILE) {
        dots_avx2_4(codes, x, stride, blocks, out);
        return;
    }
    for (int t = 0; t < tokens; t++) dots_avx2_1(codes, x + t * stride, stride, blocks, out + t);
}

#define DOTS_VNNI(T)                                                                                    \
    __attribute__((target("avx512vnni,avx512vl,avx2"))) static void dots_vnni_##T(                      \
        const uint8_t *codes, const int8_t *x, long stride, int blocks, int32_t *out) {                 \
        const __m256i three = _mm256_set1_epi8(3);                                                      \
        __m256i even[T], odd[T];                                                                        \
        for (int t = 0; t < T; t++) even[t] = odd[t] = _mm256_setzero_si256();                          \
        for (int b = 0; b < blocks; b++) {                                                              \
            UNPACK(codes, b)                                                                            \
            for (int t = 0; t < T; t++) {                                                               \
                const int8_t *a = x + t * stride + (long)b * BLOCK;                                     \
                even[t] = _mm256_dpbusd_epi32(even[t], w0, INPUTS(a, 0));                               \
                odd[t] = _mm256_dpbusd_epi32(odd[t], w1, INPUTS(a, 1));                                 \
                even[t] = _mm256_dpbusd_epi32(even[t], w2, INPUTS(a, 2));                               \
                odd[t] = _mm256_dpbusd_epi32(odd[t], w3, INPUTS(a, 3));                                 \
            }                                                                                           \
        }                                                                                               \
        for (int t = 0; t < T; t++) out[t] = across(_mm256_add_epi32(even[t], odd[t]));                 \
    }
DOTS_VNNI(1)
DOTS_VNNI(4)

static void dots_vnni(const uint8_t *codes, const int8_t *x, long stride, int blocks, int tokens, int32_t *out) {
    if (tokens == TILE) {
        dots_vnni_4(codes, x, stride, blocks, out);
        return;
    }
    for (int t = 0; t < tokens; t++) dots_vnni_1(codes, x + t * stride, stride, blocks, out + t);
}

__attribute__((target("avx2,fma"))) static float dot8_avx2(const int8_t *w, const float *x, int n) {
    __m256 part[4];
    for (int k = 0; k < 4; k++) part[k] = _mm256_setzero_ps();
    int i = 0;
    for (; i + 32 <= n; i += 32)
        for (int k = 0; k < 4; k++) {
            __m256i v = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(w + i + 8 * k)));
            part[k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(v), _mm256_loadu_ps(x + i + 8 * k), part[k]);
        }
    __m256 s = _mm256_add_ps(_mm256_add_ps(part[0], part[1]), _mm256_add_ps(part[2], part[3]));
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    h = _mm_add_ss(h, _mm_shuffle_ps(h, h, 1));
    float sum = _mm_cvtss_f32(h);
    for (; i < n; i++) sum += w[i] * x[i];
    return sum;
}
#elif defined(__ARM_FEATURE_DOTPROD)
static void dots_neon(const uint8_t *codes, const int8_t *x, long stride, int blocks, int tokens, int32_t *out) {
    const uint8x16_t three = vdupq_n_u8(3);
    for (int t = 0; t < tokens; t++) {
        int32x4_t sum = vdupq_n_s32(0);
        for (int b = 0; b < blocks; b++)
            for (int half = 0; half < BYTES; half += 16) {
                uint8x16_t w = vld1q_u8(codes + (long)b * BYTES + half);
                const int8_t *a = x + t * stride + (long)b * BLOCK + half;
                sum = vdotq_s32(sum, vreinterpretq_s8_u8(vandq_u8(w, three)), vld1q_s8(a));
                sum = vdotq_s32(sum, vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(w, 2), three)), vld1q_s8(a + 32));
                sum = vdotq_s32(sum, vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(w, 4), three)), vld1q_s8(a + 64));
                sum = vdotq_s32(sum, vreinterpretq_s8_u8(vshrq_n_u8(w, 6)), vld1q_s8(a + 96));
            }
        out[t] = vaddvq_s32(sum);
    }
}
#endif

static dots_t dots = dots_plain;
static dot8_t dot8 = dot8_plain;
static const char *chosen = "plain";

/* Choose the instruction set: "plain", "avx2", "avx512vnni" or "neon". Returns what is in use from now on, or NULL where
 * this processor or build has no such set; without a name, the best there is. */
const char *limbeck_use(const char *name) {
    const char *best = "plain";
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int vnni = avx2 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
    best = vnni ? "avx512vnni" : avx2 ? "avx2" : "plain";
    if (!name) name = best;
    if (!strcmp(name, "avx512vnni") && vnni) {
        dots = dots_vnni, dot8 = dot8_avx2;
        return chosen = "avx512vnni";
    }
    if (!strcmp(name, "avx2") && avx2) {
        dots = dots_avx2, dot8 = dot8_avx2;
        return chosen = "avx2";
    }
#elif defined(__ARM_FEATURE_DOTPROD)
    best = "neon";
    if (!name) name = best;
    if (!strcmp(name, "neon")) {
        dots = dots_neon, dot8 = dot8_plain;
        return chosen = "neon";
    }
#endif
    if (!name) name = best;
    if (strcmp(name, "plain")) return 0;
    dots = dots_plain, dot8 = dot8_plain;
    return chosen = "plain";
}

/* y[t, r] = gamma * scale_t * sum_i weight_ri q_ti, where `sums[t]` = sum_i q_ti; gamma is one number, or one a row. */
void limbeck_ternary(const uint8_t *codes, const float *gamma, int per_row, const int8_t *q, const float *scales,
                     const int32_t *sums, float *y, int rows, int blocks, int tokens, int threads) {
    long stride = (long)blocks * BLOCK;
    int chunks = (rows + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int c = 0; c < chunks; c++) {
        int end = (c + 1) * CHUNK < rows ? (c + 1) * CHUNK : rows;
        for (int t = 0; t < tokens; t += TILE) {
            int n = tokens - t < TILE ? tokens - t : TILE;
            for (int r = c * CHUNK; r < end; r++) {
                int32_t found[TILE];
                dots(codes + (long)r * blocks * BYTES, q + t * stride, stride, blocks, n, found);
                float g = gamma[per_row ? r : 0];
                for (int k = 0; k < n; k++)
                    y[(long)(t + k) * rows + r] = g * (scales[t + k] * (float)(found[k] - sums[t + k]));
            }
        }
    }
}

/* The same sums as integers, [tokens, rows]: what tests hold to a plain product. */
void limbeck_ternary_sums(const uint8_t *codes, const int8_t *q, const int32_t *sums, int32_t *y, int rows, int blocks,
                          int tokens) {
    long stride = (long)blocks * BLOCK;
    for (int t = 0; t < tokens; t += TILE)
        for (int r = 0; r < rows; r++) {
            int n = tokens - t < TILE ? tokens - t : TILE;
            int32_t found[TILE];
            dots(codes + (long)r * blocks * BYTES, q + t * stride, stride, blocks, n, found);
            for (int k = 0; k < n; k++) y[(long)(t + k) * rows + r] = found[k] - sums[t + k];
        }
}

/* Round each token's inputs to 8 bits: q [tokens, padded], its scale and sum. With a gain, inputs are first divided by
 * their root mean square and multiplied by it (RMSNorm); they are overwritten. */
CLONED void limbeck_round(float *x, const float *gain, float eps, int8_t *q, float *scales, int32_t *sums, int width,
                          int padded, int tokens) {
    for (int t = 0; t < tokens; t++, x += width, q += padded) {
        float most = 1e-5f;
        if (gain) {
            float square = 0;
#pragma omp simd reduction(+ : square)
            for (int i = 0; i < width; i++) square += x[i] * x[i];
            float norm = 1 / sqrtf(square / (float)width + eps);
#pragma omp simd
            for (int i = 0; i < width; i++) x[i] = gain[i] * (x[i] * norm);
        }
#pragma omp simd reduction(max : most)
        for (int i = 0; i < width; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        float scale = most / 127;
        int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < width; i++) {
            int32_t n = (int32_t)rintf(x[i] / scale);
            n = n > 127 ? 127 : n < -128 ? -128 : n;
            q[i] = (int8_t)n;
            sum += n;
        }
        memset(q + width, 0, padded - width);
        scales[t] = scale;
        sums[t] = sum;
    }
}

/* y[r] = scale_r * sum_i table_ri x_i: logits of one token. */
void limbeck_table(const int8_t *table, const float *scales, const float *x, float *y, int rows, int width,
                   int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int r = 0; r < rows; r++) y[r] = scales[r] * dot8(table + (long)r * width, x, width);
}

/* Numbers of a cache, 32 or 16 bits, as float32. */
#define ROWS(NAME, T)                                                                                  \
    static float dot_##NAME(const float *q, const T *k, int n) {                                       \
        float sum = 0;                                                                                 \
        for (int d = 0; d < n; d++) sum += q[d] * (float)k[d];                                         \
        return sum;                                                                                    \
    }                                                                                                  \
    static void add_##NAME(float *y, float share, const T *v, int n) {                                 \
        for (int d = 0; d < n; d++) y[d] += share * (float)v[d];                                       \
    }
ROWS(single, float)
#if defined(__FLT16_MAX__)
ROWS(half, half_t)
#endif

#if defined(__x86_64__)
#define LOAD_single(p) _mm256_loadu_ps(p)
#define LOAD_half(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define ROWS_AVX2(NAME, T)                                                                                       \
    __attribute__((target("avx2,fma,f16c"))) static float dot_##NAME##_avx2(const float *q, const T *k, int n) { \
        __m256 s = _mm256_setzero_ps();                                                                          \
        int d = 0;                                                                                               \
        for (; d + 8 <= n; d += 8) s = _mm256_fmadd_ps(_mm256_loadu_ps(q + d), LOAD_##NAME(k + d), s);           \
        __m128 h = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));                           \
        h = _mm_add_ps(h, _mm_movehl_ps(h, h));                                                                  \
        float sum = _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps(h, h, 1)));                                       \
        return sum + dot_##NAME(q + d, k + d, n - d);                                                            \
    }                                                                                                            \
    __attribute__((target("avx2,fma,f16c"))) static void add_##NAME##_avx2(float *y, float share, const T *v,    \
                                                                           int n) {                              \
        __m256 w = _mm256_set1_ps(share);                                                                        \
        int d = 0;                                                                                               \
        for (; d + 8 <= n; d += 8)                                                                               \
            _mm256_storeu_ps(y + d, _mm256_fmadd_ps(w, LOAD_##NAME(v + d), _mm256_loadu_ps(y + d)));             \
        add_##NAME(y + d, share, v + d, n - d);                                                                  \
    }
ROWS_AVX2(single, float)
#if defined(__FLT16_MAX__)
ROWS_AVX2(half, half_t)
#endif
#endif

/* Whether caches of 16-bit floats are understood. */
int limbeck_has_half(void) {
#if defined(__FLT16_MAX__)
    return 1;
#else
    return 0;
#endif
}

#define ATTEND(T, DOT, ADD)                                                                                  \
    {                                                                                                        \
        const T *k = (const T *)keys + at, *v = (const T *)values + at;                                      \
        for (int i = 0; i < length; i++) {                                                                   \
            float dot = scale * DOT(query, k + (long)i * head, head);                                        \
            s[i] = cap > 0 ? cap * tanhf(dot / cap) : dot;                                                   \
            most = s[i] > most ? s[i] : most;                                                                \
        }                                                                                                    \
        for (int i = 0; i < length; i++) total += s[i] = expf(s[i] - most);                                  \
        for (int i = 0; i < length; i++) ADD(out, s[i] / total, v + (long)i * head, head);                   \
    }

/* Attention of one token over the first `length` positions of a cache: keys and values [kept, capacity, head], queries
 * and y [heads, head]; `scores` is scratch [heads, capacity]. Without a cap, `cap` is 0. */
void limbeck_attend(const float *q, const void *keys, const void *values, int half, float *scores, float *y, int heads,
                    int kept, int head, int length, int capacity, float scale, float cap, int threads) {
    int wide = strcmp(chosen, "plain") && strcmp(chosen, "neon");
    memset(y, 0, (long)heads * head * sizeof(float));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && length > 64)
    for (int h = 0; h < heads; h++) {
        long at = (long)(h / (heads / kept)) * capacity * head;
        const float *query = q + h * head;
        float *s = scores + (long)h * capacity, *out = y + h * head, most = -INFINITY, total = 0;
        (void)wide;
#if defined(__x86_64__)
        if (wide && !half) ATTEND(float, dot_single_avx2, add_single_avx2)
#if defined(__FLT16_MAX__)
        else if (wide) ATTEND(half_t, dot_half_avx2, add_half_avx2)
#endif
        else
#endif
            if (!half) ATTEND(float, dot_single, add_single)
#if defined(__FLT16_MAX__)
        else ATTEND(half_t, dot_half, add_half)
#endif
    }
}
