#include "data/tar.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <stdexcept>
#include <string_view>

namespace facetrain {
namespace {

constexpr uint64_t kBlock = 512;
constexpr uint64_t kLongestExtension = 1 << 20;  // bytes of an extended header

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

// A field of a header: up to `size` bytes, or to the first zero.
std::string_view text_at(const uint8_t* header, size_t at, size_t size) {
  const auto* const text = reinterpret_cast<const char*>(header + at);
  return {text, strnlen(text, size)};
}

// Octal digits between spaces, or, when the first bit is set, a binary number (GNU).
uint64_t number_at(const uint8_t* header, size_t at, size_t size, const char* what) {
  const uint8_t* const field = header + at;
  if (field[0] & 0x80) {
    uint64_t value = field[0] & 0x7f;
    for (size_t i = 1; i < size; ++i) {
      if (value >> 55 != 0) fail(std::string("its ") + what + " is out of range");
      value = value << 8 | field[i];
    }
    return value;
  }
  std::string_view text = text_at(header, at, size);
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 8);
  if (!text.empty() && (error != std::errc() || end != text.data() + text.size())) {
    fail(std::string("its ") + what + " is no number");
  }
  return value;
}

bool is_zero(const uint8_t* data, uint64_t size) {
  return std::all_of(data, data + size, [](uint8_t byte) { return byte == 0; });
}

// The sum of the header's bytes, its own field counted as spaces. Some old programs summed signed bytes.
void check_sum(const uint8_t* header) {
  constexpr size_t kSum = 148, kSumEnd = 156;
  const bool tar = std::memcmp(header, "\x1f\x8b", 2) != 0 && std::memcmp(header, "\x28\xb5\x2f\xfd", 4) != 0;
  if (!tar) fail("the archive is compressed; a shard is a plain .tar, since its pictures are read in any order");
  uint64_t unsigned_sum = 0;
  int64_t signed_sum = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    const uint8_t byte = i >= kSum && i < kSumEnd ? ' ' : header[i];
    unsigned_sum += byte;
    signed_sum += static_cast<int8_t>(byte);
  }
  uint64_t sum = 0;
  try {
    sum = number_at(header, kSum, 8, "checksum");
  } catch (const std::runtime_error&) {
    fail("no header of a tar archive is there");
  }
  if (sum != unsigned_sum && static_cast<int64_t>(sum) != signed_sum) fail("no header of a tar archive is there");
}

struct Extension {
  std::optional<std::string> path;
  std::optional<uint64_t> size;
};

// Records "LENGTH KEY=VALUE\n"; LENGTH counts all of its record.
void read_pax(std::string_view text, Extension& extension) {
  while (!text.empty() && text.front() != '\0') {
    size_t length = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
    const auto digits = static_cast<size_t>(end - text.data());
    if (error != std::errc() || length > text.size() || length < digits + 3 || *end != ' ' ||
        text[length - 1] != '\n') {
      fail("its pax header is damaged");
    }
    const std::string_view record = text.substr(digits + 1, length - digits - 2);
    const size_t equals = record.find('=');
    if (equals == std::string_view::npos) fail("its pax header is damaged");
    const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
    if (key == "path") extension.path = value;
    if (key == "size") {
      uint64_t size = 0;
      const auto parsed = std::from_chars(value.data(), value.data() + value.size(), size);
      if (parsed.ec != std::errc() || parsed.ptr != value.data() + value.size()) fail("its pax header is damaged");
      extension.size = size;
    }
    if (key.starts_with("GNU.sparse.")) fail("it is a sparse file, which is not supported; store it whole");
    text.remove_prefix(length);
  }
}

}  // namespace

std::optional<TarMember> read_tar_member(std::span<const uint8_t> archive, uint64_t offset) {
  Extension extension;
  for (bool extended = false;; extended = true) {
    if (offset == archive.size() && !extended) return std::nullopt;  // some programs leave the end mark out
    if (offset > archive.size() || archive.size() - offset < kBlock) fail("the archive was cut short");
    const uint8_t* const header = archive.data() + offset;
    if (header[0] == 0 && is_zero(header, kBlock)) {
      if (extended) fail("the archive ends after its extended header");
      // What follows the end mark would be lost without a word.
      if (!is_zero(header, archive.size() - offset)) {
        fail("the archive ends there, and other data follows; join archives by tar --concatenate, not by cat");
      }
      return std::nullopt;
    }
    check_sum(header);
    const char type = static_cast<char>(header[156]);
    const bool long_name = type == 'L', pax = type == 'x';
    const bool extends = long_name || pax || type == 'K' || type == 'g';
    uint64_t size = number_at(header, 124, 12, "size");
    if (!extends && extension.size) size = *extension.size;
    // Links, devices, folders and pipes have no data, whatever their size says. (Python's tarfile has the same rule.)
    if (type >= '1' && type <= '6') size = 0;
    if (type == 'S') fail("it is a sparse file, which is not supported; store it whole");
    const uint64_t data = offset + kBlock;
    if (size > archive.size() - data) {
      fail("it needs " + std::to_string(size) + " bytes, and the archive has " + std::to_string(archive.size() - data) +
           " left: the archive was cut short");
    }
    // The last member's padding may be missing.
    offset = std::min<uint64_t>(data + (size + kBlock - 1) / kBlock * kBlock, archive.size());
    if (extends) {
      if (size > kLongestExtension) fail("its extended header has " + std::to_string(size) + " bytes");
      const auto* const text = reinterpret_cast<const char*>(archive.data() + data);
      if (long_name) extension.path = std::string(text, strnlen(text, size));
      if (pax) read_pax({text, static_cast<size_t>(size)}, extension);
      continue;
    }
    TarMember member{.name = {}, .data = data, .size = size, .next = offset};
    member.file = type == '0' || type == '\0' || type == '7';
    if (extension.path) {
      member.name = *extension.path;
    } else {
      const bool posix = std::memcmp(header + 257, "ustar\0", 6) == 0;  // GNU's own format has other fields there
      const std::string_view prefix = posix ? text_at(header, 345, 155) : std::string_view();
      member.name = std::string(prefix) + (prefix.empty() ? "" : "/") + std::string(text_at(header, 0, 100));
    }
    if (member.name.ends_with('/')) member.file = false;  // a folder of archives older than ustar
    return member;
  }
}

}  // namespace facetrain
