// The k best songs of a catalogue by inner product, exactly.
//
// Blocks of listeners are multiplied with tiles of songs in the scanning precision, by torch, so that a tile of scores
// stays in the cache. A scan appends the few songs whose score, plus a bound of its error, reaches the listener's
// threshold: a lower bound of the k-th best exact score, from the k-th best of (score - bound) so far. What is left
// over at the end holds the list, and is scored again by `exact_scores`.
//
// With q', t' the rounded vectors, |q' t' - q t| <= |q - q'| |t| + |q'| |t - t'|. To this come the errors of sums of D
// products in fp32 in any order, and the rounding of the product's output.
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <cmath>

#include "top_k.h"

namespace fuxi {
namespace {

constexpr int64_t GROUP = 64;               // listeners of a block are compared and padded in groups
constexpr int64_t MOST_LISTENERS = 256;     // of a block, 1 MB of bf16 scores a tile
constexpr int64_t LEAST_LISTENERS = 64;     // ... below which the catalogue is split among threads instead
constexpr int64_t FIRST_SONGS = 256;        // scored first, when every song passes
constexpr int64_t LONGEST_SHORTLIST = 16384;
constexpr double LARGEST_SCORE = 1e30;      // beyond, sums in fp32 may overflow

// Scores in fp32, compared as they are.
struct Single {
  using Score = float;
  using Cut = float;
  static constexpr float OUTPUT_ERROR = 0x1p-22f;  // relative; here of arithmetic with a score and its bound
  static constexpr auto DTYPE = at::kFloat;
  static constexpr Cut ALL = -INFINITE, NONE = INFINITE;
  static Score round(float x) { return x; }
  static float value(Score x) { return x; }
  static Score heard() { return -INFINITE; }
  static Cut cut_below(float x) { return std::nextafter(x, -INFINITE); }

  static uint64_t above(const Score* scores, const Cut* cuts) {
    uint64_t bits = 0;
#pragma GCC unroll 8
    for (int lane = 0; lane < GROUP; lane += LANES)
      bits |= static_cast<uint64_t>(fuxi::above<false>(load(scores + lane), load(cuts + lane))) << lane;
    return bits;
  }
};

// Scores in bf16, compared as integers that sort like them.
struct Half {
  using Score = at::BFloat16;
  using Cut = int16_t;
  static constexpr float OUTPUT_ERROR = 0x1.02p-8f;
  static constexpr auto DTYPE = at::kBFloat16;
  static constexpr Cut ALL = -0x7f81, NONE = INT16_MAX;  // ALL: the key of -inf
  static Score round(float x) { return at::BFloat16(x); }
  static float value(Score x) { return x; }
  static Score heard() { return at::BFloat16(-INFINITE); }

  static int16_t key(uint16_t bits) {
    const auto x = static_cast<int16_t>(bits);
    return static_cast<int16_t>(x ^ ((x >> 15) & 0x7fff));
  }

  // A key that every number >= x exceeds, and few below x.
  static Cut cut_below(float x) {
    x = std::nextafter(x, -INFINITE);
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const auto towards_zero = static_cast<uint16_t>(bits >> 16);
    const int below = key(towards_zero) - 1 - (x < 0);
    return static_cast<Cut>(std::max<int>(below, ALL));
  }

  static uint64_t above(const Score* scores, const Cut* cuts) {
#if defined(__AVX512BW__)
    return above32(scores, cuts) | static_cast<uint64_t>(above32(scores + 32, cuts + 32)) << 32;
#else
    uint64_t bits = 0;
    for (int lane = 0; lane < GROUP; ++lane) bits |= static_cast<uint64_t>(key(scores[lane].x) > cuts[lane]) << lane;
    return bits;
#endif
  }

 private:
#if defined(__AVX512BW__)
  static uint32_t above32(const Score* scores, const Cut* cuts) {
    const __m512i x = _mm512_loadu_si512(scores);
    const __m512i magnitude = _mm512_and_si512(_mm512_srai_epi16(x, 15), _mm512_set1_epi16(0x7fff));
    return _mm512_cmpgt_epi16_mask(_mm512_xor_si512(x, magnitude), _mm512_loadu_si512(cuts));
  }
#endif
};

struct Norms {
  double norm, error;
};

// Upper bounds of a row's norm and of that of its rounding error; writes the rounded row, zeros behind D.
template <typename P>
Norms round_row(const float* row, int64_t dim, int64_t width, typename P::Score* rounded) {
  double squares = 0, errors = 0;
  for (int64_t d = 0; d < dim; ++d) {
    rounded[d] = P::round(row[d]);
    const double error = static_cast<double>(P::value(rounded[d])) - row[d];
    squares += static_cast<double>(row[d]) * row[d];
    errors += error * error;
  }
  std::fill(rounded + dim, rounded + width, typename P::Score(0));
  constexpr double UPWARDS = 1 + 1e-6;  // for the rounding of these sums and of the results to fp32
  return {std::sqrt(squares) * UPWARDS, std::sqrt(errors) * UPWARDS};
}

// The larger one, or what is not a number.
double larger(double a, double b) { return a != a || a >= b ? a : b; }

template <typename P>
void pack_as(const float* table, int64_t dim, const int32_t* items, int64_t count, int64_t width, void* rows,
             float* norm, float* error) {
  const int64_t tiles = (count + SONG_TILE - 1) / SONG_TILE;
  at::parallel_for(0, tiles, 1, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      Norms largest = {0, 0};
      for (int64_t i = tile * SONG_TILE; i < std::min(count, (tile + 1) * SONG_TILE); ++i) {
        auto* to = static_cast<typename P::Score*>(rows) + i * width;
        const Norms norms = round_row<P>(table + items[i] * dim, dim, width, to);
        largest.norm = larger(largest.norm, norms.norm);
        largest.error = larger(largest.error, norms.error);
      }
      norm[tile] = static_cast<float>(largest.norm);
      error[tile] = static_cast<float>(largest.error);
    }
  });
}

struct Candidate {
  float low, high;  // bounds of the exact score
  int32_t item;
};

// One listener's songs that may be among the k best.
struct Shortlist {
  std::vector<Candidate> songs;
  float threshold = -INFINITE;  // the k-th best exact score is not below it
  int64_t worth_tightening = 1;  // songs
  bool given_up = false;

  void tighten(int64_t k) {
    if (static_cast<int64_t>(songs.size()) >= k) {
      threshold = std::max(threshold, kth_low(k));
      size_t kept = 0;
      for (const Candidate& song : songs) {
        songs[kept] = song;
        kept += song.high >= threshold;  // no branch, which would be mispredicted
      }
      songs.resize(kept);
    }
    const int64_t size = songs.size();
    worth_tightening = size + std::max(size / 2, k);
    if (size > std::max(LONGEST_SHORTLIST, 2 * k)) give_up();
  }

  void add(const Shortlist& other) {
    given_up |= other.given_up;
    songs.insert(songs.end(), other.songs.begin(), other.songs.end());
  }

  // The k-th largest lower bound, by bisection of the floats' ordered bits: counting takes no branches.
  float kth_low(int64_t k) const {
    thread_local std::vector<int32_t> of_thread;
    std::vector<int32_t>& keys = of_thread;  // looked up once
    keys.resize(songs.size());
    for (size_t i = 0; i < keys.size(); ++i) keys[i] = ordered(songs[i].low);
    int64_t least = *std::min_element(keys.begin(), keys.end()), most = *std::max_element(keys.begin(), keys.end());
    while (least < most) {
      const auto middle = static_cast<int32_t>(least + (most - least + 1) / 2);
      int32_t count = 0;
      for (const int32_t key : keys) count += key >= middle;
      if (count >= k)
        least = middle;
      else
        most = middle - 1;
    }
    const int32_t bits = ordered_bits(static_cast<int32_t>(least));
    float low;
    std::memcpy(&low, &bits, sizeof low);
    return low;
  }

  void give_up() {
    given_up = true;
    songs = {};
  }
};

struct Strike {
  int32_t row;       // of a tile
  int32_t listener;  // of a block
};

// A block of listeners against a range of tiles.
template <typename P>
class Scan {
 public:
  std::vector<Shortlist> lists;

  Scan(const float* queries, int64_t count, int64_t dim, const Packed& packed, int64_t songs, int64_t k)
      : lists(count), packed_(packed), songs_(songs), k_(k), dim_(dim),
        lanes_((count + GROUP - 1) / GROUP * GROUP),
        rounded_(lanes_ * packed.width, typename P::Score(0)), scores_(SONG_TILE * lanes_), norms_(count),
        errors_(count), cuts_(lanes_, P::NONE) {
    for (int64_t b = 0; b < count; ++b)
      norms_[b] = round_row<P>(queries + b * dim, dim, packed.width, rounded_.data() + b * packed.width);
    double norm = 0, error = 0;
    for (int64_t tile = 0; tile * SONG_TILE < songs; ++tile) {
      norm = larger(norm, packed.norm[tile]);
      error = larger(error, packed.error[tile]);
    }
    for (int64_t b = 0; b < count; ++b)
      if (!((norms_[b].norm + norms_[b].error) * (norm + error) < LARGEST_SCORE)) lists[b].give_up();
  }

  // Scans tiles first .. last - 1. strikes: of these tiles, songs that are left out.
  void run(int64_t first, int64_t last, const std::vector<std::vector<Strike>>& strikes) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t end = std::min(songs_, (tile + 1) * SONG_TILE);
      int64_t rows = tile == first ? FIRST_SONGS : SONG_TILE;
      for (int64_t start = tile * SONG_TILE; start < end; start += rows, rows = std::min(2 * rows, SONG_TILE)) {
        score(start, std::min(rows, end - start));
        for (const Strike& strike : strikes[tile - first]) {
          const int64_t row = tile * SONG_TILE + strike.row - start;
          if (row >= 0 && row < rows) scores_[row * lanes_ + strike.listener] = P::heard();
        }
        set_cuts(tile);
        collect(start, std::min(rows, end - start));
      }
    }
    for (Shortlist& list : lists) {
      if (!list.given_up) list.tighten(k_);
      list.songs.shrink_to_fit();
    }
  }

 private:
  void score(int64_t start, int64_t count) {
    const auto options = at::TensorOptions().dtype(P::DTYPE);
    auto* rows = static_cast<typename P::Score*>(const_cast<void*>(packed_.rows)) + start * packed_.width;
    at::Tensor out = at::from_blob(scores_.data(), {count, lanes_}, options);
    at::mm_out(out, at::from_blob(rows, {count, packed_.width}, options),
               at::from_blob(rounded_.data(), {lanes_, packed_.width}, options).t());
  }

  // Bounds of the errors of a tile's scores, and what a score must exceed to enter a shortlist.
  void set_cuts(int64_t tile) {
    const double norm = packed_.norm[tile], error = packed_.error[tile];
    for (size_t b = 0; b < lists.size(); ++b) {
      const Norms& of = norms_[b];
      const double rounding = of.error * norm + (of.norm + of.error) * error;
      const double sums = dim_ * 0x1p-21 * (of.norm + of.error) * (norm + error) + dim_ * 0x1p-120;
      errors_[b] = static_cast<float>((rounding + sums) * (1 + 1e-6));
      if (lists[b].given_up) {
        cuts_[b] = P::NONE;
        continue;
      }
      const double least = static_cast<double>(lists[b].threshold) - errors_[b];
      const double scale = least < 0 ? 1. - P::OUTPUT_ERROR : 1. + P::OUTPUT_ERROR;
      cuts_[b] = P::cut_below(static_cast<float>(least / scale));
    }
  }

  // Appends the songs of a tile that pass.
  void collect(int64_t start, int64_t count) {
    for (int64_t row = 0; row < count; ++row) {
      const auto* scores = scores_.data() + row * lanes_;
      for (int64_t first = 0; first < lanes_; first += GROUP)
        for_each_bit(P::above(scores + first, cuts_.data() + first), [&](int lane) {
          const int64_t b = first + lane;
          const float score = P::value(scores[b]), error = errors_[b] + P::OUTPUT_ERROR * std::abs(score);
          lists[b].songs.push_back({score - error, score + error, packed_.items[start + row]});
        });
    }
    for (Shortlist& list : lists)
      if (static_cast<int64_t>(list.songs.size()) >= list.worth_tightening && !list.given_up) list.tighten(k_);
  }

  const Packed& packed_;
  int64_t songs_, k_, dim_, lanes_;
  std::vector<typename P::Score> rounded_, scores_;  // [lanes, W], [songs of a tile, lanes]
  std::vector<Norms> norms_;
  std::vector<float> errors_;
  std::vector<typename P::Cut> cuts_;
};

// How a search is cut into pieces of a block of listeners and a range of tiles, enough for every thread.
struct Plan {
  int64_t block, blocks, tiles, splits;

  Plan(int64_t listeners, int64_t songs) : tiles((songs + SONG_TILE - 1) / SONG_TILE) {
    const int64_t threads = at::get_num_threads(), rounds = (listeners - 1) / (MOST_LISTENERS * threads) + 1;
    block = (listeners - 1) / (rounds * threads) / GROUP * GROUP + GROUP;
    block = std::max(block, LEAST_LISTENERS);
    blocks = (listeners - 1) / block + 1;
    splits = std::min(tiles, (threads - 1) / blocks + 1);
  }

  int64_t first_tile(int64_t split) const { return tiles * split / splits; }
};

// For each tile, what the listeners first .. last - 1 have heard of it.
std::vector<std::vector<Strike>> strikes_of(const SeenLists& seen, int64_t first, int64_t last, int64_t first_tile,
                                            int64_t last_tile) {
  std::vector<std::vector<Strike>> strikes(last_tile - first_tile);
  for (int64_t b = first; b < last; ++b)
    for (int64_t i = seen.starts[b]; i < seen.starts[b + 1]; ++i) {
      const int64_t tile = seen.places[i] / SONG_TILE;
      if (tile >= first_tile && tile < last_tile)
        strikes[tile - first_tile].push_back({static_cast<int32_t>(seen.places[i] % SONG_TILE),
                                              static_cast<int32_t>(b - first)});
    }
  return strikes;
}

// Scores a shortlist exactly.
std::vector<Rank> score_exactly(const float* query, const Songs& songs, const std::vector<Candidate>& shortlist) {
  constexpr int N = 4, AHEAD = 16;
  const int64_t count = shortlist.size();
  std::vector<Rank> ranks(count);
  for (int64_t i = 0; i < count; i += N) {
    const float *rows[N], *queries[N] = {query, query, query, query};
    for (int n = 0; n < N; ++n) {
      rows[n] = songs.table + shortlist[std::min(i + n, count - 1)].item * songs.dim;
      const float* later = songs.table + shortlist[std::min(i + n + AHEAD, count - 1)].item * songs.dim;
      for (int64_t d = 0; d < songs.dim; d += 16) __builtin_prefetch(later + d);
    }
    float scores[N];
    exact_scores<N>(queries, rows, songs.dim, scores);
    for (int n = 0; n < N && i + n < count; ++n) ranks[i + n] = rank_of(scores[n], shortlist[i + n].item);
  }
  return ranks;
}

template <typename P>
int64_t search_as(const float* queries, int64_t listeners, const Songs& songs, const Packed& packed,
                  const SeenPairs& seen, int64_t k, const Lists& out) {
  const Plan plan(listeners, songs.count);
  const SeenLists heard =
      seen_lists(seen, listeners, [&](int64_t item) { return item < packed.rows_of_table ? packed.place[item] : -1; });
  std::vector<std::vector<Shortlist>> found(plan.blocks * plan.splits);
  at::parallel_for(0, found.size(), 1, [&](int64_t from, int64_t to) {
    at::AutoDispatchBelowADInplaceOrView no_autograd;
    for (int64_t piece = from; piece < to; ++piece) {
      const int64_t first = piece / plan.splits * plan.block, last = std::min(listeners, first + plan.block);
      const int64_t split = piece % plan.splits, tile = plan.first_tile(split), end = plan.first_tile(split + 1);
      Scan<P> scan(queries + first * songs.dim, last - first, songs.dim, packed, songs.count, k);
      scan.run(tile, end, strikes_of(heard, first, last, tile, end));
      found[piece] = std::move(scan.lists);
    }
  });
  std::vector<char> given_up(listeners, 0);
  at::parallel_for(0, listeners, 8, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) {
      const int64_t piece = b / plan.block * plan.splits;
      Shortlist& all = found[piece][b % plan.block];
      for (int64_t split = 1; split < plan.splits; ++split) all.add(found[piece + split][b % plan.block]);
      if (plan.splits > 1 && !all.given_up) all.tighten(k);
      given_up[b] = all.given_up;
      if (all.given_up) continue;
      std::vector<Rank> ranks = score_exactly(queries + b * songs.dim, songs, all.songs);
      write_best(&ranks, k, out.items + b * k, out.scores + b * k);
    }
  });
  std::vector<int64_t> rest;
  for (int64_t b = 0; b < listeners; ++b)
    if (given_up[b]) rest.push_back(b);
  return search_all(queries, listeners, songs, rest, seen, k, out) ? static_cast<int64_t>(rest.size()) : -1;
}

}  // namespace

void pack(const float* table, int64_t dim, const int32_t* items, int64_t count, bool half, int64_t width, void* rows,
          float* norm, float* error) {
  (half ? pack_as<Half> : pack_as<Single>)(table, dim, items, count, width, rows, norm, error);
}

int64_t search(const float* queries, int64_t listeners, const Songs& songs, const Packed& packed,
               const SeenPairs& seen, int64_t k, const Lists& out) {
  return (packed.half ? search_as<Half> : search_as<Single>)(queries, listeners, songs, packed, seen, k, out);
}

}  // namespace fuxi
