// Checks every record of a dataset before training. Reads the headers of all records; decodes as many pictures as the
// caller requests.
#pragma once

#include <atomic>
#include <cstdint>

#include "data/loader.h"

namespace facetrain {

struct Inspection {
  int64_t identities_seen = 0;  // different labels that occur
  int64_t label_min = 0, label_max = 0;
};

// Reads every record's header and label on `threads` threads, and decodes `decode` pictures at even distances (all of
// them when `decode` is the dataset's size or more). `done` counts the pictures that have been checked. Throws the
// error of Dataset or decode_picture for the first invalid picture, and Cancelled soon after `cancelled` is set.
Inspection inspect(const Dataset& dataset, int64_t decode, int threads, std::atomic<int64_t>& done,
                   const std::atomic<bool>& cancelled);

}  // namespace facetrain
