// The kernels that bindings.cpp registers. Plain pointers to contiguous arrays; all sizes in elements.
#pragma once
#include <cstdint>
#include <vector>

namespace fuxi {

// A batch of packed sequences: sequence s holds the tokens offsets[s] .. offsets[s + 1].
struct Sequences {
  const int64_t* offsets;  // [count + 1]
  int64_t count;
  const int64_t* timestamp;       // [T], Unix seconds
  const int64_t* next_timestamp;  // [T], t_{i+1} of row i
};

struct Maps {
  const float* by_lag;  // [reach], the positional weight of each number of events looked back
  int64_t reach;
  bool temporal;
  float scale, decay;  // a (1 + x)^-b
  float exponent;      // c of a exp(-b log(1 + x)^c); 0: there is none, as if it were 1
};

// value [T, D] -> [B V | B^t V] [T, 2 D].
void apply_maps(const Sequences& sequences, const Maps& maps, const float* value, int64_t dim, float* out);

// A weight matrix [inputs, outputs] wherever its numbers lie.
struct Weights {
  const float* numbers;
  int64_t inputs, outputs, input_stride, output_stride;
};

// Of one block of FuXi-beta with one head.
struct BlockWeights {
  Weights project;      // [D, 3 D]: 2 D of U in the order [position | time], then D of V
  Weights merge;        // [2 D, D]
  const float* bias;    // [D], of merge
  Weights gate_and_up;  // [D, 2 H]
  Weights down;         // [H, D]
  int64_t dim, hidden;
};

// x [T, D] -> MFFN(AFTM(RMSNorm(x)), x) [T, D], without dropout.
void block(const Sequences& sequences, const Maps& maps, const BlockWeights& weights, const float* x, float* out);

// The token mixer's sums at the last token of each sequence, and what they are sums of.
struct LastRows {
  float* value;        // V [T, D]
  float* by_position;  // [T], the last row of B
  float* decayed;      // [T], that of B^t without its factor a; not written if there is none
  float* sums;         // [B, 2 D], zeros for a sequence without tokens
};

// normed [T, D], project [D, D] of V.
void last_rows(const Sequences& sequences, const Maps& maps, const Weights& project, const float* normed,
               const LastRows& out);

struct MapGradients {
  float* by_lag;  // [reach]
  double* scale;  // one number each
  double* decay;
  double* exponent;
};

void apply_maps_backward(const Sequences& sequences, const Maps& maps, const float* value, int64_t dim,
                         const float* gradient, float* of_value, const MapGradients& of_maps);

struct Softmax {
  const float* states;  // [P, D]
  const float* table;   // [U, D]
  const int64_t* target;     // [P], rows of the table
  const int64_t* negatives;  // [P, K]
  const bool* masked;        // [P, K]
  int64_t positions, rows, dim, draws;
  float temperature;
};

// Returns the summed loss; its gradients go to of_states [P, D] and of_table [U, D].
double sampled_softmax(const Softmax& softmax, float* of_states, float* of_table);

// Counter-based dropout; without keys (null) there is none.
struct Mask {
  const int64_t* keys;  // [T]
  double rate;
};

// One row of factors: 1 / (1 - rate) for a channel that is kept, 0 for one that is dropped.
void mask_row(const Mask& mask, int64_t token, int64_t channels, float* factors);

void dropout(const float* x, const Mask& mask, int64_t tokens, int64_t channels, float* out);

// RMSNorm without weights, then dropout.
void rms_norm(const float* x, const Mask& mask, int64_t tokens, int64_t channels, float* out);
void rms_norm_backward(const float* gradient, const float* x, const Mask& mask, int64_t tokens, int64_t channels,
                       float* of_x);

// silu(left half) * right half of each row of 2 H channels.
void swiglu(const float* x, int64_t tokens, int64_t hidden, float* out);
void swiglu_backward(const float* gradient, const float* x, int64_t tokens, int64_t hidden, float* of_x);

// Projected rows before their SiLU: [U | what the mixer reads], `width` numbers each.
struct Projected {
  const float* rows;
  int64_t tokens, width;
};

// SiLU of the columns from `first` on -> [T, width - first]; the gradient goes to those columns of of_projected.
void values(const Projected& projected, int64_t first, float* out);
void values_backward(const float* gradient, const Projected& projected, int64_t first, float* of_projected);
// U * RMSNorm(mixed), dropped out, with U = SiLU(the first `channels` columns) -> [T, channels].
void gate(const Projected& projected, const float* mixed, const Mask& mask, int64_t channels, float* out);
void gate_backward(const float* gradient, const Projected& projected, const float* mixed, const Mask& mask,
                   int64_t channels, float* of_projected, float* of_mixed);

// Retention's heads in a batch of packed sequences.
struct Heads {
  const int64_t* offsets;  // [sequences + 1]
  int64_t sequences;
  const float* decay;   // [count], g of each head
  int64_t count, size;  // heads and their width d, together D
};

// projected: [U | q | k | v], D each -> the retained values and what is gated of them, [T, D] each.
void retention(const Heads& heads, const Projected& projected, const Mask& mask, float* out, float* retained);
void retention_backward(const Heads& heads, const Projected& projected, const Mask& mask, const float* retained,
                        const float* gradient, float* of_projected, float* of_decay);

// Periods of the periodic channel, and the times of a batch of packed sequences as the kernel needs them.
struct Waves {
  const int64_t* offsets;  // [sequences + 1]
  int64_t sequences;
  const float* rate;      // [count], r: 1 / seconds
  const float* phases;    // [T, count, 4]: cosine and sine of the phase of t_n, cosine and sine of that of t_{n+1}
  const float* gaps;      // [T, 2]: seconds since the token before, and until t_{n+1}; not negative
  const int64_t* bounds;  // [2 count + 1], channels: of the sines of all periods, then of the cosines
  int64_t count, dim;
};

// projected: [U | v], D each -> the mixed values and what is gated of them, [T, D] each.
void periodic(const Waves& waves, const Projected& projected, const Mask& mask, float* out, float* mixed);
void periodic_backward(const Waves& waves, const Projected& projected, const Mask& mask, const float* mixed,
                       const float* gradient, float* of_projected, float* of_rate);

// The plays of a batch of packed sequences.
struct Plays {
  const int64_t* offsets;  // [sequences + 1]
  const int64_t* items;    // [T]
};

// What plays contribute to songs: play j adds factor[j] <towards[r][k], vectors[j]> to song k of listener r.
struct PlayTerm {
  const float* vectors;  // [T, D]
  const float* towards;  // [R, K, D]
  const float* factor;   // [T]; null for 1
  int64_t dim;
};

// The plays that contribute most to a song, the largest first; -1 and 0 where there are fewer.
struct Strongest {
  int64_t* tokens;  // [R, K, count]
  float* weight;    // [R, K, count]
};

// Of R listeners with K songs each; the plays of one song count as one, at the newest. rows: [R], their sequences.
void strongest_plays(const std::vector<PlayTerm>& terms, const Plays& plays, const int64_t* rows, int64_t listeners,
                     int64_t songs, int64_t count, const Strongest& out);

// Counter-based random integers in [0, below): [count, draws].
void integers(const int64_t* keys, int64_t count, int64_t draws, int64_t below, int64_t* out);

// Pairs of a listener and a song to leave out, in any order; songs that do not exist are left out of them.
struct SeenPairs {
  const int64_t* listener;
  const int64_t* item;
  int64_t count;
};

void check_listener(int64_t listener, int64_t listeners);  // throws for one that does not exist

// Lists of k songs a listener, best first, ties by the lower item; 0 and -inf where there are fewer.
struct Lists {
  int64_t* items;  // [B, k]
  float* scores;   // [B, k]
};

// scores: row b starts at b * stride. candidates: [songs]. Returns whether the scores looked at were numbers, which all
// candidates' are: one that is not a number passes every comparison.
bool top_k_of_scores(const float* scores, int64_t listeners, int64_t songs, int64_t stride, const bool* candidates,
                     const SeenPairs& seen, int64_t k, const Lists& out);

struct Songs {
  const float* table;    // [V, D]
  const int32_t* items;  // [C], the candidates, ascending
  int64_t count, dim;
};

// The lists of some of the listeners by the exact scores of all candidates.
bool search_all(const float* queries, int64_t listeners, const Songs& songs, const std::vector<int64_t>& some,
                const SeenPairs& seen, int64_t k, const Lists& out);

// How a search scores songs before the exact scores, in fp32 or from vectors rounded to bf16.
enum class ScanKind { FP32, BF16, AVX512_BF16, AMX_BF16, PLAIN_TILES };

bool is_half(ScanKind scan);
std::vector<ScanKind> scan_kinds();  // of this processor, the fastest first

constexpr int64_t SONG_TILE = 2048;

// The candidates' vectors as they are scanned, in an order of their own.
struct Packed {
  const int32_t* words;  // as in scan.h, zeros behind D
  ScanKind scan;
  const int32_t* items;  // [C], song of each row
  const int32_t* place;  // [V], row of each song, -1 for none
  const float* norm;     // largest norm of the vectors of each tile of SONG_TILE
  const float* error;    // ... and of their rounding errors
  int64_t width, rows_of_table;  // width: words of a vector
};

int64_t packed_rows(int64_t count);  // rows that `count` songs take

// Rounds rows to the scanning precision; norm, error: one number a tile.
void pack(const float* table, int64_t dim, const int32_t* items, int64_t count, bool half, int64_t width,
          int32_t* words, float* norm, float* error);

// Returns the number of listeners that `search_all` had to search for, -1 if a score is not a number.
int64_t search(const float* queries, int64_t listeners, const Songs& songs, const Packed& packed,
               const SeenPairs& seen, int64_t k, const Lists& out);

}  // namespace fuxi
