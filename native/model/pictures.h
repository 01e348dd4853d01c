// Converts pictures to the backbone's input, and embeds them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "model/executor.h"
#include "pixel_range.h"

namespace facetrain {

// Converts bytes [n, height, width, channels] to float32 [n, channels, height, width] in the range of the network's
// input, channels-last in memory, on the device of the bytes.
at::Tensor to_images(const at::Tensor& bytes, const PixelRange& range);

// A tensor [n, height, width, channels] of bytes that stay where they are. They must outlive it.
at::Tensor view_pixels(std::span<const uint8_t> pixels, int64_t height, int64_t width, int64_t channels);

// The embeddings [n, d] of images [n, channels, height, width] in evaluation mode, not normalized. With `flip`, the sum
// of the embeddings of a picture and of its mirror image, as in insightface's verification.
std::vector<float> embed(Executor& executor, const at::Tensor& images, bool flip);

}  // namespace facetrain
