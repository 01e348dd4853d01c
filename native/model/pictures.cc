#include "model/pictures.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/flip.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>

namespace facetrain {

at::Tensor view_pixels(std::span<const uint8_t> pixels, int64_t height, int64_t width, int64_t channels) {
  const auto n = static_cast<int64_t>(pixels.size()) / (height * width * channels);
  return at::from_blob(const_cast<uint8_t*>(pixels.data()), {n, height, width, channels}, at::kByte);
}

at::Tensor to_images(const at::Tensor& bytes, const PixelRange& range) {
  const at::Device device = bytes.device();
  at::Tensor images = bytes.to(at::kFloat);
  if (range.is_default()) {
    images.div_(127.5).sub_(1);
  } else {
    const at::Tensor std = at::tensor(range.std).to(device);
    images.div_(std).sub_(at::tensor(range.mean).to(device).div_(std));
  }
  return images.permute({0, 3, 1, 2});
}

std::vector<float> embed(Executor& executor, const at::Tensor& images, bool flip) {
  at::Tensor embeddings = executor.forward(images, Pass::evaluation);
  if (flip) embeddings = embeddings + executor.forward(images.flip({3}), Pass::evaluation);
  embeddings = embeddings.cpu().contiguous();
  const float* values = embeddings.const_data_ptr<float>();
  return {values, values + embeddings.numel()};
}

}  // namespace facetrain
