// Stand-ins for the readers of pictures whose library was not there when this was built (cmake/Pictures.cmake).
#include <cstring>
#include <string>

#include "data/picture_readers.h"
#include "error.h"

namespace facetrain {
namespace {

[[noreturn, maybe_unused]] void refuse(const std::string& format, const std::string& library) {
  throw Error("InvalidDataset", "pictures", "are " + format + ", which this build cannot read",
              "a build with " + library);
}

}  // namespace

#if defined(FACETRAIN_ABSENT_JPEG)
std::unique_ptr<PictureReader> read_jpeg(std::span<const uint8_t>) { refuse("JPEG", "libjpeg"); }
#endif
#if defined(FACETRAIN_ABSENT_PNG)
std::unique_ptr<PictureReader> read_png(std::span<const uint8_t>) { refuse("PNG", "libpng"); }
#endif
#if defined(FACETRAIN_ABSENT_WEBP)
std::unique_ptr<PictureReader> read_webp(std::span<const uint8_t>) { refuse("WebP", "libwebp"); }
#endif

#if defined(FACETRAIN_ABSENT_BMP)
namespace {

// The one kind that needs no library: 24 bits a pixel, not compressed. A benchmark of training needs some pictures.
class PlainBmp final : public PictureReader {
 public:
  explicit PlainBmp(std::span<const uint8_t> encoded) : encoded_(encoded) {
    if (encoded.size() < 54) throw NotDecodable("it is too short");
    const int32_t height = number<int32_t>(22);
    bottom_up_ = height > 0;
    header_.height = bottom_up_ ? height : -int64_t{height};
    header_.width = number<int32_t>(18);
    if (number<uint16_t>(28) != 24 || number<uint32_t>(30) != 0) refuse("compressed BMP", "stb");
    stride_ = (3 * header_.width + 3) / 4 * 4;
    start_ = number<uint32_t>(10);
    const auto size = static_cast<int64_t>(encoded.size());
    if (header_.width <= 0 || header_.height <= 0 || header_.height > size / stride_ ||
        start_ > size - stride_ * header_.height) {
      throw NotDecodable("it has fewer pixels than its header says");
    }
  }

  void decode(bool bgr, uint8_t* out) override {
    for (int64_t y = 0; y < header_.height; ++y) {
      const int64_t row = bottom_up_ ? header_.height - 1 - y : y;
      const uint8_t* pixel = encoded_.data() + start_ + row * stride_;
      for (int64_t x = 0; x < header_.width; ++x, pixel += 3, out += 3) {
        out[0] = pixel[bgr ? 0 : 2];
        out[1] = pixel[1];
        out[2] = pixel[bgr ? 2 : 0];
      }
    }
  }

 private:
  template <class T>
  T number(size_t at) const {
    T value;
    std::memcpy(&value, encoded_.data() + at, sizeof(value));
    return value;
  }

  const std::span<const uint8_t> encoded_;
  int64_t start_ = 0, stride_ = 0;
  bool bottom_up_ = true;
};

}  // namespace

std::unique_ptr<PictureReader> read_bmp(std::span<const uint8_t> encoded) {
  return std::make_unique<PlainBmp>(encoded);
}
#endif

}  // namespace facetrain
