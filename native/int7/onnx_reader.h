// Reads a model.int7.onnx, as trainer-image/src/quantize/qdq.ts writes it, into a Network.
//
// The file is not trusted: every length is checked before it is used, every size before it is multiplied, and memory is
// bounded by a small multiple of the file and of the tensors that it describes. What is not such a model is refused by
// name, with InvalidModel, or Error for an operator whose operands do not fit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "int7/network.h"

namespace facetrain::int7 {

struct OnnxModel {
  struct Output {
    std::string name;
    std::vector<int64_t> dims;  // without the batch
  };
  int version = 1;    // of the format
  std::string input;  // the picture's name
  Network network;
  std::vector<Output> outputs;    // in the order of network.outputs
  std::string color_order;        // rgb, bgr, or empty if the file does not say it
  std::vector<double> mean, std;  // of the file's input, for each channel: (byte - mean) / std
  std::map<std::string, std::string> metadata;
};

// The size of the pictures; 0: the file's.
struct PictureSize {
  int height = 0, width = 0;
};

OnnxModel read_onnx(const uint8_t* data, size_t size, PictureSize picture = {});

}  // namespace facetrain::int7
