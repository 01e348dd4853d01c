// Where a rank computes. Knows of CUDA only how many devices there are, so it is the same code in a build without.
#pragma once

#include <c10/core/Device.h>

#include <string>

namespace facetrain {

struct DeviceChoice {
  std::string wanted = "cpu";  // "cpu", "cuda" or "auto"
  int local_rank = 0;          // among the ranks on this machine (or in this container)
  int local_size = 1;
};

// CUDA devices that this process may use; 0 in a build without CUDA.
int cuda_devices();

// "auto" is CUDA where every rank of this machine finds a device of its own: some with and some without could not meet.
// Throws Error(InvalidConfig) for "cuda" where there is none for this rank.
at::Device choose_device(const DeviceChoice& choice, int devices = cuda_devices());

}  // namespace facetrain
