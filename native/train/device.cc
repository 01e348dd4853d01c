#include "train/device.h"

#include <ATen/detail/CUDAHooksInterface.h>

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

}  // namespace facetrain
