// Chooses the device on which a rank computes, and the precision. Uses only the number of CUDA devices, so it is the
// same code in a build without CUDA.
#pragma once

#include <c10/core/Device.h>

#include <optional>
#include <string>

#include "precision.h"

namespace facetrain {

struct DeviceChoice {
  std::string wanted;  // "cpu", "cuda" or "auto"
  int local_rank;      // among the local_size ranks on this machine (or in this container)
  int local_size;
};

// CUDA devices that this process may use; 0 in a build without CUDA.
int cuda_devices();

// With CUDA, a rank gets the device of its local rank. "auto" chooses CUDA if `devices` suffice for all ranks on this
// machine, otherwise the CPU, because ranks on CPUs and on GPUs cannot communicate. Throws Error(InvalidConfig) for
// "cuda" when there is no device for this rank.
at::Device choose_device(const DeviceChoice& choice, int devices = cuda_devices());

// The precision of a training on `device`: `wanted`, or without it the one that is chosen for the device. Throws
// Error(InvalidConfig) for a precision that the device does not have.
Precision resolve_precision(std::optional<Precision> wanted, at::Device device);

}  // namespace facetrain
