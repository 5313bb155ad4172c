// What the kernels offer to bindings.cpp. Plain pointers to contiguous arrays; all sizes in elements.
#pragma once
#include <cstdint>

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
};

void mix_forward(const Sequences& sequences, const Maps& maps, const float* value, int64_t dim, float* out);

struct MixGradients {
  float* value;    // [T, D]
  float* by_lag;   // [reach]
  double* scale;   // one number each
  double* decay;
};

void mix_backward(const Sequences& sequences, const Maps& maps, const float* value, int64_t dim,
                  const float* gradient, const MixGradients& gradients);

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

void dropout(const float* x, const int64_t* keys, int64_t tokens, int64_t channels, double rate, float* out);

void draw(const int64_t* keys, int64_t count, int64_t draws, int64_t below, int64_t* out);

}  // namespace fuxi
