// The kernels as torch operators, fuxi_beta::*. They take contiguous float32 tensors on the CPU; Python sees to that.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "kernels.h"

namespace {

using at::Tensor;

fuxi::Sequences sequences_of(const Tensor& offsets, const Tensor& timestamp, const Tensor& next_timestamp) {
  return {offsets.const_data_ptr<int64_t>(), offsets.size(0) - 1, timestamp.const_data_ptr<int64_t>(),
          next_timestamp.const_data_ptr<int64_t>()};
}

fuxi::Maps maps_of(const Tensor& by_lag, bool temporal, double scale, double decay) {
  return {by_lag.const_data_ptr<float>(), by_lag.size(0), temporal, static_cast<float>(scale),
          static_cast<float>(decay)};
}

Tensor mix_forward(const Tensor& value, const Tensor& offsets, const Tensor& timestamp, const Tensor& next_timestamp,
                   const Tensor& by_lag, bool temporal, double scale, double decay) {
  Tensor out = at::empty({value.size(0), 2 * value.size(1)}, value.options());
  fuxi::mix_forward(sequences_of(offsets, timestamp, next_timestamp), maps_of(by_lag, temporal, scale, decay),
                    value.const_data_ptr<float>(), value.size(1), out.mutable_data_ptr<float>());
  return out;
}

std::tuple<Tensor, Tensor, double, double> mix_backward(const Tensor& gradient, const Tensor& value,
                                                        const Tensor& offsets, const Tensor& timestamp,
                                                        const Tensor& next_timestamp, const Tensor& by_lag,
                                                        bool temporal, double scale, double decay) {
  Tensor of_value = at::empty(value.sizes(), value.options()), of_by_lag = at::empty(by_lag.sizes(), by_lag.options());
  double of_scale = 0, of_decay = 0;
  fuxi::mix_backward(sequences_of(offsets, timestamp, next_timestamp), maps_of(by_lag, temporal, scale, decay),
                     value.const_data_ptr<float>(), value.size(1), gradient.const_data_ptr<float>(),
                     {of_value.mutable_data_ptr<float>(), of_by_lag.mutable_data_ptr<float>(), &of_scale, &of_decay});
  return {of_value, of_by_lag, of_scale, of_decay};
}

std::tuple<double, Tensor, Tensor> sampled_softmax(const Tensor& states, const Tensor& table, const Tensor& target,
                                                   const Tensor& negatives, const Tensor& masked, double temperature) {
  Tensor of_states = at::empty(states.sizes(), states.options()), of_table = at::empty(table.sizes(), table.options());
  const double loss = fuxi::sampled_softmax(
      {states.const_data_ptr<float>(), table.const_data_ptr<float>(), target.const_data_ptr<int64_t>(),
       negatives.const_data_ptr<int64_t>(), masked.const_data_ptr<bool>(), states.size(0), table.size(0),
       states.size(1), negatives.size(1), static_cast<float>(temperature)},
      of_states.mutable_data_ptr<float>(), of_table.mutable_data_ptr<float>());
  return {loss, of_states, of_table};
}

Tensor dropout(const Tensor& x, const Tensor& keys, double rate) {
  Tensor out = at::empty(x.sizes(), x.options());
  fuxi::dropout(x.const_data_ptr<float>(), keys.const_data_ptr<int64_t>(), x.size(0), x.size(1), rate,
                out.mutable_data_ptr<float>());
  return out;
}

Tensor draw(const Tensor& keys, int64_t draws, int64_t below) {
  Tensor out = at::empty({keys.size(0), draws}, keys.options());
  fuxi::draw(keys.const_data_ptr<int64_t>(), keys.size(0), draws, below, out.mutable_data_ptr<int64_t>());
  return out;
}

}  // namespace

TORCH_LIBRARY(fuxi_beta, library) {
  library.def("mix_forward", mix_forward);
  library.def("mix_backward", mix_backward);
  library.def("sampled_softmax", sampled_softmax);
  library.def("dropout", dropout);
  library.def("draw", draw);
}
