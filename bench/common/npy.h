// Reads NumPy's .npy files (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html): versions 1 to 3,
// little-endian float32, int32 and int64 in C order.
#pragma once

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace facetrain::bench {

// The file as a tensor that reads it from the page cache: nothing is copied. Throws std::runtime_error that names the
// file and what was found.
inline at::Tensor read_npy(const std::string& path) {
  const auto fail = [&path](const std::string& found) -> std::runtime_error {
    return std::runtime_error(path + ": " + found + "; allowed is a .npy file of float32, int32 or int64 in C order");
  };
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw fail(std::strerror(errno));
  struct stat status {};
  fstat(file, &status);
  const auto size = static_cast<size_t>(status.st_size);
  void* const memory = size == 0 ? MAP_FAILED : mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  close(file);
  if (memory == MAP_FAILED) throw fail("it cannot be mapped, or is empty");
  const auto unmap = [memory, size](void*) { munmap(memory, size); };
  const std::shared_ptr<void> guard(memory, unmap);

  const auto* const bytes = static_cast<const unsigned char*>(memory);
  if (size < 12 || std::memcmp(bytes, "\x93NUMPY", 6) != 0) throw fail("no .npy file");
  const bool long_header = bytes[6] >= 2;  // its length has 4 bytes instead of 2
  size_t length = bytes[8] | bytes[9] << 8;
  if (long_header) length |= static_cast<size_t>(bytes[10]) << 16 | static_cast<size_t>(bytes[11]) << 24;
  const size_t start = long_header ? 12 : 10;
  if (bytes[6] < 1 || bytes[6] > 3 || length > size - start) throw fail("a damaged header");
  const std::string header(reinterpret_cast<const char*>(bytes) + start, length);

  // A Python literal: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }.
  const auto after = [&](const std::string& key) {
    const size_t at = header.find("'" + key + "':");
    if (at == std::string::npos) throw fail("a header without " + key);
    return header.substr(header.find_first_not_of(' ', at + key.size() + 3));
  };
  const std::string type = after("descr");
  at::ScalarType scalar{};
  if (type.rfind("'<f4'", 0) == 0) {
    scalar = at::kFloat;
  } else if (type.rfind("'<i8'", 0) == 0) {
    scalar = at::kLong;
  } else if (type.rfind("'<i4'", 0) == 0) {
    scalar = at::kInt;
  } else {
    throw fail("the type " + type.substr(0, type.find(',')));
  }
  if (after("fortran_order").rfind("False", 0) != 0) throw fail("Fortran's order");
  const std::string shape = after("shape");
  std::vector<int64_t> sizes;
  for (size_t i = 1; i < shape.size() && shape[i] != ')';) {
    size_t digits = 0;
    if (std::isdigit(static_cast<unsigned char>(shape[i]))) {
      sizes.push_back(std::stoll(shape.substr(i), &digits));
    }
    i += std::max<size_t>(digits, 1);
  }
  int64_t count = 1;
  for (const int64_t extent : sizes) count *= extent;
  const auto wanted = static_cast<size_t>(count) * at::elementSize(scalar);
  if ((start + length) % at::elementSize(scalar) != 0) throw fail("values that are not aligned");
  if (size - start - length != wanted) {
    throw fail(std::to_string(size - start - length) + " bytes of values where its shape has " +
               std::to_string(wanted));
  }
  return at::from_blob(
      static_cast<char*>(memory) + start + length, sizes, [guard](void*) {}, at::dtype(scalar));
}

// The tensor as a .npy file, for the reference: float32 or int64, contiguous, on the CPU.
inline void write_npy(const std::string& path, const at::Tensor& tensor) {
  std::string header = std::string("{'descr': '") + (tensor.scalar_type() == at::kFloat ? "<f4" : "<i8") +
                       "', 'fortran_order': False, 'shape': (";
  for (const int64_t extent : tensor.sizes()) header += std::to_string(extent) + ",";
  header += "), }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "wb"), std::fclose);
  const unsigned char prefix[10] = {0x93,
                                    'N',
                                    'U',
                                    'M',
                                    'P',
                                    'Y',
                                    1,
                                    0,
                                    static_cast<unsigned char>(header.size()),
                                    static_cast<unsigned char>(header.size() >> 8)};
  const auto bytes = static_cast<size_t>(tensor.nbytes());
  if (!file || std::fwrite(prefix, 1, 10, file.get()) != 10 ||
      std::fwrite(header.data(), 1, header.size(), file.get()) != header.size() ||
      std::fwrite(tensor.const_data_ptr(), 1, bytes, file.get()) != bytes) {
    throw std::runtime_error(path + " cannot be written");
  }
}

}  // namespace facetrain::bench
