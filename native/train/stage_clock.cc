#include "train/stage_clock.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <utility>

namespace facetrain {

double StageClock::monotonic() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void StageClock::begin() {
  if (running_) free_.push_back(std::move(*running_));
  running_.reset();
  if (ended_.size() >= kSteps) return;
  if (free_.empty()) free_.emplace_back();
  running_ = std::move(free_.back());
  free_.pop_back();
  running_->stages.clear();
  running_->times.clear();
  running_->marks = 0;
  stage_ = Stage::data;
  mark();
}

Stage StageClock::enter(Stage stage) {
  const Stage before = std::exchange(stage_, stage);
  if (running_ && stage != before) mark();
  return before;
}

void StageClock::end() {
  if (!running_) return;
  mark();
  ended_.push_back(std::move(*running_));
  running_.reset();
}

void StageClock::mark() {
  Step& step = *running_;
  step.stages.push_back(stage_);
  if (device_.is_cuda()) {
    // BACKEND_DEFAULT is an event with a time.
    if (step.marks == step.events.size()) step.events.emplace_back(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
    step.events[step.marks].record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  } else {
    step.times.push_back(now_());
  }
  ++step.marks;
}

bool StageClock::is_complete(const Step& step) const {
  return !device_.is_cuda() || step.events[step.marks - 1].query();
}

std::optional<StageSeconds> StageClock::take() {
  if (ended_.empty() || !is_complete(ended_.front())) return std::nullopt;
  Step step = std::move(ended_.front());
  ended_.pop_front();
  StageSeconds seconds{};
  for (size_t i = 0; i + 1 < step.marks; ++i) {
    seconds[static_cast<size_t>(step.stages[i])] +=
        device_.is_cuda() ? step.events[i].elapsedTime(step.events[i + 1]) / 1000 : step.times[i + 1] - step.times[i];
  }
  free_.push_back(std::move(step));
  return seconds;
}

namespace {

class TimedComm final : public Comm {
 public:
  TimedComm(std::unique_ptr<Comm> comm, StageClock& clock) : comm_(std::move(comm)), clock_(clock) {}
  int rank() const override { return comm_->rank(); }
  int size() const override { return comm_->size(); }
  void all_gather(at::Tensor& out, const at::Tensor& in) override {
    const Timed timed(clock_);
    comm_->all_gather(out, in);
  }
  void all_reduce_sum(at::Tensor& data) override {
    const Timed timed(clock_);
    comm_->all_reduce_sum(data);
  }
  // What the wait takes is what no other stage has hidden.
  std::unique_ptr<Pending> begin_all_reduce_sum(at::Tensor data) override {
    return std::make_unique<TimedPending>(comm_->begin_all_reduce_sum(std::move(data)), clock_);
  }
  void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) override {
    const Timed timed(clock_);
    comm_->reduce_scatter_sum(out, in);
  }
  void broadcast(at::Tensor& data, int root) override {
    const Timed timed(clock_);
    comm_->broadcast(data, root);
  }
  void barrier() override {
    const Timed timed(clock_);
    comm_->barrier();
  }

 private:
  class Timed {
   public:
    explicit Timed(StageClock& clock) : clock_(clock), before_(clock.enter(Stage::communication)) {}
    ~Timed() { clock_.enter(before_); }
    Timed(const Timed&) = delete;
    Timed& operator=(const Timed&) = delete;

   private:
    StageClock& clock_;
    const Stage before_;
  };

  class TimedPending final : public Pending {
   public:
    TimedPending(std::unique_ptr<Pending> pending, StageClock& clock) : pending_(std::move(pending)), clock_(clock) {}
    void wait() override {
      const Timed timed(clock_);
      pending_->wait();
    }

   private:
    const std::unique_ptr<Pending> pending_;
    StageClock& clock_;
  };

  const std::unique_ptr<Comm> comm_;
  StageClock& clock_;
};

}  // namespace

std::unique_ptr<Comm> make_timed_comm(std::unique_ptr<Comm> comm, StageClock& clock) {
  if (comm->size() == 1) return comm;
  return std::make_unique<TimedComm>(std::move(comm), clock);
}

}  // namespace facetrain
