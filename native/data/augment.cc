#include "data/augment.h"

#include <algorithm>
#include <cstring>

namespace facetrain {
namespace {

// Copies pixels of three bytes in reverse order. Moves four bytes at once, of which the fourth is overwritten by the
// next pixel: a copy of three bytes a pixel takes as long as a fifth of the JPEG's decoding.
void copy_mirrored(const uint8_t* in, int64_t pixels, uint8_t* out) {
  if (pixels == 0) return;
  const uint8_t* from = in + 3 * (pixels - 1);
  if (pixels > 1) {
    std::memcpy(out, from, 3);  // there may be no fourth byte behind the last pixel
    for (int64_t i = 1; i < pixels - 1; ++i) std::memcpy(out + 3 * i, from - 3 * i, 4);
  }
  std::memcpy(out + 3 * (pixels - 1), in, 3);
}

void repeat(const uint8_t* pixel, int64_t count, uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) std::memcpy(out + 3 * i, pixel, 3);
}

}  // namespace

void augment(const uint8_t* in, int height, int width, const Augmentation& augmentation, uint8_t* out) {
  const auto [mirror, dy, dx] = augmentation;
  // Of each row: pixels that repeat the first one, pixels that are copied, pixels that repeat the last one.
  const int64_t left = std::clamp(dx, 0, width), right = std::clamp(-dx, 0, width), middle = width - left - right;
  for (int y = 0; y < height; ++y) {
    const uint8_t* const row = in + int64_t{3} * width * std::clamp(y - dy, 0, height - 1);
    const uint8_t* const first = mirror ? row + 3 * (width - 1) : row;
    const uint8_t* const last = mirror ? row : row + 3 * (width - 1);
    repeat(first, left, out);
    if (mirror) {
      copy_mirrored(row + 3 * left, middle, out + 3 * left);
    } else {
      std::memcpy(out + 3 * left, row + 3 * right, static_cast<size_t>(3 * middle));
    }
    repeat(last, right, out + 3 * (left + middle));
    out += int64_t{3} * width;
  }
}

}  // namespace facetrain
