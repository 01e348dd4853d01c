// Copies pictures of a dataset to tar shards (tar_shards.h), as they are: nothing is decoded.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/loader.h"

namespace facetrain {

struct Packed {
  int64_t pictures = 0, shards = 0;
  std::vector<std::string> left_out;  // why pictures were left out: they cannot be read
};

// Writes the pictures whose labels `relabel` maps to 0 or more, with the new label and in the dataset's order, to
// DIRECTORY/000000.tar, … of at least `shard_bytes` each but the last; then facetrain.index. The same pictures give the
// same bytes. `done` counts the dataset's pictures. Throws Error(InvalidDataset) when no picture can be read,
// Error(StorageFailed) or Error(DiskFull), and Cancelled soon after `cancelled` is set.
Packed pack(const Dataset& dataset, std::span<const int64_t> relabel, const std::string& directory,
            uint64_t shard_bytes, std::atomic<int64_t>& done, const std::atomic<bool>& cancelled);

}  // namespace facetrain
