// Token-wise operators: one pass over memory forward, one backward.
#include <vector>

#include "kernels.h"
#include "rows.h"
#include "vec.h"

namespace fuxi {
namespace {

// Calls row(t, factors) for every token, with its row of the dropout mask.
template <typename Row>
void for_each_token(const Mask& mask, int64_t tokens, int64_t channels, const Row& row) {
#pragma omp parallel
  {
    std::vector<float> factors(padded(channels), 0.f);
    if (!mask.keys) mask_row(mask, 0, channels, factors.data());
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      if (mask.keys) mask_row(mask, t, channels, factors.data());
      row(t, factors.data());
    }
  }
}

Vec silu_slope(Vec x) {
  const Vec s = sigmoid(x);
  return s * (1.f + x * (1.f - s));
}

}  // namespace

void dropout(const float* x, const Mask& mask, int64_t tokens, int64_t channels, float* out) {
  for_each_token(mask, tokens, channels, [&](int64_t t, const float* factors) {
    for (int64_t c = 0; c < channels; c += LANES)
      store(out + t * channels + c, load(x + t * channels + c, channels - c) * load(factors + c), channels - c);
  });
}

void rms_norm(const float* x, const Mask& mask, int64_t tokens, int64_t channels, float* out) {
  for_each_token(mask, tokens, channels, [&](int64_t t, const float* factors) {
    const float inverse = inverse_rms(x + t * channels, channels);
    for (int64_t c = 0; c < channels; c += LANES)
      store(out + t * channels + c, load(x + t * channels + c, channels - c) * (inverse * load(factors + c)),
            channels - c);
  });
}

void rms_norm_backward(const float* gradient, const float* x, const Mask& mask, int64_t tokens, int64_t channels,
                       float* of_x) {
  for_each_token(mask, tokens, channels, [&](int64_t t, const float* factors) {
    const float *g = gradient + t * channels, *row = x + t * channels;
    const float inverse = inverse_rms(row, channels);
    Vec along = {};
    for (int64_t c = 0; c < channels; c += LANES)
      along += load(g + c, channels - c) * load(factors + c) * load(row + c, channels - c);
    const float shrink = sum(along) / channels * inverse * inverse;
    for (int64_t c = 0; c < channels; c += LANES) {
      const int64_t left = channels - c;
      const Vec kept = load(g + c, left) * load(factors + c);
      store(of_x + t * channels + c, inverse * (kept - load(row + c, left) * shrink), left);
    }
  });
}

void swiglu(const float* x, int64_t tokens, int64_t hidden, float* out) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = x + t * 2 * hidden;
    for (int64_t c = 0; c < hidden; c += LANES) {
      const int64_t left = hidden - c;
      store(out + t * hidden + c, silu(load(row + c, left)) * load(row + hidden + c, left), left);
    }
  }
}

void swiglu_backward(const float* gradient, const float* x, int64_t tokens, int64_t hidden, float* of_x) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = x + t * 2 * hidden;
    float* of_row = of_x + t * 2 * hidden;
    for (int64_t c = 0; c < hidden; c += LANES) {
      const int64_t left = hidden - c;
      const Vec g = load(gradient + t * hidden + c, left), gate = load(row + c, left);
      store(of_row + c, g * load(row + hidden + c, left) * silu_slope(gate), left);
      store(of_row + hidden + c, g * silu(gate), left);
    }
  }
}

void values(const Projected& projected, int64_t first, float* out) {
  const int64_t width = projected.width - first;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < projected.tokens; ++t)
    for (int64_t c = 0; c < width; c += LANES)
      store(out + t * width + c, silu(load(projected.rows + t * projected.width + first + c, width - c)), width - c);
}

void values_backward(const float* gradient, const Projected& projected, int64_t first, float* of_projected) {
  const int64_t width = projected.width - first;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < projected.tokens; ++t)
    for (int64_t c = 0; c < width; c += LANES) {
      const int64_t at = t * projected.width + first + c, left = width - c;
      store(of_projected + at, load(gradient + t * width + c, left) * silu_slope(load(projected.rows + at, left)), left);
    }
}

void gate(const Projected& projected, const float* mixed, const Mask& mask, int64_t channels, float* out) {
  for_each_token(mask, projected.tokens, channels, [&](int64_t t, const float* factors) {
    const float *u = projected.rows + t * projected.width, *row = mixed + t * channels;
    const float inverse = inverse_rms(row, channels);
    for (int64_t c = 0; c < channels; c += LANES) {
      const int64_t left = channels - c;
      store(out + t * channels + c, silu(load(u + c, left)) * load(row + c, left) * inverse * load(factors + c), left);
    }
  });
}

void gate_backward(const float* gradient, const Projected& projected, const float* mixed, const Mask& mask,
                   int64_t channels, float* of_projected, float* of_mixed) {
  for_each_token(mask, projected.tokens, channels, [&](int64_t t, const float* factors) {
    const int64_t start = t * projected.width;
    const float *g = gradient + t * channels, *u = projected.rows + start, *row = mixed + t * channels;
    float *of_u = of_projected + start, *of_row = of_mixed + t * channels;
    const float inverse = inverse_rms(row, channels);
    Vec along = {};
    for (int64_t c = 0; c < channels; c += LANES) {
      const int64_t left = channels - c;
      const Vec x = load(u + c, left), s = sigmoid(x), value = load(row + c, left);
      const Vec kept = load(g + c, left) * load(factors + c);
      const Vec of_normed = kept * x * s;
      store(of_u + c, kept * value * inverse * s * (1.f + x * (1.f - s)), left);
      store(of_row + c, of_normed, left);
      along += of_normed * value;
    }
    const float shrink = sum(along) / channels * inverse * inverse;
    for (int64_t c = 0; c < channels; c += LANES) {
      const int64_t left = channels - c;
      store(of_row + c, inverse * (load(of_row + c, left) - load(row + c, left) * shrink), left);
    }
  });
}

}  // namespace fuxi
