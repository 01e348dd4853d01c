// Decodes pictures: JPEG, PNG, WebP and BMP, told apart by their first bytes. Knows nothing of datasets.
//
// What comes out is what OpenCV's imdecode gives, with which MXNet and so insightface read datasets:
// - Gray and palettes become three channels. Of 16 bits a channel, the upper 8 remain. Gamma and color profiles are
//   ignored.
// - Alpha is ignored: a transparent pixel has the color that the file stores for it.
// - CMYK and YCCK become RGB as R = (255 - C) (255 - K) / 255. With Adobe's marker the file stores 255 - C.
// - The Exif orientation of a JPEG or PNG is applied. Its size is that of the upright picture.
// - The first picture of an animated PNG is taken. An animated WebP is refused.
//
// A JPEG that libjpeg-turbo decodes with a warning (bytes without meaning before a marker, an invalid Huffman code, no
// end marker) is used, except when the picture ends early, because the missing part would be gray: the warning
// JWRN_HIT_MARKER, a color component without data, or a progressive JPEG that lacks scans and the end marker.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "data/align.h"
#include "error.h"

namespace facetrain {

// A picture that cannot be used: damaged, of another size, or of a kind that is not read. A dataset continues without
// it; other Errors are about the dataset.
struct BadPicture : Error {
  using Error::Error;
};

// Decodes to out [height, width, 3], RGB or BGR. Memory is allocated after the size was compared.
// Throws BadPicture(code, subject(), ...) unless `encoded` is an intact picture of that size.
void decode_picture(std::span<const uint8_t> encoded, int height, int width, bool bgr, uint8_t* out,
                    const std::string& code, const std::function<std::string()>& subject);
inline void decode_picture(std::span<const uint8_t> encoded, int height, int width, bool bgr, uint8_t* out,
                           const std::string& code, const std::string& subject) {
  decode_picture(encoded, height, width, bgr, out, code, [&] { return subject; });
}

// Decodes a picture of any size of up to 2^26 pixels, and aligns the face in it by its landmarks (align.h): out [side,
// side, 3]. Throws as decode_picture does, and for landmarks that are all the same.
void decode_aligned(std::span<const uint8_t> encoded, const Landmarks& landmarks, int side, bool bgr, uint8_t* out,
                    const std::string& code, const std::string& subject);

// The size of a picture [height, width] as decode_picture takes it, from its header. Throws as decode_picture does.
struct PictureSize {
  int64_t height, width;
};
PictureSize size_of_picture(std::span<const uint8_t> encoded, const std::string& code, const std::string& subject);

}  // namespace facetrain
