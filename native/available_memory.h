// How much memory this process can still get: for messages to people, and for choices that may be wrong.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

namespace facetrain {

namespace memory_files {

// The number in a file that has nothing else. None when there is no such file, or a word: "max" is no limit.
inline std::optional<uint64_t> number_in(const std::filesystem::path& file) {
  std::ifstream stream(file);
  uint64_t number = 0;
  return stream >> number ? std::optional(number) : std::nullopt;
}

// The number in the line that begins with `name`.
inline std::optional<uint64_t> number_after(const std::filesystem::path& file, const std::string& name) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    std::istringstream words(line);
    std::string first;
    uint64_t number = 0;
    if (words >> first >> number && first == name) return number;
  }
  return std::nullopt;
}

// Names of the files of a memory cgroup, and where cgroups are mounted.
struct CgroupFiles {
  const char *mount, *limit, *usage, *inactive_file;
};
constexpr CgroupFiles kVersion1{"sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                "total_inactive_file"};
constexpr CgroupFiles kVersion2{"sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"};

// What the limits of a cgroup and of those around it leave. Page cache that was not read for a while does not count as
// used, as in the kubelet's working set: the kernel gives it up first.
inline std::optional<uint64_t> left_in_cgroup(const std::filesystem::path& root, const CgroupFiles& files,
                                              const std::filesystem::path& cgroup) {
  std::optional<uint64_t> least;
  const std::filesystem::path mount = root / files.mount;
  // In a container, the path may be that on the machine, while only the container's own cgroup is mounted, as the top.
  for (std::filesystem::path path = cgroup.relative_path();; path = path.parent_path()) {
    const auto limit = number_in(mount / path / files.limit), usage = number_in(mount / path / files.usage);
    if (limit && usage) {
      const uint64_t cache = number_after(mount / path / "memory.stat", files.inactive_file).value_or(0);
      const uint64_t used = *usage - std::min(*usage, cache);
      least = std::min(least.value_or(UINT64_MAX), *limit - std::min(*limit, used));
    }
    if (path.empty()) return least;
  }
}

}  // namespace memory_files

// Bytes: what the machine has available, or what the memory limits of the cgroups of this process leave, if that is
// less. None when the system says neither. See proc(5), and cgroup-v1/memory.rst and cgroup-v2.rst of Linux.
// `root`: the folder that has proc/ and sys/.
inline std::optional<uint64_t> available_memory(const std::filesystem::path& root = "/") {
  std::optional<uint64_t> least;
  const auto limit_to = [&](std::optional<uint64_t> bytes) {
    if (bytes) least = std::min(least.value_or(UINT64_MAX), *bytes);
  };
  if (const auto kib = memory_files::number_after(root / "proc/meminfo", "MemAvailable:")) limit_to(*kib * 1024);
  // Lines of "ID:CONTROLLERS:PATH". Version 2 has the ID 0 and no controllers.
  std::ifstream cgroups(root / "proc/self/cgroup");
  for (std::string line; std::getline(cgroups, line);) {
    std::istringstream fields(line);
    std::string id, controllers, path;
    std::getline(std::getline(std::getline(fields, id, ':'), controllers, ':'), path);
    if (controllers.empty()) limit_to(memory_files::left_in_cgroup(root, memory_files::kVersion2, path));
    std::istringstream list(controllers);
    for (std::string name; std::getline(list, name, ',');) {
      if (name == "memory") limit_to(memory_files::left_in_cgroup(root, memory_files::kVersion1, path));
    }
  }
  return least;
}

}  // namespace facetrain
