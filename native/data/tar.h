// Reads tar archives: ustar, GNU's long names and base-256 sizes, and pax headers (POSIX.1-2017, "pax Interchange
// Format"; GNU tar manual, "Basic Tar Format").
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace facetrain {

struct TarMember {
  std::string name;
  bool file = false;            // whether it is a regular file
  uint64_t data = 0, size = 0;  // where its bytes are
  uint64_t next = 0;            // where the next member's header begins
};

// The member whose header, or whose first extended header, begins at byte `offset`. Null at the archive's end. Throws
// std::runtime_error when the archive is damaged there; its message is made to follow "a.tar, member at byte 1024: ".
std::optional<TarMember> read_tar_member(std::span<const uint8_t> archive, uint64_t offset);

}  // namespace facetrain
