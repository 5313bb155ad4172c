// What both exact top-k kernels use: the running k best of exact scores, heard songs, and the exact score of a pair.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "kernels.h"
#include "vec.h"

namespace fuxi {

constexpr uint32_t ALL_LANES = (1u << LANES) - 1;
constexpr float INFINITE = std::numeric_limits<float>::infinity();

// Bit l: lane l exceeds its cut. Or is not a number, if that counts, so that the code behind finds it.
template <bool NOT_NUMBERS_TOO>
inline uint32_t above(Vec scores, Vec cuts) {
#if defined(__AVX__)
  constexpr int COMPARISON = NOT_NUMBERS_TOO ? _CMP_NLE_UQ : _CMP_GT_OQ;
#endif
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)scores, (__m512)cuts, COMPARISON);
#elif defined(__AVX__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)scores, (__m256)cuts, COMPARISON));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < LANES; ++lane) {
    const bool exceeds = NOT_NUMBERS_TOO ? !(scores[lane] <= cuts[lane]) : scores[lane] > cuts[lane];
    bits |= static_cast<uint32_t>(exceeds) << lane;
  }
  return bits;
#endif
}

// Calls take(l) for every bit l that is set.
template <typename Take>
inline void for_each_bit(uint64_t bits, const Take& take) {
  for (; bits; bits &= bits - 1) take(__builtin_ctzll(bits));
}

// The score of N pairs of rows. Each is summed in one order, whatever N is, so a pair's score depends on it alone.
template <int N>
inline void exact_scores(const float* const (&queries)[N], const float* const (&songs)[N], int64_t dim, float* out) {
  Vec sums[N] = {};
  for (int64_t d = 0; d < dim; d += LANES) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[n] += load(queries[n] + d, dim - d) * load(songs[n] + d, dim - d);
  }
  for (int n = 0; n < N; ++n) out[n] = sum(sums[n]);
}

// Of the seen pairs, the places of each listener's songs: those of listener b are places[starts[b]] .. [starts[b + 1]].
struct SeenLists {
  std::vector<int64_t> starts;
  std::vector<int32_t> places;
};

// place(item): where a song is, negative for one that is to be left out. Throws for a listener that does not exist.
template <typename Place>
SeenLists seen_lists(const SeenPairs& seen, int64_t listeners, const Place& place) {
  SeenLists lists{std::vector<int64_t>(listeners + 2, 0), {}};
  const auto placed = [&](int64_t pair) -> int64_t { return seen.item[pair] < 0 ? -1 : place(seen.item[pair]); };
  for (int64_t pair = 0; pair < seen.count; ++pair) {
    check_listener(seen.listener[pair], listeners);
    if (placed(pair) >= 0) ++lists.starts[seen.listener[pair] + 2];
  }
  for (int64_t b = 2; b < listeners + 2; ++b) lists.starts[b] += lists.starts[b - 1];
  lists.places.resize(lists.starts.back());
  for (int64_t pair = 0; pair < seen.count; ++pair)
    if (placed(pair) >= 0) lists.places[lists.starts[seen.listener[pair] + 1]++] = static_cast<int32_t>(placed(pair));
  lists.starts.pop_back();
  return lists;
}

// `seen_lists` with each listener's places in ascending order.
template <typename Place>
SeenLists sorted_lists(const SeenPairs& seen, int64_t listeners, const Place& place) {
  SeenLists lists = seen_lists(seen, listeners, place);
  at::parallel_for(0, listeners, 64, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      std::sort(lists.places.begin() + lists.starts[b], lists.places.begin() + lists.starts[b + 1]);
  });
  return lists;
}

// Bits of floats to integers that sort like them, and back.
inline int32_t ordered_bits(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

inline int32_t ordered(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return ordered_bits(bits);
}

// A song with its score as one number: the larger the score, and of equal scores the lower the item, the larger.
using Rank = uint64_t;

inline Rank rank_of(float score, int32_t item) {
  const auto bits = static_cast<uint32_t>(ordered(score + 0.f)) ^ 0x80000000u;  // -0.0 becomes 0.0
  return static_cast<uint64_t>(bits) << 32 | ~static_cast<uint32_t>(item);
}

inline int32_t item_of(Rank rank) { return static_cast<int32_t>(~static_cast<uint32_t>(rank)); }

inline float score_of(Rank rank) {
  const int32_t bits = ordered_bits(static_cast<int32_t>(static_cast<uint32_t>(rank >> 32) ^ 0x80000000u));
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

// Leaves the k best, in any order.
inline void keep_best(std::vector<Rank>* ranks, int64_t k) {
  if (static_cast<int64_t>(ranks->size()) <= k) return;
  std::nth_element(ranks->begin(), ranks->begin() + (k - 1), ranks->end(), std::greater<Rank>());
  ranks->resize(k);
}

// Writes the k best, best first; 0 and -inf where there are fewer.
inline void write_best(std::vector<Rank>* ranks, int64_t k, int64_t* items, float* scores) {
  keep_best(ranks, k);
  std::sort(ranks->begin(), ranks->end(), std::greater<Rank>());
  const int64_t count = ranks->size();
  for (int64_t place = 0; place < k; ++place) {
    items[place] = place < count ? item_of((*ranks)[place]) : 0;
    scores[place] = place < count ? score_of((*ranks)[place]) : -INFINITE;
  }
}

// The k best of scores that come in ascending order of items.
class Best {
 public:
  explicit Best(int64_t k) : k_(k) { kept_.reserve(2 * k + SLACK); }

  // Lanes whose score can still enter.
  uint32_t entering(Vec scores) const { return full_ ? above<true>(scores, broadcast(cut_)) : ALL_LANES; }

  void offer(float score, int32_t item) {
    kept_.push_back(rank_of(score, item));
    if (static_cast<int64_t>(kept_.size()) == 2 * k_ + SLACK) tighten();
  }

  void write(int64_t* items, float* scores) { write_best(&kept_, k_, items, scores); }

 private:
  static constexpr int64_t SLACK = 64;

  void tighten() {
    keep_best(&kept_, k_);
    cut_ = score_of(kept_[k_ - 1]);  // an equal score comes with a higher item, which loses
    full_ = true;
  }

  int64_t k_;
  bool full_ = false;
  float cut_ = -INFINITE;
  std::vector<Rank> kept_;
};

// Offers a row of scores to the k best but for the seen songs, ascending from *seen to seen_end; *seen moves on.
// allowed: bits of each vector; items: of the scores, null for 0, 1, 2 ... Returns whether all were numbers.
inline bool offer_row(const float* scores, int64_t count, const uint32_t* allowed, const int32_t* items,
                      const int32_t** seen, const int32_t* seen_end, Best* best) {
  bool numbers = true;
  for (int64_t start = 0; start < count; start += LANES) {
    const uint32_t among = allowed[start / LANES];
    if (!among) continue;
    for_each_bit(best->entering(load(scores + start, count - start)) & among, [&](int lane) {
      const int32_t item = items ? items[start + lane] : static_cast<int32_t>(start + lane);
      const float score = scores[start + lane];
      while (*seen != seen_end && **seen < item) ++*seen;
      if (score != score)
        numbers = false;
      else if (*seen == seen_end || **seen != item)
        best->offer(score, item);
    });
  }
  return numbers;
}

}  // namespace fuxi
