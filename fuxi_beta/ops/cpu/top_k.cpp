// The k best of scores that are there already, and of all scores of listeners for whom no shortlist is proved.
#include "top_k.h"

#include <atomic>

namespace fuxi {
namespace {

constexpr int TOGETHER = 4;       // listeners that read a song's vector together
constexpr int64_t PIECE = 1024;   // songs whose exact scores are held

std::vector<uint32_t> bits_of(const bool* flags, int64_t count) {
  std::vector<uint32_t> bits((count + LANES - 1) / LANES, 0);
  for (int64_t i = 0; i < count; ++i) bits[i / LANES] |= static_cast<uint32_t>(flags[i]) << (i % LANES);
  return bits;
}

// The listeners first .. first + count - 1 of `listeners`, at most TOGETHER, against every candidate.
bool search_all_together(const float* queries, const Songs& songs, const int64_t* listeners, int count,
                         const SeenLists& seen, int64_t k, const Lists& out) {

  std::vector<Best> best(count, Best(k));
  std::vector<float> scores(TOGETHER * PIECE);
  const float* rows[TOGETHER];
  const int32_t* heard[TOGETHER];
  for (int n = 0; n < TOGETHER; ++n) {
    const int64_t listener = listeners[std::min(n, count - 1)];
    rows[n] = queries + listener * songs.dim;
    heard[n] = seen.places.data() + seen.starts[listener];
  }
  bool numbers = true;
  for (int64_t start = 0; start < songs.count; start += PIECE) {
    const int64_t left = std::min(PIECE, songs.count - start);
    for (int64_t i = 0; i < left; ++i) {
      const float* song = songs.table + songs.items[start + i] * songs.dim;
      float together[TOGETHER];
      exact_scores<TOGETHER>(rows, {song, song, song, song}, songs.dim, together);
      for (int n = 0; n < TOGETHER; ++n) scores[n * PIECE + i] = together[n];
    }
    std::vector<uint32_t> allowed((left + LANES - 1) / LANES, ALL_LANES);
    if (left % LANES) allowed.back() = (1u << (left % LANES)) - 1;
    for (int n = 0; n < count; ++n)
      numbers &= offer_row(scores.data() + n * PIECE, left, allowed.data(), songs.items + start, &heard[n],
                           seen.places.data() + seen.starts[listeners[n] + 1], &best[n]);
  }
  for (int n = 0; n < count; ++n) best[n].write(out.items + listeners[n] * k, out.scores + listeners[n] * k);
  return numbers;
}

}  // namespace

bool top_k_of_scores(const float* scores, int64_t listeners, int64_t songs, int64_t stride, const bool* candidates,
                     const SeenPairs& seen, int64_t k, const Lists& out) {
  const std::vector<uint32_t> allowed = bits_of(candidates, songs);
  const SeenLists lists = sorted_lists(seen, listeners, [&](int64_t item) { return item < songs ? item : -1; });
  std::atomic<bool> numbers{true};
  at::parallel_for(0, listeners, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      Best best(k);
      const int32_t* heard = lists.places.data() + lists.starts[b];
      if (!offer_row(scores + b * stride, songs, allowed.data(), nullptr, &heard,
                     lists.places.data() + lists.starts[b + 1], &best))
        numbers = false;
      best.write(out.items + b * k, out.scores + b * k);
    }
  });
  return numbers;
}

bool search_all(const float* queries, int64_t listeners, const Songs& songs, const std::vector<int64_t>& some,
                const SeenPairs& seen, int64_t k, const Lists& out) {
  if (some.empty()) return true;
  const SeenLists lists = sorted_lists(seen, listeners, [](int64_t item) { return item <= INT32_MAX ? item : -1; });
  std::atomic<bool> numbers{true};
  const int64_t count = some.size(), groups = (count + TOGETHER - 1) / TOGETHER;
  at::parallel_for(0, groups, 1, [&](int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group) {
      const int64_t start = group * TOGETHER;
      if (!search_all_together(queries, songs, some.data() + start, std::min<int64_t>(TOGETHER, count - start), lists,
                               k, out))
        numbers = false;
    }
  });
  return numbers;
}

}  // namespace fuxi
