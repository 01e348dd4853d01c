// What a step reports about its stages, and in FP16 the loss scale, on a GPU. What else it computes is tested through
// the addon (src/training.test.ts).
#include "train/session.h"

#include <ATen/ATen.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <thread>

#include "test/check.h"
#include "test/pictures.h"

using namespace facetrain;

namespace {

constexpr int kSide = 4;  // pixels

// Pictures of two identities. Reading one waits until open() is called.
class GatedDataset final : public Dataset {
 public:
  int64_t size() const override { return 8; }
  int64_t identities() const override { return 2; }
  int height() const override { return kSide; }
  int width() const override { return kSide; }
  int64_t label(int64_t picture) const override { return picture % 2; }
  std::vector<uint8_t> encoded(int64_t picture) const override {
    std::unique_lock lock(mutex_);
    opened_.wait(lock, [&] { return open_; });
    const std::vector<uint8_t> pixels(size_t{3} * kSide * kSide, static_cast<uint8_t>(20 * picture));
    return test::encode_bmp(pixels, kSide, kSide);
  }
  void will_need(int64_t) const override {}
  std::string name(int64_t picture) const override { return "picture " + std::to_string(picture); }
  int64_t bytes() const override { return 0; }

  void open() {
    {
      std::lock_guard lock(mutex_);
      open_ = true;
    }
    opened_.notify_all();
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable opened_;
  bool open_ = false;
};

Graph small_graph() {
  constexpr int64_t kPixels = int64_t{3} * kSide * kSide, kDim = 2;
  std::vector<float> weight(kPixels * kDim);
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<float>(i % 7) - 3;
  Graph graph;
  graph.input = {"data", 3, kSide, kSide};
  graph.nodes = {{"flatten", "Flatten", {"data"}, {"flat"}, {}}, {"fc", "Gemm", {"flat", "weight"}, {"out"}, {}}};
  graph.initializers = {{"weight", {Constant::Type::float32, {kPixels, kDim}, std::move(weight), {}}}};
  graph.output = {"out", kDim};
  return graph;
}

SessionOptions small_options() {
  return {.pfc = {.num_classes = 2,
                  .embedding_dim = 2,
                  .sample_rate = 1,
                  .seed = 1,
                  .scale = 8,
                  .margin = {.m1 = 1, .m2 = 0, .m3 = 0},
                  .interclass_filter = std::nullopt},
          .data = {.global_batch = 4,
                   .rank = 0,
                   .size = 1,
                   .seed = 1,
                   .flip = false,
                   .shift = 0,
                   .bgr = false,
                   .threads = 1,
                   .max_bad = 0},
          .momentum = 0.9,
          .weight_decay = 0,
          .clip_norm = std::nullopt,
          .precision = Precision::fp32};
}

// A step whose batch the loader holds back: the wait is in `data`, and nothing else is.
void waiting_for_the_loader_counts_as_data() {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point then) {
    return std::chrono::duration<double>(Clock::now() - then).count();
  };
  const auto dataset = std::make_shared<GatedDataset>();
  const std::atomic<bool> cancelled{false};
  Session session(make_executor(small_graph(), at::kCPU), make_solo_comm(), dataset, small_options(), cancelled);

  const auto called = Clock::now();
  Clock::time_point opened;
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    opened = Clock::now();
    dataset->open();
  });
  const auto held_back = session.step(0, 0.1, {});
  const double all = seconds_since(called);
  opener.join();
  const double after = seconds_since(opened);
  CHECK(held_back.stages.has_value());
  if (!held_back.stages) return;
  const StageSeconds& stages = *held_back.stages;
  const double data = stages[static_cast<size_t>(Stage::data)];
  const double sum = std::accumulate(stages.begin(), stages.end(), 0.0);
  CHECK(data > 0.1);
  CHECK(sum <= all);
  CHECK(sum - data <= after);
  for (const Stage stage : {Stage::upload, Stage::forward, Stage::head, Stage::backward, Stage::update}) {
    CHECK(stages[static_cast<size_t>(stage)] > 0);
  }
  CHECK_EQ(stages[static_cast<size_t>(Stage::communication)], 0.0);
}

// In FP16, an overflow changes no weight and halves the loss scale; other steps are those without a scale.
void an_overflow_skips_the_step() {
  if (!at::hasCUDA()) return;
  SessionOptions options = small_options();
  options.pfc.device = at::Device(at::kCUDA, 0);
  options.precision = Precision::fp16;
  const auto dataset = std::make_shared<GatedDataset>();
  dataset->open();
  const std::atomic<bool> cancelled{false};
  Session session(make_executor(small_graph(), options.pfc.device), make_solo_comm(), dataset, options, cancelled);
  CHECK_EQ(session.loss_scale()->value, 65536.0);
  const auto weights = [&] { return session.backbone().parameters()[0].tensor.detach().clone(); };

  const at::Tensor before = weights(), centres = session.centres().weight().clone();
  session.use_precision(Precision::fp16, {.value = 0x1p80, .good_steps = 7, .skipped_steps = 4});
  session.step(0, 0.1, {});
  CHECK_EQ(session.loss_scale()->value, 0x1p79);
  CHECK_EQ(session.loss_scale()->good_steps, 0);
  CHECK_EQ(session.loss_scale()->skipped_steps, 5);
  CHECK(at::equal(weights(), before));
  CHECK(at::equal(session.centres().weight(), centres));

  session.use_precision(Precision::fp16, {.value = 1024, .good_steps = 7, .skipped_steps = 4});
  session.step(1, 0.1, {});
  CHECK_EQ(session.loss_scale()->good_steps, 8);
  CHECK_EQ(session.loss_scale()->skipped_steps, 4);
  CHECK(!at::equal(weights(), before));
}

}  // namespace

int main() {
  an_overflow_skips_the_step();
  waiting_for_the_loader_counts_as_data();
  return TEST_RESULT();
}
