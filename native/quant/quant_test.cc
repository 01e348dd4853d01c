// Compares the INT7 network with kernels/reference.h layer by layer, and tests equalization, the search and the
// validation of scales.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "error.h"
#include "kernels/reference.h"
#include "quant/equalize.h"
#include "quant/layerwise_pass.h"
#include "quant/patches.h"
#include "quant/search.h"
#include "test/check.h"

namespace facetrain {
namespace {

const std::atomic<bool> kNever{false};  // cancelled

class Builder {
 public:
  explicit Builder(unsigned seed) : source_(seed) {}

  std::vector<float> reals(int64_t count, float low, float high) {
    std::uniform_real_distribution<float> value(low, high);
    std::vector<float> result(count);
    for (auto& x : result) x = value(source_);
    return result;
  }
  Layer& conv(const std::string& input, const std::string& output, int in, int out, int kernel, int stride, int group) {
    Layer& layer = add_layer(Layer::Kind::conv, {input}, output);
    const int pad = kernel / 2;
    layer.shape.out_channels = out;
    layer.shape.group = group;
    layer.shape.kernel = {kernel, kernel};
    layer.shape.strides = {stride, stride};
    layer.shape.pads = {pad, pad, pad, pad};
    const int inputs = in / group * kernel * kernel;
    const float size = std::sqrt(3.0f / static_cast<float>(inputs));
    layer.weight = reals(int64_t{out} * inputs, -size, size);
    layer.bias = reals(out, -0.3f, 0.3f);
    return layer;
  }
  Layer& fc(const std::string& input, const std::string& output, int in, int out) {
    Layer& layer = conv(input, output, in, out, 1, 1, 1);
    layer.fully_connected = true;
    return layer;
  }
  Layer& pointwise(const std::string& input, const std::string& output, int channels, float offset) {
    Layer& layer = add_layer(Layer::Kind::pointwise, {input}, output);
    layer.positive.assign(channels, 1);
    layer.negative = reals(channels, -0.2f, 0.5f);
    layer.offset = reals(channels, -offset, offset);
    return layer;
  }
  Layer& add_layer(Layer::Kind kind, std::vector<std::string> inputs, const std::string& output) {
    Layer layer;
    layer.kind = kind;
    layer.name = "to_" + output;
    layer.input_names = std::move(inputs);
    layer.output_name = output;
    layers.push_back(std::move(layer));
    return layers.back();
  }
  // A node of one operator, whose operands are the inputs in their order and then the constants.
  Layer& node(const std::string& op, std::vector<std::string> inputs, const std::string& output,
              std::map<std::string, std::vector<double>> numbers, std::vector<FloatArray> constants,
              std::vector<std::vector<int64_t>> input_dims, std::vector<int64_t> output_dims) {
    using Operand = FloatStep::Operand;
    FloatStep step{.op = op, .numbers = std::move(numbers), .texts = {}, .operands = {}};
    for (size_t i = 0; i < inputs.size(); ++i)
      step.operands.push_back({Operand::From::input, static_cast<int>(i), FloatArray()});
    for (auto& constant : constants) step.operands.push_back({Operand::From::constant, 0, std::move(constant)});
    Layer& layer = add_layer(Layer::Kind::node, std::move(inputs), output);
    layer.node.steps = {std::move(step)};
    layer.node.input_dims = std::move(input_dims);
    layer.node.output_dims = std::move(output_dims);
    return layer;
  }
  std::vector<uint8_t> pictures(int count, int height, int width) {
    std::uniform_int_distribution<int> value(0, 255);
    std::vector<uint8_t> result(int64_t{count} * height * width * 3);
    for (auto& byte : result) byte = static_cast<uint8_t>(value(source_));
    return result;
  }

  std::vector<Layer> layers;

 private:
  std::mt19937 source_;
};

Tensor picture_tensor(int height, int width) {
  return {
      .name = "data", .channels = 3, .height = height, .width = width, .producer = -1, .readers = {}, .operand = false};
}

// A small network with a layer of every kind. Its channels differ much in size, as those of trained networks do.
LayerGraph small_network(unsigned seed, const std::string& tail = "fc") {
  Builder b(seed);
  Layer& stem = b.conv("data", "c1", 3, 20, 3, 2, 1);
  for (int o = 0; o < 20; ++o) {
    const float size = o % 5 == 0 ? 6.0f : 0.2f;
    for (int i = 0; i < 27; ++i) stem.weight[o * 27 + i] *= size;
    stem.bias[o] *= size;
  }
  b.pointwise("c1", "p1", 20, 0);
  b.conv("p1", "c2", 20, 20, 3, 1, 20);
  b.pointwise("c2", "p2", 20, 0);
  b.conv("p2", "c3", 20, 20, 1, 1, 1);
  b.add_layer(Layer::Kind::add, {"p1", "c3"}, "a1");
  b.pointwise("a1", "n1", 20, 0.5f);
  b.conv("n1", "c4", 20, 36, 3, 2, 2);
  b.pointwise("c4", "p4", 36, 0);
  if (tail == "fc") {
    b.fc("p4", "embedding", 36 * 3 * 3, 16);
  } else {
    b.add_layer(Layer::Kind::pool, {"p4"}, "pooled");
    b.fc("pooled", "embedding", 36, 16);
  }
  return LayerGraph(picture_tensor(12, 12), std::move(b.layers), {"embedding"});
}

FloatArray integers(std::vector<int64_t> values) {
  std::vector<float> reals(values.begin(), values.end());
  return {{static_cast<int64_t>(values.size())}, std::move(reals), std::move(values)};
}

// Two convolutions that Concat joins, a MaxPool, a choice of channels, a gate, and two outputs.
LayerGraph network_of_nodes(unsigned seed) {
  Builder b(seed);
  b.conv("data", "c1", 3, 12, 3, 1, 1);
  for (int o = 0; o < 12; o += 3) {
    for (int i = 0; i < 27; ++i) b.layers[0].weight[o * 27 + i] *= 8;
  }
  b.node("MaxPool", {"c1"}, "m1", {{"kernel_shape", {2, 2}}, {"strides", {2, 2}}}, {}, {{1, 12, 12, 12}},
         {1, 12, 6, 6});
  b.conv("m1", "c2", 12, 8, 3, 1, 1);
  b.node("Gather", {"m1"}, "g1", {{"axis", {1}}}, {integers({3, 0, 11, 4})}, {{1, 12, 6, 6}}, {1, 4, 6, 6});
  b.node("Concat", {"c2", "g1"}, "j1", {{"axis", {1}}}, {}, {{1, 8, 6, 6}, {1, 4, 6, 6}}, {1, 12, 6, 6});
  b.add_layer(Layer::Kind::pool, {"j1"}, "p1");
  b.node("Sigmoid", {"p1"}, "s1", {}, {}, {{1, 12, 1, 1}}, {1, 12, 1, 1});
  b.node("Mul", {"j1", "s1"}, "e1", {}, {}, {{1, 12, 6, 6}, {1, 12, 1, 1}}, {1, 12, 6, 6});
  b.fc("e1", "y1", 12 * 6 * 6, 16);
  b.conv("e1", "c3", 12, 4, 1, 1, 1);
  b.node("Softmax", {"c3"}, "y2", {{"axis", {1}}}, {}, {{1, 4, 6, 6}}, {1, 4, 6, 6}).real = true;
  return LayerGraph(picture_tensor(12, 12), std::move(b.layers), {"y1", "y2"});
}

constexpr SearchOptions kOptions{.rounds = 1,
                                 .candidates = 100,
                                 .lower = 0.5f,
                                 .upper = 2.0f,
                                 .zero_points = true,
                                 .equalize = true,
                                 .bias_correction = true,
                                 .budget = 0};

std::vector<float> embed(Model& model, const PictureView& pictures, bool flip = false) {
  ThreadPool pool(2);
  std::vector<float> result(pictures.count * model.dim());
  embed_pictures(model, pool, pictures, flip, result.data(), kNever);
  return result;
}

const ActivationSpace kInMemory{.memory_bytes = int64_t{1} << 40, .directory = ""};

SearchResult run_search(LayerGraph& graph, const PictureView& pictures, const SearchOptions& options, int threads = 2,
                        const ActivationSpace& space = kInMemory) {
  ThreadPool pool(threads);
  return search_scales(graph, pictures, options, space, pool,
                       {kNever, [](SearchStage, int, int) {}, {}, [](const Decision&) {}});
}

double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::abs(double{a[i]} - b[i]));
    size = std::max(size, std::abs(double{a[i]}));
  }
  return difference / size;
}

// A convolution in plain loops, in ONNX's order of dimensions.
std::vector<float> naive_conv(const ConvShape& s, const std::vector<float>& weight, const std::vector<float>& bias,
                              const std::vector<float>& x) {
  std::vector<float> y;
  for (int o = 0; o < s.out_channels; ++o) {
    for (int p = 0; p < s.out_area(); ++p) {
      double sum = bias[o];
      for (int i = 0; i < s.group_in(); ++i) {
        for (int t = 0; t < s.taps(); ++t) {
          const int iy = p / s.out_width() * s.strides[0] - s.pads[0] + t / s.kernel[1] * s.dilations[0];
          const int ix = p % s.out_width() * s.strides[1] - s.pads[1] + t % s.kernel[1] * s.dilations[1];
          if (iy < 0 || iy >= s.in_height || ix < 0 || ix >= s.in_width) continue;
          const int c = o / s.group_out() * s.group_in() + i;
          sum += double{x[(c * s.in_height + iy) * s.in_width + ix]} * weight[s.weight_index(o, i, t)];
        }
      }
      y.push_back(static_cast<float>(sum));
    }
  }
  return y;
}

void test_real_conv() {
  Builder b(5);
  for (const ConvShape& s : {ConvShape{5, 7, 6, 19, 1, {3, 3}, {2, 1}, {1, 1}, {1, 1, 1, 1}},
                             ConvShape{17, 5, 5, 17, 17, {3, 3}, {1, 1}, {2, 1}, {2, 1, 2, 1}},
                             ConvShape{12, 4, 4, 40, 2, {1, 1}, {1, 1}, {1, 1}, {0, 0, 0, 0}}}) {
    const auto weight = b.reals(s.weights(), -1, 1), bias = b.reals(s.out_channels, -1, 1);
    const int area = s.in_height * s.in_width;
    const auto x = b.reals(int64_t{s.in_channels} * area, -1, 1);
    std::vector<float> last(x.size()), y(int64_t{s.out_channels} * s.out_area()), first(y.size());
    for (int c = 0; c < s.in_channels; ++c) {
      for (int i = 0; i < area; ++i) last[i * s.in_channels + c] = x[c * area + i];
    }
    RealConv(s, weight, bias).run_image(last.data(), y.data());
    to_channels_first({.name = "",
                       .channels = s.out_channels,
                       .height = s.out_height(),
                       .width = s.out_width(),
                       .producer = -1,
                       .readers = {},
                       .operand = false},
                      y.data(), first.data());
    CHECK(relative_difference(first, naive_conv(s, weight, bias, x)) < 1e-6);
  }
}

// Every integer of every tensor equals that of a chain of reference.h's functions.
void test_network_equals_reference(const std::string& tail) {
  LayerGraph graph = small_network(1, tail);
  auto pixels = Builder(2).pictures(4, 12, 12);
  const PictureView pictures{pixels.data(), 4, 12, 12};
  SearchOptions options = kOptions;
  options.rounds = 0;
  const Scales scales = run_search(graph, pictures, options).scales;
  const auto actual = run_layers(graph, scales, pictures.picture(1));

  std::vector<std::vector<int8_t>> expected(graph.tensors.size());
  for (int c = 0; c < 3; ++c) {
    for (int i = 0; i < 144; ++i) {
      expected[0].push_back(
          reference::quantize(graph.range(pictures.picture(1)[i * 3 + c], c), scales.tensors[0], scales.range(0)));
    }
  }
  std::vector<float> embedding;
  for (size_t l = 0; l < graph.layers.size(); ++l) {
    const Layer& layer = graph.layers[l];
    const Tensor &in = graph.tensors[layer.input], &out = graph.tensors[layer.output];
    const float in_scale = scales.tensors[layer.input], out_scale = scales.tensors[layer.output];
    const IntegerRange out_range = scales.range(layer.output);
    auto& y = expected[layer.output];
    y.resize(out.size());
    const int8_t* x = expected[layer.input].data();
    if (layer.kind == Layer::Kind::conv) {
      std::vector<int32_t> sums(out.size());
      reference::conv(layer.shape, x, scales.convs[l].weights.data(), scales.convs[l].bias.data(), sums.data());
      std::vector<float> multipliers;
      for (const float weight_scale : scales.convs[l].weight)
        multipliers.push_back(in_scale * weight_scale / out_scale);
      if (layer.output == graph.outputs[0]) {
        for (int o = 0; o < out.channels; ++o) {
          embedding.push_back(static_cast<float>(sums[o]) * (in_scale * scales.convs[l].weight[o]));
        }
        y.clear();
      } else {
        reference::requantize(sums.data(), out.channels, out.area(), multipliers.data(), out_range, y.data());
      }
    } else if (layer.kind == Layer::Kind::pointwise) {
      reference::pointwise(x, in.channels, in.area(), layer.positive.data(), layer.negative.data(), layer.offset.data(),
                           in_scale, out_scale, out_range, y.data());
    } else if (layer.kind == Layer::Kind::add) {
      reference::add(x, in_scale, expected[layer.second].data(), scales.tensors[layer.second],
                     static_cast<int>(out.size()), out_scale, out_range, y.data());
    } else {
      reference::pool(x, in.channels, in.area(), in_scale, out_scale, out_range, y.data());
    }
  }
  CHECK(actual == expected);
  const auto model = make_int7_model(graph, scales, 2);
  const auto embeddings = embed(*model, pictures);
  CHECK(std::equal(embedding.begin(), embedding.end(), embeddings.begin() + 16));
  // With flip, an embedding is the sum of the picture's and its mirror image's.
  auto mirrored = pixels;
  for (size_t row = 0; row < mirrored.size(); row += 36) {
    for (int x = 0; x < 12; ++x) std::copy_n(&pixels[row + x * 3], 3, &mirrored[row + (11 - x) * 3]);
  }
  const auto other = embed(*model, {mirrored.data(), 4, 12, 12});
  const auto both = embed(*model, pictures, true);
  for (size_t i = 0; i < both.size(); ++i) CHECK_EQ(both[i], embeddings[i] + other[i]);
}

// With fewer pictures than threads, a model that cannot share one computes each on a thread of its own.
void test_few_pictures() {
  class Counted final : public Model {
   public:
    Counted(int64_t dim, bool shares) : Model(dim), shares_(shares) {}
    void embed(const uint8_t*, float*, int) override { ++single; }
    bool shares_picture() const override { return shares_; }
    void embed_alone(const uint8_t*, float*, ThreadPool&) override { ++together; }
    std::atomic<int> single = 0, together = 0;

   private:
    bool shares_;
  };
  const auto graph = std::make_shared<const LayerGraph>(small_network(1));
  CHECK(!make_real_model(graph, 1)->shares_picture());
  auto pixels = Builder(2).pictures(2, 12, 12);
  ThreadPool pool(3);
  for (const bool shares : {false, true}) {
    Counted model(graph->output_size(), shares);
    std::vector<float> embeddings(2 * model.dim());
    embed_pictures(model, pool, {pixels.data(), 2, 12, 12}, false, embeddings.data(), kNever);
    CHECK_EQ(model.single.load(), shares ? 0 : 2);
    CHECK_EQ(model.together.load(), shares ? 2 : 0);
  }
}

void test_equalize() {
  LayerGraph graph = small_network(3);
  const LayerGraph before = graph;
  auto pixels = Builder(4).pictures(6, 12, 12);
  const PictureView pictures{pixels.data(), 6, 12, 12};
  ThreadPool pool(2);
  int last = 0;
  equalize(graph, pictures, {pool, kNever}, kInMemory, [&](int done) { last = done; });
  CHECK_EQ(last, 10);
  const auto old_model = make_real_model(std::make_shared<const LayerGraph>(before), 2);
  const auto new_model = make_real_model(std::make_shared<const LayerGraph>(graph), 2);
  CHECK(relative_difference(embed(*old_model, pictures), embed(*new_model, pictures)) < 2e-6);
  // The sizes of the first layer's filters have come closer.
  const auto spread = [](const Layer& stem) {
    std::vector<float> sizes(20);
    for (int i = 0; i < 20 * 27; ++i) sizes[i / 27] = std::max(sizes[i / 27], std::abs(stem.weight[i]));
    return *std::max_element(sizes.begin(), sizes.end()) / *std::min_element(sizes.begin(), sizes.end());
  };
  CHECK(spread(graph.layers[0]) < spread(before.layers[0]) / 3);
  // Slopes are unchanged: a PReLU stays a PReLU.
  CHECK(before.layers[1].negative == graph.layers[1].negative);
  CHECK(before.layers[1].positive == graph.layers[1].positive);
}

void check_integers(const LayerGraph& graph, const Scales& scales, const PictureView& pictures) {
  for (const auto& conv : scales.convs) {
    for (const int8_t w : conv.weights) CHECK(std::abs(int{w}) <= 63);
  }
  for (int64_t n = 0; n < pictures.count; ++n) {
    const auto tensors = run_layers(graph, scales, pictures.picture(n));
    for (size_t t = 0; t < tensors.size(); ++t) {
      const IntegerRange range = scales.range(static_cast<int>(t));
      for (const int8_t q : tensors[t]) CHECK(q >= range.low && q <= range.high);
    }
  }
}

void test_search() {
  auto pixels = Builder(8).pictures(10, 12, 12);
  const PictureView pictures{pixels.data(), 10, 12, 12};
  int improved = 0;
  for (const unsigned seed : {11u, 12u, 13u}) {
    for (const bool equalized : {false, true}) {
      SearchOptions options = kOptions;
      options.equalize = equalized;
      options.bias_correction = false;
      options.candidates = 40;
      options.rounds = 0;
      LayerGraph start_graph = small_network(seed);
      const auto start = run_search(start_graph, pictures, options);
      options.rounds = 2;
      LayerGraph graph = small_network(seed);
      const auto found = run_search(graph, pictures, options);
      const size_t last = graph.layers.size() - 1;
      CHECK_EQ(found.layers[last].cosine_start, start.layers[last].cosine);
      CHECK(found.layers[last].cosine >= found.layers[last].cosine_start);
      improved += found.layers[last].cosine > found.layers[last].cosine_start;
      check_integers(graph, found.scales, pictures);
      const auto inside = [](float scale, float first) { return scale >= first / 2.001f && scale <= first * 2.001f; };
      for (size_t t = 0; t < graph.tensors.size(); ++t) {
        if (!graph.quantized(t)) continue;
        // How far the tensor's longer side reaches.
        const auto bound = [&](const Scales& scales) {
          const IntegerRange range = scales.range(static_cast<int>(t));
          const bool up = start.scales.zero_points[t] <= 0;
          return scales.tensors[t] * static_cast<float>(up ? range.high : -range.low);
        };
        CHECK(inside(bound(found.scales), bound(start.scales)));
      }
      for (size_t l = 0; l < graph.layers.size(); ++l) {
        for (size_t o = 0; o < found.scales.convs[l].weight.size(); ++o) {
          CHECK(inside(found.scales.convs[l].weight[o], start.scales.convs[l].weight[o]));
        }
      }
      options.bias_correction = true;
      LayerGraph corrected = small_network(seed);
      CHECK(run_search(corrected, pictures, options).layers[last].cosine >= found.layers[last].cosine);
    }
  }
  CHECK(improved >= 4);
  // The result does not depend on the number of threads.
  LayerGraph one = small_network(11), four = small_network(11);
  const auto a = run_search(one, pictures, kOptions, 1), b = run_search(four, pictures, kOptions, 4);
  CHECK(a.scales.tensors == b.scales.tensors);
  CHECK(a.scales.zero_points == b.scales.zero_points);
  for (size_t l = 0; l < one.layers.size(); ++l) CHECK(a.scales.convs[l].weights == b.scales.convs[l].weights);
}

// Tensors that are mostly positive get a zero point, and their integers are finer.
void test_zero_points() {
  auto pixels = Builder(8).pictures(10, 12, 12);
  const PictureView pictures{pixels.data(), 10, 12, 12};
  const auto positive_network = [] {
    LayerGraph graph = small_network(11);
    for (Layer& layer : graph.layers) {
      if (layer.kind == Layer::Kind::pointwise) std::fill(layer.negative.begin(), layer.negative.end(), 0.1f);
    }
    return graph;
  };
  SearchOptions options = kOptions;
  options.equalize = options.bias_correction = false;
  double cosine[2];
  for (const bool zero_points : {false, true}) {
    options.zero_points = zero_points;
    LayerGraph graph = positive_network();
    const auto found = run_search(graph, pictures, options);
    int used = 0;
    for (size_t t = 0; t < graph.tensors.size(); ++t) {
      const int zero_point = found.scales.zero_points[t];
      if (!zero_points || !graph.tensors[t].operand) CHECK_EQ(zero_point, 0);
      CHECK(std::abs(zero_point) <= 63);
      used += zero_point < -20;
    }
    CHECK_EQ(used > 0, zero_points);
    check_integers(graph, found.scales, pictures);
    cosine[zero_points] = found.layers.back().cosine;
  }
  CHECK(cosine[true] > cosine[false]);
}

// A budget gives operands eight bits: never more of the multiply-accumulates than it says, and fewer errors for them.
void test_operand_bits() {
  auto pixels = Builder(8).pictures(10, 12, 12);
  const PictureView pictures{pixels.data(), 10, 12, 12};
  for (LayerGraph (*const make)() : {+[] { return small_network(11); }, +[] { return network_of_nodes(11); }}) {
    double narrow_error = 0;
    for (const double budget : {0.0, 0.2, 0.6, 1.0}) {
      SearchOptions options = kOptions;
      options.zero_points = false;  // so that eight bits are finer for every operand
      options.budget = budget;
      LayerGraph graph = make(), again = make();
      const SearchResult found = run_search(graph, pictures, options, 1);
      int64_t wide = 0, all = 0;
      for (const Layer& layer : graph.layers) {
        if (layer.kind != Layer::Kind::conv) continue;
        all += layer.shape.macs();
        if (found.scales.limits[layer.input] == kWideOperandLimit) wide += layer.shape.macs();
      }
      CHECK(static_cast<double>(wide) <= budget * static_cast<double>(all));
      CHECK_EQ(wide > 0, budget > 0);
      if (budget == 1) CHECK_EQ(wide, all);
      for (size_t t = 0; t < graph.tensors.size(); ++t)
        CHECK_EQ(found.scales.limits[t], found.scales.limits[graph.tensors[t].scale_of]);
      check_integers(graph, found.scales, pictures);
      CHECK(run_search(again, pictures, options, 4).scales.limits == found.scales.limits);
      double error = 0;
      for (const int output : graph.outputs) error += 1 - found.layers[graph.tensors[output].producer].cosine;
      if (budget == 0) narrow_error = error;
      if (budget == 1) CHECK(error < narrow_error);
    }
  }
  // With zero points, an operand that is all positive has no finer steps with eight bits.
  Builder b(3);
  b.conv("data", "c1", 3, 8, 3, 1, 1);
  std::fill(b.layers[0].weight.begin(), b.layers[0].weight.end(), 0.1f);
  b.layers[0].bias.assign(8, 3);
  b.conv("c1", "y", 8, 4, 1, 1, 1);
  LayerGraph positive(picture_tensor(12, 12), std::move(b.layers), {"y"});
  SearchOptions options = kOptions;
  options.budget = 1;
  const SearchResult found = run_search(positive, pictures, options);
  CHECK_EQ(found.scales.limits[0], kWideOperandLimit);
  CHECK_EQ(found.scales.limits[1], kOperandLimit);
}

// Activations that do not fit into memory lie in a file, and nothing else changes.
void test_activations_in_a_file() {
  auto pixels = Builder(8).pictures(10, 12, 12);
  const PictureView pictures{pixels.data(), 10, 12, 12};
  LayerGraph in_memory = small_network(11), in_file = small_network(11);
  const int64_t bytes = LayerwisePass::bytes_per_picture(in_memory) * pictures.count;
  const auto a = run_search(in_memory, pictures, kOptions, 2, {.memory_bytes = bytes, .directory = "/no/such/folder"});
  const auto b = run_search(in_file, pictures, kOptions, 2, {.memory_bytes = bytes - 1, .directory = "/var/tmp"});
  CHECK(a.scales.tensors == b.scales.tensors);
  CHECK(a.scales.zero_points == b.scales.zero_points);
  for (size_t l = 0; l < a.layers.size(); ++l) {
    CHECK(a.scales.convs[l].weights == b.scales.convs[l].weights);
    CHECK_EQ(a.layers[l].cosine, b.layers[l].cosine);
  }
  CHECK_THROWS(run_search(in_file, pictures, kOptions, 2, {.memory_bytes = 0, .directory = "/no/such/folder"}), Error,
               "/no/such/folder");
  CHECK_THROWS(run_search(in_file, pictures, kOptions, 2, {.memory_bytes = 0, .directory = "/dev/shm"}), Error,
               "folder /dev/shm: cannot hold 1 MiB of activations (it lies in memory itself: tmpfs)");
}

// Black and white pixels are the integers +-63 exactly, and weights k * step with |k| <= 60 are exact at the scale
// `step`. The scale of the maximum is 60 / 63 of that. Its ratio, 0.5 + 1.5 * 19 / 63, is the twentieth of 64
// candidates.
void test_known_optimum() {
  Builder b(21);
  Layer& layer = b.conv("data", "y", 3, 4, 3, 1, 1);
  std::vector<float> steps{0.01f, 0.003f, 0.5f, 1.0f};
  for (int o = 0; o < 4; ++o) {
    for (int i = 0; i < 27; ++i) {
      const int k = i == 5 ? 60 : (i * 37 + o * 11) % 119 - 59;
      layer.weight[o * 27 + i] = static_cast<float>(k) * steps[o];
    }
    layer.bias[o] = 0;
  }
  LayerGraph graph(picture_tensor(9, 9), std::move(b.layers), {"y"});
  auto pixels = b.pictures(8, 9, 9);
  for (auto& byte : pixels) byte = byte < 128 ? 0 : 255;
  SearchOptions options = kOptions;
  options.candidates = 64;
  options.equalize = options.bias_correction = false;
  const auto found = run_search(graph, {pixels.data(), 8, 9, 9}, options);
  for (int o = 0; o < 4; ++o) CHECK_NEAR(found.scales.convs[0].weight[o] / steps[o], 1, 1e-5);
  CHECK(found.layers[0].cosine_start < 0.99999);
  CHECK_NEAR(found.layers[0].cosine, 1, 1e-6);
}

// What the integers of the kernels rely on: each convolution here is the graph's only layer, and is named.
// Equalization by channel leaves a network of nodes the same function, and changes its weights; tensors between which
// numbers are only moved share a scale and a limit; what only a node in FP32 reads stays real.
void test_nodes() {
  LayerGraph graph = network_of_nodes(41);
  const auto tensor = [&](const std::string& name) -> const Tensor& {
    return *std::find_if(graph.tensors.begin(), graph.tensors.end(), [&](const Tensor& t) { return t.name == name; });
  };
  CHECK_EQ(tensor("m1").scale_of, tensor("c1").scale_of);
  CHECK_EQ(tensor("c1").limit(), kOperandLimit);
  CHECK(!tensor("c3").quantized && !tensor("y2").quantized && tensor("p1").quantized);

  const LayerGraph before = graph;
  auto pixels = Builder(42).pictures(5, 12, 12);
  const PictureView pictures{pixels.data(), 5, 12, 12};
  ThreadPool pool(2);
  equalize(graph, pictures, {pool, kNever}, kInMemory, [](int) {});
  CHECK(before.layers[0].weight != graph.layers[0].weight);
  const auto old_model = make_real_model(std::make_shared<const LayerGraph>(before), 2);
  const auto new_model = make_real_model(std::make_shared<const LayerGraph>(graph), 2);
  const auto reference = embed(*old_model, pictures);
  CHECK_EQ(reference.size(), size_t{5 * (16 + 4 * 36)});
  CHECK(relative_difference(reference, embed(*new_model, pictures)) < 2e-6);

  LayerGraph searched = network_of_nodes(41);
  const auto found = run_search(searched, pictures, kOptions);
  CHECK_EQ(found.scales.tensors[tensor("m1").scale_of], found.scales.tensors[tensor("c1").scale_of]);
  const auto model = make_int7_model(searched, found.scales, 2);
  CHECK(relative_difference(reference, embed(*model, pictures)) < 0.2);
  for (const auto& layer : found.layers) CHECK(layer.cosine > 0.95);
}

// Equalization leaves the function the same where a Concat has more operands than inputs (one that it reads twice, in
// any order, and constants), and where a Pad moves channels.
void test_equalize_operands() {
  using Operand = FloatStep::Operand;
  auto pixels = Builder(44).pictures(5, 12, 12);
  const PictureView pictures{pixels.data(), 5, 12, 12};
  const auto check = [&](const std::string& op, const std::vector<Operand>& operands, std::vector<std::string> inputs,
                         int channels) {
    Builder b(43);
    for (const std::string name : {"a", "b"}) {
      Layer& layer = b.conv("data", name, 3, 4, 3, 1, 1);
      for (int i = 0; i < 27; ++i) layer.weight[i] *= 8;
    }
    b.conv("b", "other", 4, 1, 1, 1, 1);
    const std::vector<std::vector<int64_t>> dims(inputs.size(), {1, 4, 12, 12});
    Layer& joined = b.node(op, std::move(inputs), "j", {{"axis", {1}}}, {}, dims, {1, channels, 12, 12});
    joined.node.steps[0].operands = operands;
    b.conv("j", "y", channels, 5, 3, 1, 1);
    LayerGraph graph(picture_tensor(12, 12), std::move(b.layers), {"y", "other"});
    const auto before = std::make_shared<const LayerGraph>(graph);
    ThreadPool pool(2);
    equalize(graph, pictures, {pool, kNever}, kInMemory, [](int) {});
    CHECK_EQ(before->layers[0].weight == graph.layers[0].weight, op == "Pad");
    const auto old_model = make_real_model(before, 2);
    const auto new_model = make_real_model(std::make_shared<const LayerGraph>(graph), 2);
    CHECK(relative_difference(embed(*old_model, pictures), embed(*new_model, pictures)) < 2e-6);
  };
  const Operand a{Operand::From::input, 0, {}}, b{Operand::From::input, 1, {}};
  const Operand numbers{Operand::From::constant, 0, {{1, 2, 12, 12}, Builder(45).reals(2 * 144, -1, 1), {}}};
  const Operand moved{Operand::From::constant, 0, integers({0, 1, 0, 0, 0, -1, 0, 0})};
  check("Concat", {a, a, a}, {"a"}, 12);
  check("Concat", {a, b, a}, {"a", "b"}, 12);
  check("Concat", {b, a}, {"a", "b"}, 8);
  check("Concat", {numbers, a}, {"a"}, 6);
  check("Concat", {a, numbers, a}, {"a"}, 10);
  check("Pad", {a, moved}, {"a"}, 4);
}

// A tensor of values near zero has a scale that readers of files take, from the start on and after the search.
void test_least_scale() {
  Builder b(46);
  b.conv("data", "c1", 3, 4, 3, 1, 1);
  for (float& weight : b.layers[0].weight) weight *= 1e-18f;
  for (float& bias : b.layers[0].bias) bias = 0;
  b.conv("c1", "y", 4, 5, 3, 1, 1);
  LayerGraph graph(picture_tensor(12, 12), std::move(b.layers), {"y"});
  auto pixels = Builder(47).pictures(3, 12, 12);
  SearchOptions options = kOptions;
  options.equalize = false;
  const auto found = run_search(graph, {pixels.data(), 3, 12, 12}, options);
  CHECK_EQ(found.scales.tensors[1], 1e-12f);
  for (const float scale : found.scales.convs[1].weight) CHECK(scale < 1e12f);
}

// Operators of values read a constant of integers, too.
void test_integer_constants() {
  const auto run = [](const std::string& op, FloatArray constant) {
    Builder b(1);
    b.node(op, {"x"}, "y", {}, {std::move(constant)}, {}, {});
    return run_steps(b.layers[0].node.steps, {FloatArray{{1, 3}, {1, -2, 3}, {}}}, "it").values;
  };
  CHECK(run("Pow", integers({2})) == (std::vector<float>{1, 4, 9}));
  CHECK(run("Add", integers({5, 6, 7})) == (std::vector<float>{6, 4, 10}));
  CHECK(run("Expand", integers({2, 3})) == (std::vector<float>{1, -2, 3, 1, -2, 3}));
  CHECK_THROWS(run("Add", {{3}, {}, {}}), Error, "Add with operand 1 of 0 values; as many as its dimensions say");
  CHECK_THROWS(run("Add", {{3}, {}, {1, 2, 3}}), Error, "operand 1 of 0 values");
  CHECK_THROWS(run("Add", {{3}, {1, 2}, {}}), Error, "operand 1 of 2 values");
  CHECK_THROWS(run("Expand", {{2}, {2, 3}, {}}), Error, "numbers that are no integers");
}

// Steps of a damaged file are refused: they neither read beyond their operands nor ask for memory without bound.
void test_broken_steps() {
  const auto run = [](const std::string& op, std::map<std::string, std::vector<double>> numbers, FloatArray constant) {
    Builder b(1);
    b.node(op, {"x"}, "y", std::move(numbers), {std::move(constant)}, {}, {});
    FloatArray x{{1, 4, 3, 3}, std::vector<float>(36, 1), {}};
    return run_steps(b.layers[0].node.steps, {x}, "it");
  };
  CHECK_THROWS(run("Mystery", {}, integers({})), Error, "operator Mystery; one of Abs, Add");
  CHECK_THROWS(run("Gather", {{"axis", {1}}}, integers({4})), Error, "index 4");
  CHECK_THROWS(run("Gather", {{"axis", {9}}}, integers({0})), Error, "axis 9");
  CHECK_THROWS(run("Reshape", {}, integers({5, 5})), Error, "another number of values");
  CHECK_THROWS(run("Reshape", {}, integers({-1, int64_t{1} << 62})), Error, "another number of values");
  CHECK_THROWS(run("Pad", {}, integers({0, 0, int64_t{1} << 40, 0, 0, 0, 0, 0})), Error, "Pad with pads that");
  CHECK_THROWS(run("Pad", {}, integers({0, 0, -9, 0, 0, 0, 0, 0})), Error, "leave nothing");
  CHECK_THROWS(run("Pad", {}, integers({0, 0, 0, 0, 0, 0, INT64_MIN, 0})), Error, "leave nothing");
  // The first axis alone would take 2 GiB of indices.
  CHECK_THROWS(run("Pad", {}, integers({(1 << 28) - 1, 0, 0, 0, 0, 0, 0, 0})), Error,
               "Pad with pads that are too large");
  CHECK_THROWS(run("Expand", {}, integers({1 << 20, 1 << 20, 1, 1, 1})), Error, "too large");
  const auto slice = [](std::vector<std::vector<int64_t>> lists) {
    Builder b(1);
    std::vector<FloatArray> constants;
    for (auto& list : lists) constants.push_back(integers(std::move(list)));
    b.node("Slice", {"x"}, "y", {}, std::move(constants), {}, {});
    return run_steps(b.layers[0].node.steps, {FloatArray{{1, 4}, {0, 1, 2, 3}, {}}}, "it").values;
  };
  CHECK(slice({{0, 3}, {1, -5}, {-2, -1}, {1, -2}}) == (std::vector<float>{3, 1}));
  CHECK_THROWS(slice({{3, 3}, {4, 4}, {1, 1}}), Error, "Slice with an axis twice");
  CHECK_THROWS(slice({{3, 3}, {4, 4}, {1, -1}}), Error, "Slice with an axis twice");
  CHECK_THROWS(slice({{0, 0}, {1}}), Error, "Slice with lists of different lengths");
  CHECK_THROWS(slice({{0, 0}, {1, 1}, {0}}), Error, "Slice with lists of different lengths");
  CHECK_THROWS(slice({{0, 0}, {1, 1}, {0, 1}, {1}}), Error, "Slice with lists of different lengths");
  CHECK_THROWS(slice({{0}, {1}, {1}, {INT64_MIN}}), Error, "a step of");
  CHECK_THROWS(run("Squeeze", {}, integers({1})), Error, "another number of values");
  CHECK_THROWS(run("MaxPool", {{"kernel_shape", {9, 9}}}, integers({})), Error, "larger than its padded");
  CHECK_THROWS(run("MaxPool", {{"kernel_shape", {1e300, 1}}}, integers({})), Error, "a smaller number");
  CHECK_THROWS(run("MaxPool", {{"kernel_shape", {2, 2}}, {"strides", {0, 1}}}, integers({})), Error, "a window of 0");
  CHECK_THROWS(run("MatMul", {}, {{5, 2}, std::vector<float>(10), {}}), Error, "operands that do not fit");
  CHECK_THROWS(run("Add", {}, {{5}, std::vector<float>(5), {}}), Error, "different shapes");

  Builder b(1);
  b.node("Relu", {"data"}, "y", {}, {}, {{1, 3, 12, 12}}, {1, 3, 12, 12}).node.steps[0].operands[0].index = 7;
  const auto graph =
      std::make_shared<const LayerGraph>(picture_tensor(12, 12), std::move(b.layers), std::vector<std::string>{"y"});
  auto pixels = Builder(2).pictures(1, 12, 12);
  CHECK_THROWS(embed(*make_real_model(graph, 1), {pixels.data(), 1, 12, 12}), Error, "not computed before");
  Builder wide(1);
  wide.node("Relu", {"data"}, "y", {}, {}, {{1, 3, 12, 11}}, {1, 3, 12, 12});
  CHECK_THROWS(LayerGraph(picture_tensor(12, 12), wide.layers, {"y"}), Error, "other dimensions of 'data'");
}

void test_bounds() {
  const auto one_conv = [](int channels, int size, auto change) {
    Layer layer;
    layer.name = "wide";
    layer.input_names = {"data"};
    layer.output_name = "embedding";
    layer.shape.out_channels = 1;
    layer.shape.kernel = {size, size};
    change(layer.shape);
    layer.weight.assign(static_cast<size_t>(channels) * size * size, 0.01f);
    layer.bias = {0};
    Tensor input{.name = "data",
                 .channels = channels,
                 .height = size,
                 .width = size,
                 .producer = -1,
                 .readers = {},
                 .operand = false};
    return LayerGraph(std::move(input), {std::move(layer)}, {"embedding"});
  };
  const auto unchanged = [](ConvShape&) {};
  CHECK_EQ(one_conv(4, 256, unchanged).tensors.size(), size_t{2});  // 2^18 weights
  // Of half as many, so that sums of products with 126 fit an int32.
  CHECK(!may_be_wide_operand(one_conv(4, 256, unchanged), 0));
  CHECK(may_be_wide_operand(one_conv(2, 256, unchanged), 0));
  CHECK_THROWS(one_conv(5, 256, unchanged), Error, "layer 'wide': filters of 327680 weights; at most 262144");
  // Integers that would overflow, or divide by zero, in the sizes of outputs.
  CHECK_THROWS(one_conv(3, 2, [](ConvShape& s) { s.strides[1] = 0; }), Error, "layer 'wide': a stride of 0; 1 to");
  CHECK_THROWS(one_conv(3, 2, [](ConvShape& s) { s.pads[2] = INT32_MAX; }), Error, "a pad of 2147483647; 0 to");
  CHECK_THROWS(one_conv(3, 2, [](ConvShape& s) { s.pads[0] = -1; }), Error, "a pad of -1; 0 to");
  CHECK_THROWS(one_conv(3, 2, [](ConvShape& s) { s.dilations[0] = 1 << 30; }), Error, "a dilation of 1073741824");
  CHECK_THROWS(one_conv(3, 2,
                        [](ConvShape& s) {
                          s.pads = {9000, 9000, 9000, 9000};
                        }),
               Error, "layer 'wide': a tensor of 1 x 18001 x 18001; at most");
}

void test_odd_networks() {
  auto pixels = Builder(8).pictures(3, 12, 12);
  const PictureView pictures{pixels.data(), 3, 12, 12};
  // A filter of zeros: its output, the bias, is exact to a thousandth.
  LayerGraph dead = small_network(31);
  for (int i = 0; i < 9; ++i) dead.layers[2].weight[7 * 9 + i] = 0;
  dead.layers[2].bias[7] = 0.25f;
  const auto found = run_search(dead, pictures, kOptions);
  const auto& conv = found.scales.convs[2];
  CHECK_NEAR(
      conv.bias[7] * (double{conv.weight[7]} * found.scales.tensors[dead.layers[2].input]) / dead.layers[2].bias[7], 1,
      1e-3);

  LayerGraph overflowing = small_network(31);
  for (auto& w : overflowing.layers[4].weight) w = 1e38f;
  SearchOptions not_equalized = kOptions;
  not_equalized.equalize = false;
  CHECK_THROWS(run_search(overflowing, pictures, not_equalized), Error, "c3");
  CHECK_THROWS(run_search(overflowing, pictures, kOptions), Error, "c3");

  std::vector<Layer> broken = small_network(31).layers;
  broken[0].weight[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS(LayerGraph(picture_tensor(12, 12), broken, {"embedding"}), Error, "to_c1");
  broken = small_network(31).layers;
  broken[4].weight.pop_back();
  CHECK_THROWS(LayerGraph(picture_tensor(12, 12), broken, {"embedding"}), Error, "399");
  CHECK_THROWS(LayerGraph(picture_tensor(12, 12), small_network(31).layers, {"p4"}), Error, "p4");

  test_bounds();

  LayerGraph graph = small_network(31);
  ThreadPool pool(2);
  std::atomic<bool> cancelled = false;
  int steps = 0;
  const SearchControl control{cancelled,
                              [&](SearchStage stage, int, int) {
                                if (stage == SearchStage::searching && ++steps == 3) cancelled = true;
                              },
                              {},
                              [](const Decision&) {}};
  CHECK_THROWS(search_scales(graph, pictures, kOptions, kInMemory, pool, control), Cancelled, "cancelled");
  CHECK_EQ(steps, 3);
}

void test_cancelled_within_a_layer() {
  ThreadPool threads(1);
  std::atomic<bool> cancelled = false;
  const CancellablePool pool(threads, cancelled);
  int calls = 0;
  const auto body = [&](int64_t, int) { cancelled = ++calls == 3; };
  CHECK_THROWS(pool.parallel_for(10, body), Cancelled, "cancelled");
  CHECK_EQ(calls, 3);

  const LayerGraph graph = small_network(31);
  auto pixels = Builder(2).pictures(2, 12, 12);
  const PictureView pictures{pixels.data(), 2, 12, 12};
  cancelled = false;
  LayerwisePass pass(graph, pictures, pool, kInMemory);
  pass.start_real();
  pass.run_real(0);
  cancelled = true;
  CHECK_THROWS(pass.run_real(1), Cancelled, "cancelled");
  CHECK_THROWS(pass.extent(1), Cancelled, "cancelled");
  const auto input = [&](int64_t n) { return pass.real(0, n); };
  CHECK_THROWS(Patches<float>(graph.layers[0].shape, 2, pool, input), Cancelled, "cancelled");
  CHECK_THROWS(Targets(pass, graph, 0, pool), Cancelled, "cancelled");
}

// A search that goes on from any of its decisions ends as one that was not interrupted, and makes the others alike.
void test_resumed_search() {
  SearchOptions options = kOptions;
  options.candidates = 8;
  auto pixels = Builder(2).pictures(3, 12, 12);
  const PictureView pictures{pixels.data(), 3, 12, 12};
  for (const double budget : {0.0, 0.5}) {
    options.budget = budget;
    for (LayerGraph (*const make)() : {+[] { return small_network(7); }, +[] { return network_of_nodes(7); }}) {
      const auto run = [&](const std::vector<Decision>& decided, std::vector<Decision>& made) {
        LayerGraph graph = make();
        ThreadPool pool(2);
        return search_scales(graph, pictures, options, kInMemory, pool,
                             {kNever, [](SearchStage, int, int) {}, decided,
                              [&](const Decision& decision) { made.push_back(decision); }});
      };
      std::vector<Decision> all;
      const SearchResult whole = run({}, all);
      CHECK(all.size() > 10);
      for (size_t known = 0; known <= all.size(); ++known) {
        std::vector<Decision> made(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(known));
        const std::vector<Decision> decided = made;
        const SearchResult resumed = run(decided, made);
        CHECK(made == all);
        CHECK(resumed.scales.tensors == whole.scales.tensors);
        CHECK(resumed.scales.limits == whole.scales.limits);
        CHECK(resumed.scales.zero_points == whole.scales.zero_points);
        for (size_t l = 0; l < whole.layers.size(); ++l) {
          const ConvScales &a = resumed.scales.convs[l], &b = whole.scales.convs[l];
          CHECK(a.weight == b.weight && a.weights == b.weights && a.bias == b.bias);
          CHECK_EQ(resumed.layers[l].cosine, whole.layers[l].cosine);
          CHECK_EQ(resumed.layers[l].cosine_start, whole.layers[l].cosine_start);
          CHECK_EQ(resumed.layers[l].saturation, whole.layers[l].saturation);
        }
      }
      std::vector<Decision> others = all;
      others[1].push_back(0);
      CHECK_THROWS(run(others, all), Error, "decision 2: ");
    }
  }
}

void test_resolve_scales() {
  LayerGraph graph = small_network(1);
  auto pixels = Builder(2).pictures(2, 12, 12);
  SearchOptions options = kOptions;
  options.rounds = 0;
  const Scales scales = run_search(graph, {pixels.data(), 2, 12, 12}, options).scales;
  NamedScales named;
  for (size_t t = 0; t < graph.tensors.size(); ++t) {
    if (graph.quantized(t))
      named.tensors[graph.tensors[t].name] = {scales.tensors[t], scales.limits[t], scales.zero_points[t]};
  }
  for (size_t l = 0; l < graph.layers.size(); ++l) {
    if (!scales.convs[l].weight.empty()) named.convs[graph.layers[l].name] = scales.convs[l];
  }
  CHECK(resolve_scales(graph, named).tensors == scales.tensors);
  const auto refused = [&](auto change, const char* message) {
    NamedScales changed = named;
    change(changed);
    CHECK_THROWS(resolve_scales(graph, changed), Error, message);
  };
  refused([](NamedScales& s) { s.tensors.erase("p1"); }, "tensor 'p1': missing");
  refused([](NamedScales& s) { s.tensors["p1"].limit = 126; }, "limit 126; 63 or 127");
  refused([](NamedScales& s) { s.tensors["c1"].limit = 63; }, "limit 63; 127");
  refused([](NamedScales& s) { s.tensors["p1"] = {0.1f, 127, 1}; }, "zero point 1; 0");
  refused([](NamedScales& s) { s.tensors["p1"].zero_point = -64; }, "zero point -64; -63 to 63");
  refused([](NamedScales& s) { s.tensors["c1"].zero_point = 1; }, "zero point 1; 0");
  refused([](NamedScales& s) { s.tensors["p1"].scale = 0; }, "a positive number");
  refused([](NamedScales& s) { s.convs.erase("to_c2"); }, "layer 'to_c2': missing");
  refused([](NamedScales& s) { s.convs["to_c2"].weights[4] = 64; }, "weight 64; -63 to 63");
  refused([](NamedScales& s) { s.convs["to_c2"].bias.pop_back(); }, "19 biases");
  refused([](NamedScales& s) { s.convs["to_c2"].bias[3] = (1 << 30) + 1; }, "bias 1073741825");
  refused([](NamedScales& s) { s.convs["to_c2"].bias[3] = INT32_MIN; }, "bias -2147483648");
}

}  // namespace
}  // namespace facetrain

int main() {
  using namespace facetrain;
  test_real_conv();
  test_network_equals_reference("fc");
  test_network_equals_reference("pool");
  test_few_pictures();
  test_equalize();
  test_search();
  test_zero_points();
  test_operand_bits();
  test_activations_in_a_file();
  test_known_optimum();
  test_odd_networks();
  test_nodes();
  test_least_scale();
  test_equalize_operands();
  test_integer_constants();
  test_broken_steps();
  test_cancelled_within_a_layer();
  test_resumed_search();
  test_resolve_scales();
  return TEST_RESULT();
}
