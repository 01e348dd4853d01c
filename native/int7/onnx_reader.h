// Reads a model.int7.onnx, as trainer-image/src/quantize/qdq.ts writes it, into a Network.
//
// The file is not trusted: every length is checked before it is used, every size before it is multiplied, and memory is
// bounded by a small multiple of the file. What is not such a model is refused by name, with std::invalid_argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "int7/network.h"

namespace facetrain::int7 {

struct OnnxModel {
  Network network;
  std::string color_order;        // rgb, bgr, or empty if the file does not say it
  std::vector<double> mean, std;  // of the file's input, for each channel: (byte - mean) / std
};

OnnxModel read_onnx(const uint8_t* data, size_t size);

}  // namespace facetrain::int7
