// The kernels as torch operators, fuxi_beta::*. Arguments are contiguous float32 CPU tensors, which Python ensures.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <map>

#include "kernels.h"

namespace {

using at::Tensor;
using Keys = std::optional<Tensor>;

Tensor like(const Tensor& x) { return at::empty(x.sizes(), x.options()); }
const float* floats(const Tensor& x) { return x.const_data_ptr<float>(); }
float* result(Tensor& x) { return x.mutable_data_ptr<float>(); }

fuxi::Mask mask_of(const Keys& keys, double rate) {
  return {keys.has_value() ? keys->const_data_ptr<int64_t>() : nullptr, rate};
}

fuxi::Sequences sequences_of(const Tensor& offsets, const Tensor& timestamp, const Tensor& next_timestamp) {
  return {offsets.const_data_ptr<int64_t>(), offsets.size(0) - 1, timestamp.const_data_ptr<int64_t>(),
          next_timestamp.const_data_ptr<int64_t>()};
}

fuxi::Maps maps_of(const Tensor& by_lag, bool temporal, double scale, double decay, double exponent) {
  return {floats(by_lag), by_lag.size(0), temporal, static_cast<float>(scale), static_cast<float>(decay),
          static_cast<float>(exponent)};
}

fuxi::Projected rows_of(const Tensor& projected) { return {floats(projected), projected.size(0), projected.size(1)}; }

// projected [T, 3 D] -> the gated output [T, 2 D], and V [T, D] and the mixed values [T, 2 D] for the backward pass.
std::tuple<Tensor, Tensor, Tensor> token_mixer(const Tensor& projected, const Tensor& offsets, const Tensor& timestamp,
                                               const Tensor& next_timestamp, const Tensor& by_lag, bool temporal,
                                               double scale, double decay, double exponent, const Keys& keys,
                                               double rate) {
  const int64_t tokens = projected.size(0), dim = projected.size(1) / 3;
  Tensor value = at::empty({tokens, dim}, projected.options());
  Tensor mixed = at::empty({tokens, 2 * dim}, projected.options()), out = like(mixed);
  fuxi::values(rows_of(projected), 2 * dim, result(value));
  fuxi::apply_maps(sequences_of(offsets, timestamp, next_timestamp), maps_of(by_lag, temporal, scale, decay, exponent),
                    floats(value), dim, result(mixed));
  fuxi::gate(rows_of(projected), floats(mixed), mask_of(keys, rate), 2 * dim, result(out));
  return {out, value, mixed};
}

using MixerGradients = std::tuple<Tensor, Tensor, double, double, double>;  // of the input, by_lag, a, b and c

MixerGradients token_mixer_backward(const Tensor& gradient, const Tensor& projected,
                                                                const Tensor& value, const Tensor& mixed,
                                                                const Tensor& offsets, const Tensor& timestamp,
                                                                const Tensor& next_timestamp, const Tensor& by_lag,
                                                                bool temporal, double scale, double decay,
                                                                double exponent, const Keys& keys, double rate) {
  const int64_t dim = value.size(1);
  Tensor of_projected = like(projected), of_mixed = like(mixed), of_value = like(value), of_by_lag = like(by_lag);
  double of_scale = 0, of_decay = 0, of_exponent = 0;
  fuxi::gate_backward(floats(gradient), rows_of(projected), floats(mixed), mask_of(keys, rate), 2 * dim,
                      result(of_projected), result(of_mixed));
  fuxi::apply_maps_backward(sequences_of(offsets, timestamp, next_timestamp), maps_of(by_lag, temporal, scale, decay, exponent),
                     floats(value), dim, floats(of_mixed), result(of_value),
                     {result(of_by_lag), &of_scale, &of_decay, &of_exponent});
  fuxi::values_backward(floats(of_value), rows_of(projected), 2 * dim, result(of_projected));
  return {of_projected, of_by_lag, of_scale, of_decay, of_exponent};
}

// value [T, D] -> both maps times the values [T, 2 D].
Tensor apply_maps(const Tensor& value, const Tensor& offsets, const Tensor& timestamp, const Tensor& next_timestamp,
                  const Tensor& by_lag, bool temporal, double scale, double decay, double exponent) {
  Tensor mixed = at::empty({value.size(0), 2 * value.size(1)}, value.options());
  fuxi::apply_maps(sequences_of(offsets, timestamp, next_timestamp), maps_of(by_lag, temporal, scale, decay, exponent),
                    floats(value), value.size(1), result(mixed));
  return mixed;
}

MixerGradients apply_maps_backward(const Tensor& gradient, const Tensor& value,
                                                               const Tensor& offsets, const Tensor& timestamp,
                                                               const Tensor& next_timestamp, const Tensor& by_lag,
                                                               bool temporal, double scale, double decay,
                                                               double exponent) {
  Tensor of_value = like(value), of_by_lag = like(by_lag);
  double of_scale = 0, of_decay = 0, of_exponent = 0;
  fuxi::apply_maps_backward(sequences_of(offsets, timestamp, next_timestamp), maps_of(by_lag, temporal, scale, decay, exponent),
                     floats(value), value.size(1), floats(gradient), result(of_value),
                     {result(of_by_lag), &of_scale, &of_decay, &of_exponent});
  return {of_value, of_by_lag, of_scale, of_decay, of_exponent};
}

fuxi::Weights weights_of(const Tensor& w) {  // [inputs, outputs], by any strides
  return {floats(w), w.size(0), w.size(1), w.stride(0), w.stride(1)};
}

// x [T, D], the matrices [inputs, outputs], bias [D], the rest as for token_mixer -> [T, D].
Tensor block(const Tensor& x, const Tensor& offsets, const Tensor& timestamp, const Tensor& next_timestamp,
             const Tensor& by_lag, bool temporal, double scale, double decay, double exponent, const Tensor& project,
             const Tensor& merge, const Tensor& bias, const Tensor& gate_and_up, const Tensor& down) {
  Tensor out = like(x);
  fuxi::block(sequences_of(offsets, timestamp, next_timestamp), maps_of(by_lag, temporal, scale, decay, exponent),
              {weights_of(project), weights_of(merge), floats(bias), weights_of(gate_and_up), weights_of(down), x.size(1),
               down.size(0)},
              floats(x), result(out));
  return out;
}

// normed [T, D], project [D, D], the rest as for token_mixer -> V [T, D], sums [B, 2 D], and the last row of both maps
// [T] each, the second empty if it is zero.
std::tuple<Tensor, Tensor, Tensor, Tensor> last_rows(const Tensor& normed, const Tensor& offsets,
                                                     const Tensor& timestamp, const Tensor& next_timestamp,
                                                     const Tensor& by_lag, bool temporal, double scale, double decay,
                                                     double exponent, const Tensor& project) {
  Tensor value = like(normed), sums = at::empty({offsets.size(0) - 1, 2 * normed.size(1)}, normed.options());
  Tensor by_position = at::empty({normed.size(0)}, normed.options());
  Tensor decayed = at::empty({temporal ? normed.size(0) : 0}, normed.options());
  fuxi::last_rows(sequences_of(offsets, timestamp, next_timestamp), maps_of(by_lag, temporal, scale, decay, exponent),
                  weights_of(project), floats(normed), {result(value), result(by_position), result(decayed), result(sums)});
  return {value, sums, by_position, decayed};
}

fuxi::Heads heads_of(const Tensor& projected, const Tensor& offsets, const Tensor& decay) {
  return {offsets.const_data_ptr<int64_t>(), offsets.size(0) - 1, floats(decay), decay.size(0),
          projected.size(1) / (4 * decay.size(0))};
}

// projected [T, 4 D], offsets [B + 1], decay [H] -> the gated output [T, D], and the retained values [T, D] for the
// backward pass.
std::tuple<Tensor, Tensor> retention(const Tensor& projected, const Tensor& offsets, const Tensor& decay,
                                     const Keys& keys, double rate) {
  Tensor retained = at::empty({projected.size(0), projected.size(1) / 4}, projected.options()), out = like(retained);
  fuxi::retention(heads_of(projected, offsets, decay), rows_of(projected), mask_of(keys, rate), result(out),
                  result(retained));
  return {out, retained};
}

std::tuple<Tensor, Tensor> retention_backward(const Tensor& gradient, const Tensor& projected, const Tensor& retained,
                                              const Tensor& offsets, const Tensor& decay, const Keys& keys,
                                              double rate) {
  Tensor of_projected = like(projected), of_decay = like(decay);
  fuxi::retention_backward(heads_of(projected, offsets, decay), rows_of(projected), mask_of(keys, rate),
                           floats(retained), floats(gradient), result(of_projected), result(of_decay));
  return {of_projected, of_decay};
}

fuxi::Waves waves_of(const Tensor& projected, const Tensor& offsets, const Tensor& rate, const Tensor& phases,
                     const Tensor& gaps, const Tensor& bounds) {
  return {offsets.const_data_ptr<int64_t>(), offsets.size(0) - 1, floats(rate), floats(phases), floats(gaps),
          bounds.const_data_ptr<int64_t>(), rate.size(0), projected.size(1) / 2};
}

// projected [T, 2 D], the rest as in Waves -> the gated output [T, D], and the mixed values [T, D] for the way back.
std::tuple<Tensor, Tensor> periodic(const Tensor& projected, const Tensor& offsets, const Tensor& rate,
                                    const Tensor& phases, const Tensor& gaps, const Tensor& bounds, const Keys& keys,
                                    double dropped) {
  Tensor mixed = at::empty({projected.size(0), projected.size(1) / 2}, projected.options()), out = like(mixed);
  fuxi::periodic(waves_of(projected, offsets, rate, phases, gaps, bounds), rows_of(projected), mask_of(keys, dropped),
                 result(out), result(mixed));
  return {out, mixed};
}

std::tuple<Tensor, Tensor> periodic_backward(const Tensor& gradient, const Tensor& projected, const Tensor& mixed,
                                             const Tensor& offsets, const Tensor& rate, const Tensor& phases,
                                             const Tensor& gaps, const Tensor& bounds, const Keys& keys,
                                             double dropped) {
  Tensor of_projected = like(projected), of_rate = like(rate);
  fuxi::periodic_backward(waves_of(projected, offsets, rate, phases, gaps, bounds), rows_of(projected),
                          mask_of(keys, dropped), floats(mixed), floats(gradient), result(of_projected),
                          result(of_rate));
  return {of_projected, of_rate};
}

std::tuple<double, Tensor, Tensor> sampled_softmax(const Tensor& states, const Tensor& table, const Tensor& target,
                                                   const Tensor& negatives, const Tensor& masked, double temperature) {
  Tensor of_states = like(states), of_table = like(table);
  const double loss = fuxi::sampled_softmax(
      {floats(states), floats(table), target.const_data_ptr<int64_t>(), negatives.const_data_ptr<int64_t>(),
       masked.const_data_ptr<bool>(), states.size(0), table.size(0), states.size(1), negatives.size(1),
       static_cast<float>(temperature)},
      result(of_states), result(of_table));
  return {loss, of_states, of_table};
}

Tensor rms_norm(const Tensor& x, const Keys& keys, double rate) {
  Tensor out = like(x);
  fuxi::rms_norm(floats(x), mask_of(keys, rate), x.size(0), x.size(1), result(out));
  return out;
}

Tensor rms_norm_backward(const Tensor& gradient, const Tensor& x, const Keys& keys, double rate) {
  Tensor of_x = like(x);
  fuxi::rms_norm_backward(floats(gradient), floats(x), mask_of(keys, rate), x.size(0), x.size(1), result(of_x));
  return of_x;
}

Tensor swiglu(const Tensor& x) {
  Tensor out = at::empty({x.size(0), x.size(1) / 2}, x.options());
  fuxi::swiglu(floats(x), x.size(0), x.size(1) / 2, result(out));
  return out;
}

Tensor swiglu_backward(const Tensor& gradient, const Tensor& x) {
  Tensor of_x = like(x);
  fuxi::swiglu_backward(floats(gradient), floats(x), x.size(0), x.size(1) / 2, result(of_x));
  return of_x;
}

Tensor dropout(const Tensor& x, const Tensor& keys, double rate) {
  Tensor out = like(x);
  fuxi::dropout(floats(x), mask_of(keys, rate), x.size(0), x.size(1), result(out));
  return out;
}

Tensor integers(const Tensor& keys, int64_t draws, int64_t below) {
  Tensor out = at::empty({keys.size(0), draws}, keys.options());
  fuxi::integers(keys.const_data_ptr<int64_t>(), keys.size(0), draws, below, out.mutable_data_ptr<int64_t>());
  return out;
}

// vectors [T, D], factors [T] (empty for 1) and towards [R, K, D] of each term; offsets [B + 1], items [T], rows [R] ->
// tokens int64 [R, K, count] and what they contribute [R, K, count].
std::tuple<Tensor, Tensor> strongest_plays(const std::vector<Tensor>& vectors, const std::vector<Tensor>& factors,
                                           const std::vector<Tensor>& towards, const Tensor& offsets,
                                           const Tensor& items, const Tensor& rows, int64_t count) {
  std::vector<fuxi::PlayTerm> terms;
  for (size_t i = 0; i < vectors.size(); ++i)
    terms.push_back({floats(vectors[i]), floats(towards[i]), factors[i].numel() ? floats(factors[i]) : nullptr,
                     vectors[i].size(1)});
  const int64_t listeners = rows.size(0), songs = towards[0].size(1);
  Tensor tokens = at::empty({listeners, songs, count}, rows.options());
  Tensor weight = at::empty({listeners, songs, count}, towards[0].options());
  fuxi::strongest_plays(terms, {offsets.const_data_ptr<int64_t>(), items.const_data_ptr<int64_t>()},
                        rows.const_data_ptr<int64_t>(), listeners, songs, count,
                        {tokens.mutable_data_ptr<int64_t>(), result(weight)});
  return {tokens, weight};
}

fuxi::SeenPairs pairs_of(const Tensor& listener, const Tensor& item) {
  return {listener.const_data_ptr<int64_t>(), item.const_data_ptr<int64_t>(), listener.size(0)};
}

using Ranked = std::tuple<Tensor, Tensor>;  // items int64 [B, K], scores [B, K]

Ranked no_lists(int64_t listeners, int64_t k, const Tensor& like) {
  return {at::empty({listeners, k}, like.options().dtype(at::kLong)), at::empty({listeners, k}, like.options())};
}

fuxi::Lists lists_of(Ranked& lists) {
  return {std::get<0>(lists).mutable_data_ptr<int64_t>(), result(std::get<1>(lists))};
}

void check_numbers(bool numbers) {
  TORCH_CHECK_VALUE(numbers, "a score is not a number: the model or its item table is broken");
}

// scores [B, V] with contiguous rows, candidates bool [V], seen pairs int64.
Ranked top_k_of_scores(const Tensor& scores, const Tensor& candidates, const Tensor& listener, const Tensor& item,
                       int64_t k) {
  Ranked lists = no_lists(scores.size(0), k, scores);
  check_numbers(fuxi::top_k_of_scores(floats(scores), scores.size(0), scores.size(1), scores.stride(0),
                                      candidates.const_data_ptr<bool>(), pairs_of(listener, item), k,
                                      lists_of(lists)));
  return lists;
}

const std::map<std::string, fuxi::ScanKind> SCANS = {
    {"fp32", fuxi::ScanKind::FP32},
    {"bf16", fuxi::ScanKind::BF16},
    {"avx512_bf16", fuxi::ScanKind::AVX512_BF16},
    {"amx_bf16", fuxi::ScanKind::AMX_BF16},
    {"plain_tiles", fuxi::ScanKind::PLAIN_TILES},
};

// The names of the scans that run here, the fastest first.
std::vector<std::string> scans() {
  std::vector<std::string> names;
  for (const fuxi::ScanKind kind : fuxi::scan_kinds())
    for (const auto& [name, same] : SCANS)
      if (same == kind) names.push_back(name);
  return names;
}

// table [V, D], items int32 [C] -> their words for a scan, int32 [rows, W], and two numbers a tile of them.
std::tuple<Tensor, Tensor, Tensor> pack_rows(const Tensor& table, const Tensor& items, const std::string& scan,
                                             int64_t width) {
  const int64_t count = items.size(0), tiles = (count + fuxi::SONG_TILE - 1) / fuxi::SONG_TILE;
  Tensor words = at::zeros({fuxi::packed_rows(count), width}, items.options());
  Tensor norm = at::empty({tiles}, table.options()), error = like(norm);
  fuxi::pack(floats(table), table.size(1), items.const_data_ptr<int32_t>(), count, fuxi::is_half(SCANS.at(scan)), width,
             words.mutable_data_ptr<int32_t>(), result(norm), result(error));
  return {words, norm, error};
}

// queries [B, D], table [V, D], items int32 [C] ascending, and the result of pack_rows with its items and each row's
// place in it, int32 [V] -> lists, and the number of listeners who were searched for without a shortlist.
std::tuple<Tensor, Tensor, int64_t> search(const Tensor& queries, const Tensor& table, const Tensor& items,
                                           const std::string& scan, const Tensor& words, const Tensor& norm,
                                           const Tensor& error, const Tensor& order, const Tensor& place,
                                           const Tensor& listener, const Tensor& item, int64_t k) {
  Ranked lists = no_lists(queries.size(0), k, queries);
  const fuxi::Songs songs{floats(table), items.const_data_ptr<int32_t>(), items.size(0), table.size(1)};
  const fuxi::Packed packed{words.const_data_ptr<int32_t>(), SCANS.at(scan),
                            order.const_data_ptr<int32_t>(), place.const_data_ptr<int32_t>(), floats(norm),
                            floats(error), words.size(1), table.size(0)};
  const int64_t searched_again =
      fuxi::search(floats(queries), queries.size(0), songs, packed, pairs_of(listener, item), k, lists_of(lists));
  check_numbers(searched_again >= 0);
  return {std::get<0>(lists), std::get<1>(lists), searched_again};
}

}  // namespace

void fuxi::check_listener(int64_t listener, int64_t listeners) {
  TORCH_CHECK_INDEX(listener >= 0 && listener < listeners, "seen names listener ", listener, " of ", listeners);
}

TORCH_LIBRARY(fuxi_beta, library) {
  library.def("token_mixer", token_mixer);
  library.def("token_mixer_backward", token_mixer_backward);
  library.def("apply_maps", apply_maps);
  library.def("apply_maps_backward", apply_maps_backward);
  library.def("block", block);
  library.def("last_rows", last_rows);
  library.def("periodic", periodic);
  library.def("periodic_backward", periodic_backward);
  library.def("retention", retention);
  library.def("retention_backward", retention_backward);
  library.def("sampled_softmax", sampled_softmax);
  library.def("rms_norm", rms_norm);
  library.def("rms_norm_backward", rms_norm_backward);
  library.def("swiglu", swiglu);
  library.def("swiglu_backward", swiglu_backward);
  library.def("dropout", dropout);
  library.def("integers", integers);
  library.def("strongest_plays", strongest_plays);
  library.def("top_k_of_scores", top_k_of_scores);
  library.def("scans", scans);
  library.def("pack_rows", pack_rows);
  library.def("search", search);
}
