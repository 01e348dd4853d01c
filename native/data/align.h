// Alignment of a face by five points: insightface's norm_crop (utils/face_align.py), as protocols such as IJB-C have
// it.
#pragma once

#include <array>
#include <cstdint>

namespace facetrain {

// x and y of the eyes (first the one on the picture's left), the tip of the nose and the corners of the mouth, in
// pixels of the picture: (0, 0) is the middle of the first pixel.
using Landmarks = std::array<double, 10>;

// (x, y) becomes (a x - b y + dx, b x + a y + dy).
struct Similarity {
  double a, b, dx, dy;
};

// The one with the least sum of squared distances between the moved points and insightface's template, which is for
// pictures of 112 pixels and grows with `side` (Umeyama, PAMI 1991). Points that are all the same have none: a is NaN.
Similarity fit_to_template(const Landmarks& points, int side);

// out [side, side, 3] = the picture [height, width, 3], moved, by linear interpolation; black beyond its border.
void warp(const uint8_t* picture, int height, int width, const Similarity& similarity, int side, uint8_t* out);

}  // namespace facetrain
