#include "data/picture.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>
#include <vector>

#include "data/file_kind.h"
#include "data/picture_readers.h"

namespace facetrain {
namespace {

using std::literals::operator""sv;  // NOLINT(misc-unused-using-decls): literals use it

struct Format {
  const char* name;
  std::unique_ptr<PictureReader> (*read)(std::span<const uint8_t>);
};

// Null when the bytes begin like no picture that is read here.
const Format* format_of(std::span<const uint8_t> encoded) {
  static constexpr Format kJpeg{"JPEG", read_jpeg}, kPng{"PNG", read_png}, kWebp{"WebP", read_webp},
      kBmp{"BMP", read_bmp};
  const std::string_view head(reinterpret_cast<const char*>(encoded.data()), std::min<size_t>(encoded.size(), 12));
  if (head.starts_with("\xff\xd8"sv)) return &kJpeg;
  if (head.starts_with("\x89PNG\r\n\x1a\n"sv)) return &kPng;
  if (head.starts_with("RIFF"sv) && head.ends_with("WEBP"sv)) return &kWebp;
  if (head.starts_with("BM"sv)) return &kBmp;
  return nullptr;
}

std::string text_of(int64_t height, int64_t width) {
  return std::to_string(height) + " x " + std::to_string(width) + " pixels (height x width)";
}

// Turns the stored picture [header.height, header.width, 3] upright. Exif: 2 is mirrored, 4 is upside down, 3 both. In
// 5 to 8 the file's rows are columns of the upright picture.
void turn_upright(const uint8_t* stored, const PictureHeader& header, uint8_t* out) {
  const int o = header.orientation;
  const bool exchanged = o >= 5;
  const int64_t height = exchanged ? header.width : header.height, width = exchanged ? header.height : header.width;
  const bool from_bottom = o == 3 || o == 4 || o == 7 || o == 8;
  const bool from_right = o == 2 || o == 3 || o == 6 || o == 7;
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x, out += 3) {
      const int64_t v = from_bottom ? height - 1 - y : y, u = from_right ? width - 1 - x : x;
      const int64_t row = exchanged ? u : v, column = exchanged ? v : u;
      std::copy_n(stored + 3 * (row * header.width + column), 3, out);
    }
  }
}

// Opens the picture; `allowed` ends the message when it is not one.
std::unique_ptr<PictureReader> open(std::span<const uint8_t> encoded, const std::function<std::string()>& allowed,
                                    const std::string& code, const std::function<std::string()>& subject) {
  const Format* const format = format_of(encoded);
  if (format == nullptr) {
    const FileKind* const kind = name_kind(encoded);
    throw BadPicture(code, subject(), kind ? "is " + std::string(kind->name) : "is no picture of a kind that is read",
                     allowed());
  }
  try {
    return format->read(encoded);
  } catch (const NotDecodable& error) {
    throw BadPicture(code, subject(), std::string("is no intact ") + format->name + " (" + error.what() + ")",
                     allowed());
  }
}

PictureSize upright_size(const PictureHeader& header) {
  return header.orientation >= 5 ? PictureSize{header.width, header.height} : PictureSize{header.height, header.width};
}

}  // namespace

void decode_picture(std::span<const uint8_t> encoded, int height, int width, bool bgr, uint8_t* out,
                    const std::string& code, const std::function<std::string()>& subject) {
  const auto allowed = [&] { return "a JPEG, PNG, WebP or BMP of " + text_of(height, width); };
  const auto reader = open(encoded, allowed, code, subject);
  const PictureHeader& header = reader->header();
  const PictureSize found = upright_size(header);
  if (found.height != height || found.width != width) {
    throw BadPicture(code, subject(), "has " + text_of(found.height, found.width),
                     "pictures have " + text_of(height, width));
  }
  try {
    if (header.orientation == 1) return reader->decode(bgr, out);
    std::vector<uint8_t> stored(size_t{3} * height * width);
    reader->decode(bgr, stored.data());
    turn_upright(stored.data(), header, out);
  } catch (const NotDecodable& error) {
    throw BadPicture(code, subject(),
                     std::string("is no intact ") + format_of(encoded)->name + " (" + error.what() + ")", allowed());
  }
}

void decode_aligned(std::span<const uint8_t> encoded, const Landmarks& landmarks, int side, bool bgr, uint8_t* out,
                    const std::string& code, const std::string& subject) {
  constexpr int64_t kMostPixels = int64_t{1} << 26;
  const auto [height, width] = size_of_picture(encoded, code, subject);
  if (height * width > kMostPixels) {
    throw BadPicture(code, subject, "has " + text_of(height, width), "at most 2^26 pixels");
  }
  const Similarity similarity = fit_to_template(landmarks, side);
  if (!std::isfinite(similarity.a) || !std::isfinite(similarity.dx)) {
    throw BadPicture(code, subject, "landmarks that are one point, or not finite", "five points of a face");
  }
  std::vector<uint8_t> picture(size_t{3} * static_cast<size_t>(height * width));
  decode_picture(encoded, static_cast<int>(height), static_cast<int>(width), bgr, picture.data(), code, subject);
  warp(picture.data(), static_cast<int>(height), static_cast<int>(width), similarity, side, out);
}

PictureSize size_of_picture(std::span<const uint8_t> encoded, const std::string& code, const std::string& subject) {
  const auto reader = open(
      encoded, [] { return "a JPEG, PNG, WebP or BMP"; }, code, [&] { return subject; });
  return upright_size(reader->header());
}

int exif_orientation(std::span<const uint8_t> tiff) {
  if (tiff.size() < 8) return 1;
  const bool big = tiff[0] == 'M';
  if (!(big ? tiff[1] == 'M' : tiff[0] == 'I' && tiff[1] == 'I')) return 1;
  const auto number = [&](size_t at, size_t bytes) -> uint64_t {  // 0 outside of the data
    if (at > tiff.size() || tiff.size() - at < bytes) return 0;
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i) value = value << 8 | tiff[at + (big ? i : bytes - 1 - i)];
    return value;
  };
  const uint64_t directory = number(4, 4);
  const uint64_t entries = number(directory, 2);
  for (uint64_t i = 0; i < entries && directory + 2 + 12 * (i + 1) <= tiff.size(); ++i) {
    const uint64_t entry = directory + 2 + 12 * i;
    constexpr uint64_t kOrientation = 0x0112, kShort = 3;
    if (number(entry, 2) != kOrientation) continue;
    const uint64_t value = number(entry + 8, 2);
    return number(entry + 2, 2) == kShort && value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

}  // namespace facetrain
