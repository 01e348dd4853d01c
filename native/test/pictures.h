// Encodes pictures for tests, with the libraries' own encoders.
#pragma once

#include <png.h>
#include <webp/encode.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

// It needs <cstdio> first.
#include <jpeglib.h>

namespace facetrain::test {

struct JpegOptions {
  J_COLOR_SPACE colors = JCS_RGB;  // of the pixels
  int quality = 95;
  bool progressive = false, arithmetic = false;
  int restart = 0;  // a restart marker after so many MCUs
};

// A JPEG without chroma subsampling. `pixels` [height, width, c] has the channels of `colors`: 1, 3, or 4 for JCS_CMYK,
// which is written with Adobe's marker.
inline std::vector<uint8_t> encode_jpeg(const std::vector<uint8_t>& pixels, int height, int width,
                                        JpegOptions options = {}) {
  jpeg_compress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_compress(&jpeg);
  unsigned char* buffer = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&jpeg, &buffer, &size);
  jpeg.image_height = static_cast<JDIMENSION>(height);
  jpeg.image_width = static_cast<JDIMENSION>(width);
  jpeg.in_color_space = options.colors;
  jpeg.input_components = options.colors == JCS_GRAYSCALE ? 1 : options.colors == JCS_CMYK ? 4 : 3;
  jpeg_set_defaults(&jpeg);
  for (int c = 0; c < jpeg.num_components; ++c) {
    jpeg.comp_info[c].h_samp_factor = 1;
    jpeg.comp_info[c].v_samp_factor = 1;
  }
  jpeg_set_quality(&jpeg, options.quality, TRUE);
  if (options.progressive) jpeg_simple_progression(&jpeg);
  jpeg.arith_code = options.arithmetic ? TRUE : FALSE;
  jpeg.restart_interval = static_cast<unsigned>(options.restart);
  jpeg_start_compress(&jpeg, TRUE);
  const size_t row_bytes = static_cast<size_t>(width) * static_cast<size_t>(jpeg.input_components);
  while (jpeg.next_scanline < jpeg.image_height) {
    auto* row = const_cast<uint8_t*>(pixels.data() + row_bytes * jpeg.next_scanline);
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  jpeg_destroy_compress(&jpeg);
  std::vector<uint8_t> encoded(buffer, buffer + size);
  std::free(buffer);
  return encoded;
}

struct PngOptions {
  int color_type = PNG_COLOR_TYPE_RGB;
  int depth = 8;
  bool interlaced = false;
  std::vector<png_color> palette = {};
  std::vector<uint8_t> palette_alpha = {};
  std::vector<uint8_t> exif = {};
};

// A PNG of packed rows as `color_type` and `depth` describe them (16 bits: big-endian).
inline std::vector<uint8_t> encode_png(const std::vector<uint8_t>& rows, int height, int width,
                                       const PngOptions& options = {}) {
  std::vector<uint8_t> encoded;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(
      png, &encoded,
      [](png_structp p, png_bytep data, size_t size) {
        auto* out = static_cast<std::vector<uint8_t>*>(png_get_io_ptr(p));
        out->insert(out->end(), data, data + size);
      },
      nullptr);
  png_set_IHDR(png, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), options.depth,
               options.color_type, options.interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (!options.palette.empty()) {
    png_set_PLTE(png, info, options.palette.data(), static_cast<int>(options.palette.size()));
  }
  if (!options.palette_alpha.empty()) {
    png_set_tRNS(png, info, const_cast<png_bytep>(options.palette_alpha.data()),
                 static_cast<int>(options.palette_alpha.size()), nullptr);
  }
  if (!options.exif.empty()) {
    png_set_eXIf_1(png, info, static_cast<png_uint_32>(options.exif.size()),
                   const_cast<png_bytep>(options.exif.data()));
  }
  const size_t row_bytes = rows.size() / static_cast<size_t>(height);
  std::vector<png_bytep> pointers(static_cast<size_t>(height));
  for (size_t y = 0; y < pointers.size(); ++y) pointers[y] = const_cast<png_bytep>(rows.data() + row_bytes * y);
  png_set_rows(png, info, pointers.data());
  png_write_png(png, info, PNG_TRANSFORM_IDENTITY, nullptr);
  png_destroy_write_struct(&png, &info);
  return encoded;
}

// A lossless WebP of RGB or, with `alpha`, RGBA pixels.
inline std::vector<uint8_t> encode_webp(const std::vector<uint8_t>& pixels, int height, int width, bool alpha = false) {
  uint8_t* buffer = nullptr;
  const size_t size = alpha ? WebPEncodeLosslessRGBA(pixels.data(), width, height, width * 4, &buffer)
                            : WebPEncodeLosslessRGB(pixels.data(), width, height, width * 3, &buffer);
  std::vector<uint8_t> encoded(buffer, buffer + size);
  WebPFree(buffer);
  return encoded;
}

// A BMP of RGB pixels with 24 bits each, rows from the bottom up.
inline std::vector<uint8_t> encode_bmp(const std::vector<uint8_t>& pixels, int height, int width) {
  std::vector<uint8_t> encoded;
  const auto put = [&](uint32_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) encoded.push_back(static_cast<uint8_t>(value >> 8 * i));
  };
  const int row = (3 * width + 3) / 4 * 4;
  encoded = {'B', 'M'};
  put(static_cast<uint32_t>(54 + row * height), 4);
  put(0, 4);
  put(54, 4);
  put(40, 4);
  put(static_cast<uint32_t>(width), 4);
  put(static_cast<uint32_t>(height), 4);
  put(1, 2);
  put(24, 2);
  put(0, 24);
  for (int y = height - 1; y >= 0; --y) {
    for (int x = 0; x < width; ++x) {
      const uint8_t* pixel = pixels.data() + 3 * (y * width + x);
      encoded.insert(encoded.end(), {pixel[2], pixel[1], pixel[0]});
    }
    encoded.resize(encoded.size() + static_cast<size_t>(row - 3 * width));
  }
  return encoded;
}

}  // namespace facetrain::test
