// Tar shards in webdataset's layout (github.com/webdataset/webdataset): 000000.tar, 000001.tar, …, each with samples of
// KEY.jpg (or jpeg, png, webp, bmp, …) and the label: KEY.cls, a whole number, or KEY.json with a member "label". KEY
// is the member's name up to the first dot after its last slash. The members of a sample stand next to each other.
//
// Pictures are read in any order, through mmap, so that the order of an epoch is that of other datasets: one
// permutation of all pictures, whatever the shards. (webdataset itself shuffles within a buffer.)
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/listing.h"
#include "data/loader.h"

namespace facetrain {

// The names of the shards in a folder, *.tar, in byte order.
std::vector<std::string> shards_of(const std::string& directory);

// Lists the pictures of the shards, in their order. Reads the header of every member, so it takes as long as reading a
// file of all shards at 1 KiB a picture or more. Throws Error(InvalidDataset) naming shard, member and byte: a damaged
// archive, a picture without label, two pictures of one sample, no picture at all.
std::unique_ptr<const Listing> list_tar_shards(const std::string& directory);

// Throws Error(InvalidDataset) when a shard has another size than the listing says.
std::shared_ptr<const Dataset> open_tar_shards(const std::string& directory, std::unique_ptr<const Listing> listing);

// The member "label" of a JSON object, when there is one. Throws std::runtime_error when the text is no JSON object, or
// the label is no whole number from 0 to kMaxLabel.
std::optional<int64_t> label_of_json(std::string_view text);

}  // namespace facetrain
