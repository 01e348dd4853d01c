#include "train/device.h"

#include <ATen/detail/CUDAHooksInterface.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdio>

#include "comm/comm.h"
#include "error.h"

namespace facetrain {

int cuda_devices() { return has_nccl() ? at::detail::getCUDAHooks().deviceCount() : 0; }

at::Device choose_device(const DeviceChoice& choice, int devices) {
  const bool enough_for_all = devices >= choice.local_size;
  if (choice.wanted == "cpu" || (choice.wanted == "auto" && !enough_for_all)) return at::kCPU;
  if (choice.local_rank >= devices) {
    throw Error("InvalidConfig", "device",
                has_nccl() ? "cuda, but rank " + std::to_string(choice.local_rank) + " of this machine sees " +
                                 std::to_string(devices) + " CUDA devices"
                           : "cuda, but this build has no CUDA",
                "a device for every rank (in Kubernetes: an image with CUDA, and nvidia.com/gpu among the limits), "
                "cpu, or auto");
  }
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(choice.local_rank));
}

Precision resolve_precision(std::optional<Precision> wanted, at::Device device) {
  // On an H100, iresnet50 trains in FP16 or BF16 at 1.5 to 2 times the pictures per second of TF32, and at five times
  // those of FP32 (batches of 128 and 256). BF16 needs no loss scale, and does not overflow. On CPUs, BF16 is faster
  // only where the processor multiplies it, so the choice would depend on the machine and with it the result: two runs
  // of one manifest would differ.
  if (!wanted) return device.is_cuda() ? Precision::bf16 : Precision::fp32;
  if (!device.is_cuda() && (wanted == Precision::tf32 || wanted == Precision::fp16)) {
    throw Error("InvalidConfig", "trainers.precision",
                std::string(wanted == Precision::tf32 ? "TF32" : "FP16") + ", and the device is a CPU",
                "Auto, FP32 or BF16 on a CPU; TF32 and FP16 need a GPU");
  }
  return *wanted;
}

namespace {

#if defined(__x86_64__)
// CPUID leaf 7, subleaf 0, EDX bit 22 (Intel's manual, volume 2A). Clang 14 cannot be asked for it.
bool has_amx_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & 1U << 22) != 0;
}
#endif

}  // namespace

std::string bf16_products_of_cpu() {
#if defined(__x86_64__)
  if (has_amx_bf16()) return "amx";
  if (__builtin_cpu_supports("avx512bf16")) return "avx512bf16";
#endif
  return "emulated";
}

namespace {

std::string gibibytes(uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GiB", static_cast<double>(bytes) / (uint64_t{1} << 30));
  return text;
}

}  // namespace

bool rows_on_host(const RowsMemory& needed, uint64_t device_memory, std::optional<uint64_t> host_free) {
  if (device_memory >= needed.device) return false;
  if (!host_free || *host_free >= needed.host) return true;
  throw Error("InsufficientMemory", "loss.rows.placement",
              "Auto, and class centres fit neither a GPU, which would need " + gibibytes(needed.device) +
                  " of memory and has " + gibibytes(device_memory) + ", nor the machine, of which its trainers need " +
                  gibibytes(needed.host) + " at least and " + gibibytes(*host_free) + " are available",
              "more memory (in Kubernetes resources.limits.memory), more trainers.replicas, loss.rows.precision BF16, "
              "or another loss.rows.optimizer; facetrain plan says what each takes");
}

}  // namespace facetrain
