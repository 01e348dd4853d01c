// JPEG, with libjpeg-turbo's libjpeg interface: TurboJPEG's does not say which warning there was.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <string_view>
#include <vector>

#include "data/picture_readers.h"

// These need <cstdio> first.
#include <jerror.h>
#include <jpeglib.h>

namespace facetrain {
namespace {

// Scans of a progressive JPEG. A few kilobytes of empty scans would otherwise keep the decoder busy for minutes;
// turbojpeg's TJFLAG_LIMITSCANS has the same number.
constexpr int kScans = 500;

class JpegReader : public PictureReader {
 public:
  explicit JpegReader(std::span<const uint8_t> encoded) {
    jpeg_.err = jpeg_std_error(&errors_);
    jpeg_.client_data = this;
    errors_.error_exit = [](j_common_ptr jpeg) {
      auto& message = self(jpeg).message_;
      jpeg->err->format_message(jpeg, message);
      // libjpeg continues with end markers after the end, so its message may be about those.
      if (self(jpeg).no_end_marker_) std::snprintf(message, sizeof(message), "it ends early");
      std::longjmp(self(jpeg).jump_, 1);
    };
    errors_.emit_message = [](j_common_ptr jpeg, int level) {
      if (level >= 0) return;  // a trace
      const int code = jpeg->err->msg_code;
      if (code == JWRN_HIT_MARKER) self(jpeg).ends_early_ = true;
      if (code == JWRN_JPEG_EOF) self(jpeg).no_end_marker_ = true;
    };
    progress_.progress_monitor = [](j_common_ptr jpeg) {
      auto* const decompress = reinterpret_cast<j_decompress_ptr>(jpeg);
      if (decompress->input_scan_number <= kScans) return;
      std::snprintf(self(jpeg).message_, sizeof(self(jpeg).message_), "it has more than %d scans", kScans);
      std::longjmp(self(jpeg).jump_, 1);
    };
    if (!read_header(encoded)) {
      jpeg_destroy_decompress(&jpeg_);
      throw NotDecodable(message_);
    }
    header_ = {jpeg_.image_height, jpeg_.image_width, orientation()};
  }

  ~JpegReader() override { jpeg_destroy_decompress(&jpeg_); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  void decode(bool bgr, uint8_t* out) override {
    const bool cmyk = jpeg_.jpeg_color_space == JCS_CMYK || jpeg_.jpeg_color_space == JCS_YCCK;
    if (jpeg_.num_components == 2 || (jpeg_.num_components == 4 && !cmyk)) {
      throw NotDecodable("it has " + std::to_string(jpeg_.num_components) + " color components of unknown meaning");
    }
    jpeg_.out_color_space = cmyk ? JCS_CMYK : bgr ? JCS_EXT_BGR : JCS_EXT_RGB;
    if (!start()) throw NotDecodable(message_);
    const size_t row_bytes = size_t{3} * jpeg_.image_width;
    const Rows rows(jpeg_.image_width * size_t{cmyk ? 4u : 3u});
    while (jpeg_.output_scanline < jpeg_.output_height) {
      const JDIMENSION first = jpeg_.output_scanline;
      if (!read_rows(rows)) throw NotDecodable(message_);
      for (JDIMENSION i = 0; first + i < jpeg_.output_scanline; ++i, out += row_bytes) {
        if (cmyk) {
          to_rgb(rows.at(i), bgr, out);
        } else {
          std::copy_n(rows.at(i), row_bytes, out);
        }
      }
    }
    // jpeg_finish_decompress is left out: it reads on to the end marker, and there are no pixels behind these.
    check_complete();
  }

 private:
  static JpegReader& self(j_common_ptr jpeg) { return *static_cast<JpegReader*>(jpeg->client_data); }

  bool read_header(std::span<const uint8_t> encoded) {
    if (setjmp(jump_) != 0) return false;
    jpeg_create_decompress(&jpeg_);
    jpeg_.progress = &progress_;
    jpeg_mem_src(&jpeg_, encoded.data(), encoded.size());
    jpeg_save_markers(&jpeg_, JPEG_APP0 + 1, 0xffff);  // Exif
    jpeg_read_header(&jpeg_, TRUE);
    return true;
  }

  bool start() {
    if (setjmp(jump_) != 0) return false;
    jpeg_start_decompress(&jpeg_);
    return true;
  }

  // A few decoded rows. None begins at a multiple of 16 bytes: there libjpeg-turbo writes with stores that bypass the
  // caches (vmovntdq in jdcolext-avx2.asm, movntdq in jdcolext-sse2.asm), for which the rows after it wait. A picture
  // of 112 x 112 then takes 80 us instead of 50.
  class Rows {
   public:
    static constexpr JDIMENSION kCount = 8;
    explicit Rows(size_t bytes) : stride_((bytes + 31) / 32 * 32), memory_(kCount * stride_ + 32) {
      const auto address = reinterpret_cast<uintptr_t>(memory_.data());
      first_ = const_cast<uint8_t*>(memory_.data()) + (32 - address % 32) % 32 + 8;
    }
    uint8_t* at(JDIMENSION row) const { return first_ + row * stride_; }

   private:
    size_t stride_;
    std::vector<uint8_t> memory_;
    uint8_t* first_;
  };

  // Reads one row or more.
  bool read_rows(const Rows& to) {
    if (setjmp(jump_) != 0) return false;
    JSAMPROW rows[Rows::kCount];
    for (JDIMENSION i = 0; i < Rows::kCount; ++i) rows[i] = to.at(i);
    // It stops at the last row of the picture.
    jpeg_read_scanlines(&jpeg_, rows, Rows::kCount);
    return true;
  }

  int orientation() const {
    for (const auto* marker = jpeg_.marker_list; marker != nullptr; marker = marker->next) {
      constexpr std::string_view kExif("Exif\0\0", 6);
      const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
      if (data.starts_with(kExif)) {
        return exif_orientation(std::span<const uint8_t>(marker->data, marker->data_length).subspan(kExif.size()));
      }
    }
    return 1;
  }

  // Adobe's programs store inverted inks: 255 is none.
  void to_rgb(const uint8_t* row, bool bgr, uint8_t* out) const {
    const int flip = jpeg_.saw_Adobe_marker ? 0 : 255;
    for (size_t x = 0; x < jpeg_.image_width; ++x, out += 3) {
      const uint8_t* const inks = row + 4 * x;
      const int white = inks[3] ^ flip;
      for (int c = 0; c < 3; ++c) {
        const int value = ((inks[c] ^ flip) * white + 127) / 255;
        out[bgr ? 2 - c : c] = static_cast<uint8_t>(value);
      }
    }
  }

  void check_complete() const {
    // An arithmetic decoder takes zeros after the end without a warning of its own.
    bool complete = !ends_early_ && !(jpeg_.arith_code && no_end_marker_);
    for (int c = 0; c < jpeg_.num_components; ++c) {
      if (jpeg_.comp_info[c].quant_table == nullptr) complete = false;  // set at the component's first scan
      if (!no_end_marker_ || jpeg_.coef_bits == nullptr) continue;
      // For each coefficient the number of bits that are still missing, -1 for all of them.
      const int* const missing = jpeg_.coef_bits[c];
      if (std::any_of(missing, missing + DCTSIZE2, [](int bits) { return bits != 0; })) complete = false;
    }
    if (!complete) throw NotDecodable("it ends early");
  }

  jpeg_decompress_struct jpeg_{};
  jpeg_error_mgr errors_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf jump_{};
  char message_[JMSG_LENGTH_MAX] = {};
  bool ends_early_ = false, no_end_marker_ = false;
};

}  // namespace

std::unique_ptr<PictureReader> read_jpeg(std::span<const uint8_t> encoded) {
  return std::make_unique<JpegReader>(encoded);
}

}  // namespace facetrain
