// Names what a file is by its first bytes, for messages about a file that is not of the expected kind. Knows nothing of
// the kinds that Facetrain reads.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace facetrain {

struct FileKind {
  std::string_view name;    // "is ..."
  std::string_view remedy;  // what to do with such a file
};

// How many bytes from a file's start name_kind reads at most.
constexpr size_t kKindBytes = 512;

// The kind of a file that begins with `head`; null when it is not recognised. For an empty file `head` is empty.
const FileKind* name_kind(std::span<const uint8_t> head);

}  // namespace facetrain
