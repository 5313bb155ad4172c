// The rows of the causal maps of the token mixer (equation 13's B V and B^t V) of one sequence.
//
// Three rows of both maps are computed and used at a time: the positional rows are windows into one reversed weight
// vector, the temporal rows are computed into scratch that stays in cache. No map is ever stored whole. Row i reads
// columns <= i only, so padding costs nothing and nothing above the diagonal is computed.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "vec.h"

namespace fuxi {

constexpr int ROWS = 3;
constexpr int GAP = 8;  // weights of 0 that are worth leaving out

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
struct MapScratch {
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

// Row `row` of the temporal map: log(1 + x) and (1 + x)^-decay for columns <= i, zeros in the rest of the tiles.
// With an exponent c: log(1 + x)^c, exp(-decay log(1 + x)^c), and the slope of the former in c.
inline void temporal_row(MapScratch& scratch, int row, int64_t i, int64_t query_time, const Maps& maps) {
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

// Rows i .. i + R - 1 of [B V | a M V] -> out [R, 2 D].
template <int R, bool TEMPORAL>
void forward_rows(MapScratch& scratch, const PositionalRows& positional, const Maps& maps, int64_t i, int64_t dim,
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
      float* by_position = out + r * 2 * dim + tile;
      std::memcpy(by_position, sums[r], columns * sizeof(float));
      for (int64_t c = 0; c < columns; ++c) by_position[dim + c] = TEMPORAL ? maps.scale * sums[R + r][c] : 0.f;
    }
  }
}

// Calls rows(i, R, TEMPORAL) for all rows of a sequence, R at a time, after computing their temporal rows.
template <typename Rows>
void for_each_rows(MapScratch& scratch, const Sequences& sequences, const Maps& maps, int64_t start, const Rows& rows) {
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

}  // namespace fuxi
