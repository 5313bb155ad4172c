// The causal maps of the token mixer (equation 13's B V and B^t V) on packed sequences, forward and backward.
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "maps.h"
#include "vec.h"

namespace fuxi {
namespace {

using Scratch = MapScratch;

constexpr int CHUNKS = 64;  // a fixed number, so that sums do not depend on the number of threads

// The first sequence of each of CHUNKS chunks of about equal cost.
std::vector<int64_t> chunk_starts(const Sequences& sequences) {
  std::vector<double> cost(sequences.count + 1, 0.0);
  for (int64_t s = 0; s < sequences.count; ++s) {
    const double n = sequences.offsets[s + 1] - sequences.offsets[s];
    cost[s + 1] = cost[s] + n * (n + 32.0);
  }
  std::vector<int64_t> starts(CHUNKS + 1, sequences.count);
  for (int c = 0; c < CHUNKS; ++c)
    starts[c] = std::lower_bound(cost.begin(), cost.end(), cost.back() * c / CHUNKS) - cost.begin();
  starts[0] = 0;
  return starts;
}

// Rows of `dim` floats, `stride` apart, copied to rows of `width` floats padded with zeros.
void copy_padded(const float* from, int64_t rows, int64_t dim, int64_t stride, int64_t width, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * width, from + r * stride, dim * sizeof(float));
    std::fill_n(to + r * width + dim, width - dim, 0.f);
  }
}

// Rows [n, dim] transposed to [dim, columns], padded with zeros.
void transpose_padded(const float* from, int64_t n, int64_t dim, int64_t columns, float* to) {
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t j = 0; j < n; ++j) to[d * columns + j] = from[j * dim + d];
    std::fill_n(to + d * columns + n, columns - n, 0.f);
  }
}

struct RowSums {
  double scale = 0, decay = 0, exponent = 0;
};

// Adds the gradients of the value, the positional weights, a and b that come from rows i .. i + R - 1 of the output.
template <int R, bool TEMPORAL>
void backward_rows(Scratch& scratch, const PositionalRows& positional, const Maps& maps, int64_t i, int64_t dim,
                   float* of_reversed, RowSums& sums) {
  constexpr int N = TEMPORAL ? 2 * R : R;
  const float *rows[N], *gradients[N];
  float* pairs[N];
  const int64_t tokens = scratch.n * scratch.width;
  for (int r = 0; r < R; ++r) {
    rows[r] = positional.window(i + r);
    gradients[r] = &scratch.gradient[(i + r) * scratch.width];
    if constexpr (TEMPORAL) {
      float* scaled = &scratch.scaled[r * scratch.columns];
      const float* decayed = &scratch.decayed[r * scratch.columns];
      for (int64_t j = 0; j < i + R; ++j) scaled[j] = maps.scale * decayed[j];
      rows[R + r] = scaled;
      gradients[R + r] = gradients[r] + tokens;
    }
  }
  // pairs[n][j]: the inner product of an output row's gradient with value j.
  for (int64_t tile = 0; tile < i + R; tile += TILE_WIDTH) {
    for (int n = 0; n < N; ++n) pairs[n] = &scratch.pair[n * scratch.columns + tile];
    product<N>(gradients, dim, &scratch.transposed[tile], scratch.columns, pairs);
  }
  for (int r = 0; r < R; ++r) {
    const float* by_position = &scratch.pair[r * scratch.columns];
    float* of_window = of_reversed + (positional.reach - 1 - (i + r));
    for (int64_t j = 0; j <= i + r; ++j) of_window[j] += by_position[j];
    if constexpr (TEMPORAL) {
      const float* by_time = &scratch.pair[(R + r) * scratch.columns];
      const float* decayed = &scratch.decayed[r * scratch.columns];
      const float* log_elapsed = &scratch.log_elapsed[r * scratch.columns];
      Vec of_scale = {}, of_decay = {};
      // Whole vectors: `decayed` is zero beyond the diagonal, and `pair` holds finite products of padding there.
      for (int64_t j = 0; j <= i + r; j += LANES) {
        const Vec share = load(decayed + j) * load(by_time + j);
        of_scale += share;
        of_decay += share * load(log_elapsed + j);
      }
      sums.scale += sum(of_scale);
      sums.decay -= maps.scale * static_cast<double>(sum(of_decay));
      if (maps.exponent > 0.f) {
        const float* slope = &scratch.slope[r * scratch.columns];
        Vec of_exponent = {};
        for (int64_t j = 0; j <= i + r; j += LANES)
          of_exponent += load(decayed + j) * load(by_time + j) * load(slope + j);
        sums.exponent -= static_cast<double>(maps.scale) * maps.decay * sum(of_exponent);
      }
    }
  }
  for (int64_t tile = 0; tile < scratch.width; tile += TILE_WIDTH) {
    const float* held[N];
    for (int n = 0; n < N; ++n) held[n] = gradients[n] + tile;
    rank_update<N>(rows, i + R, held, &scratch.of_value[tile], scratch.width);
  }
}

// Calls sequence(scratch, chunk, start) for every sequence, chunks in parallel, each thread with a separate scratch.
template <typename Sequence>
void for_each_sequence(const Sequences& sequences, int64_t dim, const Sequence& sequence) {
  const auto starts = chunk_starts(sequences);
#pragma omp parallel
  {
    Scratch scratch;
#pragma omp for schedule(dynamic)
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      for (int64_t s = starts[chunk]; s < starts[chunk + 1]; ++s) {
        const int64_t start = sequences.offsets[s];
        scratch.start(sequences.offsets[s + 1] - start, dim);
        sequence(scratch, chunk, start);
      }
    }
  }
}

}  // namespace

void apply_maps(const Sequences& sequences, const Maps& maps, const float* value, int64_t dim, float* out) {
  const PositionalRows positional(maps);
  for_each_sequence(sequences, dim, [&](Scratch& scratch, int, int64_t start) {
    scratch.value.resize(scratch.n * scratch.width);
    copy_padded(value + start * dim, scratch.n, dim, dim, scratch.width, scratch.value.data());
    float* of_sequence = out + start * 2 * dim;
    for_each_rows(scratch, sequences, maps, start, [&](int64_t i, auto count, auto temporal) {
      forward_rows<count, temporal>(scratch, positional, maps, i, dim, of_sequence + i * 2 * dim);
    });
  });
}

void apply_maps_backward(const Sequences& sequences, const Maps& maps, const float* value, int64_t dim,
                         const float* gradient, float* of_value, const MapGradients& of_maps) {
  const PositionalRows positional(maps);
  const int64_t window = maps.reach + TILE_WIDTH;
  std::vector<float> of_reversed(CHUNKS * window, 0.f);
  std::vector<RowSums> sums(CHUNKS);
  for_each_sequence(sequences, dim, [&](Scratch& scratch, int chunk, int64_t start) {
    const int64_t padded_tokens = scratch.n * scratch.width;
    scratch.transposed.resize(dim * scratch.columns);
    transpose_padded(value + start * dim, scratch.n, dim, scratch.columns, scratch.transposed.data());
    scratch.of_value.assign(padded_tokens, 0.f);
    // First the rows of the positional half, then those of the temporal half.
    scratch.gradient.resize(2 * padded_tokens);
    const float* of_out = gradient + start * 2 * dim;
    copy_padded(of_out, scratch.n, dim, 2 * dim, scratch.width, scratch.gradient.data());
    copy_padded(of_out + dim, scratch.n, dim, 2 * dim, scratch.width, scratch.gradient.data() + padded_tokens);
    float* of_window = &of_reversed[chunk * window];
    for_each_rows(scratch, sequences, maps, start, [&](int64_t i, auto count, auto temporal) {
      backward_rows<count, temporal>(scratch, positional, maps, i, dim, of_window, sums[chunk]);
    });
    for (int64_t j = 0; j < scratch.n; ++j)
      std::memcpy(of_value + (start + j) * dim, &scratch.of_value[j * scratch.width], dim * sizeof(float));
  });
  std::fill_n(of_maps.by_lag, maps.reach, 0.f);
  for (int chunk = 0; chunk < CHUNKS; ++chunk) {
    *of_maps.scale += sums[chunk].scale, *of_maps.decay += sums[chunk].decay;
    *of_maps.exponent += sums[chunk].exponent;
    for (int64_t lag = 0; lag < maps.reach; ++lag)
      of_maps.by_lag[lag] += of_reversed[chunk * window + maps.reach - 1 - lag];
  }
}

}  // namespace fuxi
