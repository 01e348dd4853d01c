// Which buckets are sent when, and that their sum is that of the whole.
#include "train/gradient_buckets.h"

#include <ATen/ATen.h>

#include <utility>

#include "test/check.h"

using namespace facetrain;

namespace {

constexpr int64_t kBefore = 16;  // floats before the gradients

// Notes what is begun, as offset and size in the buffer, and what is waited for.
class NotingComm final : public Comm {
 public:
  using Part = std::pair<int64_t, int64_t>;
  int rank() const override { return 0; }
  int size() const override { return 2; }
  void all_gather(at::Tensor&, const at::Tensor&) override {}
  void all_reduce_sum(at::Tensor&) override {}
  std::unique_ptr<Pending> begin_all_reduce_sum(at::Tensor data) override {
    begun.emplace_back(data.storage_offset(), data.numel());
    return std::make_unique<Noted>(*this);
  }
  void reduce_scatter_sum(at::Tensor&, const at::Tensor&) override {}
  void broadcast(at::Tensor&, int) override {}
  void barrier() override {}

  std::vector<Part> begun;
  size_t waited = 0;

 private:
  class Noted final : public Pending {
   public:
    explicit Noted(NotingComm& comm) : comm_(comm) {}
    void wait() override { ++comm_.waited; }

   private:
    NotingComm& comm_;
  };
};

// A chain of products by parameters of [4, 4], one cache line each: value = value * p0 * p1 * ...
struct Chain {
  explicit Chain(int count) {
    for (int i = 0; i < count; ++i) {
      parameters.push_back(at::eye(4).add_(0.01 * (i + 1)));
      layout.add(parameters.back());
    }
    buffer = at::zeros({kBefore + layout.size()});
    const at::Tensor gradients = buffer.narrow(0, kBefore, layout.size());
    for (int i = 0; i < count; ++i) {
      parameters[i].requires_grad_(true);
      parameters[i].mutable_grad() = layout.view(gradients, i, parameters[i]);
    }
  }
  // The sum of the chain's output, without the parameters from `end` on.
  at::Tensor forward(double value, size_t end) const {
    at::Tensor result = at::full({1, 4}, value);
    for (size_t i = 0; i < end; ++i) result = result.matmul(parameters[i]);
    return result.sum();
  }
  std::vector<at::Tensor> parameters;
  FlatLayout layout;
  at::Tensor buffer;
};

void buckets_go_in_order_while_the_pass_goes_on() {
  Chain chain(5);
  NotingComm comm;
  // Two parameters a bucket: 3 and 4, 1 and 2, and 0 with what is before it.
  GradientBuckets buckets(comm, chain.buffer, chain.parameters, chain.layout, 2 * 16 * 4);
  const std::vector<NotingComm::Part> all{{kBefore + 48, 32}, {kBefore + 16, 32}, {0, kBefore + 16}};

  // A pass that does not complete the gradients sends nothing.
  chain.forward(1, 5).backward();
  CHECK(comm.begun.empty());

  // While the pass goes on: how much was sent when parameter 1's gradient was not complete.
  buckets.begin();
  std::vector<size_t> sent;
  const at::Tensor output = [&] {
    at::Tensor result = at::ones({1, 4});
    for (const at::Tensor& parameter : chain.parameters) {
      result = result.matmul(parameter);
      result.register_hook([&](const at::Tensor&) { sent.push_back(comm.begun.size()); });
    }
    return result.sum();
  }();
  output.backward();
  CHECK((sent == std::vector<size_t>{0, 0, 1, 1, 2}));
  CHECK_EQ(comm.begun.size(), 2U);
  CHECK_EQ(comm.waited, 0U);
  buckets.finish();
  CHECK(comm.begun == all);
  CHECK_EQ(comm.waited, 3U);

  // Parameters without a gradient in this pass, 3 and 4, hold up those before them, and are sent all the same.
  comm.begun.clear();
  buckets.begin();
  chain.forward(1, 3).backward();
  CHECK(comm.begun.empty());
  buckets.finish();
  CHECK(comm.begun == all);

  // Without a pass.
  comm.begun.clear();
  buckets.finish();
  CHECK(comm.begun == all);
}

void the_sum_is_that_of_the_whole() {
  run_fake_ranks(3, [](Comm& comm) {
    for (const int64_t bytes : {4, 100, 200, 1 << 20}) {
      Chain chain(6), whole(6);
      GradientBuckets buckets(comm, chain.buffer, chain.parameters, chain.layout, bytes);
      // Two passes add up, the second completes.
      for (const Chain* each : {&chain, &whole}) {
        each->buffer.narrow(0, 0, kBefore).fill_(comm.rank() + 1);
        each->forward(comm.rank() + 1, 6).backward();
        if (each == &chain) buckets.begin();
        each->forward(0.5 * comm.rank(), 6).backward();
      }
      buckets.finish();
      comm.all_reduce_sum(whole.buffer);
      CHECK(at::equal(chain.buffer, whole.buffer));
      CHECK_EQ(chain.buffer[0].item<float>(), 6.F);
      CHECK(chain.buffer.narrow(0, kBefore, 16).abs().sum().item<float>() > 0);
    }
  });
}

}  // namespace

int main() {
  buckets_go_in_order_while_the_pass_goes_on();
  the_sum_is_that_of_the_whole();
  return TEST_RESULT();
}
