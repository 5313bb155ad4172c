// The causal maps of the token mixer (equation 13's B V and B^t V) on packed sequences, forward and backward.
//
// Three rows of both maps are computed and used at a time: the positional rows are windows into one reversed weight
// vector, the temporal rows are computed into scratch that stays in cache. No map is ever stored whole. Row i reads
// columns <= i only, so padding costs nothing and nothing above the diagonal is computed.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "vec.h"

namespace fuxi {
namespace {

constexpr int ROWS = 3;
constexpr int GAP = 8;  // weights of 0 that are worth leaving out
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

// by_lag reversed and followed by zeros: row i of the positional map is window(i)[j], zero for j > i.
struct PositionalRows {
  struct Lags {
    int64_t first, end;
  };
  std::vector<float> reversed;
  int64_t reach;
  std::vector<Lags> runs;  // of lags with weights, at least GAP apart
  bool sparse;             // whether some lags between or behind them can be left out

  explicit PositionalRows(const Maps& maps) : reversed(maps.reach + ROWS + TILE_WIDTH, 0.f), reach(maps.reach) {
    int64_t held = 0;
    for (int64_t lag = 0; lag < reach; ++lag) {
      reversed[reach - 1 - lag] = maps.by_lag[lag];
      if (maps.by_lag[lag] == 0.f) continue;
      if (runs.empty() || lag - runs.back().end >= GAP) runs.push_back({lag, lag});
      runs.back().end = lag + 1;
    }
    for (const Lags& run : runs) held += run.end - run.first;
    sparse = reach - held >= GAP;
  }
  const float* window(int64_t i) const { return reversed.data() + (reach - 1 - i); }
};

// One thread's copy of one sequence, every row padded to whole tiles.
struct Scratch {
  int64_t n, width, columns;  // tokens, padded D, padded n
  std::vector<float> value, transposed, gradient, of_value;
  std::vector<int64_t> timestamp;
  std::vector<float> decayed, scaled, log_elapsed, slope;  // [ROWS, columns]
  std::vector<float> pair;                      // [2 * ROWS, columns]

  void start(int64_t tokens, int64_t dim) {
    n = tokens, width = padded(dim), columns = padded(n + ROWS);
    timestamp.assign(columns, 0);
    decayed.resize(ROWS * columns), scaled.resize(ROWS * columns), log_elapsed.resize(ROWS * columns);
    slope.resize(ROWS * columns);
    pair.resize(2 * ROWS * columns);
  }
};

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

// Row `row` of the temporal map: log(1 + x) and (1 + x)^-decay for columns <= i, zeros in the rest of the tiles.
// With an exponent c: log(1 + x)^c, exp(-decay log(1 + x)^c), and the slope of the former in c.
void temporal_row(Scratch& scratch, int row, int64_t i, int64_t query_time, const Maps& maps) {
  float* elapsed = &scratch.log_elapsed[row * scratch.columns];
  float* decayed = &scratch.decayed[row * scratch.columns];
  float* slope = &scratch.slope[row * scratch.columns];
  const int64_t* key_time = scratch.timestamp.data();
  const int64_t stop = std::min((i / TILE_WIDTH + 1) * TILE_WIDTH, scratch.columns);
  for (int64_t j = 0; j < stop; ++j) {
    const int64_t seconds = query_time - key_time[j];  // in integers: Unix seconds in fp32 are 64 s apart
    elapsed[j] = 1.f + static_cast<float>(seconds > 0 ? seconds : 0);
  }
  for (int64_t j = 0; j < stop; j += LANES) {
    Vec logarithm = log(load(elapsed + j));
    if (maps.exponent > 0.f) {
      const auto later = logarithm > 0.1f;  // seconds are whole: the logarithm is 0 or at least log(2)
      const Vec twice = log(later ? logarithm : broadcast(1.f));
      logarithm = later ? exp(twice * maps.exponent) : Vec{};
      store(slope + j, logarithm * twice);
    }
    store(elapsed + j, logarithm);
    store(decayed + j, exp(logarithm * -maps.decay));
  }
  for (int64_t j = i + 1; j < scratch.columns && j < i + 1 + ROWS + TILE_WIDTH; ++j)
    decayed[j] = 0.f, elapsed[j] = 0.f;
}

// Rows i .. i + R - 1 of one tile of columns of B V, lags without a weight left out.
template <int R>
void positional_sums(const PositionalRows& positional, int64_t i, const float* value, int64_t width,
                     float* const (&sums)[R]) {
  float part[R * TILE_WIDTH];
  const float* rows[R];
  float* parts[R];
  for (int r = 0; r < R; ++r) parts[r] = part + r * TILE_WIDTH, std::fill_n(sums[r], TILE_WIDTH, 0.f);
  for (const auto& run : positional.runs) {
    const int64_t first = std::max<int64_t>(0, i + 1 - run.end), end = i + R - run.first;
    if (end <= first) break;
    for (int r = 0; r < R; ++r) rows[r] = positional.window(i + r) + first;
    product<R>(rows, end - first, value + first * width, width, parts);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < TILE_WIDTH; ++c) sums[r][c] += parts[r][c];
  }
}

// Rows i .. i + R - 1 of out = [B V | a M V].
template <int R, bool TEMPORAL>
void forward_rows(Scratch& scratch, const PositionalRows& positional, const Maps& maps, int64_t i, int64_t dim,
                  float* out) {
  constexpr int N = TEMPORAL ? 2 * R : R;
  const float *rows[N], *temporal[R];
  float *sums[N], *of_position[R], *of_time[R];
  for (int r = 0; r < R; ++r) {
    rows[r] = positional.window(i + r), temporal[r] = &scratch.decayed[r * scratch.columns];
    if constexpr (TEMPORAL) rows[R + r] = temporal[r];
  }
  for (int r = 0; r < N; ++r) sums[r] = &scratch.pair[r * TILE_WIDTH];
  for (int r = 0; r < R; ++r) of_position[r] = sums[r], of_time[r] = sums[N - R + r];
  for (int64_t tile = 0; tile < scratch.width; tile += TILE_WIDTH) {
    const float* value = &scratch.value[tile];
    if (positional.sparse) {
      if constexpr (TEMPORAL) product<R>(temporal, i + R, value, scratch.width, of_time);
      positional_sums<R>(positional, i, value, scratch.width, of_position);
    } else {
      product<N>(rows, i + R, value, scratch.width, sums);
    }
    const int64_t columns = std::min<int64_t>(TILE_WIDTH, dim - tile);
    for (int r = 0; r < R; ++r) {
      float* by_position = out + (i + r) * 2 * dim + tile;
      std::memcpy(by_position, sums[r], columns * sizeof(float));
      for (int64_t c = 0; c < columns; ++c) by_position[dim + c] = TEMPORAL ? maps.scale * sums[R + r][c] : 0.f;
    }
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

// Calls rows(i, R, TEMPORAL) for all rows of a sequence, R at a time, after computing their temporal rows.
template <typename Rows>
void for_each_rows(Scratch& scratch, const Sequences& sequences, const Maps& maps, int64_t start, const Rows& rows) {
  const auto with_count = [&](int64_t i, int64_t count, auto temporal) {
    if (count == 3) rows(i, std::integral_constant<int, 3>{}, temporal);
    if (count == 2) rows(i, std::integral_constant<int, 2>{}, temporal);
    if (count == 1) rows(i, std::integral_constant<int, 1>{}, temporal);
  };
  std::copy_n(sequences.timestamp + start, scratch.n, scratch.timestamp.begin());
  for (int64_t i = 0; i < scratch.n; i += ROWS) {
    const int64_t count = std::min<int64_t>(ROWS, scratch.n - i);
    for (int r = 0; maps.temporal && r < count; ++r)
      temporal_row(scratch, r, i + r, sequences.next_timestamp[start + i + r], maps);
    maps.temporal ? with_count(i, count, std::true_type{}) : with_count(i, count, std::false_type{});
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
      forward_rows<count, temporal>(scratch, positional, maps, i, dim, of_sequence);
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
