// BMP without compression, with stb_image. The other libraries in Debian that read BMP bring those of a dozen formats
// with them, or are not maintained.
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#include <stb/stb_image.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include "data/picture_readers.h"

namespace facetrain {
namespace {

class BmpReader : public PictureReader {
 public:
  explicit BmpReader(std::span<const uint8_t> encoded) : encoded_(encoded) {
    if (encoded.size() > std::numeric_limits<int>::max()) throw NotDecodable("it has more than 2 GiB");
    int width = 0, height = 0, channels = 0;
    if (!stbi_info_from_memory(encoded.data(), static_cast<int>(encoded.size()), &width, &height, &channels)) {
      const uint32_t compression = number(30, 4);
      const bool run_lengths = compression == 1 || compression == 2;
      throw NotDecodable(run_lengths ? "its run-length encoding is not supported" : stbi_failure_reason());
    }
    header_ = {std::abs(int64_t{height}), width};  // a negative height: the top row comes first
    // stb_image takes zeros after the end of the file.
    if (encoded.size() < bytes_of_pixels()) throw NotDecodable("it ends early");
  }

  void decode(bool bgr, uint8_t* out) override {
    int width = 0, height = 0, channels = 0;
    const std::unique_ptr<uint8_t, void (*)(void*)> pixels(
        stbi_load_from_memory(encoded_.data(), static_cast<int>(encoded_.size()), &width, &height, &channels, 3),
        stbi_image_free);
    if (!pixels) throw NotDecodable(stbi_failure_reason());
    if (width != header_.width || height != header_.height) throw NotDecodable("its header contradicts itself");
    const int64_t bytes = 3 * header_.width * header_.height;
    std::memcpy(out, pixels.get(), static_cast<size_t>(bytes));
    for (int64_t i = 0; bgr && i < bytes; i += 3) std::swap(out[i], out[i + 2]);
  }

 private:
  uint32_t number(size_t at, size_t bytes) const {
    uint32_t value = 0;
    for (size_t i = bytes; i-- > 0;) {
      value = value << 8 | (at + i < encoded_.size() ? encoded_[at + i] : 0);
    }
    return value;
  }

  // Where the last row's pixels end. Rows are padded to four bytes; the padding of the last one may be missing.
  uint64_t bytes_of_pixels() const {
    constexpr uint32_t kCoreHeader = 12;  // OS/2's, with shorter numbers
    const uint64_t bits = number(number(14, 4) == kCoreHeader ? 24 : 28, 2);
    const auto width = static_cast<uint64_t>(header_.width), height = static_cast<uint64_t>(header_.height);
    const uint64_t row = (width * bits + 7) / 8;
    return number(10, 4) + (row + 3) / 4 * 4 * (height - 1) + row;
  }

  const std::span<const uint8_t> encoded_;
};

}  // namespace

std::unique_ptr<PictureReader> read_bmp(std::span<const uint8_t> encoded) {
  return std::make_unique<BmpReader>(encoded);
}

}  // namespace facetrain
