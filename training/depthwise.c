/* Depth-wise convolution of channels-last images, forward and both gradients; see depthwise.py.
 *
 * Images are (n, height, width, c) float32, weights (k*k, c); k is 3, 5 or 7, c a multiple of 8. The caller gives
 * `padded`, a scratch row buffer of (width + 2*pad) * c floats for each of the height rows.
 * Each call handles one image, so that the sum over images, made by the caller in order, does not depend on threads.
 */
#include <string.h>

#define VECTOR(bytes) float __attribute__((vector_size(bytes), aligned(4), may_alias))
typedef VECTOR(64) v16;
typedef VECTOR(32) v8;

static void pad_rows(const float *in, float *padded, int height, int width, int c, int pad)
{
    const long row = (long)width * c, edge = (long)pad * c, wide = row + 2 * edge;
    for (int y = 0; y < height; y++) {
        float *to = padded + y * wide;
        memset(to, 0, edge * sizeof(float));
        memcpy(to + edge, in + y * row, row * sizeof(float));
        memset(to + edge + row, 0, edge * sizeof(float));
    }
}

/* One row of k taps, held in registers, is applied to or accumulated from a whole image row. */
#define KERNELS(V, K)                                                                                                 \
    static void apply_##V##_##K(const float *in, const float *w, float *out, int width, int c, int dilation)          \
    {                                                                                                                 \
        for (int b = 0; b < c; b += (int)(sizeof(V) / 4)) {                                                           \
            V tap[K];                                                                                                 \
            for (int j = 0; j < K; j++) tap[j] = *(const V *)(w + j * c + b);                                         \
            for (int x = 0; x < width; x++) {                                                                         \
                V sum = *(V *)(out + (long)x * c + b);                                                                \
                for (int j = 0; j < K; j++) sum += tap[j] * *(const V *)(in + (long)(x + j * dilation) * c + b);      \
                *(V *)(out + (long)x * c + b) = sum;                                                                  \
            }                                                                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    static void gather_##V##_##K(const float *in, const float *g, float *dw, int width, int c, int dilation)          \
    {                                                                                                                 \
        for (int b = 0; b < c; b += (int)(sizeof(V) / 4)) {                                                           \
            V tap[K];                                                                                                 \
            for (int j = 0; j < K; j++) tap[j] = *(V *)(dw + j * c + b);                                              \
            for (int x = 0; x < width; x++) {                                                                         \
                const V slope = *(const V *)(g + (long)x * c + b);                                                    \
                for (int j = 0; j < K; j++) tap[j] += slope * *(const V *)(in + (long)(x + j * dilation) * c + b);    \
            }                                                                                                         \
            for (int j = 0; j < K; j++) *(V *)(dw + j * c + b) = tap[j];                                              \
        }                                                                                                             \
    }

KERNELS(v16, 3)
KERNELS(v16, 5)
KERNELS(v16, 7)
KERNELS(v8, 3)
KERNELS(v8, 5)
KERNELS(v8, 7)

#ifdef __AVX512F__
#define WIDE(c) ((c) % 16 == 0)
#else
#define WIDE(c) 0 /* seven taps of two registers each would not stay in the sixteen that there are */
#endif

#define CHOOSE(name, k, c)                                                                                            \
    (WIDE(c) ? ((k) == 3 ? name##_v16_3 : (k) == 5 ? name##_v16_5 : name##_v16_7)                                     \
             : ((k) == 3 ? name##_v8_3 : (k) == 5 ? name##_v8_5 : name##_v8_7))

/* out = bias + w * in; bias may be NULL. */
void depthwise_forward(const float *in, const float *w, const float *bias, float *out, float *padded, int height,
                       int width, int c, int k, int dilation)
{
    const int pad = dilation * (k / 2);
    const long wide = (long)(width + 2 * pad) * c;
    void (*apply)(const float *, const float *, float *, int, int, int) = CHOOSE(apply, k, c);
    pad_rows(in, padded, height, width, c, pad);
    for (int y = 0; y < height; y++) {
        float *to = out + (long)y * width * c;
        for (int x = 0; x < width; x++) {
            if (bias) memcpy(to + (long)x * c, bias, c * sizeof(float));
            else memset(to + (long)x * c, 0, c * sizeof(float));
        }
        for (int i = 0; i < k; i++) {
            const int from = y + i * dilation - pad;
            if (from >= 0 && from < height) apply(padded + from * wide, w + (long)i * k * c, to, width, c, dilation);
        }
    }
}

/* dw (k*k, c) and db (c) of one image, which the caller zeroes. */
void depthwise_weight_gradient(const float *in, const float *g, float *dw, float *db, float *padded, int height,
                               int width, int c, int k, int dilation)
{
    const int pad = dilation * (k / 2);
    const long wide = (long)(width + 2 * pad) * c;
    void (*gather)(const float *, const float *, float *, int, int, int) = CHOOSE(gather, k, c);
    pad_rows(in, padded, height, width, c, pad);
    for (int y = 0; y < height; y++) {
        const float *row = g + (long)y * width * c;
        for (int x = 0; x < width; x++)
            for (int b = 0; b < c; b++) db[b] += row[(long)x * c + b];
        for (int i = 0; i < k; i++) {
            const int from = y + i * dilation - pad;
            if (from >= 0 && from < height) gather(padded + from * wide, row, dw + (long)i * k * c, width, c, dilation);
        }
    }
}
