// The k best songs of a catalogue by inner product, exactly.
//
// A scan scores every song in fp32 or from vectors rounded to bf16 (scan.h) and appends the few whose score, plus a
// bound of its error, reaches the listener's threshold: a lower bound of the k-th best exact score, from the k-th best
// of (score - bound) so far. What is left over at the end holds the list, and is scored again by `exact_scores`.
//
// With q', t' the rounded vectors, |q' t' - q t| <= |q - q'| |t| + |q'| |t - t'|. To this come the errors of sums of D
// products in fp32 in any order.
#include "scan.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>

#include <cmath>
#include <stdexcept>

namespace fuxi {
namespace {

constexpr int64_t MOST_LISTENERS = 480;     // of a block, ...
constexpr int64_t MOST_WORDS = 65536;       // ... whose vectors are to stay in the second cache
constexpr int64_t LEAST_LISTENERS = 64;     // ... below which the catalogue is split among threads instead
constexpr int64_t LONGEST_SHORTLIST = 16384;
constexpr double LARGEST_SCORE = 1e30;      // beyond, sums in fp32 may overflow
constexpr float SCORE_ERROR = 0x1p-22f;     // relative, of arithmetic with a score and its bound

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Norms {
  double norm, error;
};

// bf16 that instructions compute with: to nearest, numbers below the least normal one as 0.
c10::BFloat16 rounded(float x) { return c10::BFloat16(std::abs(x) < 0x1p-126f ? 0.f : x); }

// Upper bounds of a row's norm and of that of its rounding error. Writes its words, word w to words[place(w)], zeros
// behind D.
template <typename Place>
Norms pack_row(const float* row, int64_t dim, bool half, int64_t width, int32_t* words, const Place& place) {
  double squares = 0, errors = 0;
  for (int64_t w = 0; w < width; ++w) {
    if (!half) {
      words[place(w)] = bits_as<int32_t>(w < dim ? row[w] : 0.f);
      if (w < dim) squares += static_cast<double>(row[w]) * row[w];
      continue;
    }
    uint32_t pair = 0;
    for (int64_t d = 2 * w; d < std::min(2 * w + 2, dim); ++d) {
      const c10::BFloat16 value = rounded(row[d]);
      const double error = static_cast<double>(static_cast<float>(value)) - row[d];
      squares += static_cast<double>(row[d]) * row[d];
      errors += error * error;
      pair |= static_cast<uint32_t>(value.x) << 16 * (d % 2);
    }
    words[place(w)] = static_cast<int32_t>(pair);
  }
  constexpr double UPWARDS = 1 + 1e-6;  // for the rounding of these sums
  return {std::sqrt(squares) * UPWARDS, std::sqrt(errors) * UPWARDS};
}

// The larger one, or what is not a number.
double larger(double a, double b) { return a != a || a >= b ? a : b; }

float upwards(double x) { return std::nextafter(static_cast<float>(x), INFINITE); }

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

// A block of listeners against a range of tiles.
template <typename Kind>
class Scan {
 public:
  std::vector<Shortlist> lists;

  // heard: of these listeners, the places of songs that are left out, ascending.
  Scan(const float* queries, int64_t first, int64_t count, int64_t dim, const Packed& packed, int64_t songs,
       const SeenLists& heard, int64_t k)
      : lists(count), packed_(packed), songs_(songs), k_(k), dim_(dim), groups_(ceil_div(count, L)),
        words_(groups_ * L * packed.width, 0), cuts_(groups_ * L, INFINITE), norms_(count), errors_(count),
        heard_(count), heard_end_(count) {
    double norm = 0, error = 0;
    for (int64_t tile = 0; tile * SONG_TILE < songs; ++tile) {
      norm = larger(norm, packed.norm[tile]);
      error = larger(error, packed.error[tile]);
    }
    for (int64_t b = 0; b < count; ++b) {
      norms_[b] = pack_row(queries + (first + b) * dim, dim, is_half(packed.scan), packed.width,
                           words_.data() + b / L * L * packed.width,
                           [&](int64_t word) { return Kind::place(b % L, word, packed.width); });
      if (!((norms_[b].norm + norms_[b].error) * (norm + error) < LARGEST_SCORE)) lists[b].give_up();
      heard_[b] = heard.places.data() + heard.starts[first + b];
      heard_end_[b] = heard.places.data() + heard.starts[first + b + 1];
    }
  }

  void run(int64_t first_tile, int64_t last_tile) {
    const typename Kind::Prepared prepared;
    alignas(64) float scores[L * GROUP];
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
      set_cuts(tile);
      const int64_t end = std::min(songs_, (tile + 1) * SONG_TILE);
      for (int64_t start = tile * SONG_TILE; start < end; start += GROUP)
        for (int64_t group = 0; group < groups_; ++group) {
          const uint32_t found = Kind::score(packed_.words + start * packed_.width,
                                             words_.data() + group * L * packed_.width, packed_.width,
                                             cuts_.data() + group * L, scores);
          for_each_bit(found, [&](int n) { collect(group * L + n, start, end - start, scores + n * GROUP); });
        }
    }
    for (Shortlist& list : lists) {
      if (!list.given_up) list.tighten(k_);
      list.songs.shrink_to_fit();
    }
  }

 private:
  static constexpr int64_t L = Kind::LISTENERS;

  // Bounds of the errors of a tile's scores.
  void set_cuts(int64_t tile) {
    const double norm = packed_.norm[tile], error = packed_.error[tile];
    for (size_t b = 0; b < lists.size(); ++b) {
      const Norms& of = norms_[b];
      const double rounding = of.error * norm + (of.norm + of.error) * error;
      const double sums = dim_ * 0x1p-21 * (of.norm + of.error) * (norm + error) + dim_ * 0x1p-120;
      errors_[b] = static_cast<float>((rounding + sums) * (1 + 1e-6));
      set_cut(b);
    }
  }

  // What a score must exceed to enter a shortlist.
  void set_cut(int64_t b) {
    const double least = static_cast<double>(lists[b].threshold) - errors_[b];
    const float cut = static_cast<float>(least / (least < 0 ? 1. - SCORE_ERROR : 1. + SCORE_ERROR));
    cuts_[b] = lists[b].given_up ? INFINITE : std::nextafter(cut, -INFINITE);
  }

  // Appends those of the songs from place `start` on, at most `count`, that pass and were not heard.
  void collect(int64_t b, int64_t start, int64_t count, const float* scores) {
    uint64_t bits = songs_above(scores, cuts_[b]);
    if (count < GROUP) bits &= (uint64_t{1} << count) - 1;
    Shortlist& list = lists[b];
    const int32_t*& heard = heard_[b];
    for_each_bit(bits, [&](int lane) {
      const int64_t place = start + lane;
      while (heard != heard_end_[b] && *heard < place) ++heard;
      if (heard != heard_end_[b] && *heard == place) return;
      const float score = scores[lane], error = errors_[b] + SCORE_ERROR * std::abs(score);
      list.songs.push_back({score - error, score + error, packed_.items[place]});
    });
    if (static_cast<int64_t>(list.songs.size()) < list.worth_tightening) return;
    list.tighten(k_);
    set_cut(b);
  }

  const Packed& packed_;
  int64_t songs_, k_, dim_, groups_;
  std::vector<int32_t> words_;
  std::vector<float> cuts_;
  std::vector<Norms> norms_;
  std::vector<float> errors_;
  std::vector<const int32_t*> heard_, heard_end_;
};

// How a search is cut into pieces of a block of listeners and a range of tiles, enough for every thread.
struct Plan {
  int64_t block, blocks, tiles, splits;

  Plan(int64_t listeners, int64_t songs, int64_t width, int64_t group) : tiles(ceil_div(songs, SONG_TILE)) {
    const int64_t most = std::clamp(MOST_WORDS / width, LEAST_LISTENERS, MOST_LISTENERS);
    const int64_t threads = at::get_num_threads(), rounds = ceil_div(listeners, most * threads);
    block = std::max(ceil_div(ceil_div(listeners, rounds * threads), group) * group, LEAST_LISTENERS);
    blocks = ceil_div(listeners, block);
    splits = std::min(tiles, ceil_div(threads, blocks));
  }

  int64_t first_tile(int64_t split) const { return tiles * split / splits; }
};

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

template <typename Kind>
int64_t search_as(const float* queries, int64_t listeners, const Songs& songs, const Packed& packed,
                  const SeenPairs& seen, int64_t k, const Lists& out) {
  const Plan plan(listeners, songs.count, packed.width, Kind::LISTENERS);
  const SeenLists heard = sorted_lists(
      seen, listeners, [&](int64_t item) { return item < packed.rows_of_table ? packed.place[item] : -1; });
  std::vector<std::vector<Shortlist>> found(plan.blocks * plan.splits);
  at::parallel_for(0, found.size(), 1, [&](int64_t from, int64_t to) {
    for (int64_t piece = from; piece < to; ++piece) {
      const int64_t first = piece / plan.splits * plan.block, split = piece % plan.splits;
      Scan<Kind> scan(queries, first, std::min(listeners - first, plan.block), songs.dim, packed, songs.count, heard,
                      k);
      scan.run(plan.first_tile(split), plan.first_tile(split + 1));
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

bool is_half(ScanKind scan) { return scan != ScanKind::FP32; }

#if defined(FUXI_AMX)
// Whether the matrix unit may be used and gives the scores of PlainTiles. Found out once in a process.
bool amx_works() {
  static const bool works = [] {
    constexpr int64_t WORDS = 2 * SIDE;
    if (!AmxTiles::permitted()) return false;
    std::vector<int32_t> songs(WORDS * GROUP), queries(SIDE * WORDS);
    const auto small = [](int64_t i) { return static_cast<int32_t>(bits_as<uint32_t>(float(i * 7 % 5 - 2)) >> 16); };
    for (size_t i = 0; i < songs.size(); ++i) songs[i] = small(i) | small(i + 3) << 16;
    for (size_t i = 0; i < queries.size(); ++i) queries[i] = small(i + 1) | small(3 * i) << 16;
    std::vector<float> cuts(SIDE, 0), plain(SIDE * GROUP), fast(SIDE * GROUP, 1e9f);
    InTiles<PlainTiles>::score(songs.data(), queries.data(), WORDS, cuts.data(), plain.data());
    const AmxTiles::Configured configured;
    InTiles<AmxTiles>::score(songs.data(), queries.data(), WORDS, cuts.data(), fast.data());
    return plain == fast;
  }();
  return works;
}
#endif

std::vector<ScanKind> scan_kinds() {
  std::vector<ScanKind> kinds;
#if defined(FUXI_AMX)
  if (amx_works()) kinds.push_back(ScanKind::AMX_BF16);
#endif
#if defined(__AVX512BF16__)
  kinds.push_back(ScanKind::AVX512_BF16);
#endif
  kinds.insert(kinds.end(), {ScanKind::FP32, ScanKind::BF16, ScanKind::PLAIN_TILES});
  return kinds;
}

int64_t packed_rows(int64_t count) { return ceil_div(count, GROUP) * GROUP; }

void pack(const float* table, int64_t dim, const int32_t* items, int64_t count, bool half, int64_t width,
          int32_t* words, float* norm, float* error) {
  at::parallel_for(0, ceil_div(count, SONG_TILE), 1, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      Norms largest = {0, 0};
      for (int64_t i = tile * SONG_TILE; i < std::min(count, (tile + 1) * SONG_TILE); ++i) {
        const Norms norms = pack_row(table + items[i] * dim, dim, half, width, words + i / GROUP * GROUP * width,
                                     [&](int64_t word) { return word * GROUP + i % GROUP; });
        largest.norm = larger(largest.norm, norms.norm);
        largest.error = larger(largest.error, norms.error);
      }
      norm[tile] = upwards(largest.norm);
      error[tile] = upwards(largest.error);
    }
  });
}

int64_t search(const float* queries, int64_t listeners, const Songs& songs, const Packed& packed,
               const SeenPairs& seen, int64_t k, const Lists& out) {
  const auto run = [&](auto kind) {
    return search_as<decltype(kind)>(queries, listeners, songs, packed, seen, k, out);
  };
  const std::vector<ScanKind> kinds = scan_kinds();  // on a processor with tiles this asks for them
  if (std::find(kinds.begin(), kinds.end(), packed.scan) == kinds.end())
    throw std::invalid_argument("this processor has no such scan");
  switch (packed.scan) {
#if defined(FUXI_AMX)
    case ScanKind::AMX_BF16:
      return run(InTiles<AmxTiles>());
#endif
#if defined(__AVX512BF16__)
    case ScanKind::AVX512_BF16:
      return run(InRegisters<Avx512Bf16Step>());
#endif
    case ScanKind::BF16:
      return run(InRegisters<Bf16Step>());
    case ScanKind::PLAIN_TILES:
      return run(InTiles<PlainTiles>());
    default:
      return run(InRegisters<Fp32Step>());
  }
}

}  // namespace fuxi
