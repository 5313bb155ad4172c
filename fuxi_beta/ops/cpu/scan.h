// The inner loop of a search: scores of a group of listeners and GROUP songs, compared with the listeners' cuts where
// they are, in registers or the first cache. Most groups end there, and nothing is stored.
//
// Songs lie side by side in lanes. A word is what a lane multiplies in one step: an fp32 number or a pair of bf16. The
// songs of a group are words [W][GROUP]; each kind of scan has a layout of its own for listeners, `place` says where.
#pragma once
#include "kernels.h"
#include "top_k.h"
#include "vec.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define FUXI_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

// What a kind of scan does in a thread before its first group and after its last one.
struct NothingToPrepare {
  NothingToPrepare() {}
};

// 6 listeners, whose sums with the songs of a group fill the registers of vectors. Their words: [W][6].
template <typename Step>
struct InRegisters {
  static constexpr int LISTENERS = 6;
  using Prepared = NothingToPrepare;

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

constexpr int SIDE = 16;  // rows of a tile, and 32-bit words of each of them

// The tiles of the matrix unit in plain code: numbers 0 .. 7 of SIDE rows. The definition of AmxTiles, for tests.
struct PlainTiles {
  struct Configured {
    Configured() {}
  };
  template <int T>
  static void zero() { std::memset(tile(T), 0, sizeof(float) * SIDE * SIDE); }
  template <int T>
  static void load(const void* from, int64_t stride) {
    for (int row = 0; row < SIDE; ++row)
      std::memcpy(tile(T) + row * SIDE, static_cast<const char*>(from) + row * stride, SIDE * sizeof(float));
  }
  template <int T>
  static void store(void* to, int64_t stride) {
    for (int row = 0; row < SIDE; ++row)
      std::memcpy(static_cast<char*>(to) + row * stride, tile(T) + row * SIDE, SIDE * sizeof(float));
  }
  // sums[m][n] += pair products of left[m][k] and right[k][n], over k.
  template <int SUMS, int LEFT, int RIGHT>
  static void multiply() {
    for (int m = 0; m < SIDE; ++m)
      for (int k = 0; k < SIDE; ++k)
        for (int n = 0; n < SIDE; ++n) {
          const auto left = bits_as<uint32_t>(tile(LEFT)[m * SIDE + k]);
          const auto right = bits_as<uint32_t>(tile(RIGHT)[k * SIDE + n]);
          float& sum = tile(SUMS)[m * SIDE + n];
          sum += bits_as<float>(left << 16) * bits_as<float>(right << 16);
          sum += bits_as<float>(left & 0xffff0000) * bits_as<float>(right & 0xffff0000);
        }
  }

 private:
  static float* tile(int number) {
    thread_local float tiles[8 * SIDE * SIDE];
    return tiles + number * SIDE * SIDE;
  }
};

#if defined(FUXI_AMX)
// In assembly: GCC's functions of tiles are macros that take digits alone, and its `_tile_loadconfig` is said to read 8
// bytes of 64.
struct AmxTiles {
  struct Configured {
    Configured() {
      struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
      } config;
      for (int t = 0; t < 8; ++t) config.bytes[t] = SIDE * sizeof(float), config.rows[t] = SIDE;
      asm volatile("ldtilecfg %0" ::"m"(config));
    }
    ~Configured() { asm volatile("tilerelease"); }
  };
  template <int T>
  static void zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
  template <int T>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  template <int SUMS, int LEFT, int RIGHT>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(LEFT), "i"(RIGHT));
  }

  // Linux lets a process use tiles on request, with all its threads.
  static bool permitted() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  }
};
#endif

// 16 listeners and the songs of a group as tiles of sums. Their words: [16][W], W whole tiles.
template <typename Tiles>
struct InTiles {
  static constexpr int LISTENERS = SIDE;
  using Prepared = typename Tiles::Configured;

  static int64_t place(int64_t listener, int64_t word, int64_t words) { return listener * words + word; }

  // As that of InRegisters, but the scores are always written.
  static uint32_t score(const int32_t* songs, const int32_t* queries, int64_t words, const float* cuts,
                        float* scores) {
    if constexpr (GROUP == 4 * SIDE) {
      sums<0>(), sums<1>(), sums<2>(), sums<3>();
      for (int64_t w = 0; w < words; w += SIDE) {
        Tiles::template load<4>(queries + w, words * sizeof(int32_t));
        add<0>(songs + w * GROUP), add<1>(songs + w * GROUP), add<2>(songs + w * GROUP), add<3>(songs + w * GROUP);
      }
      write<0>(scores), write<1>(scores), write<2>(scores), write<3>(scores);
    } else {
      sums<0>();
      for (int64_t w = 0; w < words; w += SIDE) {
        Tiles::template load<4>(queries + w, words * sizeof(int32_t));
        add<0>(songs + w * GROUP);
      }
      write<0>(scores);
    }
    uint32_t found = 0;
    for (int n = 0; n < LISTENERS; ++n) {
      Vec best = load(scores + n * GROUP);
      for (int c = 1; c < TILE; ++c) best = larger(best, load(scores + n * GROUP + c * LANES));
      found |= static_cast<uint32_t>(above<false>(best, broadcast(cuts[n])) != 0) << n;
    }
    return found;
  }

 private:
  static_assert(GROUP % SIDE == 0 && (GROUP == SIDE || GROUP == 4 * SIDE));
  static constexpr int64_t STRIDE = GROUP * sizeof(float);

  template <int T>
  static void sums() { Tiles::template zero<T>(); }
  template <int T>
  static void add(const int32_t* songs) {
    Tiles::template load<5>(songs + T * SIDE, STRIDE);
    Tiles::template multiply<T, 4, 5>();
  }
  template <int T>
  static void write(float* scores) { Tiles::template store<T>(scores + T * SIDE, STRIDE); }
};

}  // namespace fuxi
