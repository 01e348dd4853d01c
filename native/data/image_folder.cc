#include "data/image_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "data/listed_dataset.h"
#include "error.h"

namespace facetrain {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kLargestPicture = uint64_t{256} << 20;  // bytes
constexpr const char* kLayout = "an image folder has ID/picture.jpg: a folder for each identity, with its pictures";

struct Found {
  std::vector<std::string> folders, pictures;
  std::string other;  // a file that is no picture; empty when there is none
};

// The entries of a folder, sorted. Follows symbolic links.
Found entries_of(const std::string& directory) {
  Found found;
  try {
    for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
      std::string name = entry.path().filename().string();
      if (name.starts_with(".")) continue;
      if (entry.is_directory()) {
        if (name != "lost+found") found.folders.push_back(std::move(name));  // ext4 has it at the top of a volume
      } else if (is_picture_name(name)) {
        found.pictures.push_back(std::move(name));
      } else {
        found.other = std::move(name);
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw Error("InvalidDataset", directory, "cannot be read (" + error.code().message() + ")", kLayout);
  }
  std::sort(found.folders.begin(), found.folders.end());
  std::sort(found.pictures.begin(), found.pictures.end());
  return found;
}

class ImageFolder : public ListedDataset {
 public:
  ImageFolder(const std::string& directory, std::unique_ptr<const Listing> listing)
      : ListedDataset(std::move(listing)), directory_(directory) {
    find_size();
  }

  int64_t bytes() const override {
    int64_t bytes = 0;
    struct stat status {};
    for (int64_t picture = 0; picture < size(); ++picture) {
      if (stat(name(picture).c_str(), &status) == 0) bytes += status.st_size;
    }
    return bytes;
  }
  std::string identity(int64_t label) const override { return listing().source(static_cast<size_t>(label)); }
  std::vector<std::string> folders() const {
    std::vector<std::string> names;
    for (size_t label = 0; label < listing().sources(); ++label) names.push_back(listing().source(label));
    return names;
  }
  std::string name(int64_t picture) const override {
    return directory_ + "/" + listing().source(entry(picture).source) + "/" + listing().name_at(entry(picture).place);
  }

  std::vector<uint8_t> encoded(int64_t picture) const override {
    const std::string path = name(picture);
    const auto refuse = [&](const std::string& found) {
      throw Error("InvalidDataset", path, found, "a picture that can be read");
    };
    struct File {
      const int fd;
      ~File() {
        if (fd >= 0) close(fd);
      }
    } const file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    struct stat status {};
    if (file.fd < 0 || fstat(file.fd, &status) != 0) {
      const std::string found = std::string("cannot be opened (") + std::strerror(errno) + ")";
      // A link that leads nowhere, or a file that was removed: the other pictures can be used.
      if (errno == ENOENT || errno == ELOOP) throw BadPicture("InvalidDataset", path, found, "a picture");
      refuse(found);
    }
    if (!S_ISREG(status.st_mode)) throw BadPicture("InvalidDataset", path, "is no file", "a picture");
    if (static_cast<uint64_t>(status.st_size) > kLargestPicture) {
      refuse("has " + std::to_string(status.st_size) + " bytes, more than " + std::to_string(kLargestPicture));
    }
    std::vector<uint8_t> bytes(static_cast<size_t>(status.st_size));
    for (size_t at = 0; at < bytes.size();) {
      const ssize_t got = read(file.fd, bytes.data() + at, bytes.size() - at);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) refuse(std::string("cannot be read (") + std::strerror(errno) + ")");
      if (got == 0) refuse("became shorter while it was read");
      at += static_cast<size_t>(got);
    }
    return bytes;
  }

  void will_need(int64_t picture) const override {
    const int fd = open(name(picture).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return;
    posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
    close(fd);
  }

 private:
  const std::string directory_;
};

}  // namespace

bool is_picture_name(const std::string& name) {
  static const std::array<const char*, 9> extensions{".jpg", ".jpeg", ".png",  ".ppm", ".bmp",
                                                     ".pgm", ".tif",  ".tiff", ".webp"};
  std::string extension = fs::path(name).extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c); });
  return std::find(extensions.begin(), extensions.end(), extension) != extensions.end();
}

std::unique_ptr<const Listing> list_image_folder(const std::string& directory, const Listing* former) {
  ListingBuilder builder(Listing::kImageFolder);
  const std::vector<std::string> present = entries_of(directory).folders;
  std::vector<std::string> identities;
  for (size_t label = 0; former != nullptr && label < former->sources(); ++label) {
    identities.push_back(former->source(label));
  }
  const size_t kept = identities.size();
  const std::set<std::string> known(identities.begin(), identities.end());
  for (const std::string& folder : present) {
    if (!known.contains(folder)) identities.push_back(folder);
  }
  bool is_empty = true;
  for (size_t i = 0; i < identities.size(); ++i) {
    const std::string& identity = identities[i];
    const std::string folder = directory + "/" + identity;
    const bool is_gone = !std::binary_search(present.begin(), present.end(), identity);
    const Found found = is_gone ? Found{} : entries_of(folder);
    if (!found.folders.empty()) {
      throw Error("InvalidDataset", folder + "/" + found.folders.front(), "is a folder in the folder of an identity",
                  std::string(kLayout) + "; is " + folder + " the dataset?");
    }
    if (found.pictures.empty()) {
      if (found.other.empty()) {
        if (i < kept) builder.add_source(identity, 0);
        continue;
      }
      throw Error("InvalidDataset", folder + "/" + found.other, "is no picture, and " + identity + " has none",
                  "pictures of an image folder end in .jpg, .jpeg, .png, .webp or .bmp");
    }
    const uint32_t label = builder.add_source(identity, 0);
    for (const std::string& picture : found.pictures) builder.add_picture({label, label, builder.add_name(picture)});
    is_empty = false;
  }
  if (is_empty) throw Error("InvalidDataset", directory, "has no folder with pictures", kLayout);
  return builder.build();
}

std::set<std::string> folders_with_pictures(const std::string& directory, const std::set<std::string>& known) {
  std::set<std::string> result;
  for (const std::string& folder : entries_of(directory).folders) {
    if (known.contains(folder) || !entries_of(directory + "/" + folder).pictures.empty()) result.insert(folder);
  }
  return result;
}

std::vector<std::string> folders_of(const Dataset& dataset) {
  const auto* const image_folder = dynamic_cast<const ImageFolder*>(&dataset);
  return image_folder == nullptr ? std::vector<std::string>() : image_folder->folders();
}

std::shared_ptr<const Dataset> open_image_folder(const std::string& directory, std::unique_ptr<const Listing> listing) {
  return std::make_shared<ImageFolder>(directory, std::move(listing));
}

}  // namespace facetrain
