// WebP, lossy and lossless, with libwebp.
#include <webp/decode.h>

#include <string>

#include "data/picture_readers.h"

namespace facetrain {
namespace {

void check(VP8StatusCode status) {
  switch (status) {
    case VP8_STATUS_OK:
      return;
    case VP8_STATUS_OUT_OF_MEMORY:
      throw std::bad_alloc();
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      throw NotDecodable("it has a feature that libwebp does not support");
    case VP8_STATUS_SUSPENDED:
    case VP8_STATUS_NOT_ENOUGH_DATA:
      throw NotDecodable("it ends early");
    default:
      throw NotDecodable("its data is damaged");
  }
}

class WebpReader : public PictureReader {
 public:
  explicit WebpReader(std::span<const uint8_t> encoded) : encoded_(encoded) {
    WebPBitstreamFeatures features;
    check(WebPGetFeatures(encoded.data(), encoded.size(), &features));
    if (features.has_animation) throw NotDecodable("it is animated");
    header_ = {features.height, features.width};
  }

  void decode(bool bgr, uint8_t* out) override {
    WebPDecoderConfig config;
    if (!WebPInitDecoderConfig(&config)) throw std::runtime_error("libwebp is of another version than its header");
    config.output.colorspace = bgr ? MODE_BGR : MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = out;
    config.output.u.RGBA.stride = static_cast<int>(3 * header_.width);
    config.output.u.RGBA.size = static_cast<size_t>(3 * header_.width * header_.height);
    check(WebPDecode(encoded_.data(), encoded_.size(), &config));
  }

 private:
  const std::span<const uint8_t> encoded_;
};

}  // namespace

std::unique_ptr<PictureReader> read_webp(std::span<const uint8_t> encoded) {
  return std::make_unique<WebpReader>(encoded);
}

}  // namespace facetrain
