#include "model/node_values.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/nan_to_num.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

namespace facetrain {
namespace {

// A look at a value makes up to three copies of it. So all of them stay within the memory of one batch of embeddings,
// which is checked before a model is quantized (loadModel of trainer-image/src/quantize/inputs.ts).
constexpr int64_t kPicturesAtOnce = 4;

// Largest range of a constant channel, relative to its largest value: a few roundings of float32.
constexpr double kRounding = 1e-6;

// The bounds of each channel so far.
struct Bounds {
  at::Tensor low, high;  // [C]
};

}  // namespace

std::vector<NodeValues> node_values(Executor& executor, const at::Tensor& images) {
  const c10::InferenceMode inference;
  std::vector<NodeValues> nodes;
  std::vector<Bounds> bounds;
  for (int64_t first = 0; first < images.size(0); first += kPicturesAtOnce) {
    size_t i = 0;
    executor.observe(images.narrow(0, first, std::min(kPicturesAtOnce, images.size(0) - first)),
                     [&](const std::string& node, const at::Tensor& value) {
                       if (i == nodes.size()) {
                         nodes.emplace_back().node = node;
                         bounds.emplace_back();
                       }
                       NodeValues& seen = nodes[i];
                       auto& [low, high] = bounds[i++];
                       const at::Tensor rows = value.transpose(0, 1).flatten(1);  // [C, values]
                       seen.channels = rows.size(0);
                       seen.samples += rows.size(1);
                       seen.not_finite += rows.numel() - at::isfinite(rows).sum().item<int64_t>();
                       // NaN becomes 0, and infinity the largest number.
                       const auto [least, most] = at::aminmax(at::nan_to_num(rows), /*dim=*/1);
                       low = low.defined() ? at::minimum(low, least) : least;
                       high = high.defined() ? at::maximum(high, most) : most;
                     });
  }
  for (size_t i = 0; i < nodes.size(); ++i) {
    const at::Tensor low = bounds[i].low.to(at::kDouble), high = bounds[i].high.to(at::kDouble);
    nodes[i].smallest = low.min().item<double>();
    nodes[i].largest = high.max().item<double>();
    const at::Tensor size = at::maximum(low.abs(), high.abs());
    nodes[i].constant_channels = (high - low <= size * kRounding).sum().item<int64_t>();
  }
  return nodes;
}

}  // namespace facetrain
