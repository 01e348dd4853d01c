// A dataset whose pictures and labels a Listing has: an image folder, or tar shards.
#pragma once

#include <memory>
#include <utility>

#include "data/listing.h"

namespace facetrain {

class ListedDataset : public Dataset {
 public:
  int64_t size() const override { return static_cast<int64_t>(listing_->pictures().size()); }
  int64_t identities() const override { return listing_->identities(); }
  int height() const override { return static_cast<int>(picture_size_.height); }
  int width() const override { return static_cast<int>(picture_size_.width); }
  int64_t label(int64_t picture) const override { return entry(picture).label; }
  bool labels_are_read() const override { return false; }

 protected:
  // The derived class calls find_size() when its pictures can be read.
  explicit ListedDataset(std::unique_ptr<const Listing> listing) : listing_(std::move(listing)) {}
  void find_size() { picture_size_ = size_of_pictures(*this); }
  const Listing& listing() const { return *listing_; }
  const Listing::Entry& entry(int64_t picture) const { return listing_->pictures()[static_cast<size_t>(picture)]; }

 private:
  const std::unique_ptr<const Listing> listing_;
  PictureSize picture_size_{};
};

}  // namespace facetrain
