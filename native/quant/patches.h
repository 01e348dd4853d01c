// The sample of output pixels that the search scores a layer on, and the inputs that these pixels read.
//
// Neighboring pixels are similar, so about 3000 pixels over all pictures suffice; with many pictures, 16 of each, then
// fewer. A layer's patches are copied once and then used by all candidates.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/conv.h"
#include "quant/cancellable_pool.h"
#include "quant/layerwise_pass.h"
#include "quant/real_layer.h"

namespace facetrain {

// The sampled pixels of picture n, of `area` pixels: evenly spaced, and shifted from picture to picture by the golden
// ratio, so that together they cover the area. As many for every picture.
inline std::vector<int> sample_pixels(int area, int64_t pictures, int64_t n) {
  constexpr int64_t kAllPixels = 3000;  // over all pictures
  constexpr int64_t kLeastPixels = 16;  // of a picture, while there are at most
  constexpr int64_t kManyPictures = 1000;
  const int64_t least = std::max<int64_t>(1, kLeastPixels * kManyPictures / std::max(pictures, kManyPictures));
  const auto count = static_cast<int>(std::min<int64_t>(area, std::max(least, kAllPixels / pictures)));
  const double shift = std::fmod(0.6180339887 * static_cast<double>(n), 1.0);
  std::vector<int> pixels(count);
  for (int i = 0; i < count; ++i) pixels[i] = static_cast<int>((i + shift) * area / count);
  return pixels;
}

// The inputs of a convolution's sampled output pixels: values [picture][pixel][tap][channel], zeros where a tap lies in
// the padding.
template <typename T>
class Patches {
 public:
  // source(n) returns the layer's input for picture n.
  template <typename Source>
  Patches(const ConvShape& shape, int64_t pictures, const CancellablePool& pool, const Source& source) : shape_(shape) {
    pixels_ = static_cast<int>(sample_pixels(shape.out_area(), pictures, 0).size());
    values_.resize(pictures * picture_size() + kOverread);
    const std::vector<T> zeros(shape.in_channels);
    pool.parallel_for(pictures, [&](int64_t n, int) {
      std::vector<const T*> taps(shape.taps());
      T* out = values_.data() + n * picture_size();
      for (const int pixel : sample_pixels(shape.out_area(), pictures, n)) {
        tap_pointers(shape, pixel, source(n), zeros.data(), taps.data());
        for (const T* tap : taps) out = std::copy_n(tap, shape.in_channels, out);
      }
    });
  }

  // Sampled pixels of a picture.
  int pixels() const { return pixels_; }
  int64_t picture_size() const { return int64_t{pixels_} * shape_.taps() * shape_.in_channels; }
  const T* picture(int64_t n) const { return values_.data() + n * picture_size(); }

 private:
  ConvShape shape_;
  int pixels_;
  std::vector<T> values_;
};

// Pointers to the taps of `pixels` consecutive patches from `x` on, for Conv::run and RealConv::run.
template <typename T>
std::vector<const T*> patch_taps(const ConvShape& shape, int pixels, const T* x) {
  std::vector<const T*> taps(int64_t{pixels} * shape.taps());
  for (auto& tap : taps) {
    tap = x;
    x += shape.in_channels;
  }
  return taps;
}

// The FP32 outputs of convolution `l` at its sampled pixels, which candidates are compared with. The pass must hold the
// layer's FP32 input.
struct Targets {
  std::vector<float> values;    // [picture][pixel][channel]
  std::vector<double> squares;  // [picture][channel]: sums of the squared values

  Targets(const LayerwisePass& pass, const LayerGraph& graph, int l, const CancellablePool& pool) {
    const Layer& layer = graph.layers[l];
    const ConvShape& shape = layer.shape;
    const Patches<float> patches(shape, pass.pictures(), pool, [&](int64_t n) { return pass.real(layer.input, n); });
    const RealLayer real(graph, l);
    const int64_t size = int64_t{patches.pixels()} * shape.out_channels;
    values.resize(pass.pictures() * size);
    squares.resize(pass.pictures() * shape.out_channels);
    pool.parallel_for(pass.pictures(), [&](int64_t n, int) {
      const auto taps = patch_taps(shape, patches.pixels(), patches.picture(n));
      real.conv().run(taps.data(), patches.pixels(), values.data() + n * size);
      for (int64_t i = 0; i < size; ++i) {
        const double value = values[n * size + i];
        squares[n * shape.out_channels + i % shape.out_channels] += value * value;
      }
    });
  }
};

}  // namespace facetrain
