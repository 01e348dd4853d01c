// One reader for each format that picture.cc decodes. Each is used for one picture: the constructor reads the header,
// decode() the pixels. The libraries are in C, and report errors by longjmp: no function here that calls setjmp has
// local objects with destructors.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>

namespace facetrain {

// Why a picture cannot be decoded, in the library's words.
struct NotDecodable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A picture as the file stores it.
struct PictureHeader {
  int64_t height = 0, width = 0;
  int orientation = 1;  // Exif's, 1 to 8; 1 is upright
};

class PictureReader {
 public:
  virtual ~PictureReader() = default;
  const PictureHeader& header() const { return header_; }
  // Writes [height, width, 3] of the stored picture, RGB or BGR. Throws NotDecodable.
  virtual void decode(bool bgr, uint8_t* out) = 0;

 protected:
  PictureHeader header_;
};

// Each throws NotDecodable. The bytes must outlive the reader.
std::unique_ptr<PictureReader> read_jpeg(std::span<const uint8_t> encoded);
std::unique_ptr<PictureReader> read_png(std::span<const uint8_t> encoded);
std::unique_ptr<PictureReader> read_webp(std::span<const uint8_t> encoded);
std::unique_ptr<PictureReader> read_bmp(std::span<const uint8_t> encoded);

// The value of tag 0x0112 in the first directory of Exif data (a TIFF header, and entries of 12 bytes: JEITA CP-3451,
// 4.6.2 and 4.6.4 A); 1 when there is none, or when the data is damaged.
int exif_orientation(std::span<const uint8_t> tiff);

}  // namespace facetrain
