// What token-wise operators share.
#pragma once
#include <cmath>

#include "vec.h"

namespace fuxi {

constexpr float EPS = 1e-6f;  // of RMSNorm

// 1 / sqrt(mean of squares + eps)
inline float inverse_rms(const float* x, int64_t channels) {
  Vec squares = {};
  for (int64_t c = 0; c < channels; c += LANES) {
    const Vec v = load(x + c, channels - c);
    squares += v * v;
  }
  return 1.f / std::sqrt(sum(squares) / channels + EPS);
}

inline Vec silu(Vec x) { return x * sigmoid(x); }

}  // namespace fuxi
