// Chooses the device on which a rank computes, the precision, and the memory that holds the class centres. Uses only
// numbers of devices and bytes, so it is the same code in a build without CUDA.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
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

// How this CPU multiplies bfloat16, by which products in Precision::bf16 differ: "amx" or "avx512bf16", or "emulated".
// oneDNN chooses among them for the backbone, cpu_products.h has the second alone for the class centres.
std::string bf16_products_of_cpu();

// Bytes that a training on a GPU needs, by the estimate of trainer-image/src/estimate.
struct RowsMemory {
  uint64_t device;  // the memory of a GPU that holds the class centres, too
  uint64_t host;    // of the machine, where they are there: the least, for all ranks on it
};

// Whether class centres belong in host memory: where the GPU's memory, all of it, is less than they need there.
// `host_free`: what the machine still has (none: not known). Throws Error(InsufficientMemory) when neither suffices: a
// machine that runs out of memory kills a process without a word.
bool rows_on_host(const RowsMemory& needed, uint64_t device_memory, std::optional<uint64_t> host_free);

}  // namespace facetrain
