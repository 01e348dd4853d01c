// PNG, with libpng.
#include <png.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "data/picture_readers.h"

namespace facetrain {
namespace {

class PngReader : public PictureReader {
 public:
  explicit PngReader(std::span<const uint8_t> encoded) : rest_(encoded) {
    if (!read_header()) {
      destroy();
      throw NotDecodable(message_);
    }
    header_ = {png_get_image_height(png_, info_), png_get_image_width(png_, info_), orientation()};
  }

  ~PngReader() override { destroy(); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  void decode(bool bgr, uint8_t* out) override {
    std::vector<png_bytep> rows(static_cast<size_t>(header_.height));
    for (size_t y = 0; y < rows.size(); ++y) rows[y] = out + size_t{3} * static_cast<size_t>(header_.width) * y;
    if (!read_rows(bgr, rows.data())) throw NotDecodable(message_);
  }

 private:
  static PngReader& self(png_structp png) { return *static_cast<PngReader*>(png_get_error_ptr(png)); }

  bool read_header() {
    const auto fail = [](png_structp png, png_const_charp message) {
      std::snprintf(self(png).message_, sizeof(self(png).message_), "%s", message);
      png_longjmp(png, 1);
    };
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fail, [](png_structp, png_const_charp) {});
    if (png_ != nullptr) info_ = png_create_info_struct(png_);
    if (info_ == nullptr) {
      std::snprintf(message_, sizeof(message_), "out of memory");
      return false;
    }
    if (setjmp(png_jmpbuf(png_)) != 0) return false;
    png_set_read_fn(png_, this, [](png_structp png, png_bytep to, size_t count) {
      auto& rest = static_cast<PngReader*>(png_get_io_ptr(png))->rest_;
      if (rest.size() < count) png_error(png, "it ends early");
      std::copy_n(rest.data(), count, to);
      rest = rest.subspan(count);
    });
    png_read_info(png_, info_);
    return true;
  }

  bool read_rows(bool bgr, png_bytepp rows) {
    if (setjmp(png_jmpbuf(png_)) != 0) return false;
    const int type = png_get_color_type(png_, info_), depth = png_get_bit_depth(png_, info_);
    if (depth == 16) png_set_strip_16(png_);
    if (type == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png_);
    if (type == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(png_);
    if ((type & PNG_COLOR_MASK_COLOR) == 0) png_set_gray_to_rgb(png_);
    png_set_strip_alpha(png_);
    if (bgr) png_set_bgr(png_);
    png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    if (png_get_rowbytes(png_, info_) != size_t{3} * static_cast<size_t>(header_.width)) {
      png_error(png_, "it has rows of another length");
    }
    // png_read_end is left out: there are no pixels behind these.
    png_read_image(png_, rows);
    return true;
  }

  int orientation() {
    png_uint_32 size = 0;
    png_bytep data = nullptr;
    if (png_get_eXIf_1(png_, info_, &size, &data) == 0) return 1;
    return exif_orientation({data, size});
  }

  void destroy() { png_destroy_read_struct(&png_, &info_, nullptr); }

  std::span<const uint8_t> rest_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  char message_[200] = {};
};

}  // namespace

std::unique_ptr<PictureReader> read_png(std::span<const uint8_t> encoded) {
  return std::make_unique<PngReader>(encoded);
}

}  // namespace facetrain
