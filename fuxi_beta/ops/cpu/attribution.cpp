// The plays that contribute most to the songs of a list: sums of scaled inner products, and the largest of each song.
//
// Songs lie side by side in the lanes of a few vectors. So the products need no sums across lanes, the plays of one song
// are added up row by row, and the largest are found by comparisons without a branch. What a listener's plays
// contribute to these songs stays in the first cache.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "vec.h"

namespace fuxi {
namespace {

constexpr int VECTORS = 2;
constexpr int SIDE_BY_SIDE = VECTORS * LANES;  // songs
constexpr int PLAYS = LANES == 16 ? 12 : 6;    // of one product: 12 x 2 sums + 2 loads fit 32 registers, 6 x 2 + 2 fit 16

// One thread's copies.
struct Scratch {
  std::vector<float> towards;   // [D][SIDE_BY_SIDE] of one term
  std::vector<float> weight;    // [plays][SIDE_BY_SIDE]
  std::vector<int64_t> newest;  // [plays], the last play of the same song
  std::vector<int64_t> slots;   // of a hash table of plays
};

// For each play the last one of the same song, by a hash table that is filled from the last play on.
void find_newest(const int64_t* items, int64_t plays, Scratch& scratch) {
  int bits = 4;
  while ((int64_t{1} << bits) < 2 * plays) ++bits;
  const int64_t last_slot = (int64_t{1} << bits) - 1;
  scratch.slots.assign(last_slot + 1, -1);
  scratch.newest.resize(plays);
  for (int64_t j = plays - 1; j >= 0; --j) {
    int64_t slot = static_cast<int64_t>((static_cast<uint64_t>(items[j]) * 0x9E3779B97F4A7C15u) >> (64 - bits));
    while (scratch.slots[slot] >= 0 && items[scratch.slots[slot]] != items[j]) slot = (slot + 1) & last_slot;
    if (scratch.slots[slot] < 0) scratch.slots[slot] = j;
    scratch.newest[j] = scratch.slots[slot];
  }
}

// Rows [songs, dim] as columns [dim][SIDE_BY_SIDE], padded with zeros.
void side_by_side(const float* rows, int64_t songs, int64_t dim, float* columns) {
  for (int64_t d = 0; d < dim; ++d) {
    float* to = columns + d * SIDE_BY_SIDE;
    for (int64_t k = 0; k < songs; ++k) to[k] = rows[k * dim + d];
    std::fill(to + songs, to + SIDE_BY_SIDE, 0.f);
  }
}

// weight[n] += factor[n] * (vectors[n] times the columns), for N plays. factor: null for 1.
template <int N>
void add_products(const float* vectors, const float* factor, int64_t dim, const float* columns, float* weight) {
  Vec sums[N][VECTORS] = {};
  for (int64_t d = 0; d < dim; ++d) {
    Vec values[VECTORS];
#pragma GCC unroll 2
    for (int c = 0; c < VECTORS; ++c) values[c] = load(columns + d * SIDE_BY_SIDE + c * LANES);
#pragma GCC unroll 12
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 2
      for (int c = 0; c < VECTORS; ++c) sums[n][c] += vectors[n * dim + d] * values[c];
    }
  }
#pragma GCC unroll 12
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 2
    for (int c = 0; c < VECTORS; ++c) {
      float* to = weight + n * SIDE_BY_SIDE + c * LANES;
      store(to, load(to) + (factor ? factor[n] : 1.f) * sums[n][c]);
    }
  }
}

void add_term(const PlayTerm& term, int64_t first_token, int64_t plays, const float* columns, float* weight) {
  const float* vectors = term.vectors + first_token * term.dim;
  const float* factor = term.factor ? term.factor + first_token : nullptr;
  const auto add = [&](int64_t j, auto count) {
    add_products<count>(vectors + j * term.dim, factor ? factor + j : nullptr, term.dim, columns,
                        weight + j * SIDE_BY_SIDE);
  };
  int64_t j = 0;
  for (; j + PLAYS <= plays; j += PLAYS) add(j, std::integral_constant<int, PLAYS>{});
  for (; j + 3 <= plays; j += 3) add(j, std::integral_constant<int, 3>{});
  for (; j < plays; ++j) add(j, std::integral_constant<int, 1>{});
}

// Moves what the plays of a song contribute to its last one.
void add_up_by_song(const std::vector<int64_t>& newest, float* weight) {
  for (int64_t j = 0; j < static_cast<int64_t>(newest.size()); ++j) {
    if (newest[j] == j) continue;
    for (int c = 0; c < SIDE_BY_SIDE; c += LANES) {
      float *from = weight + j * SIDE_BY_SIDE + c, *to = weight + newest[j] * SIDE_BY_SIDE + c;
      store(to, load(to) + load(from));
      store(from, Vec{});
    }
  }
}

// The largest positive contributions of each song, `count` each; those that are taken become 0.
void take_largest(float* weight, int64_t plays, int64_t first_token, int64_t songs, int64_t count,
                  const Strongest& out) {
  for (int64_t place = 0; place < count; ++place) {
    for (int c = 0; c < VECTORS; ++c) {
      Vec best = {};
      IntVec play = IntVec{} - 1;
      for (int64_t j = 0; j < plays; ++j) {
        const Vec here = load(weight + j * SIDE_BY_SIDE + c * LANES);
        const IntVec more = here > best;
        best = more ? here : best;
        play = more ? IntVec{} + static_cast<int32_t>(j) : play;
      }
      for (int lane = 0; lane < LANES && c * LANES + lane < songs; ++lane) {
        const int64_t song = c * LANES + lane, j = play[lane];
        out.tokens[song * count + place] = j < 0 ? -1 : first_token + j;
        out.weight[song * count + place] = best[lane];
        if (j >= 0) weight[j * SIDE_BY_SIDE + song] = 0.f;
      }
    }
  }
}

}  // namespace

void strongest_plays(const std::vector<PlayTerm>& terms, const Plays& plays, const int64_t* rows, int64_t listeners,
                     int64_t songs, int64_t count, const Strongest& out) {
#pragma omp parallel
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, 4)
    for (int64_t r = 0; r < listeners; ++r) {
      const int64_t first = plays.offsets[rows[r]], number = plays.offsets[rows[r] + 1] - first;
      find_newest(plays.items + first, number, scratch);
      for (int64_t song = 0; song < songs; song += SIDE_BY_SIDE) {
        const int64_t some = std::min<int64_t>(SIDE_BY_SIDE, songs - song), at = r * songs + song;
        scratch.weight.assign(number * SIDE_BY_SIDE, 0.f);
        for (const PlayTerm& term : terms) {
          scratch.towards.resize(term.dim * SIDE_BY_SIDE);
          side_by_side(term.towards + at * term.dim, some, term.dim, scratch.towards.data());
          add_term(term, first, number, scratch.towards.data(), scratch.weight.data());
        }
        add_up_by_song(scratch.newest, scratch.weight.data());
        take_largest(scratch.weight.data(), number, first, some, count,
                     {out.tokens + at * count, out.weight + at * count});
      }
    }
  }
}

}  // namespace fuxi
