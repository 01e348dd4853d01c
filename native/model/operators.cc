#include "model/operators.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/add.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/div.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/tanh.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "counted.h"
#include "model/batch_norm_prelu.h"
#include "model/grouped_conv.h"
#include "model/prelu.h"

namespace facetrain {

std::string describe(const Node& node) {
  const std::string name = node.name.empty() && !node.outputs.empty() ? node.outputs[0] : node.name;
  return "node '" + name + "' (" + node.op + ")";
}

const Constant* Constants::find(const std::string& name) const {
  const auto it = graph_.initializers.find(name);
  return it == graph_.initializers.end() ? nullptr : &it->second;
}

at::Tensor Constants::tensor(const std::string& name, Role role) {
  if (const auto it = made_.find(name); it != made_.end()) {
    if (it->second.first != role) {
      throw Error("InvalidModel", "tensor '" + name + "'", "one node learns it and another takes it as given",
                  "a separate tensor for each node");
    }
    return it->second.second;
  }
  const Constant& constant = *find(name);
  int64_t count = 1;
  for (const int64_t dim : constant.dims) count *= dim;
  if (constant.type != Constant::Type::float32 || static_cast<int64_t>(constant.floats.size()) != count) {
    throw Error("InvalidModel", "tensor '" + name + "'",
                constant.type == Constant::Type::float32
                    ? counted(constant.floats.size(), "number") + " in a shape of " + std::to_string(count)
                    : "holds integers",
                "weights are float32, as many as their shape says");
  }
  if (!std::all_of(constant.floats.begin(), constant.floats.end(), [](float value) { return std::isfinite(value); })) {
    throw Error("InvalidModel", "tensor '" + name + "'", "holds NaN or infinite numbers", "weights must be finite");
  }
  at::Tensor tensor = at::from_blob(const_cast<float*>(constant.floats.data()), constant.dims, at::kFloat)
                          .to(at::TensorOptions(device_), /*non_blocking=*/false, /*copy=*/true,
                              constant.dims.size() == 4 && role == Role::parameter ? at::MemoryFormat::ChannelsLast
                                                                                   : at::MemoryFormat::Contiguous);
  tensor.set_requires_grad(role == Role::parameter);
  made_.emplace(name, std::pair(role, tensor));
  (role == Role::parameter ? parameters : role == Role::buffer ? buffers : fixed).push_back({name, tensor});
  return tensor;
}

void Binding::invalid(const std::string& found, const std::string& allowed) const {
  throw Error("InvalidModel", describe(node_), found, allowed);
}

void Binding::unsupported(const std::string& found, const std::string& allowed) const {
  throw Error("UnsupportedOperator", describe(node_), found, allowed);
}

const Attribute* Binding::attribute(const std::string& name) {
  read_.insert(name);
  const auto it = node_.attributes.find(name);
  return it == node_.attributes.end() ? nullptr : &it->second;
}

double Binding::number(const std::string& name, double otherwise) {
  const Attribute* value = attribute(name);
  if (!value) return otherwise;
  if (const auto* whole = std::get_if<int64_t>(value)) return static_cast<double>(*whole);
  if (const auto* real = std::get_if<double>(value)) return *real;
  invalid("attribute '" + name + "' is no number", "a number");
}

int64_t Binding::integer(const std::string& name, int64_t otherwise) {
  const double value = number(name, static_cast<double>(otherwise));
  if (value != std::floor(value)) invalid("attribute '" + name + "' is " + std::to_string(value), "a whole number");
  return static_cast<int64_t>(value);
}

std::string Binding::text(const std::string& name, const std::string& otherwise) {
  const Attribute* value = attribute(name);
  if (!value) return otherwise;
  if (const auto* string = std::get_if<std::string>(value)) return *string;
  invalid("attribute '" + name + "' is no string", "a string");
}

std::vector<int64_t> Binding::integers(const std::string& name, std::vector<int64_t> otherwise) {
  const Attribute* value = attribute(name);
  if (!value) return otherwise;
  if (const auto* whole = std::get_if<std::vector<int64_t>>(value)) return *whole;
  const auto* reals = std::get_if<std::vector<double>>(value);
  if (!reals) invalid("attribute '" + name + "' is no list", "a list of whole numbers");
  return {reals->begin(), reals->end()};
}

std::vector<int64_t> Binding::required(const std::string& name) {
  std::vector<int64_t> value = integers(name, {});
  if (value.empty()) invalid("attribute '" + name + "' is missing", "a list of whole numbers");
  return value;
}

void Binding::only(const std::string& name, int64_t value) {
  const int64_t found = integer(name, value);
  if (found != value) {
    unsupported("attribute '" + name + "' is " + std::to_string(found),
                "only " + std::to_string(value) + " is supported");
  }
}

void Binding::all_read() const {
  for (const auto& [name, value] : node_.attributes) {
    if (!read_.contains(name)) unsupported("attribute '" + name + "' is not supported", "leave it out of the graph");
  }
}

void Binding::arity(size_t least, size_t most) const {
  if (node_.inputs.size() < least || node_.inputs.size() > most) {
    invalid(counted(node_.inputs.size(), "input"),
            least == most ? std::to_string(least) : std::to_string(least) + " to " + counted(most, "input"));
  }
  for (size_t i = 0; i < least; ++i) {
    if (!given(i)) invalid("input " + std::to_string(i) + " is left out", "it is not optional");
  }
}

const Constant& Binding::constant(size_t index) const {
  const Constant* found = constants_.find(node_.inputs[index]);
  if (!found) unsupported("input '" + node_.inputs[index] + "' is computed", "it must be a constant of the graph");
  return *found;
}

at::Tensor Binding::tensor(size_t index, Role role) const {
  constant(index);
  return constants_.tensor(node_.inputs[index], role);
}

namespace {

using Inputs = std::span<const at::Tensor>;
using Numbers = std::vector<int64_t>;

// The attributes that convolution and pooling have in common. ONNX's pads are [top, left, bottom, right]. ATen checks
// the extents.
struct Window {
  Numbers strides, dilations, pads;

  explicit Window(Binding& node)
      : strides(node.integers("strides", {1, 1})),
        dilations(node.integers("dilations", {1, 1})),
        pads(node.integers("pads", {0, 0, 0, 0})) {
    const std::string automatic = node.text("auto_pad", "NOTSET");
    if (automatic != "NOTSET" && automatic != "VALID") {
      node.unsupported("attribute 'auto_pad' is " + automatic, "write the padding out in 'pads'");
    }
    if (strides.size() != 2 || dilations.size() != 2 || pads.size() != 4) {
      node.unsupported("it is not over two dimensions", "pictures have a height and a width");
    }
    if (std::any_of(pads.begin(), pads.end(), [](int64_t pad) { return pad < 0; }))
      node.invalid("a pad is negative", "0 or more");
  }

  bool symmetric() const { return pads[0] == pads[2] && pads[1] == pads[3]; }
  // Whether both directions have one stride, and no dilation.
  bool is_uniform() const { return strides[0] == strides[1] && dilations == Numbers{1, 1}; }
  GroupedWindow grouped() const { return {strides[0], {pads[0], pads[1], pads[2], pads[3]}}; }
  // ATen's padding [height, width], if symmetric.
  Numbers symmetric_pads() const { return {pads[0], pads[1]}; }
  at::Tensor padded(const at::Tensor& x, double value) const {
    return at::constant_pad_nd(x, {pads[1], pads[3], pads[0], pads[2]}, value);
  }
};

Operator conv(Binding& node) {
  node.arity(2, 3);
  const Window window(node);
  const at::Tensor weight = node.tensor(1, Role::parameter);
  const at::Tensor bias = node.given(2) ? node.tensor(2, Role::parameter) : at::Tensor();
  const int64_t group = node.integer("group", 1);
  if (weight.dim() != 4)
    node.unsupported("a weight of " + counted(weight.dim(), "dimension"), "[outputs, inputs, height, width]");
  const Numbers kernel = node.integers("kernel_shape", {weight.size(2), weight.size(3)});
  if (kernel != Numbers{weight.size(2), weight.size(3)})
    node.invalid("'kernel_shape' is not the weight's", "the weight's last two dimensions");
  return [=, compute = node.compute()](Inputs in, Pass) {
    const at::Tensor x = compute->operand(in[0]), w = compute->operand(weight), b = compute->operand(bias);
    if (group > 1 && x.is_cpu()) {
      const bool is_float = x.scalar_type() == at::kFloat;
      // In float32 oneDNN is as fast where a group has one channel.
      if (!(is_float && w.size(1) == 1) && window.is_uniform() && has_grouped_conv(x, w, window.grouped(), group))
        return grouped_conv(x, w, b, window.grouped());
      if (!is_float) {
        // oneDNN's backward pass of few channels in a group is many times slower than float32's. Products of bfloat16
        // numbers are exact in float32, so these are the same products, with sums in float32 as there.
        const auto wide = [](const at::Tensor& tensor) { return tensor.defined() ? tensor.to(at::kFloat) : tensor; };
        const at::Tensor padded = window.symmetric() ? x : window.padded(x, 0);
        const Numbers pads = window.symmetric() ? window.symmetric_pads() : Numbers{0, 0};
        return at::conv2d(wide(padded), wide(w), wide(b), window.strides, pads, window.dilations, group)
            .to(at::kBFloat16);
      }
    }
    if (window.symmetric())
      return at::conv2d(x, w, b, window.strides, window.symmetric_pads(), window.dilations, group);
    return at::conv2d(window.padded(x, 0), w, b, window.strides, Numbers{0, 0}, window.dilations, group);
  };
}

BatchNorm norm_of(Binding& node) {
  node.arity(5, 5);
  node.only("training_mode", 0);
  node.only("spatial", 1);
  node.number("momentum", 0.9);  // ignored: it is that of the exporter's training; ours is 0.1, as executor.h states
  // The batch norm that ends a backbone computes the embedding. Its gamma is not learned, as in the reference
  // (arcface_torch's backbones: features.weight.requires_grad = False).
  return {node.tensor(1, node.ends_graph ? Role::fixed : Role::parameter), node.tensor(2, Role::parameter),
          node.tensor(3, Role::buffer), node.tensor(4, Role::buffer), node.number("epsilon", 1e-5)};
}

Operator batch_normalization(Binding& node) {
  // The one that ends the graph takes away what the embeddings of a batch have in common, which may be much more than
  // what they differ in. In 16 bits its result would have the rounding of the former.
  return [norm = norm_of(node), ends_graph = node.ends_graph, compute = node.compute()](Inputs in, Pass pass) {
    return batch_norm(ends_graph ? in[0].to(at::kFloat) : in[0], norm, pass, compute->norm_ranks);
  };
}

// The slope is [C, 1, 1] in ONNX, and [C] in models from before opset 7. The parameter keeps its shape.
at::Tensor slope_of(Binding& node) {
  node.arity(2, 2);
  at::Tensor slope = node.tensor(1, Role::parameter);
  if (slope.dim() == 0 || slope.numel() != slope.size(0))
    node.unsupported("a slope per pixel", "a slope per channel: [C, 1, 1] or [C]");
  return slope;
}

Operator prelu(Binding& node) {
  return [slope = slope_of(node)](Inputs in, Pass) { return facetrain::prelu(in[0], slope.view({-1})); };
}

Operator unary(Binding& node, at::Tensor (*function)(const at::Tensor&)) {
  node.arity(1, 1);
  return [=](Inputs in, Pass) { return function(in[0]); };
}

Operator leaky_relu(Binding& node) {
  node.arity(1, 1);
  const double alpha = node.number("alpha", 0.01);
  return [=](Inputs in, Pass) { return at::leaky_relu(in[0], alpha); };
}

Operator clip(Binding& node) {
  node.arity(1, 3);
  // The bounds are inputs since operator set 11, and were attributes before. They may be infinite.
  const auto bound = [&](size_t index, const std::string& name) -> std::optional<at::Scalar> {
    if (node.given(index)) {
      const Constant& value = node.constant(index);
      if (value.floats.size() != 1) node.invalid("'" + name + "' is no float", "one float");
      return value.floats[0];
    }
    return node.has(name) ? std::optional<at::Scalar>(node.number(name, 0)) : std::nullopt;
  };
  const auto low = bound(1, "min"), high = bound(2, "max");
  return [=](Inputs in, Pass) { return low || high ? at::clamp(in[0], low, high) : in[0]; };
}

using Arithmetic = at::Tensor (*)(const at::Tensor&, const at::Tensor&);

Operator arithmetic(Binding& node, Arithmetic function) {
  node.arity(2, 2);
  at::Tensor left, right;
  if (node.is_constant(0)) left = node.tensor(0, Role::fixed);
  if (node.is_constant(1)) right = node.tensor(1, Role::fixed);
  return [=](Inputs in, Pass) { return function(left.defined() ? left : in[0], right.defined() ? right : in[1]); };
}

// Keeps the batch dimension, which is the first of every value, and reshapes the others. The batch size in the graph's
// shape is that of the export and is ignored.
Operator reshape(Binding& node) {
  node.arity(2, 2);
  node.only("allowzero", 0);
  const Numbers shape = node.constant(1).ints;
  if (shape.empty() || shape[0] > 1 || shape[0] < -1) {
    node.invalid("the shape does not keep the batch", "a first dimension of 0, -1 or 1, and the rest per picture");
  }
  if (shape[0] == -1 && std::count(shape.begin(), shape.end(), -1) > 1) node.invalid("the shape has -1 twice", "once");
  return [=](Inputs in, Pass) {
    Numbers to = shape;
    for (size_t i = 1; i < to.size(); ++i) {
      if (to[i] == 0) to[i] = in[0].size(static_cast<int64_t>(i));
    }
    to[0] = in[0].size(0);
    return in[0].reshape(to);
  };
}

Operator flatten(Binding& node) {
  node.arity(1, 1);
  const int64_t axis = node.integer("axis", 1);
  return [=](Inputs in, Pass) {
    TORCH_CHECK((axis < 0 ? axis + in[0].dim() : axis) == 1, "axis ", axis, " would mix the pictures of a batch");
    return in[0].flatten(1);
  };
}

Operator gemm(Binding& node) {
  node.arity(2, 3);
  node.only("transA", 0);
  const double alpha = node.number("alpha", 1), beta = node.number("beta", 1);
  const bool transposed = node.integer("transB", 0) != 0;
  const at::Tensor weight = node.tensor(1, Role::parameter);
  const at::Tensor bias = node.given(2) ? node.tensor(2, Role::parameter) : at::Tensor();
  if (weight.dim() != 2) node.invalid("a weight of " + counted(weight.dim(), "dimension"), "two");
  return [=, compute = node.compute()](Inputs in, Pass) {
    TORCH_CHECK(in[0].dim() == 2, "its input has ", in[0].dim(), " dimensions, not two");
    const at::Tensor x = compute->operand(in[0]), b = compute->operand(bias);
    const at::Tensor w = transposed ? compute->operand(weight) : compute->operand(weight).t();
    if (alpha == 1 && beta == 1 && b.defined() && b.dim() == 1) return at::linear(x, w, b);
    at::Tensor y = at::linear(x, w) * alpha;
    return b.defined() ? at::add(y, b, beta) : y;
  };
}

Operator matmul(Binding& node) {
  node.arity(2, 2);
  if (node.is_constant(0)) node.unsupported("its first input is a constant", "a weight is the second");
  const at::Tensor weight = node.is_constant(1) ? node.tensor(1, Role::parameter) : at::Tensor();
  return [=, compute = node.compute()](Inputs in, Pass) {
    return at::matmul(compute->operand(in[0]), compute->operand(weight.defined() ? weight : in[1]));
  };
}

Operator identity(Binding& node) {
  node.arity(1, 1);
  return [](Inputs in, Pass) { return in[0]; };
}

// Dropout is the identity in training as well: the reference (arcface_torch) trains with probability 0.
Operator dropout(Binding& node) {
  node.arity(1, 3);
  node.number("ratio", 0.5);
  node.integer("seed", 0);
  return [](Inputs in, Pass) { return in[0]; };
}

Operator global_average_pool(Binding& node) {
  node.arity(1, 1);
  return [](Inputs in, Pass) { return in[0].mean(Numbers{2, 3}, /*keepdim=*/true); };
}

Operator max_pool(Binding& node) {
  node.arity(1, 1);
  node.only("ceil_mode", 0);
  node.only("storage_order", 0);
  const Window window(node);
  const Numbers kernel = node.required("kernel_shape");
  return [=](Inputs in, Pass) {
    if (window.symmetric())
      return at::max_pool2d(in[0], kernel, window.strides, window.symmetric_pads(), window.dilations);
    return at::max_pool2d(window.padded(in[0], -std::numeric_limits<double>::infinity()), kernel, window.strides,
                          Numbers{0, 0}, window.dilations);
  };
}

Operator average_pool(Binding& node) {
  node.arity(1, 1);
  node.only("ceil_mode", 0);
  const bool count_padding = node.integer("count_include_pad", 0) != 0;
  const Window window(node);
  if (window.dilations != Numbers{1, 1}) node.unsupported("dilations are not 1", "1");
  const Numbers kernel = node.required("kernel_shape");
  return [=](Inputs in, Pass) {
    if (window.symmetric())
      return at::avg_pool2d(in[0], kernel, window.strides, window.symmetric_pads(), false, count_padding);
    at::Tensor mean = at::avg_pool2d(window.padded(in[0], 0), kernel, window.strides);
    if (count_padding) return mean;
    // The share of each window that lies on the picture.
    const at::Tensor picture = at::ones({1, 1, in[0].size(2), in[0].size(3)}, in[0].options());
    return mean / at::avg_pool2d(window.padded(picture, 0), kernel, window.strides);
  };
}

Operator concat(Binding& node) {
  node.arity(1, std::numeric_limits<size_t>::max());
  const int64_t axis = node.integer("axis", 1);
  if (axis == 0) node.invalid("'axis' is 0, the batch", "another dimension");
  for (size_t i = 0; i < node.inputs(); ++i) {
    if (node.is_constant(i)) node.unsupported("an input is a constant", "values that are computed");
  }
  return [=](Inputs in, Pass) { return at::cat(at::TensorList(in.data(), in.size()), axis); };
}

Operator transpose(Binding& node) {
  node.arity(1, 1);
  const Numbers order = node.required("perm");
  if (order[0] != 0) node.invalid("'perm' moves the batch", "a first entry of 0");
  return [=](Inputs in, Pass) { return in[0].permute(order); };
}

// Axes are an attribute up to operator set 12, and an input since 13.
Numbers axes_of(Binding& node) {
  node.arity(1, 2);
  Numbers axes = node.given(1) ? node.constant(1).ints : node.integers("axes", {});
  if (axes.empty()) node.unsupported("no axes are given", "name them");
  return axes;
}

// The axes of a value with `rank` dimensions, counted from the front, in ascending order.
Numbers absolute(Numbers axes, int64_t rank) {
  for (int64_t& axis : axes) {
    if (axis < 0) axis += rank;
    TORCH_CHECK(axis > 0 && axis < rank, "axis ", axis, " is the batch or none at all");
  }
  std::sort(axes.begin(), axes.end());
  return axes;
}

Operator squeeze(Binding& node) {
  const Numbers axes = axes_of(node);
  return [=](Inputs in, Pass) {
    const Numbers which = absolute(axes, in[0].dim());
    for (const int64_t axis : which)
      TORCH_CHECK(in[0].size(axis) == 1, "axis ", axis, " has ", in[0].size(axis), " entries, not 1");
    return in[0].squeeze(which);
  };
}

Operator unsqueeze(Binding& node) {
  const Numbers axes = axes_of(node);
  return [=](Inputs in, Pass) {
    at::Tensor y = in[0];
    for (const int64_t axis : absolute(axes, in[0].dim() + static_cast<int64_t>(axes.size()))) y = y.unsqueeze(axis);
    return y;
  };
}

using Binder = std::function<Operator(Binding&)>;

const std::map<std::string, Binder>& binders() {
  static const std::map<std::string, Binder> table = {
      {"Add",
       [](Binding& node) {
         return arithmetic(node, [](const at::Tensor& a, const at::Tensor& b) { return at::add(a, b); });
       }},
      {"AveragePool", average_pool},
      {"BatchNormalization", batch_normalization},
      {"Clip", clip},
      {"Concat", concat},
      {"Conv", conv},
      {"Div",
       [](Binding& node) {
         return arithmetic(node, [](const at::Tensor& a, const at::Tensor& b) { return at::div(a, b); });
       }},
      {"Dropout", dropout},
      {"Flatten", flatten},
      {"Gemm", gemm},
      {"GlobalAveragePool", global_average_pool},
      {"Identity", identity},
      {"LeakyRelu", leaky_relu},
      {"MatMul", matmul},
      {"MaxPool", max_pool},
      {"Mul",
       [](Binding& node) {
         return arithmetic(node, [](const at::Tensor& a, const at::Tensor& b) { return at::mul(a, b); });
       }},
      {"PRelu", prelu},
      {"Relu", [](Binding& node) { return unary(node, at::relu); }},
      {"Reshape", reshape},
      {"Sigmoid", [](Binding& node) { return unary(node, at::sigmoid); }},
      {"Squeeze", squeeze},
      {"Sub",
       [](Binding& node) {
         return arithmetic(node, [](const at::Tensor& a, const at::Tensor& b) { return at::sub(a, b); });
       }},
      {"Tanh", [](Binding& node) { return unary(node, at::tanh); }},
      {"Transpose", transpose},
      {"Unsqueeze", unsqueeze},
  };
  return table;
}

}  // namespace

Operator bind(const Node& node, Constants& constants, bool ends_graph) {
  Binding binding(node, constants, ends_graph);
  const auto it = binders().find(node.op);
  if (it == binders().end()) {
    std::string known;
    for (const auto& [op, binder] : binders()) known += (known.empty() ? "" : ", ") + op;
    binding.unsupported("the operator is not supported", "one of " + known);
  }
  Operator bound = it->second(binding);
  binding.all_read();
  return bound;
}

Operator bind_norm_prelu(const Node& norm_node, const Node& prelu_node, Constants& constants) {
  Binding norm_binding(norm_node, constants, false), prelu_binding(prelu_node, constants, false);
  const BatchNorm norm = norm_of(norm_binding);
  const at::Tensor slope = slope_of(prelu_binding);
  norm_binding.all_read();
  prelu_binding.all_read();
  return [=, compute = constants.compute](Inputs in, Pass pass) {
    return batch_norm_prelu(in[0], norm, slope.view({-1}), pass, compute->norm_ranks);
  };
}

Operator bind_norm_add(const Node& norm_node, Constants& constants) {
  Binding binding(norm_node, constants, false);
  const BatchNorm norm = norm_of(binding);
  binding.all_read();
  return [=, compute = constants.compute](Inputs in, Pass pass) {
    return batch_norm_add(in[0], norm, in.back(), pass, compute->norm_ranks);
  };
}

}  // namespace facetrain
