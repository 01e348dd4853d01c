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
  int64_t bad = 0;                            // pictures that cannot be used
  std::vector<UnusablePicture> bad_pictures;  // the first `listed` of them, by number
};

// Reads every record's header and label on `threads` threads, and decodes `decode` pictures at even distances (all of
// them when `decode` is the dataset's size or more). `done` counts the pictures that have been checked. Pictures that
// cannot be used are counted and listed; so are damaged records, whose labels are unknown. Throws the error of Dataset
// for the first label that is wrong, and Cancelled soon after `cancelled` is set.
Inspection inspect(const Dataset& dataset, int64_t decode, int threads, size_t listed, std::atomic<int64_t>& done,
                   const std::atomic<bool>& cancelled);

}  // namespace facetrain
