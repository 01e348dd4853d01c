#include "quant/model.h"

#include <algorithm>
#include <cstddef>

#include "error.h"
#include "kernels/elementwise.h"

namespace facetrain {
namespace {

// Which buffer each tensor uses. A buffer is free again after its tensor's last reader; the graph's outputs keep
// theirs.
struct BufferPlan {
  std::vector<int> buffer;       // by tensor
  std::vector<int64_t> lengths;  // by buffer: bytes of the largest tensor in it

  // `bytes(tensor)` is the size of a number of the tensor.
  template <typename Bytes>
  BufferPlan(const LayerGraph& graph, const Bytes& bytes) : buffer(graph.tensors.size()) {
    std::vector<int> free;
    const auto take = [&](int tensor) {
      if (free.empty()) {
        free.push_back(static_cast<int>(lengths.size()));
        lengths.push_back(0);
      }
      buffer[tensor] = free.back();
      free.pop_back();
      lengths[buffer[tensor]] = std::max(lengths[buffer[tensor]], graph.tensors[tensor].size() * bytes(tensor));
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

// Buffers of bytes for each thread, by index of the buffer; aligned for floats.
using Buffers = std::vector<std::vector<std::byte>>;

std::vector<Buffers> make_buffers(const BufferPlan& plan, int threads) {
  std::vector<Buffers> result(threads);
  for (auto& buffers : result) {
    for (const int64_t length : plan.lengths) buffers.emplace_back(length + kOverread);
  }
  return result;
}

class RealModel final : public Model {
 public:
  RealModel(std::shared_ptr<const LayerGraph> graph, int threads)
      : Model(std::move(graph)),
        plan_(*graph_, [](int) { return int64_t{sizeof(float)}; }),
        buffers_(make_buffers(plan_, threads)),
        pixels_(pixel_values(*graph_)) {
    for (size_t l = 0; l < graph_->layers.size(); ++l) layers_.emplace_back(*graph_, l);
  }

  void embed(const uint8_t* picture, float* embedding, int thread) override {
    const auto at = [&](int tensor) { return reinterpret_cast<float*>(buffers_[thread][plan_.buffer[tensor]].data()); };
    look_up_pixels(picture, graph_->tensors[0].size(), pixels_, at(0));
    for (size_t l = 0; l < layers_.size(); ++l) {
      const Layer& layer = graph_->layers[l];
      std::vector<const float*> inputs;
      for (const int input : layer.inputs) inputs.push_back(at(input));
      layers_[l].run(inputs, at(layer.output));
    }
    for (const int output : graph_->outputs) {
      to_channels_first(graph_->tensors[output], at(output), embedding);
      embedding += graph_->tensors[output].size();
    }
  }

 private:
  BufferPlan plan_;
  std::vector<Buffers> buffers_;
  std::vector<float> pixels_;
  std::vector<RealLayer> layers_;
};

class Int7Model final : public Model {
 public:
  Int7Model(std::shared_ptr<const LayerGraph> graph, const Scales& scales, int threads)
      : Model(std::move(graph)),
        plan_(*graph_, [&](int tensor) { return int64_t{graph_->quantized(tensor) ? 1 : 4}; }),
        buffers_(make_buffers(plan_, threads)),
        real_pixels_(pixel_values(*graph_)),
        pixels_(graph_->quantized(0) ? pixel_integers(*graph_, scales) : std::vector<int8_t>()) {
    for (size_t l = 0; l < graph_->layers.size(); ++l) layers_.emplace_back(*graph_, l, scales);
  }

  void embed(const uint8_t* picture, float* embedding, int thread) override {
    const auto integers = [&](int tensor) {
      return reinterpret_cast<int8_t*>(buffers_[thread][plan_.buffer[tensor]].data());
    };
    const auto real = [&](int tensor) {
      return reinterpret_cast<float*>(buffers_[thread][plan_.buffer[tensor]].data());
    };
    const int64_t size = graph_->tensors[0].size();
    if (graph_->quantized(0)) {
      look_up_pixels(picture, size, pixels_, integers(0));
    } else {
      look_up_pixels(picture, size, real_pixels_, real(0));
    }
    for (size_t l = 0; l < layers_.size(); ++l) {
      const Layer& layer = graph_->layers[l];
      std::vector<Operand> inputs;
      for (const int input : layer.inputs) {
        inputs.push_back(graph_->quantized(input) ? Operand{integers(input), nullptr} : Operand{nullptr, real(input)});
      }
      if (graph_->quantized(layer.output)) {
        layers_[l].run(inputs, integers(layer.output));
      } else {
        layers_[l].run_real(inputs, real(layer.output));
      }
    }
    for (const int output : graph_->outputs) {
      to_channels_first(graph_->tensors[output], real(output), embedding);
      embedding += graph_->tensors[output].size();
    }
  }

 private:
  BufferPlan plan_;
  std::vector<Buffers> buffers_;
  std::vector<float> real_pixels_;
  std::vector<int8_t> pixels_;
  std::vector<Int7Layer> layers_;
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
  quantize(values.data(), static_cast<int64_t>(values.size()), scales.tensors[0], graph.tensors[0].limit(),
           integers.data());
  return integers;
}

void to_channels_first(const Tensor& tensor, const float* x, float* y) {
  for (int c = 0; c < tensor.channels; ++c) {
    for (int i = 0; i < tensor.area(); ++i) *y++ = x[int64_t{i} * tensor.channels + c];
  }
}

std::unique_ptr<Model> make_real_model(std::shared_ptr<const LayerGraph> graph, int threads) {
  return std::make_unique<RealModel>(std::move(graph), threads);
}

std::unique_ptr<Model> make_int7_model(std::shared_ptr<const LayerGraph> graph, const Scales& scales, int threads) {
  return std::make_unique<Int7Model>(std::move(graph), scales, threads);
}

void embed_pictures(Model& model, ThreadPool& pool, const PictureView& pictures, bool flip, float* embeddings,
                    const std::atomic<bool>& cancelled, const std::function<void(int64_t)>& on_done) {
  std::atomic<int64_t> done = 0;
  const int64_t dim = model.dim();
  pool.parallel_for(pictures.count, [&](int64_t n, int thread) {
    if (cancelled) throw Cancelled();
    float* embedding = embeddings + n * dim;
    model.embed(pictures.picture(n), embedding, thread);
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
      model.embed(mirrored.data(), second.data(), thread);
      for (int64_t i = 0; i < dim; ++i) embedding[i] += second[i];
    }
    const int64_t so_far = ++done;
    if (on_done) on_done(so_far);
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
