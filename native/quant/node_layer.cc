#include "quant/node_layer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "error.h"
#include "kernels/conv_shape.h"

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

bool is_map(const std::vector<int64_t>& dims) { return dims.size() == 4 && dims[0] == 1; }

// Reads one or two integers of an attribute into `target`. Returns false where there are others than that, or beyond
// what LayerGraph allows a convolution.
template <size_t N>
bool read_extents(const FloatStep& step, const char* name, int least, std::array<int, N>& target) {
  const auto found = step.numbers.find(name);
  if (found == step.numbers.end()) return true;
  if (found->second.size() != N) return false;
  for (size_t i = 0; i < N; ++i) {
    if (!(found->second[i] >= least && found->second[i] <= 1 << 14)) return false;
    target[i] = static_cast<int>(found->second[i]);
  }
  return true;
}

// The window of a pool as a convolution's shape, if it gives the output's size, and each window reads a pixel.
std::optional<ConvShape> window_of(const FloatStep& step, const Tensor& in, const Tensor& out) {
  ConvShape shape;
  shape.in_channels = shape.out_channels = in.channels;
  shape.in_height = in.height;
  shape.in_width = in.width;
  if (!step.numbers.contains("kernel_shape") || !read_extents(step, "kernel_shape", 1, shape.kernel) ||
      !read_extents(step, "strides", 1, shape.strides) || !read_extents(step, "dilations", 1, shape.dilations) ||
      !read_extents(step, "pads", 0, shape.pads))
    return std::nullopt;
  for (int i = 0; i < 4; ++i) {
    if (shape.pads[i] >= shape.kernel[i % 2] || shape.dilations[i % 2] != 1) return std::nullopt;
  }
  const bool fits = shape.out_height() == out.height && shape.out_width() == out.width && in.channels == out.channels;
  return fits ? std::optional(shape) : std::nullopt;
}

template <typename T>
void max_pool(const ConvShape& shape, const T* x, T* y) {
  const int channels = shape.in_channels;
  std::vector<const T*> taps(shape.taps());
  for (int pixel = 0; pixel < shape.out_area(); ++pixel, y += channels) {
    tap_pointers<T>(shape, pixel, x, nullptr, taps.data());
    std::fill_n(y, channels, std::numeric_limits<T>::lowest());
    for (const T* tap : taps) {
      for (int c = 0; tap != nullptr && c < channels; ++c) y[c] = std::max(y[c], tap[c]);
    }
  }
}

template <typename T>
bool concat(const LayerGraph& graph, const Layer& layer, const std::vector<const T*>& inputs, T* y) {
  const Tensor& out = graph.tensors[layer.output];
  int first = 0;
  for (const int input : layer.inputs) {
    const Tensor& part = graph.tensors[input];
    if (part.height != out.height || part.width != out.width) return false;
    first += part.channels;
  }
  // An input that is read twice is one of `inputs`, and two operands of the step.
  if (first != out.channels || layer.steps[0].operands.size() != inputs.size()) return false;
  first = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const int channels = graph.tensors[layer.inputs[i]].channels;
    for (int pixel = 0; pixel < out.area(); ++pixel) {
      std::copy_n(inputs[i] + int64_t{pixel} * channels, channels, y + int64_t{pixel} * out.channels + first);
    }
    first += channels;
  }
  return true;
}

template <typename T>
bool gather(const Tensor& in, const Tensor& out, const std::vector<int64_t>& index, const T* x, T* y) {
  const auto is_channel = [&](int64_t at) { return at >= 0 && at < in.channels; };
  if (static_cast<int>(index.size()) != out.channels || in.area() != out.area() ||
      !std::all_of(index.begin(), index.end(), is_channel))
    return false;
  for (int pixel = 0; pixel < out.area(); ++pixel, x += in.channels, y += out.channels) {
    for (int c = 0; c < out.channels; ++c) y[c] = x[index[c]];
  }
  return true;
}

// A map times one number for each channel: the gate of a squeeze-and-excitation block.
bool gate(const Tensor& in, const Tensor& gates, const Tensor& out, const std::vector<const float*>& inputs, float* y) {
  if (in.size() != out.size() || in.channels != out.channels || gates.area() != 1 || gates.channels != out.channels)
    return false;
  const float* x = inputs[0];
  for (int pixel = 0; pixel < out.area(); ++pixel, x += out.channels, y += out.channels) {
    for (int c = 0; c < out.channels; ++c) y[c] = x[c] * inputs[1][c];
  }
  return true;
}

double attribute(const FloatStep& step, const char* name, double otherwise) {
  const auto found = step.numbers.find(name);
  return found == step.numbers.end() || found->second.empty() ? otherwise : found->second[0];
}

bool reads_in_order(const FloatStep& step) {
  for (size_t i = 0; i < step.operands.size(); ++i) {
    const auto& operand = step.operands[i];
    if (operand.from == FloatStep::Operand::From::input && operand.index != static_cast<int>(i)) return false;
  }
  return true;
}

bool reads_maps(const Layer& layer) {
  return layer.steps.size() == 1 && is_map(layer.output_dims) && reads_in_order(layer.steps[0]) &&
         std::all_of(layer.input_dims.begin(), layer.input_dims.end(), is_map);
}

std::string subject_of(const Layer& layer) { return "layer '" + layer.name + "'"; }

}  // namespace

template <typename T>
bool run_moves(const LayerGraph& graph, const Layer& layer, const std::vector<const T*>& inputs, T* y) {
  if (!reads_maps(layer)) return false;
  const FloatStep& step = layer.steps[0];
  const Tensor &in = graph.tensors[layer.input], &out = graph.tensors[layer.output];
  if (step.op == "Concat" && attribute(step, "axis", 0) == 1) return concat(graph, layer, inputs, y);
  if (step.op == "Gather" && attribute(step, "axis", 0) == 1 && step.operands.size() == 2)
    return gather(in, out, step.operands[1].constant.integers, inputs[0], y);
  if (step.op != "MaxPool" || attribute(step, "ceil_mode", 0) != 0) return false;
  const auto window = window_of(step, in, out);
  if (window) max_pool(*window, inputs[0], y);
  return window.has_value();
}

template bool run_moves(const LayerGraph&, const Layer&, const std::vector<const float*>&, float*);
template bool run_moves(const LayerGraph&, const Layer&, const std::vector<const int8_t*>&, int8_t*);

void run_node(const LayerGraph& graph, const Layer& layer, const std::vector<const float*>& inputs, float* y) {
  const Tensor& out = graph.tensors[layer.output];
  if (layer.elementwise) return run_elementwise(layer, inputs[0], out.size(), y);
  if (run_moves(graph, layer, inputs, y)) return;
  if (reads_maps(layer) && layer.steps[0].op == "Mul" && inputs.size() == 2 &&
      gate(graph.tensors[layer.input], graph.tensors[layer.inputs[1]], out, inputs, y))
    return;
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
