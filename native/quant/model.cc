#include "quant/model.h"

#include <algorithm>

#include "error.h"
#include "kernels/elementwise.h"

namespace facetrain {
namespace {

// Which buffer each tensor uses. A buffer is free again after its tensor's last reader; the graph's outputs keep
// theirs.
struct BufferPlan {
  std::vector<int> buffer;       // by tensor
  std::vector<int64_t> lengths;  // by buffer: numbers of the largest tensor in it

  explicit BufferPlan(const LayerGraph& graph) : buffer(graph.tensors.size()) {
    std::vector<int> free;
    const auto take = [&](int tensor) {
      if (free.empty()) {
        free.push_back(static_cast<int>(lengths.size()));
        lengths.push_back(0);
      }
      buffer[tensor] = free.back();
      free.pop_back();
      lengths[buffer[tensor]] = std::max(lengths[buffer[tensor]], graph.tensors[tensor].size());
    };
    take(0);
    for (int l = 0; l < static_cast<int>(graph.layers.size()); ++l) {
      const Layer& layer = graph.layers[l];
      take(layer.output);
      for (int t = 0; t < layer.output; ++t) {
        if (graph.tensors[t].last_reader() == l && !graph.is_output(t)) free.push_back(buffer[t]);
      }
    }
  }
};

using Buffers = std::vector<std::vector<float>>;  // by index of the buffer

std::vector<Buffers> make_buffers(const BufferPlan& plan, int threads) {
  std::vector<Buffers> result(threads);
  for (auto& buffers : result) {
    for (const int64_t length : plan.lengths) buffers.emplace_back(length);
  }
  return result;
}

// Rounds values to multiples of the scale, saturated at a range of them.
void round_to(float scale, IntegerRange range, float* values, int64_t count) {
  constexpr int64_t kChunk = 4096;
  int8_t integers[kChunk];
  for (int64_t first = 0; first < count; first += kChunk) {
    const int64_t n = std::min(kChunk, count - first);
    quantize(values + first, n, scale, range, integers);
    for (int64_t i = 0; i < n; ++i) values[first + i] = static_cast<float>(integers[i]) * scale;
  }
}

class RealModel final : public Model {
 public:
  // `scales`: by tensor, of those that are rounded; 0 for others, and empty if there are none.
  RealModel(std::shared_ptr<const LayerGraph> graph, Scales scales, int threads)
      : Model(graph->output_size()),
        graph_(std::move(graph)),
        plan_(*graph_),
        buffers_(make_buffers(plan_, threads)),
        scales_(std::move(scales)),
        pixels_(pixel_values(*graph_)) {
    for (size_t l = 0; l < graph_->layers.size(); ++l) layers_.emplace_back(*graph_, l);
    round(0, pixels_.data(), static_cast<int64_t>(pixels_.size()));
  }

  void embed(const uint8_t* picture, float* embedding, int thread) override {
    const auto at = [&](int tensor) { return buffers_[thread][plan_.buffer[tensor]].data(); };
    look_up_pixels(picture, graph_->tensors[0].size(), pixels_, at(0));
    for (size_t l = 0; l < layers_.size(); ++l) {
      const Layer& layer = graph_->layers[l];
      std::vector<const float*> inputs;
      for (const int input : layer.inputs) inputs.push_back(at(input));
      layers_[l].run(inputs, at(layer.output));
      round(layer.output, at(layer.output), graph_->tensors[layer.output].size());
    }
    for (const int output : graph_->outputs) {
      to_channels_first(graph_->tensors[output], at(output), embedding);
      embedding += graph_->tensors[output].size();
    }
  }

 private:
  void round(int tensor, float* values, int64_t count) const {
    if (scales_.tensors.empty() || scales_.tensors[tensor] == 0) return;
    round_to(scales_.tensors[tensor], scales_.range(tensor), values, count);
  }

  std::shared_ptr<const LayerGraph> graph_;
  BufferPlan plan_;
  std::vector<Buffers> buffers_;
  Scales scales_;
  std::vector<float> pixels_;
  std::vector<RealLayer> layers_;
};

// The network for int7/.
int7::Network network_of(const LayerGraph& graph, const Scales& scales) {
  using Kind = int7::LayerSpec::Kind;
  int7::Network network;
  network.outputs = graph.outputs;
  if (graph.quantized(0)) {
    network.pixels = pixel_integers(graph, scales);
  } else {
    network.real_pixels = pixel_values(graph);
  }
  for (int t = 0; t < static_cast<int>(graph.tensors.size()); ++t) {
    const Tensor& from = graph.tensors[t];
    network.tensors.push_back({.channels = from.channels,
                               .height = from.height,
                               .width = from.width,
                               .scale = scales.tensors[t],
                               .range = scales.range(t),
                               .real = !graph.quantized(t)});
  }
  for (int l = 0; l < static_cast<int>(graph.layers.size()); ++l) {
    const Layer& from = graph.layers[l];
    int7::LayerSpec layer;
    layer.name = from.name;
    layer.inputs = from.inputs;
    layer.output = from.output;
    switch (from.kind) {
      case Layer::Kind::conv:
        layer.kind = Kind::conv;
        layer.shape = from.shape;
        layer.weights = scales.convs[l].weights;
        layer.bias = scales.convs[l].bias;
        layer.weight_scales = scales.convs[l].weight;
        break;
      case Layer::Kind::pointwise:
        layer.kind = Kind::pointwise;
        layer.positive = from.positive;
        layer.negative = from.negative;
        layer.offset = from.offset;
        break;
      case Layer::Kind::add:
        layer.kind = Kind::add;
        break;
      case Layer::Kind::pool:
        layer.kind = Kind::pool;
        break;
      case Layer::Kind::node:
        layer.kind = Kind::node;
        layer.node = from.node;
        break;
    }
    network.layers.push_back(std::move(layer));
  }
  return network;
}

class Int7Model final : public Model {
 public:
  Int7Model(std::unique_ptr<const int7::Runtime> runtime, int threads, int64_t largest_memory)
      : Model(runtime->output_size()), runtime_(std::move(runtime)) {
    int7::check_memory(runtime_->context_bytes(threads) + (threads - 1) * runtime_->context_bytes(1), largest_memory);
    for (int thread = 0; thread < threads; ++thread) contexts_.emplace_back(*runtime_, thread == 0 ? threads : 1);
  }

  void embed(const uint8_t* picture, float* embedding, int thread) override {
    runtime_->run(contexts_[thread], picture, embedding);
  }
  bool shares_picture() const override { return true; }
  void embed_alone(const uint8_t* picture, float* embedding, ThreadPool& pool) override {
    runtime_->run(contexts_[0], picture, embedding, pool);
  }
  std::vector<int7::Runtime::StepTime> time_layers(const uint8_t* picture) override {
    std::vector<float> embedding(dim());
    return runtime_->run_timed(contexts_[0], picture, embedding.data());
  }

 private:
  std::unique_ptr<const int7::Runtime> runtime_;
  std::vector<int7::Runtime::Context> contexts_;
};

}  // namespace

std::vector<float> pixel_values(const LayerGraph& graph) {
  std::vector<float> values(static_cast<size_t>(graph.tensors[0].channels) * 256);
  for (size_t i = 0; i < values.size(); ++i) values[i] = graph.range(static_cast<uint8_t>(i % 256), i / 256);
  return values;
}

std::vector<int8_t> pixel_integers(const LayerGraph& graph, const Scales& scales) {
  const std::vector<float> values = pixel_values(graph);
  std::vector<int8_t> integers(values.size());
  quantize(values.data(), static_cast<int64_t>(values.size()), scales.tensors[0], scales.range(0), integers.data());
  return integers;
}

void to_channels_first(const Tensor& tensor, const float* x, float* y) {
  for (int c = 0; c < tensor.channels; ++c) {
    for (int i = 0; i < tensor.area(); ++i) *y++ = x[int64_t{i} * tensor.channels + c];
  }
}

std::unique_ptr<Model> make_real_model(std::shared_ptr<const LayerGraph> graph, int threads) {
  return std::make_unique<RealModel>(std::move(graph), Scales(), threads);
}

std::unique_ptr<Model> make_partly_quantized_model(const LayerGraph& graph, const Scales& scales, QuantizedPart part,
                                                   int threads) {
  auto partly = std::make_shared<LayerGraph>(graph);
  Scales rounded{std::vector<float>(graph.tensors.size()), scales.limits, scales.zero_points, {}};
  if (part == QuantizedPart::weights) {
    for (size_t l = 0; l < graph.layers.size(); ++l) {
      Layer& layer = partly->layers[l];
      if (layer.kind != Layer::Kind::conv) continue;
      const ConvScales& conv = scales.convs[l];
      const size_t filter = layer.weight.size() / layer.bias.size();
      for (size_t i = 0; i < layer.weight.size(); ++i)
        layer.weight[i] = static_cast<float>(conv.weights[i]) * conv.weight[i / filter];
      for (size_t o = 0; o < layer.bias.size(); ++o)
        layer.bias[o] = static_cast<float>(conv.bias[o]) * (conv.weight[o] * scales.tensors[layer.input]);
    }
  } else {
    for (size_t t = 0; t < graph.tensors.size(); ++t) {
      if (graph.tensors[t].operand == (part == QuantizedPart::operands)) rounded.tensors[t] = scales.tensors[t];
    }
  }
  return std::make_unique<RealModel>(std::move(partly), std::move(rounded), threads);
}

std::unique_ptr<Model> make_int7_model(const LayerGraph& graph, const Scales& scales, int threads, Isa isa) {
  return make_int7_model(network_of(graph, scales), threads, isa, INT64_MAX);
}

std::unique_ptr<Model> make_int7_model(int7::Network network, int threads, Isa isa, int64_t largest_memory) {
  auto runtime = std::make_unique<const int7::Runtime>(std::move(network), isa, largest_memory);
  return std::make_unique<Int7Model>(std::move(runtime), threads, largest_memory);
}

void embed_pictures(Model& model, ThreadPool& pool, const PictureView& pictures, bool flip, float* embeddings,
                    const std::atomic<bool>& cancelled, const std::function<void(int64_t)>& on_done) {
  std::atomic<int64_t> done = 0;
  const int64_t dim = model.dim();
  const auto embed_one = [&](int64_t n, const auto& embed) {
    if (cancelled) throw Cancelled();
    float* embedding = embeddings + n * dim;
    embed(pictures.picture(n), embedding);
    if (flip) {
      std::vector<uint8_t> mirrored(pictures.size());
      for (int y = 0; y < pictures.height; ++y) {
        for (int x = 0; x < pictures.width; ++x) {
          const int64_t row = int64_t{y} * pictures.width;
          std::copy_n(pictures.picture(n) + (row + x) * pictures.channels, pictures.channels,
                      mirrored.data() + (row + pictures.width - 1 - x) * pictures.channels);
        }
      }
      std::vector<float> second(dim);
      embed(mirrored.data(), second.data());
      for (int64_t i = 0; i < dim; ++i) embedding[i] += second[i];
    }
    const int64_t so_far = ++done;
    if (on_done) on_done(so_far);
  };
  if (model.shares_picture() && pictures.count < pool.threads()) {
    for (int64_t n = 0; n < pictures.count; ++n) {
      embed_one(n, [&](const uint8_t* picture, float* embedding) { model.embed_alone(picture, embedding, pool); });
    }
    return;
  }
  pool.parallel_for(pictures.count, [&](int64_t n, int thread) {
    embed_one(n, [&](const uint8_t* picture, float* embedding) { model.embed(picture, embedding, thread); });
  });
}

std::vector<std::vector<int8_t>> run_layers(const LayerGraph& graph, const Scales& scales, const uint8_t* picture) {
  std::vector<std::vector<int8_t>> tensors(graph.tensors.size());
  for (size_t t = 0; t < tensors.size(); ++t) {
    if (graph.quantized(t)) tensors[t].resize(graph.tensors[t].size() + kOverread);
  }
  std::vector<std::vector<float>> real(tensors.size());
  for (size_t t = 0; t < tensors.size(); ++t) {
    if (!graph.quantized(t)) real[t].resize(graph.tensors[t].size());
  }
  if (graph.quantized(0)) {
    look_up_pixels(picture, graph.tensors[0].size(), pixel_integers(graph, scales), tensors[0].data());
  } else {
    look_up_pixels(picture, graph.tensors[0].size(), pixel_values(graph), real[0].data());
  }
  for (size_t l = 0; l < graph.layers.size(); ++l) {
    const Layer& layer = graph.layers[l];
    std::vector<Operand> inputs;
    for (const int input : layer.inputs) {
      inputs.push_back(graph.quantized(input) ? Operand{tensors[input].data(), nullptr}
                                              : Operand{nullptr, real[input].data()});
    }
    const Int7Layer int7(graph, l, scales);
    if (graph.quantized(layer.output)) {
      int7.run(inputs, tensors[layer.output].data());
    } else {
      int7.run_real(inputs, real[layer.output].data());
    }
  }
  for (size_t t = 0; t < tensors.size(); ++t) {
    if (tensors[t].empty()) continue;
    const Tensor& tensor = graph.tensors[t];
    std::vector<int8_t> first(tensor.size());
    for (int c = 0; c < tensor.channels; ++c) {
      for (int i = 0; i < tensor.area(); ++i) {
        first[int64_t{c} * tensor.area() + i] = tensors[t][int64_t{i} * tensor.channels + c];
      }
    }
    tensors[t] = std::move(first);
  }
  return tensors;
}

}  // namespace facetrain
