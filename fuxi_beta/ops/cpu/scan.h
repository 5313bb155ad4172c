// The inner loop of a search: scores of a group of listeners and GROUP songs, compared with the listeners' cuts where
// they are, in registers or the first cache. Most groups end there, and nothing is stored.
//
// Songs lie side by side in lanes. A word is what a lane multiplies in one step: an fp32 number or a pair of bf16. The
// songs of a group are words [W][GROUP]; each kind of scan has a layout of its own for listeners, `place` says where.
#pragma once
#include "kernels.h"
#include "top_k.h"
#include "vec.h"

namespace fuxi {

constexpr int64_t GROUP = TILE_WIDTH;

template <typename To, typename From>
inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline IntVec load_words(const int32_t* from) {
  IntVec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

// Bit l: song l's score exceeds the cut. scores: [GROUP]
inline uint64_t songs_above(const float* scores, float cut) {
  uint64_t bits = 0;
#pragma GCC unroll 4
  for (int c = 0; c < TILE; ++c)
    bits |= static_cast<uint64_t>(above<false>(load(scores + c * LANES), broadcast(cut))) << (c * LANES);
  return bits;
}

// How one step adds the products of a word of GROUP songs and of one listener.
struct Fp32Step {
  static Vec add(Vec sum, IntVec songs, int32_t query) { return sum + bits_as<Vec>(songs) * bits_as<float>(query); }
};

struct Bf16Step {  // on any processor
  static Vec add(Vec sum, IntVec songs, int32_t query) {
    const auto high = static_cast<int32_t>(query & 0xffff0000), low = static_cast<int32_t>(uint32_t(query) << 16);
    sum += bits_as<Vec>(songs << 16) * bits_as<float>(low);
    return sum + bits_as<Vec>(songs & static_cast<int32_t>(0xffff0000)) * bits_as<float>(high);
  }
};

#if defined(__AVX512BF16__)
struct Avx512Bf16Step {
  static Vec add(Vec sum, IntVec songs, int32_t query) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)songs, (__m512bh)_mm512_set1_epi32(query));
  }
};
#endif

// 6 listeners, whose sums with the songs of a group fill the registers of vectors. Their words: [W][6].
template <typename Step>
struct InRegisters {
  static constexpr int LISTENERS = 6;

  static int64_t place(int64_t listener, int64_t word, int64_t) { return word * LISTENERS + listener; }

  // Bit n: a score of listener n exceeds the cut. Then writes the scores, [LISTENERS][GROUP].
  static uint32_t score(const int32_t* songs, const int32_t* queries, int64_t words, const float* cuts,
                        float* scores) {
    Vec sums[LISTENERS][TILE] = {};
    for (int64_t w = 0; w < words; ++w) {
      IntVec values[TILE];
#pragma GCC unroll 4
      for (int c = 0; c < TILE; ++c) values[c] = load_words(songs + w * GROUP + c * LANES);
#pragma GCC unroll 8
      for (int n = 0; n < LISTENERS; ++n) {
#pragma GCC unroll 4
        for (int c = 0; c < TILE; ++c) sums[n][c] = Step::add(sums[n][c], values[c], queries[w * LISTENERS + n]);
      }
    }
    uint32_t found = 0;
#pragma GCC unroll 8
    for (int n = 0; n < LISTENERS; ++n) {
      Vec best = sums[n][0];
#pragma GCC unroll 4
      for (int c = 1; c < TILE; ++c) best = larger(best, sums[n][c]);
      found |= static_cast<uint32_t>(above<false>(best, broadcast(cuts[n])) != 0) << n;
    }
    if (!found) return 0;
#pragma GCC unroll 8
    for (int n = 0; n < LISTENERS; ++n) {
#pragma GCC unroll 4
      for (int c = 0; c < TILE; ++c) store(scores + n * GROUP + c * LANES, sums[n][c]);
    }
    return found;
  }
};

}  // namespace fuxi
