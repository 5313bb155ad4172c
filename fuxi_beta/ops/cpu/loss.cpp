// Sampled softmax with separate negatives for every position: loss and both gradients in one call.
//
// Positions are computed one by one, so that the rows of each stay in the innermost cache: inner products, softmax,
// gradient of the state. The terms of the table's gradient are put into buckets of neighbouring rows; then each bucket
// sums its rows in the order of positions. So threads need no copies of the table's gradient, and sums do not depend on
// their number.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "kernels.h"
#include "vec.h"

namespace fuxi {
namespace {

constexpr int CHUNKS = 64;
constexpr int64_t BUCKET_FLOATS = 8192;  // 32 KiB of table rows: they fit the innermost cache

// weight * state[position], to be added to the gradient of a row, counted from the first row of its bucket.
struct Term {
  int32_t position;
  int32_t row;
  float weight;
};

std::vector<float> padded_rows(const float* from, int64_t rows, int64_t dim, int64_t width) {
  std::vector<float> to(rows * width);
#pragma omp parallel for
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(&to[r * width], from + r * dim, dim * sizeof(float));
    std::fill_n(&to[r * width + dim], width - dim, 0.f);
  }
  return to;
}

int64_t chunk_start(int64_t positions, int chunk) { return positions * chunk / CHUNKS; }

struct Rows {
  const std::vector<float>& states;
  const std::vector<float>& table;
  int64_t width, draws;  // padded D; the target and K negatives

  const float* state(int64_t p) const { return &states[p * width]; }
  const float* row(int64_t u) const { return &table[u * width]; }
};

int64_t row_of(const Softmax& softmax, int64_t p, int64_t m) {
  return m == 0 ? softmax.target[p] : softmax.negatives[p * softmax.draws + m - 1];
}

// Inner products of a state with its target (first) and negatives. [padded 1 + K]
template <int BLOCKS>  // vectors a row, 0 for any number
void inner_products(const Softmax& softmax, const Rows& rows, int64_t p, float* products) {
  const float* state = rows.state(p);
  const int64_t blocks = BLOCKS ? BLOCKS : rows.width / LANES;
  for (int64_t start = 0; start < rows.draws; start += LANES) {
    Vec sums[LANES];
    for (int m = 0; m < LANES; ++m) {
      const float* row = rows.row(row_of(softmax, p, std::min(start + m, rows.draws - 1)));
      Vec total = load(state) * load(row);
#pragma GCC unroll 4
      for (int64_t block = 1; block < blocks; ++block)
        total += load(state + block * LANES) * load(row + block * LANES);
      sums[m] = total;
    }
    store(products + start, sums_of(sums));
  }
}

// Replaces the products by the loss's derivatives with respect to them; returns the loss of the position.
double derivatives(const Softmax& softmax, int64_t p, int64_t draws, float* products) {
  const int64_t lanes = padded(draws);
  const bool* masked = softmax.masked + p * softmax.draws;
  const float inverse = 1.f / softmax.temperature;
  float highest = products[0] * inverse;
  for (int64_t m = 0; m < draws; ++m) {
    products[m] = m > 0 && masked[m - 1] ? -std::numeric_limits<float>::infinity() : products[m] * inverse;
    highest = products[m] > highest || std::isnan(products[m]) ? products[m] : highest;
  }
  std::fill(products + draws, products + lanes, -std::numeric_limits<float>::infinity());
  const float of_target = products[0] - highest;
  Vec total = {};
  for (int64_t m = 0; m < lanes; m += LANES) {
    const Vec shifted = load(products + m) - highest;
    const Vec power = shifted < -80.f ? Vec{} : exp(shifted);
    store(products + m, power);
    total += power;
  }
  const float normaliser = sum(total);
  const float scale = inverse / normaliser;
  for (int64_t m = 0; m < lanes; m += LANES) store(products + m, load(products + m) * scale);
  products[0] -= inverse;
  return std::log(static_cast<double>(normaliser)) - of_target;
}

// The derivative with respect to the state: the weighted sum of its rows.
void of_state(const Softmax& softmax, const Rows& rows, int64_t p, const float* weights, float* sums) {
  std::fill_n(sums, rows.width, 0.f);
  for (int64_t tile = 0; tile < rows.width; tile += TILE_WIDTH) {
    Vec held[TILE] = {};
    for (int64_t m = 0; m < rows.draws; ++m) {
      const float* row = rows.row(row_of(softmax, p, m)) + tile;
#pragma GCC unroll 4
      for (int c = 0; c < TILE; ++c) held[c] += weights[m] * load(row + c * LANES);
    }
    for (int c = 0; c < TILE; ++c) store(sums + tile + c * LANES, held[c]);
  }
}

// Turns the counts of each (bucket, chunk) into the place of its first term; returns the sum of the counts.
int64_t starts_from(std::vector<int64_t>& counts) {
  int64_t total = 0;
  for (int64_t& count : counts) total += std::exchange(count, total);
  return total;
}

// Sums the terms of the rows first .. first + count - 1, in the order of positions, and stores them in of_table.
void sum_terms(const Rows& rows, const Term* begin, const Term* end, int64_t first, int64_t count, int64_t dim,
               std::vector<float>& sums, float* of_table) {
  sums.assign(count * rows.width, 0.f);
  for (const Term* term = begin; term != end; ++term) {
    const float* state = rows.state(term->position);
    float* to = &sums[term->row * rows.width];
    for (int64_t d = 0; d < rows.width; d += LANES) store(to + d, load(to + d) + term->weight * load(state + d));
  }
  for (int64_t r = 0; r < count; ++r)
    std::memcpy(of_table + (first + r) * dim, &sums[r * rows.width], dim * sizeof(float));
}

}  // namespace

double sampled_softmax(const Softmax& softmax, float* of_states, float* of_table) {
  const int64_t width = padded(softmax.dim), draws = softmax.draws + 1;
  const auto states = padded_rows(softmax.states, softmax.positions, softmax.dim, width);
  const auto table = padded_rows(softmax.table, softmax.rows, softmax.dim, width);
  const Rows rows{states, table, width, draws};
  const bool narrow = width == TILE_WIDTH;
  const int64_t bucket_rows = std::max<int64_t>(1, BUCKET_FLOATS / width);
  const int64_t buckets = (softmax.rows + bucket_rows - 1) / bucket_rows;

  const auto weights = std::make_unique_for_overwrite<float[]>(softmax.positions * draws);
  std::vector<int64_t> place(buckets * CHUNKS, 0);
  std::vector<double> losses(CHUNKS, 0.0);
#pragma omp parallel
  {
    std::vector<float> products(padded(draws)), sums(width);
    std::vector<int64_t> counts(buckets);
#pragma omp for schedule(dynamic)
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      std::fill(counts.begin(), counts.end(), 0);
      for (int64_t p = chunk_start(softmax.positions, chunk); p < chunk_start(softmax.positions, chunk + 1); ++p) {
        narrow ? inner_products<TILE>(softmax, rows, p, products.data())
               : inner_products<0>(softmax, rows, p, products.data());
        losses[chunk] += derivatives(softmax, p, draws, products.data());
        of_state(softmax, rows, p, products.data(), sums.data());
        std::memcpy(of_states + p * softmax.dim, sums.data(), softmax.dim * sizeof(float));
        std::memcpy(&weights[p * draws], products.data(), draws * sizeof(float));
        for (int64_t m = 0; m < draws; ++m) ++counts[row_of(softmax, p, m) / bucket_rows];
      }
      for (int64_t bucket = 0; bucket < buckets; ++bucket) place[bucket * CHUNKS + chunk] = counts[bucket];
    }
  }

  const int64_t total = starts_from(place);
  const auto terms = std::make_unique_for_overwrite<Term[]>(total);
  std::vector<int64_t> bucket_start(buckets + 1, total);
  for (int64_t bucket = 0; bucket < buckets; ++bucket) bucket_start[bucket] = place[bucket * CHUNKS];
#pragma omp parallel
  {
    std::vector<int64_t> next(buckets);
    std::vector<float> sums;
#pragma omp for schedule(dynamic)
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      for (int64_t bucket = 0; bucket < buckets; ++bucket) next[bucket] = place[bucket * CHUNKS + chunk];
      for (int64_t p = chunk_start(softmax.positions, chunk); p < chunk_start(softmax.positions, chunk + 1); ++p) {
        for (int64_t m = 0; m < draws; ++m) {
          const int64_t row = row_of(softmax, p, m), bucket = row / bucket_rows;
          terms[next[bucket]++] = {static_cast<int32_t>(p), static_cast<int32_t>(row - bucket * bucket_rows),
                                   weights[p * draws + m]};
        }
      }
    }
#pragma omp for schedule(dynamic)
    for (int64_t bucket = 0; bucket < buckets; ++bucket) {
      const int64_t first = bucket * bucket_rows;
      sum_terms(rows, &terms[bucket_start[bucket]], &terms[bucket_start[bucket + 1]], first,
                std::min(bucket_rows, softmax.rows - first), softmax.dim, sums, of_table);
    }
  }
  double loss = 0;
  for (const double of_chunk : losses) loss += of_chunk;
  return loss;
}

}  // namespace fuxi
