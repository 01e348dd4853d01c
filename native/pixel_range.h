// How the bytes of a picture become the input of a network.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace facetrain {

// The input of channel c is (byte - mean[c]) / std[c], both in units of bytes.
struct PixelRange {
  std::vector<float> mean, std;  // an entry for each channel; empty: 127.5 for all, which gives [-1, 1]

  bool is_default() const { return std.empty(); }
  float operator()(uint8_t byte, size_t channel) const {
    return is_default() ? static_cast<float>(byte) / 127.5f - 1.0f
                        : static_cast<float>(byte) / std[channel] - mean[channel] / std[channel];
  }
};

}  // namespace facetrain
