// Pictures as the backbone sees them, and their embeddings.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/executor.h"

namespace facetrain {

// Bytes [n, height, width, channels] -> float32 [n, channels, height, width] in [-1, 1] (x / 127.5 - 1), channels-last.
at::Tensor to_images(const std::vector<uint8_t>& pixels, int64_t height, int64_t width, int64_t channels,
                     at::Device device);

// [n, d], not normalised, in evaluation mode. With `flip`: the sum of the picture's and its mirror image's, as
// insightface's verification has it.
std::vector<float> embed(Executor& executor, const at::Tensor& images, bool flip);

}  // namespace facetrain
