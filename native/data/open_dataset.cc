#include "data/open_dataset.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <vector>

#include "data/image_folder.h"
#include "data/tar_shards.h"
#include "error.h"

namespace facetrain {
namespace {

namespace fs = std::filesystem;

bool has(const std::string& directory, const char* name) {
  std::error_code ignored;
  return fs::exists(directory + "/" + name, ignored);
}

bool is_records(const std::string& directory) {
  return has(directory, "train.rec") || has(directory, "train.idx") || has(directory, "property");
}

struct Contents {
  bool shards = false, folders = false;
  std::string compressed;  // a compressed archive; empty when there is none
};

Contents contents_of(const std::string& directory) {
  Contents contents;
  try {
    for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(".")) continue;
      contents.shards |= name.ends_with(".tar");
      contents.folders |= name != "lost+found" && entry.is_directory();
      for (const char* end : {".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".zip"}) {
        if (name.ends_with(end)) contents.compressed = name;
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw Error("InvalidDataset", directory, "cannot be read (" + error.code().message() + ")",
                "a dataset is a folder with train.rec, train.idx and property; with *.tar; or with a folder of "
                "pictures for each identity");
  }
  return contents;
}

// Whether the index lists the shards, or the folders, that are there. Pictures that were added to a folder that it
// lists are not seen: that would take as long as listing all of them.
void check_sources(const std::string& directory, const Listing& listing) {
  // Folders without pictures are identities that are gone.
  std::vector<bool> is_used(listing.sources(), listing.kind() == Listing::kTarShards);
  for (const auto& [source, label, place] : listing.pictures()) is_used[source] = true;
  std::set<std::string> listed;
  for (size_t i = 0; i < listing.sources(); ++i) {
    if (is_used[i]) listed.insert(listing.source(i));
  }
  const auto refuse = [&](const std::string& found) {
    throw Error("InvalidDataset", directory + "/" + kIndexFile, found,
                "write it again: facetrain dataset index " + directory);
  };
  std::set<std::string> present;
  if (listing.kind() == Listing::kTarShards) {
    for (const std::string& shard : shards_of(directory)) present.insert(shard);
  } else {
    present = folders_with_pictures(directory, listed);
  }
  for (const std::string& name : listed) {
    if (!present.contains(name)) refuse("lists " + name + ", which is not there");
  }
  for (const std::string& name : present) {
    if (!listed.contains(name)) refuse("does not list " + name);
  }
}

}  // namespace

std::unique_ptr<const Listing> list_pictures(const std::string& directory) {
  if (is_records(directory)) {
    throw Error("InvalidDataset", directory, "is RecordIO, whose index is train.idx",
                "an image folder or tar shards; this dataset needs no other index, but more than 16777216 identities "
                "need --labels LIST");
  }
  const Contents contents = contents_of(directory);
  if (contents.shards) return list_tar_shards(directory);
  if (contents.folders) {
    const auto former = read_index(directory);
    const bool is_of_folders = former && former->kind() == Listing::kImageFolder;
    return list_image_folder(directory, is_of_folders ? former.get() : nullptr);
  }
  if (!contents.compressed.empty()) {
    throw Error("InvalidDataset", directory + "/" + contents.compressed, "is compressed",
                "unpack it: a dataset is train.rec, *.tar, or a folder of pictures for each identity");
  }
  throw Error("InvalidDataset", directory, "has neither train.rec, nor *.tar, nor folders of pictures",
              "one of the three: insightface's RecordIO, webdataset's shards, or ID/picture.jpg");
}

std::shared_ptr<const Dataset> open_dataset(const std::string& directory) {
  if (is_records(directory)) return open_record_dataset(directory);
  auto listing = read_index(directory);
  if (listing) {
    check_sources(directory, *listing);
  } else {
    listing = list_pictures(directory);
  }
  return listing->kind() == Listing::kTarShards ? open_tar_shards(directory, std::move(listing))
                                                : open_image_folder(directory, std::move(listing));
}

}  // namespace facetrain
