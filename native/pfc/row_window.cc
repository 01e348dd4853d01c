#include "pfc/row_window.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

namespace facetrain {
namespace {

constexpr int64_t kRowsAtOnce = 64;  // of a thread: enough that starting it is worth it

// Copies row `from_index` of each tensor of `from` to row `to_index` of `to`.
void copy_row(const std::vector<at::Tensor>& from, int64_t from_index, const std::vector<at::Tensor>& to,
              int64_t to_index) {
  for (size_t i = 0; i < from.size(); ++i) {
    const auto bytes = static_cast<size_t>(from[i].size(1) * from[i].element_size());
    std::memcpy(static_cast<char*>(to[i].data_ptr()) + static_cast<size_t>(to_index) * bytes,
                static_cast<const char*>(from[i].const_data_ptr()) + static_cast<size_t>(from_index) * bytes, bytes);
  }
}

// Calls copy(i) for 0 <= i < count, on all threads.
template <class Copy>
void for_rows(int64_t count, Copy copy) {
  at::parallel_for(0, count, kRowsAtOnce, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) copy(i);
  });
}

// Makes room for `count` rows like those of `host`, and keeps the first `used`. A sample's size differs from step to
// step by about its square root: a 32nd more is enough for most later steps.
void reserve(std::vector<at::Tensor>& tensors, const std::vector<at::Tensor>& host, int64_t count, int64_t used) {
  if (!tensors.empty() && tensors[0].size(0) >= count) return;
  const std::vector<at::Tensor> former = std::move(tensors);
  tensors.clear();
  for (size_t i = 0; i < host.size(); ++i) {
    tensors.push_back(at::empty({count + count / 32, host[i].size(1)}, host[i].options()));
    if (used > 0) tensors[i].narrow(0, 0, used).copy_(former[i].narrow(0, 0, used));
  }
}

}  // namespace

RowWindow::RowWindow(std::vector<at::Tensor> host) : host_(std::move(host)) {}

void RowWindow::prefetch(uint64_t step, std::vector<int64_t> rows) {
  reserve(next_, host_, std::ssize(rows), 0);
  for_rows(std::ssize(rows), [&](int64_t i) { copy_row(host_, rows[i], next_, i); });
  prefetched_ = std::move(rows);
  prefetched_for_ = step;
}

void RowWindow::open(uint64_t step, const int64_t* rows, int64_t count) {
  if (prefetched_for_ != step) prefetched_.clear();
  reserve(next_, host_, count, std::ssize(prefetched_));

  // Each row's place, and where its numbers are: in the window so far, or in host memory, or there already.
  constexpr int64_t kOnHost = -1, kPrefetched = -2;
  std::vector<int64_t> slots(static_cast<size_t>(count)), sources(slots.size());
  const int64_t prefetched = std::ssize(prefetched_);
  int64_t others = prefetched;
  for (int64_t i = 0, next = 0, before = 0; i < count; ++i) {
    const bool is_prefetched = next < prefetched && prefetched_[next] == rows[i];
    slots[i] = is_prefetched ? next++ : others++;
    while (open_ && before < std::ssize(rows_) && rows_[before] < rows[i]) ++before;
    const bool was_open = open_ && before < std::ssize(rows_) && rows_[before] == rows[i];
    sources[i] = was_open ? slots_[before] : is_prefetched ? kPrefetched : kOnHost;
  }
  for_rows(count, [&](int64_t i) {
    if (sources[i] >= 0) copy_row(current_, sources[i], next_, slots[i]);
    if (sources[i] == kOnHost) copy_row(host_, rows[i], next_, slots[i]);
  });

  write_back();
  std::swap(current_, next_);
  rows_.assign(rows, rows + count);
  slots_ = std::move(slots);
  prefetched_for_.reset();
  open_ = true;
}

void RowWindow::close() {
  write_back();
  prefetched_for_.reset();
  open_ = false;
}

void RowWindow::write_back() const {
  if (!open_) return;
  for_rows(std::ssize(rows_), [&](int64_t i) { copy_row(current_, slots_[i], host_, rows_[i]); });
}

}  // namespace facetrain
