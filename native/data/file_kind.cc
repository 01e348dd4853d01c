#include "data/file_kind.h"

#include <algorithm>
#include <string>

namespace facetrain {
namespace {

using std::literals::operator""sv;  // NOLINT(misc-unused-using-decls): literals use it

constexpr auto kUnpack = "unpack it, and give the file that was packed"sv;
constexpr auto kConvert = "convert it to JPEG or PNG"sv;

struct Signature {
  size_t offset;
  std::string_view bytes;
  FileKind kind;
};

// Signatures: Debian's file(1) magic, and the formats' own specifications.
constexpr Signature kSignatures[] = {
    {0, "\x1f\x8b"sv, {"a gzip archive", "unpack it with gunzip"}},
    {0, "BZh"sv, {"a bzip2 archive", "unpack it with bunzip2"}},
    {0,
     "\xfd"
     "7zXZ\0"sv,
     {"an xz archive", "unpack it with unxz"}},
    {0, "\x28\xb5\x2f\xfd"sv, {"a zstd archive", "unpack it with unzstd"}},
    {0, "7z\xbc\xaf\x27\x1c"sv, {"a 7-Zip archive", kUnpack}},
    {0, "Rar!\x1a\x07"sv, {"a RAR archive", kUnpack}},
    {0, "PK\x03\x04"sv, {"a ZIP archive", "unpack it; torch.save and numpy.savez write such files, too"}},
    {0, "PK\x05\x06"sv, {"an empty ZIP archive", "fetch it again"}},
    {257, "ustar"sv, {"a tar archive", kUnpack}},
    {0, "version https://git-lfs"sv, {"a Git LFS pointer, not the file itself", "fetch the file with git lfs pull"}},
    {0, "\x89HDF\r\n\x1a\n"sv, {"an HDF5 file", "convert it"}},
    {0, "\x93NUMPY"sv, {"a NumPy array", "convert it"}},
    {0, "%PDF-"sv, {"a PDF document", "fetch the right file"}},
    {0,
     "\x7f"
     "ELF"sv,
     {"a program", "fetch the right file"}},
    {0, "\xff\xd8\xff"sv, {"a JPEG", "fetch the right file"}},
    {0, "\x89PNG\r\n\x1a\n"sv, {"a PNG", "fetch the right file"}},
    {8, "WEBP"sv, {"a WebP picture", "fetch the right file"}},
    {0, "GIF87a"sv, {"a GIF", kConvert}},
    {0, "GIF89a"sv, {"a GIF", kConvert}},
    {0, "II*\0"sv, {"a TIFF", kConvert}},
    {0, "MM\0*"sv, {"a TIFF", kConvert}},
    {4, "ftypavif"sv, {"an AVIF picture", kConvert}},
    {4, "ftyphei"sv, {"a HEIF picture", kConvert}},
    {4, "ftypmif1"sv, {"a HEIF picture", kConvert}},
    {0, "\0\0\0\x0cjP  "sv, {"a JPEG 2000 picture", kConvert}},
    {0, "\xff\x0a"sv, {"a JPEG XL picture", kConvert}},
    {0, "\0\0\0\x0cJXL "sv, {"a JPEG XL picture", kConvert}},
    {0, "\xff\xfe"sv, {"text in UTF-16", "save it as UTF-8"}},
    {0, "\xfe\xff"sv, {"text in UTF-16", "save it as UTF-8"}},
};

constexpr FileKind kEmpty{"empty", "fetch it again; the disk may have been full"};
constexpr FileKind kZeros{"full of zeros", "fetch it again; the machine may have stopped while it was written"};
constexpr FileKind kWebPage{"a web page", "download it again: the server answered with a page instead of the file"};
constexpr FileKind kJsonError{"a JSON document", "download it again: the server may have answered with an error"};

}  // namespace

const FileKind* name_kind(std::span<const uint8_t> head) {
  head = head.first(std::min(head.size(), kKindBytes));
  if (head.empty()) return &kEmpty;
  const std::string_view text(reinterpret_cast<const char*>(head.data()), head.size());
  for (const Signature& signature : kSignatures) {
    if (text.size() >= signature.offset && text.substr(signature.offset).starts_with(signature.bytes)) {
      return &signature.kind;
    }
  }
  if (text.size() >= 16 && std::all_of(head.begin(), head.end(), [](uint8_t byte) { return byte == 0; })) {
    return &kZeros;
  }
  std::string start(text.substr(text.starts_with("\xef\xbb\xbf"sv) ? 3 : 0));
  start.erase(0, std::min(start.find_first_not_of(" \t\r\n"), start.size()));
  std::transform(start.begin(), start.end(), start.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  for (const std::string_view tag : {"<!doctype"sv, "<html"sv, "<?xml"sv, "<head"sv, "<!--"sv}) {
    if (start.starts_with(tag)) return &kWebPage;
  }
  if (start.starts_with("{\""sv)) return &kJsonError;
  return nullptr;
}

}  // namespace facetrain
