// Vectors of floats by a compiler extension of GCC and Clang, for any CPU.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace fuxi {

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int TILE = 4;  // vectors side by side in a register tile: 6 x 4 sums + 4 loads fit 32 registers
#else
constexpr int LANES = 8;
constexpr int TILE = 2;  // ... and 6 x 2 sums + 2 loads fit 16
#endif
constexpr int TILE_WIDTH = TILE * LANES;

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t IntVec __attribute__((vector_size(LANES * sizeof(int32_t))));

inline Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

// Load and store the first `count` floats, with zeros in the other lanes. A partial vector through memory would stall.
inline Vec load(const float* from, int64_t count) {
  if (count >= LANES) return load(from);
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#else
  Vec v = {};
  for (int64_t lane = 0; lane < count; ++lane) v[lane] = from[lane];
  return v;
#endif
}

inline void store(float* to, Vec v, int64_t count) {
  if (count >= LANES) return store(to, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
#else
  for (int64_t lane = 0; lane < count; ++lane) to[lane] = v[lane];
#endif
}

inline Vec broadcast(float x) { return x - Vec{}; }

inline float sum(Vec v) {
  float lanes[LANES];
  std::memcpy(lanes, &v, sizeof v);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

// Sums of neighbouring lanes: those of a, then those of b.
inline Vec pair_sums(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#endif
}

// The sums of LANES vectors as one vector, at a third of the instructions of LANES single sums.
inline Vec sums_of(Vec (&vectors)[LANES]) {
#pragma GCC unroll 16
  for (int width = LANES / 2; width > 0; width /= 2) {
#pragma GCC unroll 16
    for (int v = 0; v < width; ++v) vectors[v] = pair_sums(vectors[2 * v], vectors[2 * v + 1]);
  }
  return vectors[0];
}

// The width of a padded row: whole tiles, so that no loop needs a tail.
inline int64_t padded(int64_t width) { return (width + TILE_WIDTH - 1) / TILE_WIDTH * TILE_WIDTH; }

// exp to 2 ulp: 2^k times a polynomial on [-ln2/2, ln2/2]. NaN stays NaN; results below 1e-38 become about 1e-38.
inline Vec exp(Vec x) {
  x = x < -87.3f ? broadcast(-87.3f) : x;
  x = x > 88.3f ? broadcast(88.3f) : x;
  const Vec shift = broadcast(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec k = (x * 1.442695041f + shift) - shift;
  const Vec r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  Vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const IntVec exponent = (__builtin_convertvector(k, IntVec) + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return p * scale;
}

// log of x >= 1 to 2 ulp: exponent times ln 2 plus a polynomial of the mantissa brought to [sqrt(1/2), sqrt(2)).
inline Vec log(Vec x) {
  IntVec bits;
  std::memcpy(&bits, &x, sizeof bits);
  IntVec exponent = ((bits - 0x3f3504f3) >> 23);
  bits -= exponent << 23;
  Vec m;
  std::memcpy(&m, &bits, sizeof m);
  const Vec e = __builtin_convertvector(exponent, Vec);
  const Vec f = m - 1.f;
  const Vec square = f * f;
  Vec p = broadcast(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  p = p * f * square;
  p += e * -2.12194440e-4f - 0.5f * square;
  return f + p + e * 0.693359375f;
}

inline Vec sigmoid(Vec x) { return 1.f / (1.f + exp(-x)); }

// out[n] = sum over k < count of rows[n][k] * block[k], for one tile of columns and N rows of factors at once.
template <int N>
inline void product(const float* const (&rows)[N], int64_t count, const float* block, int64_t stride,
                    float* const (&out)[N]) {
  Vec sums[N][TILE] = {};
  for (int64_t k = 0; k < count; ++k) {
    Vec values[TILE];
#pragma GCC unroll 4
    for (int c = 0; c < TILE; ++c) values[c] = load(block + k * stride + c * LANES);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
      for (int c = 0; c < TILE; ++c) sums[n][c] += rows[n][k] * values[c];
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int c = 0; c < TILE; ++c) store(out[n] + c * LANES, sums[n][c]);
  }
}

// block[k] += sum over n of rows[n][k] * values[n], for k < count and one tile of columns.
template <int N>
inline void rank_update(const float* const (&rows)[N], int64_t count, const float* const (&values)[N], float* block,
                        int64_t stride) {
  Vec held[N][TILE];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int c = 0; c < TILE; ++c) held[n][c] = load(values[n] + c * LANES);
  }
  for (int64_t k = 0; k < count; ++k) {
    Vec sums[TILE];
#pragma GCC unroll 4
    for (int c = 0; c < TILE; ++c) sums[c] = load(block + k * stride + c * LANES);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
      for (int c = 0; c < TILE; ++c) sums[c] += rows[n][k] * held[n][c];
    }
#pragma GCC unroll 4
    for (int c = 0; c < TILE; ++c) store(block + k * stride + c * LANES, sums[c]);
  }
}

}  // namespace fuxi
