// A dataset of small square pictures that are made when they are read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/loader.h"
#include "test/pictures.h"

namespace facetrain::test {

// Picture i has the label i % identities.
class PictureSet : public Dataset {
 public:
  // `side` in pixels.
  PictureSet(int64_t pictures, int64_t identities, int side)
      : pictures_(pictures), identities_(identities), side_(side) {}
  int64_t size() const override { return pictures_; }
  int64_t identities() const override { return identities_; }
  int height() const override { return side_; }
  int width() const override { return side_; }
  int64_t label(int64_t picture) const override { return picture % identities_; }
  std::vector<uint8_t> encoded(int64_t picture) const override {
    std::vector<uint8_t> pixels(static_cast<size_t>(3 * side_ * side_));
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = value(picture, i);
    return encode_bmp(pixels, side_, side_);
  }
  void will_need(int64_t) const override {}
  std::string name(int64_t picture) const override { return "picture " + std::to_string(picture); }
  int64_t bytes() const override { return 0; }

 protected:
  // Of the i-th byte of a picture [side, side, 3].
  virtual uint8_t value(int64_t picture, size_t i) const = 0;

 private:
  const int64_t pictures_, identities_;
  const int side_;
};

}  // namespace facetrain::test
