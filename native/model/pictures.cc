#include "model/pictures.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/flip.h>
#include <ATen/ops/from_blob.h>

namespace facetrain {

at::Tensor to_images(const std::vector<uint8_t>& pixels, int64_t height, int64_t width, int64_t channels,
                     at::Device device) {
  const auto n = static_cast<int64_t>(pixels.size()) / (height * width * channels);
  const at::Tensor bytes = at::from_blob(const_cast<uint8_t*>(pixels.data()), {n, height, width, channels}, at::kByte);
  return bytes.to(device).to(at::kFloat).div_(127.5).sub_(1).permute({0, 3, 1, 2});
}

std::vector<float> embed(Executor& executor, const at::Tensor& images, bool flip) {
  at::Tensor embeddings = executor.forward(images, /*training=*/false);
  if (flip) embeddings = embeddings + executor.forward(images.flip({3}), /*training=*/false);
  embeddings = embeddings.cpu().contiguous();
  const float* values = embeddings.const_data_ptr<float>();
  return {values, values + embeddings.numel()};
}

}  // namespace facetrain
