// The layouts of datasets.
#pragma once

#include <memory>
#include <string>

#include "data/listing.h"
#include "data/loader.h"

namespace facetrain {

// insightface's RecordIO (dataset.cc).
std::shared_ptr<const Dataset> open_record_dataset(const std::string& directory);

// Lists the pictures of an image folder or of tar shards anew, whatever facetrain.index says. Throws
// Error(InvalidDataset) when the folder is of neither kind.
std::unique_ptr<const Listing> list_pictures(const std::string& directory);

}  // namespace facetrain
