// The exceptions that libtorch and the standard library throw when memory does not suffice, as people read them.
#include "torch_error.h"

#include <ATen/ops/empty.h>

#include <vector>

#include "test/check.h"

using namespace facetrain;

namespace {

template <class Throw>
std::optional<Error> translated(Throw throws) {
  try {
    throws();
  } catch (const std::exception& error) {
    return memory_error(error);
  }
  return std::nullopt;
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The message of the caching allocator of libtorch 2.15 (c10/cuda/CUDACachingAllocator.cpp).
constexpr const char* kCuda =
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 3 has a total capacity of 79.11 GiB of which 5.06 MiB is "
    "free. "
    "Process 17 has 79.10 GiB memory in use. Of the allocated memory 78.02 GiB is allocated by PyTorch, and 96.45 MiB "
    "is "
    "reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.";

void test_device() {
  const auto error = translated([] { TORCH_CHECK_WITH(OutOfMemoryError, false, kCuda); });
  CHECK(error.has_value());
  if (!error) return;
  CHECK_EQ(error->code, std::string("InsufficientMemory"));
  CHECK_EQ(error->subject, std::string("memory of GPU 3"));
  CHECK_EQ(error->found, std::string("no memory for 20.00 GiB; 5.06 MiB of 79.11 GiB are free"));
  for (const char* way : {"trainers.microBatchSize", "trainers.replicas", "loss.sampleRate"})
    CHECK(has(error->allowed, way));

  for (const char* message : {"CUDA error: out of memory\nCUDA kernel errors might be reported later.",
                              "NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
                              "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"}) {
    const auto other = translated([&] { TORCH_CHECK(false, message); });
    CHECK(other.has_value() && other->subject == "memory of the GPU");
    if (other) CHECK(has(other->found, std::string(message).substr(0, 12)));
  }
}

void test_host() {
  // Real ones: no machine has 2^50 bytes.
  const auto tensor = translated([] { at::empty({int64_t{1} << 50}, at::kByte); });
  CHECK(tensor.has_value());
  if (tensor) {
    CHECK_EQ(tensor->subject, std::string("memory of this process"));
    CHECK(has(tensor->found, "no memory for 1125899906842624 bytes; "));
    CHECK(has(tensor->found, " bytes are available"));
  }
  const auto vector = translated([] { std::vector<char> huge(size_t{1} << 50); });
  CHECK(vector.has_value());
  if (vector) CHECK(has(vector->found, "no memory for an object; "));
}

void test_others() {
  CHECK(!translated([] { TORCH_CHECK(false, "sizes do not match"); }));
  // Words of a file's name, not of an allocator.
  CHECK(!translated([] { throw std::runtime_error("out of memory.onnx: no such file"); }));
}

void test_frames() {
  const auto message = [](auto throws) {
    try {
      throws();
    } catch (const std::exception& error) {
      return message_of(error);
    }
    return std::string();
  };
  CHECK_EQ(message([] { TORCH_CHECK(false, "sizes do not match"); }), std::string("sizes do not match"));
  // c10d quotes the message of another exception.
  CHECK_EQ(message([] {
             throw std::runtime_error("get failed: timed out\nException raised from f at x.cpp:1\nframe #0: g");
           }),
           std::string("get failed: timed out"));
}

}  // namespace

int main() {
  test_device();
  test_host();
  test_others();
  test_frames();
  return TEST_RESULT();
}
