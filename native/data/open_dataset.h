// The layouts of datasets.
#pragma once

#include <memory>
#include <string>

#include "data/listing.h"
#include "data/loader.h"

namespace facetrain {

// insightface's RecordIO (dataset.cc).
std::shared_ptr<const Dataset> open_record_dataset(const std::string& directory);

struct LabelledPictures {
  int64_t pictures, identities;
};

// Writes train.labels (labels_file.h) of a RecordIO dataset from a text file, and returns the number of pictures and of
// identities. Its lines are those of MXNet's im2rec: the picture's key in train.idx, a tab, its label, and whatever
// follows another tab. Lines of other keys are left out. Throws Error(InvalidDataset) for a line that is none of these,
// a label that is no class of `property`, a key that occurs twice, and a picture without a line; Error(StorageFailed).
LabelledPictures write_labels_from(const std::string& list, const std::string& directory);

// Lists the pictures of an image folder or of tar shards anew. Folders that facetrain.index names keep their labels.
// Throws Error(InvalidDataset) when the folder is of neither kind, or that file of an image folder is damaged.
std::unique_ptr<const Listing> list_pictures(const std::string& directory);

}  // namespace facetrain
