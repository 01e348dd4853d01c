// Ranks in one process, for tests. A collective publishes its input, waits for all ranks, computes from all inputs, and
// waits again. Sums are in rank order, so the result depends only on the inputs.
#include <ATen/ATen.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "comm/comm.h"

namespace facetrain {
namespace {

// The state that the ranks share. A rank leaves when its Comm is destroyed, after its work or after an error. Ranks
// that wait for it then get a CommError.
class Group {
 public:
  explicit Group(int size) : inputs(size) {}

  void wait(int rank) {
    std::unique_lock lock(mutex_);
    const int64_t generation = generation_;
    if (++arrived_ == static_cast<int>(inputs.size())) {
      arrived_ = 0;
      ++generation_;
      changed_.notify_all();
      return;
    }
    changed_.wait(lock, [&] { return generation_ != generation || left_ >= 0; });
    if (generation_ == generation) {
      throw CommError("rank " + std::to_string(rank) + ": rank " + std::to_string(left_) + " has left the group");
    }
  }

  void leave(int rank) {
    std::lock_guard lock(mutex_);
    left_ = rank;
    changed_.notify_all();
  }

  std::vector<at::Tensor> inputs;  // by rank; written before one barrier, read before the next

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  int64_t generation_ = 0;
  int left_ = -1;
};

class FakeComm final : public Comm {
 public:
  FakeComm(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  ~FakeComm() override { group_->leave(rank_); }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(group_->inputs.size()); }

  void all_gather(at::Tensor& out, const at::Tensor& in) override {
    exchange(in, [&](const std::vector<at::Tensor>& inputs) { return at::stack(inputs); });
    out.copy_(result_.view_as(out));
  }

  void all_reduce_sum(at::Tensor& data) override {
    exchange(data, [](const std::vector<at::Tensor>& inputs) {
      at::Tensor sum = inputs[0].clone();
      for (size_t r = 1; r < inputs.size(); ++r) sum.add_(inputs[r]);
      return sum;
    });
    data.copy_(result_);
  }

  void reduce_scatter_sum(at::Tensor& out, const at::Tensor& in) override {
    exchange(in, [&](const std::vector<at::Tensor>& inputs) {
      at::Tensor sum = at::zeros_like(out);
      for (const at::Tensor& input : inputs) sum.add_(input.view({size(), -1})[rank_].view_as(out));
      return sum;
    });
    out.copy_(result_);
  }

  void broadcast(at::Tensor& data, int root) override {
    exchange(data, [&](const std::vector<at::Tensor>& inputs) { return inputs[root].clone(); });
    data.copy_(result_);
  }

  void barrier() override { group_->wait(rank_); }

 private:
  // Publishes `in`, and sets result_ to read(inputs of all ranks). Returns when all ranks have read, so inputs may
  // change.
  template <class Read>
  void exchange(const at::Tensor& in, Read read) {
    group_->inputs[rank_] = in;
    group_->wait(rank_);
    result_ = read(group_->inputs);
    group_->wait(rank_);
  }

  std::shared_ptr<Group> group_;
  int rank_;
  at::Tensor result_;
};

}  // namespace

std::vector<std::unique_ptr<Comm>> make_fake_comms(int size) {
  const auto group = std::make_shared<Group>(size);
  std::vector<std::unique_ptr<Comm>> comms;
  for (int rank = 0; rank < size; ++rank) comms.push_back(std::make_unique<FakeComm>(group, rank));
  return comms;
}

void run_fake_ranks(int size, const std::function<void(Comm&)>& body) {
  auto comms = make_fake_comms(size);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (auto& comm : comms) {
    threads.emplace_back([&body, &mutex, &first, comm = std::move(comm)]() mutable {
      try {
        body(*comm);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
      comm.reset();
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace facetrain
