// Augmentation that takes something from a training picture, as AdaFace's recipe has it (arXiv 2204.00964, section 4.1;
// the numbers are those of its code): most of the picture, its resolution, or its colors. Each is drawn from random
// numbers and applied in place to a picture [height, width, 3] of bytes.
#pragma once

#include <array>
#include <cstdint>

namespace facetrain {

// What stays of a picture; the rest becomes black. The picture keeps its size and place.
struct Crop {
  int top, left, height, width;
};
// As torchvision's RandomResizedCrop: a share of 0.2 to 1 of the area, with sides of ratio 3/4 to 4/3. `key` as for
// sequence_number (random.h).
Crop draw_crop(uint64_t key, int height, int width);
void crop(const Crop& crop, int height, int width, uint8_t* picture);

// Ways to resample, with the weights of OpenCV's resize (INTER_NEAREST, ...).
enum class Resampling : uint8_t { nearest, linear, area, cubic, lanczos };
inline constexpr int kResamplings = 5;

// The picture is scaled to a smaller one and back.
struct LowResolution {
  int height, width;  // of the smaller one
  Resampling down, up;
};
// Sides of 0.2 to 1 times those of the picture; each way at random.
LowResolution draw_low_resolution(uint64_t key, int height, int width);
void lower_resolution(const LowResolution& to, int height, int width, uint8_t* picture);
// `out` [out_height, out_width, 3] from `in` [height, width, 3]; they do not overlap. Beyond the border its pixels are
// repeated.
void resample(const uint8_t* in, int height, int width, Resampling way, int out_height, int out_width, uint8_t* out);

enum class ColorStep : uint8_t { brightness, contrast, saturation };

// As torchvision's ColorJitter(0.5, 0.5, 0.5): factors of 0.5 to 1.5, in an order of their own. A factor f gives
// f p + (1 - f) q, where q is black, the mean of the picture's luma, or the luma of the pixel.
struct ColorJitter {
  std::array<ColorStep, 3> order;
  double brightness, contrast, saturation;
};
ColorJitter draw_color_jitter(uint64_t key);
// `bgr`: the order of the picture's channels.
void jitter_color(const ColorJitter& jitter, int height, int width, bool bgr, uint8_t* picture);

}  // namespace facetrain
