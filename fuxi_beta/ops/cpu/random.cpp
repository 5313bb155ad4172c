// Counter-based random numbers, bit for bit those of fuxi_beta/data/stateless_random.py: dropout masks and integers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace fuxi {
namespace {

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15;

inline uint64_t scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

inline uint64_t word(int64_t key, int64_t number) {
  return scramble(static_cast<uint64_t>(key) + static_cast<uint64_t>(number + 1) * GOLDEN);
}

}  // namespace

void mask_row(const Mask& mask, int64_t token, int64_t channels, float* factors) {
  if (!mask.keys) {
    std::fill_n(factors, channels, 1.f);
    return;
  }
  const int zeroed = static_cast<int>(std::nearbyint(mask.rate * 65536));
  const float scale = 65536.f / (65536 - zeroed);
  const int threshold = zeroed - 32768;
  for (int64_t start = 0; start < channels; start += 64) {
    uint64_t words[16];
    int16_t sixteenths[64];
    for (int w = 0; w < 16; ++w) words[w] = word(mask.keys[token], start / 4 + w);
    std::memcpy(sixteenths, words, sizeof words);
    const int64_t count = std::min<int64_t>(64, channels - start);
    for (int64_t c = 0; c < count; ++c) factors[start + c] = sixteenths[c] >= threshold ? scale : 0.f;
  }
}

void integers(const int64_t* keys, int64_t count, int64_t draws, int64_t below, int64_t* out) {
#pragma omp parallel for
  for (int64_t k = 0; k < count; ++k) {
    int64_t* to = out + k * draws;
    for (int64_t start = 0; start < draws; start += 2) {
      const uint64_t bits = word(keys[k], start / 2);
      to[start] = static_cast<int64_t>(((bits & 0xFFFFFFFF) * static_cast<uint64_t>(below)) >> 32);
      if (start + 1 < draws) to[start + 1] = static_cast<int64_t>(((bits >> 32) * static_cast<uint64_t>(below)) >> 32);
    }
  }
}

}  // namespace fuxi
