// c10d's Gloo over TCP: collectives between ranks on CPUs.
//
// ProcessGroupGloo.hpp includes five Gloo headers that libtorch's wheels do not contain; they come from Debian's
// libgloo-dev. A difference of versions does no harm: this file only passes on the shared_ptr of
// createDeviceForHostname, and ProcessGroupGloo has only standard types and shared_ptrs as members. Debian's Gloo is
// not linked. In a build without these headers (cmake/Gloo.cmake), a stub that throws.
#include "comm/comm.h"

#if !defined(FACETRAIN_GLOO)

namespace facetrain {

bool has_gloo() { return false; }

std::unique_ptr<Comm> make_gloo_comm(const RendezvousOptions&) {
  throw CommError("this build knows no Gloo: it was made without Gloo's headers");
}

}  // namespace facetrain

#else

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "comm/awaited.h"
#include "comm/c10d.h"
#include "torch_error.h"

namespace facetrain {
namespace {

class GlooComm final : public C10dComm {
 public:
  GlooComm(const RendezvousOptions& options, const Deadline& deadline) : C10dComm(options, deadline, "Gloo") {
    const Awaiting awaiting("connections to the other ranks, which have all come to " + master_of(options));
    try {
      auto gloo = c10d::ProcessGroupGloo::Options::create(deadline.remaining());
      gloo->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(
          options.bind_addr.empty() ? rendezvous_.own_address : options.bind_addr));
      gloo->threads = 1;  // collectives that were begun follow each other
      backend_ = c10::make_intrusive<c10d::ProcessGroupGloo>(rendezvous_.store, options.rank, options.size, gloo);
    } catch (const std::exception& error) {
      throw_memory_error(error);
      throw rendezvous_error(options, deadline, message_of(error));
    }
    barrier();  // keeps rank 0, which hosts the store, from leaving before all ranks are connected
  }
};

}  // namespace

bool has_gloo() { return true; }

std::unique_ptr<Comm> make_gloo_comm(const RendezvousOptions& options) {
  return std::make_unique<GlooComm>(options, Deadline(options.rendezvous_timeout));
}

}  // namespace facetrain

#endif
