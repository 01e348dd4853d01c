// The random changes of a training picture.
#pragma once

#include <cstdint>

namespace facetrain {

struct Augmentation {
  bool mirror = false;
  int dy = 0, dx = 0;  // pixels down and to the right
  bool changes() const { return mirror || dy != 0 || dx != 0; }
};

// Mirrors the picture [height, width, 3], then translates it and repeats the border's pixels. `in` and `out` do not
// overlap.
void augment(const uint8_t* in, int height, int width, const Augmentation& augmentation, uint8_t* out);

}  // namespace facetrain
