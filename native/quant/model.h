// Networks that turn pictures into embeddings: FP32 and INT7, picture by picture.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/thread_pool.h"
#include "quant/int7_layer.h"
#include "quant/real_layer.h"

namespace facetrain {

// Pictures [count, height, width, 3] as the network's input has them.
struct PictureView {
  const uint8_t* data = nullptr;
  int64_t count = 0;
  int height = 0, width = 0;

  int64_t size() const { return int64_t{height} * width * 3; }
  const uint8_t* picture(int64_t n) const { return data + n * size(); }
};

// The value of a byte: x / 127.5 - 1.
inline float real_pixel(uint8_t byte) { return static_cast<float>(byte) / 127.5f - 1.0f; }
// The integer of each byte.
std::vector<int8_t> pixel_integers(const LayerGraph& graph, const Scales& scales);

// Values of the graph's output in ONNX's order, [channels, height, width].
void to_channels_first(const Tensor& tensor, const float* x, float* y);

class Model {
 public:
  virtual ~Model() = default;
  int64_t dim() const { return graph_->tensors[graph_->output].size(); }
  const LayerGraph& graph() const { return *graph_; }
  // Calls of one `thread` (below the model's threads) must not overlap.
  virtual void embed(const uint8_t* picture, float* embedding, int thread) = 0;

 protected:
  explicit Model(std::shared_ptr<const LayerGraph> graph) : graph_(std::move(graph)) {}
  std::shared_ptr<const LayerGraph> graph_;
};

std::unique_ptr<Model> make_real_model(std::shared_ptr<const LayerGraph> graph, int threads);
std::unique_ptr<Model> make_int7_model(std::shared_ptr<const LayerGraph> graph, const Scales& scales, int threads);

// embeddings [count, dim]. With `flip` the sum over a picture and its mirror image. `on_done` gets the number of
// pictures done so far, from any thread. Throws Cancelled.
void embed_pictures(Model& model, ThreadPool& pool, const PictureView& pictures, bool flip, float* embeddings,
                    const std::atomic<bool>& cancelled, const std::function<void(int64_t)>& on_done = {});

// Every quantised tensor's integers of one picture, by tensor, in ONNX's order; empty for the graph's output.
std::vector<std::vector<int8_t>> run_layers(const LayerGraph& graph, const Scales& scales, const uint8_t* picture);

}  // namespace facetrain
