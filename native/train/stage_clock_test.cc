// Stage times add up to the step, collectives count as communication wherever they are, and a step that failed leaves
// nothing behind. On a machine with a GPU also with the device's events.
#include "train/stage_clock.h"

#include <ATen/ops/rand.h>

#include <numeric>

#include "test/check.h"
#include "train/device.h"

using namespace facetrain;

namespace {

double time_now = 0;  // seconds

double of(const StageSeconds& seconds, Stage stage) { return seconds[static_cast<size_t>(stage)]; }

double sum_of(const StageSeconds& seconds) { return std::accumulate(seconds.begin(), seconds.end(), 0.0); }

// Binary fractions, so that the sums are exact.
void stages_add_up() {
  StageClock clock(at::kCPU, [] { return time_now; });
  CHECK(!clock.take());
  for (int repeat = 0; repeat < 3; ++repeat) {
    clock.begin();
    time_now += 0.5;
    CHECK(clock.enter(Stage::forward) == Stage::data);
    time_now += 0.25;
    CHECK(clock.enter(Stage::head) == Stage::forward);
    time_now += 2;
    clock.enter(Stage::backward);
    clock.enter(Stage::update);
    time_now += 0.125;
    clock.enter(Stage::head);  // again
    time_now += 1;
    clock.end();
    time_now += 64;  // between steps
    CHECK(clock.enter(Stage::backward) != Stage::backward);
    const auto seconds = clock.take();
    CHECK(seconds.has_value());
    if (!seconds) return;
    CHECK_EQ(of(*seconds, Stage::data), 0.5);
    CHECK_EQ(of(*seconds, Stage::forward), 0.25);
    CHECK_EQ(of(*seconds, Stage::head), 3.0);
    CHECK_EQ(of(*seconds, Stage::backward), 0.0);
    CHECK_EQ(of(*seconds, Stage::update), 0.125);
    CHECK_EQ(sum_of(*seconds), 3.875);
    CHECK(!clock.take());
  }
}

void failed_step_is_forgotten() {
  StageClock clock(at::kCPU, [] { return time_now; });
  clock.begin();
  time_now += 8;
  clock.enter(Stage::head);
  clock.begin();
  time_now += 1;
  clock.end();
  const auto seconds = clock.take();
  CHECK(seconds && of(*seconds, Stage::data) == 1 && sum_of(*seconds) == 1);
  CHECK(!clock.take());
}

// The number of steps that wait to be taken is bounded.
void steps_that_nobody_takes() {
  StageClock clock(at::kCPU, [] { return time_now; });
  for (size_t i = 0; i < 2 * StageClock::kSteps; ++i) {
    clock.begin();
    time_now += 1;
    clock.end();
  }
  size_t taken = 0;
  while (clock.take()) ++taken;
  CHECK_EQ(taken, StageClock::kSteps);
}

// A collective that takes a second.
class SlowComm final : public Comm {
 public:
  explicit SlowComm(int size) : size_(size) {}
  int rank() const override { return 0; }
  int size() const override { return size_; }
  void all_gather(at::Tensor&, const at::Tensor&) override { work(); }
  void all_reduce_sum(at::Tensor&) override { work(); }
  void reduce_scatter_sum(at::Tensor&, const at::Tensor&) override { work(); }
  void broadcast(at::Tensor&, int) override { work(); }
  std::unique_ptr<Pending> begin_all_reduce_sum(at::Tensor) override { return std::make_unique<Begun>(); }
  void barrier() override {
    work();
    throw CommError("lost");
  }

 private:
  struct Begun final : Pending {
    void wait() override { work(); }
  };
  static void work() { time_now += 1; }
  const int size_;
};

void collectives_count_as_communication() {
  StageClock clock(at::kCPU, [] { return time_now; });
  const auto comm = make_timed_comm(std::make_unique<SlowComm>(2), clock);
  CHECK_EQ(comm->size(), 2);
  at::Tensor tensor;
  clock.begin();
  clock.enter(Stage::head);
  time_now += 0.25;
  comm->all_gather(tensor, tensor);
  time_now += 0.25;
  comm->all_reduce_sum(tensor);
  comm->reduce_scatter_sum(tensor, tensor);
  time_now += 0.25;
  clock.enter(Stage::update);
  const auto begun = comm->begin_all_reduce_sum(tensor);
  time_now += 0.25;
  begun->wait();
  CHECK_THROWS(comm->barrier(), CommError, "lost");
  time_now += 0.5;
  clock.end();
  const auto seconds = clock.take();
  CHECK(seconds.has_value());
  if (!seconds) return;
  CHECK_EQ(of(*seconds, Stage::head), 0.75);
  CHECK_EQ(of(*seconds, Stage::communication), 5.0);
  CHECK_EQ(of(*seconds, Stage::update), 0.75);
}

void one_rank_does_not_communicate() {
  StageClock clock(at::kCPU, [] { return time_now; });
  const auto comm = make_timed_comm(std::make_unique<SlowComm>(1), clock);
  at::Tensor tensor;
  clock.begin();
  clock.enter(Stage::head);
  comm->all_reduce_sum(tensor);
  clock.end();
  const auto seconds = clock.take();
  CHECK(seconds && of(*seconds, Stage::communication) == 0 && of(*seconds, Stage::head) == 1);
}

// The device's work is in the stage in which it was started, though the host is ahead.
void events_of_a_device() {
  if (cuda_devices() == 0) return;
  const at::Device device(at::kCUDA, 0);
  StageClock clock(device);
  const at::Tensor matrix = at::rand({4096, 4096}, at::TensorOptions(device));
  matrix.mm(matrix).sum().item<float>();  // loads the library
  for (int repeat = 0; repeat < 3; ++repeat) {
    clock.begin();
    clock.enter(Stage::forward);
    at::Tensor product = matrix;
    for (int i = 0; i < 8; ++i) product = product.mm(matrix);
    clock.enter(Stage::update);
    clock.end();
    product.sum().item<float>();  // waits for the device
    const auto seconds = clock.take();
    CHECK(seconds.has_value());
    if (!seconds) return;
    // 1.1e12 operations: more than 0.1 ms on any device.
    CHECK(of(*seconds, Stage::forward) > 1e-4);
    CHECK(of(*seconds, Stage::forward) > of(*seconds, Stage::update));
  }
}

}  // namespace

int main() {
  stages_add_up();
  failed_step_is_forgotten();
  steps_that_nobody_takes();
  collectives_count_as_communication();
  one_rank_does_not_communicate();
  events_of_a_device();
  return TEST_RESULT();
}
