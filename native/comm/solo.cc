// A job of one rank: no communication. And collectives of a Comm that does one at a time.
#include <ATen/ATen.h>

#include "comm/comm.h"

namespace facetrain {
namespace {

class SoloComm final : public Comm {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_gather(at::Tensor& out, const at::Tensor& in) override { out.copy_(in.view_as(out)); }
  void all_reduce_sum(at::Tensor&) override {}
  void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) override { out.copy_(in.view_as(out)); }
  void broadcast(at::Tensor&, int) override {}
  void barrier() override {}
};

struct Complete final : Comm::Pending {
  void wait() override {}
};

}  // namespace

std::unique_ptr<Comm::Pending> Comm::begin_all_reduce_sum(at::Tensor data) {
  all_reduce_sum(data);
  return std::make_unique<Complete>();
}

std::unique_ptr<Comm> make_solo_comm() { return std::make_unique<SoloComm>(); }

}  // namespace facetrain
