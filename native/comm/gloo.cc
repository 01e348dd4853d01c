// c10d's Gloo over TCP: the collectives of ranks without GPUs.
//
// The wheels of libtorch ship no Gloo headers, though ProcessGroupGloo.hpp includes five of them; Debian's libgloo-dev
// lends its own. That is sound because this file touches no Gloo type beyond handing on the shared_ptr of
// createDeviceForHostname, and ProcessGroupGloo itself holds only standard types and shared_ptrs. Nothing of Debian's
// Gloo is linked.
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "comm/c10d.h"

namespace facetrain {
namespace {

class GlooComm final : public C10dComm {
 public:
  GlooComm(const RendezvousOptions& options, const Deadline& deadline) : C10dComm(options, deadline, "Gloo") {
    try {
      auto gloo = c10d::ProcessGroupGloo::Options::create(deadline.remaining());
      gloo->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(
          options.bind_addr.empty() ? rendezvous_.own_address : options.bind_addr));
      gloo->threads = 1;  // calls are never concurrent
      backend_ = c10::make_intrusive<c10d::ProcessGroupGloo>(rendezvous_.store, options.rank, options.size, gloo);
    } catch (const std::exception& error) {
      throw rendezvous_error(options, deadline, message_of(error));
    }
    barrier();  // nobody leaves, and takes the store along, before all are connected
  }
};

}  // namespace

std::unique_ptr<Comm> make_gloo_comm(const RendezvousOptions& options) {
  return std::make_unique<GlooComm>(options, Deadline(options.rendezvous_timeout));
}

}  // namespace facetrain
