// Pictures of noise that are in memory, as BMP files, which every build can decode: for measuring a step of training
// without a dataset on disk.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "data/loader.h"

namespace facetrain::bench {

class MadeUpDataset final : public Dataset {
 public:
  MadeUpDataset(int64_t pictures, int64_t identities, int side)
      : pictures_(pictures), identities_(identities), side_(side) {
    std::mt19937_64 random(1);
    for (int i = 0; i < kDifferent; ++i) different_.push_back(bmp(random));
  }
  int64_t size() const override { return pictures_; }
  int64_t identities() const override { return identities_; }
  int height() const override { return side_; }
  int width() const override { return side_; }
  int64_t label(int64_t picture) const override { return picture % identities_; }
  std::vector<uint8_t> encoded(int64_t picture) const override { return different_[picture % kDifferent]; }
  void will_need(int64_t) const override {}
  std::string name(int64_t picture) const override { return "made-up picture " + std::to_string(picture); }
  int64_t bytes() const override { return pictures_ * static_cast<int64_t>(different_[0].size()); }
  bool labels_are_read() const override { return false; }

 private:
  static constexpr int kDifferent = 512;

  // 24 bits a pixel, no compression: headers of 14 and 40 bytes, then rows that are padded to 4 bytes.
  std::vector<uint8_t> bmp(std::mt19937_64& random) const {
    const uint32_t row = (3 * side_ + 3) / 4 * 4, size = 54 + row * side_;
    std::vector<uint8_t> file(size);
    const auto put = [&file](size_t at, uint32_t value) { std::memcpy(file.data() + at, &value, sizeof(value)); };
    file[0] = 'B';
    file[1] = 'M';
    put(2, size);
    put(10, 54);
    put(14, 40);
    put(18, side_);
    put(22, side_);
    put(26, 1 | 24 << 16);
    put(34, row * side_);
    for (size_t at = 54; at < size; ++at) file[at] = static_cast<uint8_t>(random());
    return file;
  }

  const int64_t pictures_, identities_;
  const int side_;
  std::vector<std::vector<uint8_t>> different_;
};

}  // namespace facetrain::bench
