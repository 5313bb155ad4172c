// A block of FuXi-beta without dropout, as inference runs it: all stages for a few sequences, then for the next ones.
//
// So nothing between the block's input and its output leaves the second cache, where operators one after the other write
// and read all tokens' numbers a dozen times; and products of so few columns are faster in registers of their own.
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "maps.h"
#include "rows.h"
#include "vec.h"
#include "weights.h"

namespace fuxi {
namespace {

constexpr int64_t TOKENS = 192;  // of consecutive sequences worked on at once, but for at least one sequence

// The first sequence of each group of about TOKENS tokens, and the end of the last one.
std::vector<int64_t> groups_of(const Sequences& sequences) {
  if (!sequences.count) return {0};
  std::vector<int64_t> starts = {0};
  for (int64_t s = 1; s < sequences.count; ++s)
    if (sequences.offsets[s + 1] - sequences.offsets[starts.back()] > TOKENS) starts.push_back(s);
  starts.push_back(sequences.count);
  return starts;
}

// One thread's numbers of a group of tokens; rows behind a product are padded to whole tiles.
struct Stages {
  MapScratch maps;
  std::vector<float> normed, projected, mixed, gated, joined, inner, hidden, added;

  void start(int64_t tokens, const BlockWeights& weights) {
    const int64_t dim = weights.dim;
    normed.resize(tokens * dim), projected.resize(tokens * padded(3 * dim)), mixed.resize(tokens * 2 * dim);
    gated.resize(tokens * 2 * dim), joined.resize(tokens * padded(dim)), inner.resize(tokens * padded(2 * weights.hidden));
    hidden.resize(tokens * weights.hidden), added.resize(tokens * padded(dim));
  }
};

// RMSNorm of rows that are `stride` apart -> [tokens, dim].
void norm_rows(const float* rows, int64_t tokens, int64_t dim, int64_t stride, float* out) {
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = rows + t * stride;
    const float inverse = inverse_rms(row, dim);
    for (int64_t c = 0; c < dim; c += LANES) store(out + t * dim + c, load(row + c, dim - c) * inverse, dim - c);
  }
}

// SiLU(V) of projected rows, each padded with zeros to a row of `to`. V: the columns from `first` on.
void copy_values(const float* projected, int64_t stride, int64_t first, int64_t tokens, int64_t dim, int64_t width,
                 float* to) {
  for (int64_t t = 0; t < tokens; ++t) {
    int64_t c = 0;
    for (; c < dim; c += LANES)
      store(to + t * width + c, silu(load(projected + t * stride + first + c, dim - c)));
    for (; c < width; c += LANES) store(to + t * width + c, Vec{});
  }
}

// U * RMSNorm(mixed) -> [tokens, channels], with U = SiLU(the first columns of projected rows).
void gate_rows(const float* projected, int64_t stride, const float* mixed, int64_t tokens, int64_t channels,
               float* out) {
  for (int64_t t = 0; t < tokens; ++t) {
    const float *u = projected + t * stride, *row = mixed + t * channels;
    const float inverse = inverse_rms(row, channels);
    for (int64_t c = 0; c < channels; c += LANES) {
      const int64_t left = channels - c;
      store(out + t * channels + c, silu(load(u + c, left)) * load(row + c, left) * inverse, left);
    }
  }
}

// SiLU(left half) * right half of rows that are `stride` apart -> [tokens, hidden].
void swiglu_rows(const float* rows, int64_t stride, int64_t tokens, int64_t hidden, float* out) {
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = rows + t * stride;
    for (int64_t c = 0; c < hidden; c += LANES) {
      const int64_t left = hidden - c;
      store(out + t * hidden + c, silu(load(row + c, left)) * load(row + hidden + c, left), left);
    }
  }
}

// rows += what is added to all of them and x. rows: [tokens, stride]; x: [tokens, dim]; bias: [dim] or null.
void add_rows(float* rows, int64_t stride, const float* x, const float* bias, int64_t tokens, int64_t dim) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < dim; c += LANES) {
      const int64_t left = dim - c;
      Vec sum = load(rows + t * stride + c) + load(x + t * dim + c, left);
      if (bias) sum += load(bias + c, left);
      store(rows + t * stride + c, sum);
    }
}

// The block's matrices as they are multiplied with.
struct PackedBlock {
  PackedWeights project, merge, gate_and_up, down;

  explicit PackedBlock(const BlockWeights& w)
      : project(w.project), merge(w.merge), gate_and_up(w.gate_and_up), down(w.down) {}
};

// The sequences first .. last - 1.
void run_group(const Sequences& sequences, const PositionalRows& positional, const Maps& maps,
               const BlockWeights& weights, const PackedBlock& packed, int64_t first, int64_t last, const float* x,
               Stages& s, float* out) {
  const int64_t start = sequences.offsets[first], tokens = sequences.offsets[last] - start, dim = weights.dim;
  const int64_t of_projected = packed.project.width(), of_joined = packed.merge.width();
  s.start(tokens, weights);
  norm_rows(x + start * dim, tokens, dim, dim, s.normed.data());
  packed.project.multiply(s.normed.data(), tokens, s.projected.data());
  for (int64_t q = first; q < last; ++q) {
    const int64_t begin = sequences.offsets[q], at = begin - start;
    s.maps.start(sequences.offsets[q + 1] - begin, dim);
    s.maps.value.resize(s.maps.n * s.maps.width);
    copy_values(&s.projected[at * of_projected], of_projected, 2 * dim, s.maps.n, dim, s.maps.width,
                s.maps.value.data());
    for_each_rows(s.maps, sequences, maps, begin, [&](int64_t i, auto count, auto temporal) {
      forward_rows<count, temporal>(s.maps, positional, maps, i, dim, &s.mixed[(at + i) * 2 * dim]);
    });
  }
  gate_rows(s.projected.data(), of_projected, s.mixed.data(), tokens, 2 * dim, s.gated.data());
  packed.merge.multiply(s.gated.data(), tokens, s.joined.data());
  add_rows(s.joined.data(), of_joined, x + start * dim, weights.bias, tokens, dim);
  norm_rows(s.joined.data(), tokens, dim, of_joined, s.normed.data());
  packed.gate_and_up.multiply(s.normed.data(), tokens, s.inner.data());
  swiglu_rows(s.inner.data(), packed.gate_and_up.width(), tokens, weights.hidden, s.hidden.data());
  packed.down.multiply(s.hidden.data(), tokens, s.added.data());
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < dim; c += LANES)
      store(out + (start + t) * dim + c, load(&s.added[t * of_joined + c]) + load(&s.joined[t * of_joined + c]), dim - c);
}

// V of the last layer, and the last row of both maps and of what they mix, of the sequences first .. last - 1.
void run_last(const Sequences& sequences, const PositionalRows& positional, const Maps& maps,
              const PackedWeights& project, int64_t first, int64_t last, int64_t dim, const float* normed, Stages& s,
              const LastRows& out) {
  const int64_t start = sequences.offsets[first], tokens = sequences.offsets[last] - start;
  s.projected.resize(tokens * project.width());
  project.multiply(normed + start * dim, tokens, s.projected.data());
  for (int64_t q = first; q < last; ++q) {
    const int64_t begin = sequences.offsets[q], n = sequences.offsets[q + 1] - begin, i = n - 1;
    float* sums = out.sums + q * 2 * dim;
    std::fill_n(sums, 2 * dim, 0.f);
    if (!n) continue;
    s.maps.start(n, dim);
    s.maps.value.resize(n * s.maps.width);
    copy_values(&s.projected[(begin - start) * project.width()], project.width(), 0, n, dim, s.maps.width,
                s.maps.value.data());
    for (int64_t j = 0; j < n; ++j)
      std::memcpy(out.value + (begin + j) * dim, &s.maps.value[j * s.maps.width], dim * sizeof(float));
    std::copy_n(positional.window(i), n, out.by_position + begin);
    if (maps.temporal) {
      std::copy_n(sequences.timestamp + begin, n, s.maps.timestamp.begin());
      temporal_row(s.maps, 0, i, sequences.next_timestamp[begin + i], maps);
      std::copy_n(s.maps.decayed.begin(), n, out.decayed + begin);
      forward_rows<1, true>(s.maps, positional, maps, i, dim, sums);
    } else {
      forward_rows<1, false>(s.maps, positional, maps, i, dim, sums);
    }
  }
}

// Calls run(first, last, stages) for groups of sequences in parallel.
template <typename Run>
void for_each_group(const Sequences& sequences, const Run& run) {
  const std::vector<int64_t> starts = groups_of(sequences);
  const int64_t groups = static_cast<int64_t>(starts.size()) - 1;
#pragma omp parallel
  {
    Stages stages;
#pragma omp for schedule(dynamic)
    for (int64_t group = 0; group < groups; ++group) run(starts[group], starts[group + 1], stages);
  }
}

}  // namespace

void last_rows(const Sequences& sequences, const Maps& maps, const Weights& project, const float* normed,
               const LastRows& out) {
  const PositionalRows positional(maps);
  const PackedWeights packed(project);
  for_each_group(sequences, [&](int64_t first, int64_t last, Stages& stages) {
    run_last(sequences, positional, maps, packed, first, last, project.outputs, normed, stages, out);
  });
}

void block(const Sequences& sequences, const Maps& maps, const BlockWeights& weights, const float* x, float* out) {
  const PositionalRows positional(maps);
  const PackedBlock packed(weights);
  for_each_group(sequences, [&](int64_t first, int64_t last, Stages& stages) {
    if (sequences.offsets[first] < sequences.offsets[last])
      run_group(sequences, positional, maps, weights, packed, first, last, x, stages, out);
  });
}

}  // namespace fuxi
