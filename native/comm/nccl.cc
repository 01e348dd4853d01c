// c10d's NCCL: collectives between ranks with one GPU each. In a build without CUDA, a stub that throws.
#include "comm/comm.h"

#if !defined(FACETRAIN_NCCL)

namespace facetrain {

bool has_nccl() { return false; }

std::unique_ptr<Comm> make_nccl_comm(const RendezvousOptions&, int) {
  throw CommError("this build knows no NCCL: it was made without CUDA");
}

}  // namespace facetrain

#else

#include <c10/cuda/CUDAFunctions.h>

#include <cstdlib>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "comm/awaited.h"
#include "comm/c10d.h"
#include "torch_error.h"

namespace facetrain {
namespace {

class NcclComm final : public C10dComm {
 public:
  NcclComm(const RendezvousOptions& options, int device, const Deadline& deadline)
      : C10dComm(options, deadline, "NCCL") {
    // Makes wait() block until the result is complete and throw at a timeout, as Comm requires. By default it only
    // makes the CUDA stream wait, and a timeout ends the process from a thread of c10d.
    setenv("TORCH_NCCL_BLOCKING_WAIT", "1", /*overwrite=*/1);
    try {
      c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
      auto nccl = c10d::ProcessGroupNCCL::Options::create();
      nccl->timeout = options.collective_timeout;
      backend_ = c10::make_intrusive<c10d::ProcessGroupNCCL>(rendezvous_.store, options.rank, options.size, nccl);
      backend_->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));  // used by barrier()
    } catch (const std::exception& error) {
      throw_memory_error(error);
      throw rendezvous_error(options, deadline, message_of(error));
    }
    const Awaiting awaiting("connections to the other ranks, which have all come to " + master_of(options));
    barrier();  // connects the ranks; keeps rank 0, which hosts the store, from leaving before that
  }
};

}  // namespace

bool has_nccl() { return true; }

std::unique_ptr<Comm> make_nccl_comm(const RendezvousOptions& options, int device) {
  const int devices = c10::cuda::device_count();
  if (device < 0 || device >= devices) {
    throw CommError("rank " + std::to_string(options.rank) + " was given CUDA device " + std::to_string(device) +
                    ", but there are " + std::to_string(devices));
  }
  return std::make_unique<NcclComm>(options, device, Deadline(options.rendezvous_timeout));
}

}  // namespace facetrain

#endif
