// The networks that embed pictures, in FP32 and in INT7: one picture at a time, in buffers that are allocated once for
// each thread. A buffer is reused after the last reader of its tensor.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "int7/runtime.h"
#include "kernels/thread_pool.h"
#include "quant/int7_layer.h"
#include "quant/real_layer.h"

namespace facetrain {

// Pictures [count, height, width, channels] of bytes: three channels in the order that the network expects, or one.
// Does not own them.
struct PictureView {
  const uint8_t* data = nullptr;
  int64_t count = 0;
  int height = 0, width = 0, channels = 3;

  int64_t size() const { return int64_t{height} * width * channels; }
  const uint8_t* picture(int64_t n) const { return data + n * size(); }
};

// The network's input for each byte, [256] for each of its channels; real, and in integers.
std::vector<float> pixel_values(const LayerGraph& graph);
std::vector<int8_t> pixel_integers(const LayerGraph& graph, const Scales& scales);
// Looks up the bytes of pictures, `count` in all, in one of these tables.
template <typename T>
void look_up_pixels(const uint8_t* bytes, int64_t count, const std::vector<T>& table, T* out) {
  const auto channels = static_cast<int>(table.size() / 256);
  for (int64_t i = 0; i < count; i += channels) {
    for (int c = 0; c < channels; ++c) out[i + c] = table[c * 256 + bytes[i + c]];
  }
}

// Copies a tensor from [height, width, channels] to ONNX's order, [channels, height, width].
void to_channels_first(const Tensor& tensor, const float* x, float* y);

class Model {
 public:
  virtual ~Model() = default;
  // Numbers of all outputs.
  int64_t dim() const { return dim_; }
  // Embeds one picture: `embedding` [dim()], the outputs one after the other, each in ONNX's order. `thread`, below the
  // number the model was made for, selects the buffers: calls with the same one must not overlap.
  virtual void embed(const uint8_t* picture, float* embedding, int thread) = 0;
  // Whether embed_alone uses all threads.
  virtual bool shares_picture() const { return false; }
  // The same with all threads of a pool of that number at one picture, where the model can use them.
  virtual void embed_alone(const uint8_t* picture, float* embedding, ThreadPool&) { embed(picture, embedding, 0); }
  // Embeds one picture and tells what each layer took; empty if the model does not measure it.
  virtual std::vector<int7::Runtime::StepTime> time_layers(const uint8_t*) { return {}; }

 protected:
  explicit Model(int64_t dim) : dim_(dim) {}

 private:
  int64_t dim_;
};

// In FP32.
std::unique_ptr<Model> make_real_model(std::shared_ptr<const LayerGraph> graph, int threads);
// What an INT7 network rounds: the three parts of its error.
enum class QuantizedPart {
  weights,   // of convolutions, and their biases
  operands,  // the tensors that convolutions multiply
  others,    // the other tensors that are integers: what is added, and what a PReLU reads
};
// In FP32, with one part of the network as its scales say.
std::unique_ptr<Model> make_partly_quantized_model(const LayerGraph& graph, const Scales& scales, QuantizedPart part,
                                                   int threads);
// In integers, by the runtime of int7/. `scales` must fit the graph (see resolve_scales).
std::unique_ptr<Model> make_int7_model(const LayerGraph& graph, const Scales& scales, int threads,
                                       Isa isa = best_isa());
// The same of a file, which is not trusted: what it takes is compared with `largest_memory`, in bytes. Throws as
// int7::Runtime.
std::unique_ptr<Model> make_int7_model(int7::Network network, int threads, Isa isa, int64_t largest_memory);

// Embeds all pictures on the pool's threads, or, where there are fewer pictures than threads and the model can share
// one, each on all threads: embeddings [count, dim]. With `flip`, an embedding is the sum of the embeddings of the
// picture and of its mirror image. `on_done` is called with the number of pictures done, from any thread. Throws
// Cancelled.
void embed_pictures(Model& model, ThreadPool& pool, const PictureView& pictures, bool flip, float* embeddings,
                    const std::atomic<bool>& cancelled, const std::function<void(int64_t)>& on_done = {});

// The integers of every quantized tensor for one picture, by index of the tensor, each [channels, height, width]; empty
// for the others. For tests and diagnosis.
std::vector<std::vector<int8_t>> run_layers(const LayerGraph& graph, const Scales& scales, const uint8_t* picture);

}  // namespace facetrain
