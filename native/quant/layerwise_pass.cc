#include "quant/layerwise_pass.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace facetrain {

LayerwisePass::LayerwisePass(const LayerGraph& graph, const PictureView& pictures, const CancellablePool& pool,
                             const ActivationSpace& space)
    : graph_(graph),
      pictures_(pictures),
      pool_(pool),
      directory_(bytes_per_picture(graph) * pictures.count > space.memory_bytes ? &space.directory : nullptr),
      real_(graph.tensors.size()),
      integers_(graph.tensors.size()),
      unquantized_(graph.tensors.size()) {}

Operand LayerwisePass::operand(int tensor, int64_t n) const {
  if (graph_.quantized(tensor)) return {integers(tensor, n), nullptr};
  // The picture is the same in both networks.
  const auto& values = tensor == 0 ? real_[0] : unquantized_[tensor];
  return {nullptr, values.data() + n * graph_.tensors[tensor].size()};
}

std::vector<Operand> LayerwisePass::operands(const Layer& layer, int64_t n) const {
  std::vector<Operand> result;
  for (const int input : layer.inputs) result.push_back(operand(input, n));
  return result;
}

void LayerwisePass::start_real() {
  const int64_t size = pictures_.size();
  real_[0] = {size * pictures_.count, directory_};
  look_up_pixels(pictures_.data, size * pictures_.count, pixel_values(graph_), real_[0].data());
}

void LayerwisePass::start_integers(const Scales& scales) {
  if (!graph_.quantized(0)) return;
  const int64_t size = pictures_.size();
  integers_[0] = {size * pictures_.count + kOverread, directory_};
  look_up_pixels(pictures_.data, size * pictures_.count, pixel_integers(graph_, scales), integers_[0].data());
}

void LayerwisePass::run_real(int l) {
  const Layer& layer = graph_.layers[l];
  const int64_t size = graph_.tensors[layer.output].size();
  real_[layer.output] = {size * pictures_.count, directory_};
  const RealLayer real(graph_, l);
  pool_.parallel_for(pictures_.count, [&](int64_t n, int) {
    std::vector<const float*> inputs;
    for (const int input : layer.inputs) inputs.push_back(this->real(input, n));
    real.run(inputs, real_[layer.output].data() + n * size);
  });
}

void LayerwisePass::run_integers(int l, const Scales& scales) {
  const Layer& layer = graph_.layers[l];
  if (!graph_.quantized(layer.output)) {
    if (!graph_.tensors[layer.output].readers.empty()) unquantized_[layer.output] = run_unquantized(l, scales);
    return;
  }
  const int64_t size = graph_.tensors[layer.output].size();
  integers_[layer.output] = {size * pictures_.count + kOverread, directory_};
  const Int7Layer int7(graph_, l, scales);
  pool_.parallel_for(pictures_.count,
                     [&](int64_t n, int) { int7.run(operands(layer, n), integers_[layer.output].data() + n * size); });
}

Activations<float> LayerwisePass::run_unquantized(int l, const Scales& scales) const {
  const Layer& layer = graph_.layers[l];
  const int64_t size = graph_.tensors[layer.output].size();
  Activations<float> result(size * pictures_.count, directory_);
  const Int7Layer int7(graph_, l, scales);
  pool_.parallel_for(pictures_.count,
                     [&](int64_t n, int) { int7.run_real(operands(layer, n), result.data() + n * size); });
  return result;
}

Extent LayerwisePass::extent(int tensor) const {
  Extent result;
  bool finite = true;
  const int64_t size = graph_.tensors[tensor].size();
  for (int64_t n = 0; n < pictures_.count; ++n) {
    pool_.check();
    const float* x = real(tensor, n);
    for (int64_t i = 0; i < size; ++i) {
      finite &= std::isfinite(x[i]);
      result.add(x[i]);
    }
  }
  if (!finite) {
    throw Error("NotANumber", "tensor '" + graph_.tensors[tensor].name + "'",
                "the model computes values that are not finite on the calibration pictures", "finite values");
  }
  return result;
}

void LayerwisePass::release(int l) {
  for (size_t t = 0; t < graph_.tensors.size(); ++t) {
    const Tensor& tensor = graph_.tensors[t];
    if (tensor.producer > l || tensor.last_reader() > l) continue;
    real_[t] = {};
    integers_[t] = {};
    unquantized_[t] = {};
  }
}

int64_t LayerwisePass::bytes_per_picture(const LayerGraph& graph) {
  int64_t most = 0;
  for (int l = 0; l < static_cast<int>(graph.layers.size()); ++l) {
    const int64_t output = graph.tensors[graph.layers[l].output].size();
    int64_t bytes = output * (2 * sizeof(float) + 1);
    for (const Tensor& tensor : graph.tensors) {
      if (tensor.producer < l && tensor.last_reader() >= l)
        bytes += tensor.size() * (sizeof(float) + (tensor.quantized ? 1 : sizeof(float)));
    }
    most = std::max(most, bytes);
  }
  return most;
}

}  // namespace facetrain
