// Looks at every record of a dataset before hours of training rely on it.
#pragma once

#include <atomic>
#include <cstdint>

#include "data/loader.h"

namespace facetrain {

struct Inspection {
  int64_t identities_seen = 0;  // labels that occur
  int64_t label_min = 0, label_max = 0;
};

// Reads every record's header and label, and decodes `decode` pictures at even distances (all of them when it is the
// dataset's size or more). Counts the pictures looked at in `done`. Throws what Dataset and decode_jpeg throw, for the
// first picture that is not in order, and Cancelled soon after `cancelled` is set.
Inspection inspect(const Dataset& dataset, int64_t decode, int threads, std::atomic<int64_t>& done,
                   const std::atomic<bool>& cancelled);

}  // namespace facetrain
