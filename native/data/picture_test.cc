// Decodes pictures of every format that other encoders wrote: values, sizes, orientation, what is refused and why. Then
// damages each of them at random.
#include "data/picture.h"

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "data/file_kind.h"
#include "random.h"
#include "test/check.h"
#include "test/pictures.h"

using namespace facetrain;
using namespace facetrain::test;
using Bytes = std::vector<uint8_t>;

namespace {

constexpr int kHeight = 20, kWidth = 13;  // no multiples of a JPEG's blocks

// Smooth, so that JPEG keeps it, and no two corners are alike.
Bytes rgb_of(int height = kHeight, int width = kWidth) {
  Bytes pixels;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (const int value : {20 + 9 * y, 30 + 12 * x, 40 + 5 * y + 3 * x}) {
        pixels.push_back(static_cast<uint8_t>(std::min(value, 255)));
      }
    }
  }
  return pixels;
}

Bytes decode(const Bytes& encoded, int height = kHeight, int width = kWidth, bool bgr = false) {
  Bytes out(static_cast<size_t>(3 * height * width + 1), 0xee);
  decode_picture(encoded, height, width, bgr, out.data(), "InvalidDataset", "picture 7");
  CHECK_EQ(out.back(), 0xee);
  out.pop_back();
  return out;
}

int largest_difference(const Bytes& a, const Bytes& b) {
  if (a.size() != b.size()) return 256;
  int largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

Bytes reversed_channels(Bytes pixels) {
  for (size_t i = 0; i < pixels.size(); i += 3) std::swap(pixels[i], pixels[i + 2]);
  return pixels;
}

void test_formats() {
  const Bytes rgb = rgb_of();
  const std::map<std::string, std::pair<Bytes, int>> formats = {
      {"JPEG", {encode_jpeg(rgb, kHeight, kWidth), 4}},
      {"progressive JPEG", {encode_jpeg(rgb, kHeight, kWidth, {.progressive = true}), 4}},
      {"arithmetic JPEG", {encode_jpeg(rgb, kHeight, kWidth, {.arithmetic = true}), 4}},
      {"PNG", {encode_png(rgb, kHeight, kWidth), 0}},
      {"interlaced PNG", {encode_png(rgb, kHeight, kWidth, {.interlaced = true}), 0}},
      {"WebP", {encode_webp(rgb, kHeight, kWidth), 0}},
      {"BMP", {encode_bmp(rgb, kHeight, kWidth), 0}},
  };
  for (const auto& [name, format] : formats) {
    const auto& [encoded, tolerance] = format;
    CHECK(largest_difference(decode(encoded), rgb) <= tolerance);
    CHECK(decode(encoded, kHeight, kWidth, true) == reversed_channels(decode(encoded)));
    const PictureSize size = size_of_picture(encoded, "InvalidDataset", "picture 7");
    CHECK_EQ(size.height, kHeight);
    CHECK_EQ(size.width, kWidth);
    CHECK_THROWS(decode(encoded, kWidth, kHeight), BadPicture,
                 "picture 7: has 20 x 13 pixels (height x width); pictures have 13 x 20 pixels (height x width)");
    // Without the last 30 bytes, parts of the pixels are missing in each of them.
    for (const size_t left : {encoded.size() / 2, encoded.size() - 30}) {
      CHECK_THROWS(decode(Bytes(encoded.begin(), encoded.begin() + static_cast<ptrdiff_t>(left))), BadPicture,
                   "picture 7: is no intact " + name.substr(name.find_last_of(' ') + 1) + " (it ends early");
    }
  }
}

// Gray, palettes, 16 bits, alpha: the channels that OpenCV and Pillow give.
void test_png_types() {
  const Bytes rgb = rgb_of();
  Bytes gray, gray_alpha, rgba, wide, expected_gray, indices, expected_palette;
  for (size_t i = 0; i < rgb.size(); i += 3) {
    gray.push_back(rgb[i]);
    gray_alpha.insert(gray_alpha.end(), {rgb[i], static_cast<uint8_t>(i)});
    rgba.insert(rgba.end(), {rgb[i], rgb[i + 1], rgb[i + 2], static_cast<uint8_t>(i)});
    for (size_t c = 0; c < 3; ++c) wide.insert(wide.end(), {rgb[i + c], 0xff});
    expected_gray.insert(expected_gray.end(), 3, rgb[i]);
    indices.push_back(static_cast<uint8_t>(i % 2));
    const Bytes color = i % 2 == 0 ? Bytes{1, 2, 3} : Bytes{200, 100, 50};
    expected_palette.insert(expected_palette.end(), color.begin(), color.end());
  }
  const std::vector<png_color> palette = {{1, 2, 3}, {200, 100, 50}};
  CHECK(decode(encode_png(gray, kHeight, kWidth, {.color_type = PNG_COLOR_TYPE_GRAY})) == expected_gray);
  CHECK(decode(encode_png(gray_alpha, kHeight, kWidth, {.color_type = PNG_COLOR_TYPE_GRAY_ALPHA})) == expected_gray);
  CHECK(decode(encode_png(rgba, kHeight, kWidth, {.color_type = PNG_COLOR_TYPE_RGB_ALPHA})) == rgb);
  CHECK(decode(encode_png(wide, kHeight, kWidth, {.depth = 16})) == rgb);
  for (const Bytes& alpha : {Bytes{}, Bytes{0, 128}}) {
    const PngOptions options{.color_type = PNG_COLOR_TYPE_PALETTE, .palette = palette, .palette_alpha = alpha};
    CHECK(decode(encode_png(indices, kHeight, kWidth, options)) == expected_palette);
  }
  // One bit a pixel: the rows alternate between black and white.
  Bytes bits, expected_bits;
  for (int y = 0; y < kHeight; ++y) {
    bits.insert(bits.end(), 2, y % 2 == 0 ? 0 : 0xff);
    expected_bits.insert(expected_bits.end(), 3 * kWidth, y % 2 == 0 ? 0 : 255);
  }
  CHECK(decode(encode_png(bits, kHeight, kWidth, {.color_type = PNG_COLOR_TYPE_GRAY, .depth = 1})) == expected_bits);
}

void test_other_channels() {
  const Bytes rgb = rgb_of();
  Bytes gray, expected_gray, rgba;
  for (size_t i = 0; i < rgb.size(); i += 3) {
    gray.push_back(rgb[i]);
    expected_gray.insert(expected_gray.end(), 3, rgb[i]);
    rgba.insert(rgba.end(), {rgb[i], rgb[i + 1], rgb[i + 2], static_cast<uint8_t>(255 - i % 200)});
  }
  CHECK(largest_difference(decode(encode_jpeg(gray, kHeight, kWidth, {.colors = JCS_GRAYSCALE})), expected_gray) <= 3);
  CHECK(decode(encode_webp(rgba, kHeight, kWidth, true)) == rgb);

  // CMYK. Adobe's marker says that 255 is no ink; it is in the 14 bytes of APP14 (ffee).
  Bytes inks, expected;
  for (int i = 0; i < kHeight * kWidth; ++i) {
    inks.insert(inks.end(), {255, 128, 0, 200});
    expected.insert(expected.end(), {200, 100, 0});
  }
  Bytes cmyk = encode_jpeg(inks, kHeight, kWidth, {.colors = JCS_CMYK});
  CHECK(largest_difference(decode(cmyk), expected) <= 4);
  CHECK(largest_difference(decode(cmyk, kHeight, kWidth, true), reversed_channels(expected)) <= 4);
  const Bytes adobe = {0xff, 0xee, 0, 14, 'A', 'd', 'o', 'b', 'e'};
  const auto marker = std::search(cmyk.begin(), cmyk.end(), adobe.begin(), adobe.end());
  CHECK(marker != cmyk.end());
  cmyk.erase(marker, marker + 16);
  for (size_t i = 0; i < expected.size(); i += 3) {  // the same numbers, as inks
    expected[i] = 0;
    expected[i + 1] = static_cast<uint8_t>((255 - 128) * 55 / 255);
    expected[i + 2] = 55;
  }
  CHECK(largest_difference(decode(cmyk), expected) <= 4);
}

// A JPEG with warnings of libjpeg-turbo is used, unless rows are missing.
void test_jpeg_warnings() {
  const Bytes rgb = rgb_of();
  const Bytes jpeg = encode_jpeg(rgb, kHeight, kWidth);
  const Bytes pixels = decode(jpeg);
  const auto with = [](Bytes bytes, ptrdiff_t before_end, const Bytes& added) {
    bytes.insert(bytes.end() - before_end, added.begin(), added.end());
    return bytes;
  };
  CHECK(decode(with(jpeg, 2, Bytes(95, 0x11))) == pixels);       // bytes without meaning before the end marker
  CHECK(decode(with(jpeg, 0, Bytes(500, 0x22))) == pixels);      // behind it
  CHECK(decode(Bytes(jpeg.begin(), jpeg.end() - 2)) == pixels);  // no end marker
  const Bytes head = {0xff, 0xd8}, dqt = {0xff, 0xdb};
  Bytes before_table = jpeg;
  const auto table = std::search(before_table.begin(), before_table.end(), dqt.begin(), dqt.end());
  before_table.insert(table, {0x33, 0x33, 0x33});
  CHECK(decode(before_table) == pixels);
  {
    Bytes restarts = encode_jpeg(rgb, kHeight, kWidth, {.restart = 1});
    const Bytes first = {0xff, 0xd0};
    restarts.insert(std::search(restarts.begin(), restarts.end(), first.begin(), first.end()), {0x44, 0x44});
    CHECK(decode(restarts) == pixels);
  }
  {  // A progressive JPEG without its end marker has every scan; without the last scan it has not.
    const Bytes progressive = encode_jpeg(rgb, kHeight, kWidth, {.progressive = true});
    CHECK(decode(Bytes(progressive.begin(), progressive.end() - 2)) == decode(progressive));
    const Bytes scan = {0xff, 0xda};
    const auto last = std::find_end(progressive.begin(), progressive.end(), scan.begin(), scan.end());
    CHECK_THROWS(decode(Bytes(progressive.begin(), last)), BadPicture, "is no intact JPEG (it ends early)");
  }
}

Bytes exif_of(uint8_t orientation, bool big_endian) {
  if (big_endian)
    return {'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0};
  return {'I', 'I', 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0, 0, 0, 0, 0};
}

// What a viewer shows at the upright picture's (y, x), by the words of Exif's table: which side the stored first row
// and the stored first column are.
void test_orientation() {
  const Bytes stored = rgb_of();
  for (uint8_t orientation = 1; orientation <= 8; ++orientation) {
    const bool exchanged = orientation >= 5;
    const int height = exchanged ? kWidth : kHeight, width = exchanged ? kHeight : kWidth;
    Bytes upright(stored.size());
    for (int row = 0; row < kHeight; ++row) {
      for (int column = 0; column < kWidth; ++column) {
        int y = 0, x = 0;
        switch (orientation) {
          case 1:
            y = row, x = column;
            break;
          case 2:
            y = row, x = width - 1 - column;
            break;
          case 3:
            y = height - 1 - row, x = width - 1 - column;
            break;
          case 4:
            y = height - 1 - row, x = column;
            break;
          case 5:
            y = column, x = row;
            break;
          case 6:
            y = column, x = width - 1 - row;
            break;
          case 7:
            y = height - 1 - column, x = width - 1 - row;
            break;
          default:
            y = height - 1 - column, x = row;
            break;
        }
        std::copy_n(stored.begin() + 3 * (row * kWidth + column), 3, upright.begin() + 3 * (y * width + x));
      }
    }
    const bool big_endian = orientation % 2 == 0;
    const Bytes exif = exif_of(orientation, big_endian);
    const Bytes png = encode_png(stored, kHeight, kWidth, {.exif = exif});
    CHECK(decode(png, height, width) == upright);
    CHECK_EQ(size_of_picture(png, "InvalidDataset", "").height, height);

    Bytes jpeg = encode_jpeg(stored, kHeight, kWidth);
    Bytes app1 = {0xff, 0xe1, 0, static_cast<uint8_t>(2 + 6 + exif.size()), 'E', 'x', 'i', 'f', 0, 0};
    app1.insert(app1.end(), exif.begin(), exif.end());
    jpeg.insert(jpeg.begin() + 2, app1.begin(), app1.end());
    CHECK(largest_difference(decode(jpeg, height, width), upright) <= 4);
  }
  for (const Bytes& damaged : {exif_of(9, true), exif_of(0, false), Bytes{'I', 'I'}}) {
    CHECK(decode(encode_png(stored, kHeight, kWidth, {.exif = damaged})) == stored);
  }
}

void test_bmp_types() {
  const Bytes rgb = rgb_of();
  const Bytes bmp = encode_bmp(rgb, kHeight, kWidth);
  Bytes top_down = bmp;  // a negative height
  for (size_t i = 22; i < 26; ++i) top_down[i] = static_cast<uint8_t>(-kHeight >> 8 * (i - 22));
  Bytes flipped;
  for (int y = kHeight - 1; y >= 0; --y)
    flipped.insert(flipped.end(), rgb.begin() + 3 * kWidth * y, rgb.begin() + 3 * kWidth * (y + 1));
  CHECK(decode(top_down) == flipped);
  Bytes run_length = bmp;
  run_length[30] = 1;
  CHECK_THROWS(decode(run_length), BadPicture, "is no intact BMP (its run-length encoding is not supported)");
}

void test_other_kinds() {
  const std::map<std::string, Bytes> kinds = {
      {"is empty", {}},
      {"is a GIF", {'G', 'I', 'F', '8', '9', 'a', 1, 0}},
      {"is full of zeros", Bytes(100)},
      {"is a gzip archive", {0x1f, 0x8b, 8, 0}},
      {"is a TIFF", {'I', 'I', '*', 0, 8, 0}},
      {"is no picture of a kind that is read", {1, 2, 3}},
  };
  for (const auto& [text, bytes] : kinds) {
    CHECK_THROWS(decode(bytes), BadPicture,
                 "picture 7: " + text + "; a JPEG, PNG, WebP or BMP of 20 x 13 pixels (height x width)");
  }
  // 60000 x 60000 pixels in 100 bytes: refused by the header, before memory is allocated.
  Bytes bomb = encode_png(Bytes(3), 1, 1);
  const Bytes size = {0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60};
  std::copy(size.begin(), size.end(), bomb.begin() + 16);
  const Bytes crc = {0x0f, 0xb0, 0xe2, 0x15};  // of this header
  std::copy(crc.begin(), crc.end(), bomb.begin() + 29);
  CHECK_THROWS(decode(bomb), BadPicture, "has 60000 x 60000 pixels (height x width); pictures have 20 x 13");
}

void test_kinds_of_files() {
  const auto name_of = [](const std::string& text) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
    const FileKind* kind = name_kind({bytes, text.size()});
    return kind ? std::string(kind->name) : "";
  };
  CHECK_EQ(name_of("\n <!DOCTYPE HTML><p>"), "a web page");
  CHECK_EQ(name_of("\xef\xbb\xbf<html>"), "a web page");
  CHECK_EQ(name_of("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
           "a Git LFS pointer, not the file itself");
  CHECK_EQ(name_of("PK\x03\x04"), "a ZIP archive");
  CHECK_EQ(name_of("{\"error\": 403}"), "a JSON document");
  CHECK_EQ(name_of(std::string(257, 'x') + "ustar" + '\0'), "a tar archive");
  CHECK_EQ(name_of("3,112,112\n"), "");
  CHECK_EQ(name_of(std::string(4, '\0')), "");
  CHECK_EQ(name_of(""), "empty");
}

// Random damage: bytes changed, cut off, inserted. It is decoded or refused; nothing else may happen.
void test_random_damage() {
  const Bytes rgb = rgb_of();
  std::vector<Bytes> pictures = {
      encode_jpeg(rgb, kHeight, kWidth),
      encode_jpeg(rgb, kHeight, kWidth, {.progressive = true}),
      encode_jpeg(rgb, kHeight, kWidth, {.arithmetic = true}),
      encode_png(rgb, kHeight, kWidth, {.exif = exif_of(6, true)}),
      encode_png(Bytes(static_cast<size_t>(kHeight * kWidth), 1), kHeight, kWidth,
                 {.color_type = PNG_COLOR_TYPE_PALETTE, .palette = {{1, 2, 3}, {4, 5, 6}}}),
      encode_webp(rgb, kHeight, kWidth),
      encode_bmp(rgb, kHeight, kWidth),
  };
  int refused = 0;
  for (uint64_t round = 0; round < 7000; ++round) {
    Bytes bytes = pictures[round % pictures.size()];
    const auto draw = [&](uint64_t stream, uint64_t below) { return hash_words({round, stream}) % below; };
    for (uint64_t i = 0; i <= draw(0, 4); ++i) {
      // Headers are short: damage them more often.
      const uint64_t place = draw(10 + i, draw(20 + i, 2) == 0 ? std::min<uint64_t>(bytes.size(), 80) : bytes.size());
      bytes[place] = static_cast<uint8_t>(draw(30 + i, 256));
    }
    if (draw(1, 4) == 0) bytes.resize(draw(2, bytes.size()));
    if (draw(3, 4) == 0)
      bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(draw(4, bytes.size() + 1)), draw(5, 9), 0xff);
    try {
      decode(bytes);
    } catch (const BadPicture&) {
      ++refused;
    }
  }
  CHECK(refused > 3000);
  CHECK(refused < 7000);
}

}  // namespace

int main() {
  test_formats();
  test_png_types();
  test_other_channels();
  test_jpeg_warnings();
  test_orientation();
  test_bmp_types();
  test_other_kinds();
  test_kinds_of_files();
  test_random_damage();
  return TEST_RESULT();
}
