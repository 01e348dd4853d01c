// What a person wants to know of a dataset before training on it: how many pictures the identities have, and which
// pictures are there twice.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "data/loader.h"

namespace facetrain {

struct Summary {
  int64_t identities = 0;                   // that have a picture
  int64_t least = 0, median = 0, most = 0;  // pictures of an identity
  int64_t with_one = 0;                     // identities with one picture

  // Pictures whose bytes are those of an earlier one: of the same identity, or of another.
  struct Duplicates {
    int64_t count = 0;
    std::vector<std::pair<std::string, std::string>> examples;  // names: the earlier picture, this one; at most 20
  };
  Duplicates within, across;
};

// Reads all pictures on `threads` threads, and decodes none. Pictures that cannot be read are left out. `done` counts
// pictures. 16 bytes of memory a picture. Throws Cancelled soon after `cancelled` is set.
Summary summarize(const Dataset& dataset, int threads, std::atomic<int64_t>& done, const std::atomic<bool>& cancelled);

}  // namespace facetrain
