// Fuzzes what the C library does with a file that is not trusted (libFuzzer, https://llvm.org/docs/LibFuzzer.html): it
// is read or refused; what is read is planned for two instruction sets or refused by both; and both compute the same.
// `npm run fuzz` builds this with Clang and the address and undefined-behavior sanitizers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <vector>

#include "error.h"
#include "int7/onnx_reader.h"
#include "int7/runtime.h"
#include "int7/testing/mutate.h"
#include "int7/testing/onnx_file.h"

namespace {

using namespace facetrain;
using namespace facetrain::int7;

constexpr int64_t kLargestMemory = int64_t{1} << 24;
constexpr int64_t kMostWork = 1 << 22;  // multiplications, and numbers of tensors; what takes longer is not run

int64_t work_of(const Network& network) {
  int64_t work = 0;
  for (const TensorSpec& tensor : network.tensors) work += tensor.size();
  for (const LayerSpec& layer : network.layers) {
    if (layer.kind == LayerSpec::Kind::conv) work += layer.shape.macs();
  }
  return work;
}

// The numbers of all outputs, or nothing where the plan is refused.
std::optional<std::vector<float>> compute(const Network& network, Isa isa, const std::vector<uint8_t>& picture,
                                          bool runs) {
  try {
    const Runtime runtime(network, isa, kLargestMemory);
    std::vector<float> output(runtime.output_size());
    if (runs) {
      Runtime::Context context(runtime);
      runtime.run(context, picture.data(), output.data());
    }
    return output;
  } catch (const std::invalid_argument&) {
    return std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

void check(const Network& network) {
  const int64_t work = work_of(network);
  const bool runs = work <= kMostWork;
  std::mt19937 source(3);
  std::vector<uint8_t> picture(runs ? network.tensors[0].size() : 0);
  for (uint8_t& byte : picture) byte = static_cast<uint8_t>(source());
  const auto expected = compute(network, Isa::portable, picture, runs);
  const auto found = compute(network, best_isa(), picture, runs);
  // Packed weights differ in size, so one of the two may be refused for its memory.
  if (!expected || !found) return;
  if (std::memcmp(expected->data(), found->data(), expected->size() * sizeof(float)) != 0) {
    std::fprintf(stderr, "%s computes other numbers than the portable kernels\n", name_of(best_isa()));
    std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A copy of the exact size, so that a sanitizer sees a byte beyond it.
  const std::vector<uint8_t> bytes(data, data + size);
  try {
    check(read_onnx(bytes.data(), bytes.size()).network);
  } catch (const std::invalid_argument&) {
  } catch (const Error&) {
  }
  return 0;
}

// libFuzzer begins with an empty input, for which this gives one of the files of the tests; so no corpus is needed.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  std::minstd_rand source(seed);
  std::string file(reinterpret_cast<const char*>(data), size);
  if (size < 8) {
    file = source() % 2 == 0 ? facetrain::int7::testing::onnx_file() : facetrain::int7::testing::detector_file();
  } else {
    file = facetrain::int7::testing::mutated(file, source);
  }
  if (file.size() > most) return size;
  std::memcpy(data, file.data(), file.size());
  return file.size();
}
