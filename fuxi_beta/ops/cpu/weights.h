// Products of a few tokens' rows with a weight matrix, in fp32 and in registers.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "vec.h"

namespace fuxi {

// A weight matrix [inputs, outputs] in tiles of TILE_WIDTH columns, each in a row in memory, zeros behind the last.
class PackedWeights {
 public:
  explicit PackedWeights(const Weights& weights)
      : inputs_(weights.inputs), width_(padded(weights.outputs)), tiles_(inputs_ * width_, 0.f) {
    for (int64_t o = 0; o < weights.outputs; ++o) {
      float* column = tiles_.data() + o / TILE_WIDTH * inputs_ * TILE_WIDTH + o % TILE_WIDTH;
      const float* from = weights.numbers + o * weights.output_stride;
      for (int64_t i = 0; i < inputs_; ++i) column[i * TILE_WIDTH] = from[i * weights.input_stride];
    }
  }

  int64_t width() const { return width_; }  // of a row of results, whole tiles

  // rows [count, inputs] times the matrix -> out [count, width()].
  void multiply(const float* rows, int64_t count, float* out) const {
    for (int64_t tile = 0; tile < width_; tile += TILE_WIDTH) {
      const float* block = tiles_.data() + tile * inputs_;
      const auto some = [&](int64_t first, auto number) {
        constexpr int N = number;
        const float* from[N];
        float* to[N];
        for (int n = 0; n < N; ++n) from[n] = rows + (first + n) * inputs_, to[n] = out + (first + n) * width_ + tile;
        product<N>(from, inputs_, block, TILE_WIDTH, to);
      };
      int64_t i = 0;
      for (; i + 6 <= count; i += 6) some(i, std::integral_constant<int, 6>{});
      for (; i + 2 <= count; i += 2) some(i, std::integral_constant<int, 2>{});
      for (; i < count; ++i) some(i, std::integral_constant<int, 1>{});
    }
  }

 private:
  int64_t inputs_, width_;
  std::vector<float> tiles_;
};

}  // namespace fuxi
