// An image folder: ID/picture.jpg, a folder for each identity (torchvision's ImageFolder). Labels are the places of the
// folders in the byte order of their names, from 0; those that facetrain.index names keep the labels that they have
// there, and others follow them. docs/decisions/0078.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "data/listing.h"
#include "data/loader.h"

namespace facetrain {

// Whether a file of this name counts as a picture: the extensions of torchvision's ImageFolder, in any case.
bool is_picture_name(const std::string& name);

// Lists the folders of `directory` and their pictures, both in byte order. Hidden entries, lost+found and folders
// without files are left out. Throws Error(InvalidDataset) naming a folder that cannot be read, a folder of an identity
// that has folders in turn, or files but no picture.
// `former`: an earlier listing, whose folders come first, in its order; one that is gone keeps its label, and has no
// pictures. Null: none.
std::unique_ptr<const Listing> list_image_folder(const std::string& directory, const Listing* former = nullptr);

// The names of the folders by label; empty when the dataset is no image folder.
std::vector<std::string> folders_of(const Dataset& dataset);

// The folders in `directory` that have pictures. Those of `known` are not read, and count as such.
std::set<std::string> folders_with_pictures(const std::string& directory, const std::set<std::string>& known);

// Throws Error(InvalidDataset) when none of the first pictures can be read.
std::shared_ptr<const Dataset> open_image_folder(const std::string& directory, std::unique_ptr<const Listing> listing);

}  // namespace facetrain
