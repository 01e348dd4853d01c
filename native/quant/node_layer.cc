#include "quant/node_layer.h"

#include <algorithm>

#include "error.h"

namespace facetrain {
namespace {

FloatArray in_onnx_order(const Tensor& tensor, const float* x, const std::vector<int64_t>& dims) {
  FloatArray result{dims, std::vector<float>(tensor.size()), {}};
  const int area = tensor.area();
  for (int c = 0; c < tensor.channels; ++c) {
    for (int i = 0; i < area; ++i) result.values[int64_t{c} * area + i] = x[int64_t{i} * tensor.channels + c];
  }
  return result;
}

std::string subject_of(const Layer& layer) { return "layer '" + layer.name + "'"; }

}  // namespace

void run_node(const LayerGraph& graph, const Layer& layer, const std::vector<const float*>& inputs, float* y) {
  const Tensor& out = graph.tensors[layer.output];
  if (layer.elementwise) return run_elementwise(layer, inputs[0], out.size(), y);
  std::vector<FloatArray> arrays;
  for (size_t i = 0; i < inputs.size(); ++i)
    arrays.push_back(in_onnx_order(graph.tensors[layer.inputs[i]], inputs[i], layer.input_dims[i]));
  const FloatArray result = run_steps(layer.steps, arrays, subject_of(layer));
  if (result.dims != layer.output_dims)
    throw Error("InvalidModel", subject_of(layer), "its operators give other dimensions than it declares",
                "the dimensions of its output");
  const int area = out.area();
  for (int c = 0; c < out.channels; ++c) {
    for (int i = 0; i < area; ++i) y[int64_t{i} * out.channels + c] = result.values[int64_t{c} * area + i];
  }
}

void run_elementwise(const Layer& layer, const float* x, int64_t count, float* y) {
  const FloatArray result =
      run_steps(layer.steps, {FloatArray{{count}, std::vector<float>(x, x + count), {}}}, subject_of(layer));
  if (static_cast<int64_t>(result.values.size()) != count)
    throw Error("InvalidModel", subject_of(layer), "its operators give another number of values", "one for each");
  std::copy(result.values.begin(), result.values.end(), y);
}

}  // namespace facetrain
