#include "npy.h"

#include <filesystem>
#include <fstream>

#include "test/check.h"

using namespace facetrain;

static const std::string kFolder = std::filesystem::temp_directory_path().string();
static const std::string kFile = kFolder + "/npy_test_" + std::to_string(getpid()) + ".npy";

// A file as NumPy writes it, of header version `version` and with these bytes of values.
static void write(const std::string& header, const std::string& values, int version = 1) {
  std::string padded = header;
  const size_t prefix = version == 1 ? 10 : 12;
  while ((prefix + padded.size() + 1) % 64 != 0) padded += ' ';
  padded += '\n';
  std::ofstream file(kFile, std::ios::binary);
  file << "\x93NUMPY" << static_cast<char>(version) << '\0' << static_cast<char>(padded.size() & 0xff)
       << static_cast<char>(padded.size() >> 8);
  if (version > 1) file << '\0' << '\0';
  file << padded << values;
}

static void test_round_trip() {
  for (const at::Tensor& tensor : {at::rand({3, 5}), at::arange(7), at::rand({0, 4})}) {
    bench::write_npy(kFile, tensor);
    const at::Tensor read = bench::read_npy(kFile);
    CHECK(read.scalar_type() == tensor.scalar_type() && at::equal(read, tensor));
  }
}

static void test_what_numpy_writes() {
  write("{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }", std::string("\x07\0\0\0\xff\xff\xff\xff", 8));
  CHECK(at::equal(bench::read_npy(kFile), at::tensor({7, -1}, at::kInt)));
  write("{'descr': '<i8', 'fortran_order': False, 'shape': (1, 1), }", std::string("\x02\x01\0\0\0\0\0\0", 8), 2);
  CHECK(at::equal(bench::read_npy(kFile), at::full({1, 1}, 258, at::kLong)));
}

static void test_refuses() {
  const std::string four(4, '\0');
  const auto refused = [](const std::string& why) { CHECK_THROWS(bench::read_npy(kFile), std::runtime_error, why); };
  write("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", four + four);
  refused("the type '<f8'");
  write("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", four);
  refused("the type '>f4'");
  write("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1), }", four);
  refused("Fortran's order");
  write("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", four);
  refused("4 bytes of values where its shape has 8");
  write("{'descr': '<f4', 'fortran_order': False, }", four);
  refused("a header without shape");
  std::ofstream(kFile) << "no array at all";
  refused("no .npy file");
  std::filesystem::remove(kFile);
  refused("No such file");
}

int main() {
  test_round_trip();
  test_what_numpy_writes();
  test_refuses();
  return TEST_RESULT();
}
