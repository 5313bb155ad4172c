// Retention on packed sequences, forward and backward, as the recurrence that it is:
//
//   S_n = e^-g (S_{n-1} + k_n v_n^T),   y_n = S_n^T q_n
//
// A state [d, d] stays in the cache while a sequence is read, so time is linear in its length. Output and gradients are
// four scans of one form, which differ in who writes into the state and who reads from it:
//
//   state[i, :] = e^-g state[i, :] + from[i] * into,   out = sum over i of by[i] * state[i, :]
//
//              order    from  into     by    out
//   y_n        rising   k     e^-g v   q     y
//   of q_n     rising   v     e^-g k   dy    dq
//   of k_m     falling  dy    q        v     e^g dk
//   of v_m     falling  q     dy       k     e^g dv
#include <algorithm>
#include <cmath>
#include <vector>

#include "chunks.h"
#include "kernels.h"
#include "vec.h"

namespace fuxi {
namespace {

// One head's rows of d numbers, `stride` apart.
template <typename Float>
struct Rows {
  Float* first;
  int64_t stride;

  Float* at(int64_t n) const { return first + n * stride; }
};
using In = Rows<const float>;
using Out = Rows<float>;

struct Scan {
  In from, into, by;
  Out out;
  In along;  // with a slope: what the sum of by[i] * T[i, :] is multiplied with
  float keep, into_scale, out_scale;  // e^-g, and factors of `into` and of `out`
};

// One tile of V vectors of columns of the state, for the tokens begin, begin + step, .. before end.
// With SLOPE also T = -d state / dg = e^-g T + state, and the sum of <by^T T, along> over the tokens is returned.
template <int V, bool SLOPE>
double scan_tile(const Scan& scan, int64_t begin, int64_t end, int64_t step, int64_t size, int64_t tile, float* state) {
  const float keep = scan.keep;
  float* slope = state + size * V * LANES;
  std::fill_n(state, (SLOPE ? 2 : 1) * size * V * LANES, 0.f);
  double total = 0;
  for (int64_t n = begin; n != end; n += step) {
    const float *from = scan.from.at(n), *by = scan.by.at(n);
    Vec into[V], sums[2][V] = {}, slopes[V] = {};
    for (int c = 0; c < V; ++c)
      into[c] = load(scan.into.at(n) + tile + c * LANES, size - tile - c * LANES) * scan.into_scale;
    const auto row = [&](int64_t i, Vec (&sum)[V]) {
      for (int c = 0; c < V; ++c) {
        float* at = state + (i * V + c) * LANES;
        const Vec now = load(at) * keep + from[i] * into[c];
        store(at, now);
        sum[c] += by[i] * now;
        if constexpr (SLOPE) {
          float* falling = slope + (i * V + c) * LANES;
          const Vec older = load(falling) * keep + now;
          store(falling, older);
          slopes[c] += by[i] * older;
        }
      }
    };
    int64_t i = 0;
    for (; i + 2 <= size; i += 2) row(i, sums[0]), row(i + 1, sums[1]);
    if (i < size) row(i, sums[0]);
    Vec along = {};
    for (int c = 0; c < V; ++c) {
      const int64_t first = tile + c * LANES, left = size - first;
      store(scan.out.at(n) + first, (sums[0][c] + sums[1][c]) * scan.out_scale, left);
      if constexpr (SLOPE) along += slopes[c] * load(scan.along.at(n) + first, left);
    }
    if constexpr (SLOPE) total += sum(along);
  }
  return total;
}

// All columns of the state, the widest tiles first.
template <bool SLOPE>
double run(const Scan& scan, int64_t begin, int64_t end, int64_t step, int64_t size, float* state) {
  double total = 0;
  for (int64_t tile = 0; tile < size;) {
    const int64_t vectors = std::min<int64_t>(4, (size - tile + LANES - 1) / LANES);
    if (vectors == 4) total += scan_tile<4, SLOPE>(scan, begin, end, step, size, tile, state);
    if (vectors == 3) total += scan_tile<3, SLOPE>(scan, begin, end, step, size, tile, state);
    if (vectors == 2) total += scan_tile<2, SLOPE>(scan, begin, end, step, size, tile, state);
    if (vectors == 1) total += scan_tile<1, SLOPE>(scan, begin, end, step, size, tile, state);
    tile += vectors * LANES;
  }
  return total;
}

}  // namespace

void retention(const Heads& heads, const Projected& projected, const Mask& mask, float* out, float* retained) {
  const int64_t dim = heads.count * heads.size, wide = 3 * dim, size = heads.size;
  for_each_chunk(heads.offsets, heads.sequences, 8 * size * LANES, [&](Scratch& scratch, int, int64_t sequence, int64_t last) {
    const int64_t first = heads.offsets[sequence];
    const Projected own = activate(projected, first, heads.offsets[last], dim, scratch);
    for (; sequence < last; ++sequence)
      for (int64_t head = 0; head < heads.count; ++head) {
        const float keep = std::exp(-heads.decay[head]);
        const float* query = scratch.packed.data() + head * size;
        const In q{query, wide}, k{query + dim, wide}, v{query + 2 * dim, wide};
        const Out y{retained + first * dim + head * size, dim};
        run<false>({k, v, q, y, q, keep, keep, 1.f}, heads.offsets[sequence] - first,
                   heads.offsets[sequence + 1] - first, 1, size, scratch.state.data());
      }
    gate(own, retained + first * dim, from(mask, first), dim, out + first * dim);
  });
}

void retention_backward(const Heads& heads, const Projected& projected, const Mask& mask, const float* retained,
                        const float* gradient, float* of_projected, float* of_decay) {
  const int64_t dim = heads.count * heads.size, wide = 3 * dim, size = heads.size;
  std::vector<double> sums(CHUNKS * heads.count, 0.);
  for_each_chunk(heads.offsets, heads.sequences, 8 * size * LANES, [&](Scratch& scratch, int number, int64_t sequence, int64_t last) {
    const int64_t first = heads.offsets[sequence];
    const Projected own = activate(projected, first, heads.offsets[last], dim, scratch);
    float* of_own = of_projected + first * projected.width;
    scratch.of_packed.resize(scratch.packed.size()), scratch.of_mixed.resize(own.tokens * dim);
    gate_backward(gradient + first * dim, own, retained + first * dim, from(mask, first), dim, of_own,
                  scratch.of_mixed.data());
    for (; sequence < last; ++sequence)
      for (int64_t head = 0; head < heads.count; ++head) {
        const int64_t begin = heads.offsets[sequence] - first, end = heads.offsets[sequence + 1] - first;
        const float keep = std::exp(-heads.decay[head]);
        const float* query = scratch.packed.data() + head * size;
        float *of_query = scratch.of_packed.data() + head * size, *state = scratch.state.data();
        const In q{query, wide}, k{query + dim, wide}, v{query + 2 * dim, wide};
        const In dy{scratch.of_mixed.data() + head * size, dim};
        const Out dq{of_query, wide}, dk{of_query + dim, wide}, dv{of_query + 2 * dim, wide};
        sums[number * heads.count + head] -= run<true>({v, k, dy, dq, q, keep, keep, 1.f}, begin, end, 1, size, state);
        run<false>({dy, q, v, dk, q, keep, 1.f, keep}, end - 1, begin - 1, -1, size, state);
        run<false>({q, dy, k, dv, q, keep, 1.f, keep}, end - 1, begin - 1, -1, size, state);
      }
    values_backward(scratch.of_packed.data(), own, dim, of_own);
  });
  add_up(sums, heads.count, of_decay);
}

}  // namespace fuxi
