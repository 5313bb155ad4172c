// Work on packed sequences in chunks: activations and their gradients stay in the cache of the thread that needs them.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels.h"

namespace fuxi {

constexpr int CHUNKS = 64;  // a fixed number, so that sums do not depend on the number of threads

// The first sequence of each of CHUNKS chunks of about equally many tokens.
inline std::vector<int64_t> chunk_starts(const int64_t* offsets, int64_t count) {
  std::vector<int64_t> starts(CHUNKS + 1, count);
  for (int c = 0; c < CHUNKS; ++c)
    starts[c] = std::lower_bound(offsets, offsets + count, offsets[count] * c / CHUNKS) - offsets;
  starts[0] = 0;
  return starts;
}

// One thread's copies of the tokens of a chunk: activations, gradients of them and of what is mixed; and a state.
struct Scratch {
  std::vector<float> packed, of_packed, of_mixed, state;

  explicit Scratch(int64_t state_size) : state(state_size) {}
};

// Calls chunk(scratch, number, first sequence, end of its sequences) for chunks of whole sequences in parallel.
template <typename Chunk>
void for_each_chunk(const int64_t* offsets, int64_t sequences, int64_t state_size, const Chunk& chunk) {
  const auto starts = chunk_starts(offsets, sequences);
#pragma omp parallel
  {
    Scratch scratch(state_size);
#pragma omp for schedule(dynamic)
    for (int number = 0; number < CHUNKS; ++number)
      if (starts[number] < starts[number + 1]) chunk(scratch, number, starts[number], starts[number + 1]);
  }
}

// The projected tokens of a chunk; SiLU of all columns but the first `dim`, U, goes into scratch.
inline Projected activate(const Projected& projected, int64_t first, int64_t end, int64_t dim, Scratch& scratch) {
  const Projected own{projected.rows + first * projected.width, end - first, projected.width};
  scratch.packed.resize(own.tokens * (own.width - dim));
  values(own, dim, scratch.packed.data());
  return own;
}

// The sums of what each chunk adds, in the order of the chunks. sums: [CHUNKS, count], totals: [count].
inline void add_up(const std::vector<double>& sums, int64_t count, float* totals) {
  for (int64_t i = 0; i < count; ++i) {
    double total = 0;
    for (int64_t chunk = 0; chunk < CHUNKS; ++chunk) total += sums[chunk * count + i];
    totals[i] = static_cast<float>(total);
  }
}

inline Mask from(const Mask& mask, int64_t token) { return {mask.keys ? mask.keys + token : nullptr, mask.rate}; }

}  // namespace fuxi
