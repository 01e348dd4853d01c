// What a checkpoint holds of a session, as tensors: those of the session itself, or a copy of one moment, which another
// thread reads while the session trains on.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/executor.h"

namespace facetrain {

// A tensor of the backbone's state by ONNX name; values in row-major order of `dims`.
struct SavedTensor {
  std::string name;
  std::vector<int64_t> dims;
  std::vector<float> values;
};
struct SavedBackbone {
  std::vector<SavedTensor> tensors;   // parameters, buffers and fixed tensors
  std::vector<SavedTensor> momentum;  // of the parameters
};

// Some rows of a tensor of class centres: the bytes of `type` (float32 or bfloat16), row after row.
struct SavedRows {
  std::string name;
  at::ScalarType type;
  std::vector<uint8_t> bytes;
};

struct TrainedState {
  std::vector<Executor::Named> tensors, momentum;  // as of SavedBackbone
  // Of this rank's class centres, [count, n] each: `weight`, and the state of their optimizer. Contiguous.
  std::vector<Executor::Named> rows;

  SavedBackbone save_backbone() const;
  // Ignores names that the backbone does not have; tensors that `from` lacks keep their values.
  void load_backbone(const SavedBackbone& from) const;

  // Rows count from this rank's first.
  std::vector<SavedRows> save_rows(int64_t first, int64_t count) const;
  // Values of another type are converted; from float32 to bfloat16 they are rounded to the nearest, ties to even.
  // Ignores names that the rows do not have.
  void load_rows(int64_t first, int64_t count, const std::vector<SavedRows>& from) const;
};

// Where a copy of `bytes` bytes fits beside all that runs: on `device` itself, of which `device_free` bytes are free
// (none: not known), on the host, of which `host_free` are, or nowhere. A quarter of the copy and 64 MiB stay free: on
// a device for what a step needs at its peak, on the host for what is being written.
std::optional<at::Device> place_for_copy(uint64_t bytes, at::Device device, std::optional<uint64_t> device_free,
                                         std::optional<uint64_t> host_free);

}  // namespace facetrain
