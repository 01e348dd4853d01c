// The device that a rank gets for a given number of devices, and for those of this machine; its precision; and where
// its class centres are.
#include "train/device.h"

#include "comm/comm.h"
#include "error.h"
#include "test/check.h"

using namespace facetrain;

static at::Device cuda(int index) { return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index)); }

int main() {
  const at::Device cpu = at::kCPU;
  CHECK_EQ(choose_device({"cpu", 0, 1}, 8), cpu);
  // Alone in a container, and several ranks on a machine.
  CHECK_EQ(choose_device({"auto", 0, 1}, 0), cpu);
  CHECK_EQ(choose_device({"auto", 0, 1}, 1), cuda(0));
  CHECK_EQ(choose_device({"auto", 3, 4}, 4), cuda(3));
  // One device too few: all ranks use the CPU.
  CHECK_EQ(choose_device({"auto", 0, 4}, 3), cpu);
  CHECK_EQ(choose_device({"auto", 3, 4}, 3), cpu);
  CHECK_EQ(choose_device({"cuda", 1, 2}, 2), cuda(1));
  CHECK_THROWS(choose_device({"cuda", 2, 3}, 2), Error,
               has_nccl() ? "rank 2 of this machine sees 2 CUDA devices" : "this build has no CUDA");

  CHECK(cuda_devices() >= 0);
  CHECK(has_nccl() || cuda_devices() == 0);
  CHECK_EQ(choose_device({"auto", 0, 1}), cuda_devices() > 0 ? cuda(0) : cpu);

  for (const auto wanted : {Precision::fp32, Precision::bf16}) {
    CHECK(resolve_precision(wanted, cpu) == wanted);
    CHECK(resolve_precision(wanted, cuda(0)) == wanted);
  }
  CHECK(resolve_precision(Precision::tf32, cuda(0)) == Precision::tf32);
  CHECK(resolve_precision(Precision::fp16, cuda(0)) == Precision::fp16);
  CHECK_THROWS(resolve_precision(Precision::tf32, cpu), Error,
               "trainers.precision: TF32, and the device is a CPU; Auto");
  CHECK_THROWS(resolve_precision(Precision::fp16, cpu), Error,
               "trainers.precision: FP16, and the device is a CPU; Auto");
  CHECK(resolve_precision({}, cpu) == Precision::fp32);
  CHECK(resolve_precision({}, cuda(1)) == Precision::bf16);

  constexpr uint64_t kGiB = uint64_t{1} << 30;
  const RowsMemory needed{.device = 80 * kGiB, .host = 40 * kGiB};
  // The GPU first, whatever the machine has.
  CHECK(!rows_on_host(needed, 80 * kGiB, 0));
  CHECK(rows_on_host(needed, 80 * kGiB - 1, 40 * kGiB));
  CHECK(rows_on_host(needed, 80 * kGiB - 1, std::nullopt));
  CHECK_THROWS(
      rows_on_host(needed, 79 * kGiB, 40 * kGiB - 1), Error,
      "would need 80.0 GiB of memory and has 79.0 GiB, nor the machine, of which its trainers need 40.0 GiB at "
      "least and 40.0 GiB are available");
  CHECK_THROWS(rows_on_host(needed, 0, 0), Error, "loss.rows.placement: Auto, and class centres fit neither");
  return TEST_RESULT();
}
