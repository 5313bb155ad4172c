// The periodic channel on packed sequences, forward and backward, as a recurrence of two states a channel:
//
//   c_n = e^-r (t_n - t_{n-1}) c_{n-1} + cos(phase of t_n) v_n,   s_n likewise with the sine
//   y_n = e^-r (t_{n+1} - t_n) (cos(phase of t_{n+1}) c_n + sin(..) s_n)      of a cosine channel
//   y_n = e^-r (t_{n+1} - t_n) (sin(phase of t_{n+1}) c_n - cos(..) s_n)      of a sine channel
//
// The sine and cosine of a difference of phases split into products of one of each time, so only the decay runs along.
#include <cmath>
#include <vector>

#include "chunks.h"
#include "kernels.h"
#include "vec.h"

namespace fuxi {
namespace {

// The factors of one token for each channel, padded to whole vectors.
struct Factors {
  int64_t width;
  std::vector<float> rows;

  explicit Factors(int64_t dim) : width(padded(dim)), rows(5 * padded(dim), 0.f) {}
  float* keep() { return rows.data(); }                      // of the states
  float* into_cosine() { return rows.data() + width; }       // of v in c
  float* into_sine() { return rows.data() + 2 * width; }     // of v in s
  float* from_cosine() { return rows.data() + 3 * width; }   // of c in y
  float* from_sine() { return rows.data() + 4 * width; }     // of s in y

  void fill(const Waves& waves, int64_t token) {
    const float* phases = waves.phases + token * 4 * waves.count;
    const float since = waves.gaps[2 * token], until = waves.gaps[2 * token + 1];
    for (int64_t group = 0; group < 2 * waves.count; ++group) {
      const int64_t k = group % waves.count;
      const float* phase = phases + 4 * k;  // cosine and sine of the key time, then of the query time
      const float held = std::exp(-waves.rate[k] * since), asked = std::exp(-waves.rate[k] * until);
      const bool sine = group < waves.count;
      const int64_t end = waves.bounds[group + 1];
      for (int64_t c = waves.bounds[group]; c < end; ++c) {
        keep()[c] = held, into_cosine()[c] = phase[0], into_sine()[c] = phase[1];
        from_cosine()[c] = asked * (sine ? phase[3] : phase[2]);
        from_sine()[c] = asked * (sine ? -phase[2] : phase[3]);
      }
    }
  }
};

}  // namespace

void periodic(const Waves& waves, const Projected& projected, const Mask& mask, float* out, float* mixed) {
  const int64_t dim = waves.dim, width = padded(dim);
  for_each_chunk(waves.offsets, waves.sequences, 2 * width, [&](Scratch& scratch, int, int64_t sequence, int64_t last) {
    const int64_t first = waves.offsets[sequence];
    const Projected own = activate(projected, first, waves.offsets[last], dim, scratch);
    Factors f(dim);
    float *cosine = scratch.state.data(), *sine = cosine + width;
    for (; sequence < last; ++sequence) {
      std::fill_n(cosine, 2 * width, 0.f);
      for (int64_t n = waves.offsets[sequence]; n < waves.offsets[sequence + 1]; ++n) {
        const float* value = scratch.packed.data() + (n - first) * dim;
        f.fill(waves, n);
        for (int64_t c = 0; c < dim; c += LANES) {
          const Vec v = load(value + c, dim - c), keep = load(f.keep() + c);
          const Vec x = load(cosine + c) * keep + load(f.into_cosine() + c) * v;
          const Vec y = load(sine + c) * keep + load(f.into_sine() + c) * v;
          store(cosine + c, x), store(sine + c, y);
          store(mixed + n * dim + c, load(f.from_cosine() + c) * x + load(f.from_sine() + c) * y, dim - c);
        }
      }
    }
    gate(own, mixed + first * dim, from(mask, first), dim, out + first * dim);
  });
}

void periodic_backward(const Waves& waves, const Projected& projected, const Mask& mask, const float* mixed,
                       const float* gradient, float* of_projected, float* of_rate) {
  const int64_t dim = waves.dim, width = padded(dim);
  std::vector<double> sums(CHUNKS * waves.count, 0.);
  for_each_chunk(waves.offsets, waves.sequences, 5 * width, [&](Scratch& scratch, int number, int64_t sequence,
                                                                int64_t last) {
    const int64_t first = waves.offsets[sequence];
    const Projected own = activate(projected, first, waves.offsets[last], dim, scratch);
    float* of_own = of_projected + first * projected.width;
    scratch.of_packed.resize(scratch.packed.size()), scratch.of_mixed.resize(own.tokens * dim);
    gate_backward(gradient + first * dim, own, mixed + first * dim, from(mask, first), dim, of_own,
                  scratch.of_mixed.data());
    Factors f(dim);
    float *cosine = scratch.state.data(), *sine = cosine + width, *shares = cosine + 4 * width;
    float *cosine_slope = cosine + 2 * width, *sine_slope = cosine + 3 * width;
    for (; sequence < last; ++sequence) {
      const int64_t begin = waves.offsets[sequence], end = waves.offsets[sequence + 1];
      // Forwards with both states and how fast they fall with r: the gradient of the rates.
      std::fill_n(cosine, 4 * width, 0.f);
      for (int64_t n = begin; n < end; ++n) {
        const float* value = scratch.packed.data() + (n - first) * dim;
        const float* upstream = scratch.of_mixed.data() + (n - first) * dim;
        const float since = waves.gaps[2 * n], until = waves.gaps[2 * n + 1];
        f.fill(waves, n);
        for (int64_t c = 0; c < dim; c += LANES) {
          const Vec v = load(value + c, dim - c), keep = load(f.keep() + c);
          const Vec x = load(cosine + c), y = load(sine + c);
          const Vec x_slope = keep * (load(cosine_slope + c) + x * since);
          const Vec y_slope = keep * (load(sine_slope + c) + y * since);
          const Vec next_x = x * keep + load(f.into_cosine() + c) * v, next_y = y * keep + load(f.into_sine() + c) * v;
          store(cosine + c, next_x), store(sine + c, next_y);
          store(cosine_slope + c, x_slope), store(sine_slope + c, y_slope);
          const Vec falls = load(f.from_cosine() + c) * (x_slope + next_x * until) +
                            load(f.from_sine() + c) * (y_slope + next_y * until);
          store(shares + c, falls * load(upstream + c, dim - c));
        }
        for (int64_t group = 0; group < 2 * waves.count; ++group) {
          double share = 0;
          for (int64_t c = waves.bounds[group]; c < waves.bounds[group + 1]; ++c) share += shares[c];
          sums[number * waves.count + group % waves.count] -= share;
        }
      }
      // Backwards with the gradients of both states: that of the values.
      std::fill_n(cosine, 2 * width, 0.f);
      for (int64_t n = end - 1; n >= begin; --n) {
        const float* upstream = scratch.of_mixed.data() + (n - first) * dim;
        float* of_value = scratch.of_packed.data() + (n - first) * dim;
        f.fill(waves, n);
        for (int64_t c = 0; c < dim; c += LANES) {
          const Vec g = load(upstream + c, dim - c), keep = load(f.keep() + c);
          const Vec x = load(cosine + c) + load(f.from_cosine() + c) * g;
          const Vec y = load(sine + c) + load(f.from_sine() + c) * g;
          store(of_value + c, load(f.into_cosine() + c) * x + load(f.into_sine() + c) * y, dim - c);
          store(cosine + c, x * keep), store(sine + c, y * keep);
        }
      }
    }
    values_backward(scratch.of_packed.data(), own, dim, of_own);
  });
  add_up(sums, waves.count, of_rate);
}

}  // namespace fuxi
