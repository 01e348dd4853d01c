#include "pfc/partial_fc.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>

#include "counted.h"
#include "error.h"
#include "pfc/row_window.h"
#include "pfc/step.h"

namespace facetrain {

RowRange row_range(int64_t num_classes, int rank, int size) {
  const int64_t each = num_classes / size, remainder = num_classes % size;
  return {each * rank + std::min<int64_t>(rank, remainder), each + (rank < remainder)};
}

namespace {

RowRange rows_of_rank(const PfcOptions& options, int rank, int size) {
  if (!options.reproducible) return row_range(options.num_classes, rank, size);
  const auto [begin, end] = rank_blocks(rank, size);
  const int64_t first = block_start(options.num_classes, begin);
  return {first, block_start(options.num_classes, end) - first};
}

// The rank whose part of the global batch has the picture.
int64_t rank_of(int64_t picture, int64_t batch, int ranks, const std::vector<int64_t>& parts) {
  if (parts.empty()) return picture / (batch / ranks);
  int64_t rank = 0;
  for (int64_t end = parts[0]; picture >= end; end += parts[rank]) ++rank;
  return rank;
}

// A tensor in host memory, in pages of its own: memory is locked for a device by the page, and no page twice.
at::Tensor in_own_pages(at::IntArrayRef sizes, at::ScalarType type) {
  constexpr int64_t kPage = 4096;
  const auto bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(c10::elementSize(type));
  const at::Tensor memory = at::empty({bytes + 2 * kPage}, at::kByte);
  const auto offset = static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory.const_data_ptr()) % kPage);
  return memory.narrow(0, kPage - offset, bytes).view(type).view(sizes);
}

}  // namespace

void check_labels(const at::Tensor& labels, int64_t num_classes, int ranks, const std::vector<int64_t>& parts) {
  const int64_t* label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < labels.numel(); ++i) {
    if (label[i] >= 0 && label[i] < num_classes) continue;
    throw Error("InvalidDataset", "labels",
                "label " + std::to_string(label[i]) + " in the batch of rank " +
                    std::to_string(rank_of(i, labels.numel(), ranks, parts)),
                "0 to " + std::to_string(num_classes - 1) + " for " + counted(num_classes, "class"));
  }
}

PartialFc::PartialFc(Comm& comm, const PfcOptions& options)
    : ranks_(comm.size()),
      parts_(options.parts),
      num_classes_(options.num_classes),
      rows_(rows_of_rank(options, comm.rank(), comm.size())) {
  if (options.dense_update && options.row_optimizer == RowOptimizer::adamw) {
    throw Error("InvalidConfig", "optimizer.rowUpdate", "dense, with the optimizer adamw", "lazy; or sgd or adagrad");
  }
  if (options.reproducible && options.device.is_cuda()) {
    throw Error("InvalidConfig", "reproducible", "a step on CUDA", "a step on CPUs");
  }
  const auto numbers = options.bf16_rows ? at::kBFloat16 : at::kFloat;
  const auto make = [&](int64_t columns, at::ScalarType type) {
    const std::array<int64_t, 2> sizes{rows_.count, columns};
    return options.host_rows ? in_own_pages(sizes, type)
                             : at::empty(sizes, at::TensorOptions(options.device).dtype(type));
  };
  const auto keep = [&](const char* name, int64_t columns, at::ScalarType type) {
    tensors_.push_back({name, make(columns, type).zero_()});
  };
  tensors_.push_back({"weight", make(options.embedding_dim, numbers)});
  switch (options.row_optimizer) {
    case RowOptimizer::sgd:
      keep("momentum", options.embedding_dim, numbers);
      break;
    case RowOptimizer::adamw:
      keep("first_moment", options.embedding_dim, numbers);
      keep("second_moment", options.embedding_dim, numbers);
      keep("updates", 1, at::kFloat);
      break;
    case RowOptimizer::adagrad:
      keep("squares", 1, at::kFloat);
      break;
  }
  const auto make_step = options.device.is_cuda() ? make_cuda_step : make_cpu_step;
  step_ = make_step(comm, options, rows_, tensors_);
}

PartialFc::~PartialFc() = default;

PfcResult PartialFc::forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step) {
  return step_->forward_backward(embeddings, labels, step);
}

void PartialFc::check_labels() const { facetrain::check_labels(step_->labels(), num_classes_, ranks_, parts_); }

void PartialFc::update_rows(double learning_rate, double momentum, double weight_decay, const at::Tensor& skip) {
  step_->update_rows({learning_rate, momentum, weight_decay}, skip);
}

void PartialFc::set_precision(Precision precision) { step_->set_precision(precision); }

void PartialFc::retire(const std::vector<int64_t>& classes) {
  std::vector<int64_t> rows;
  for (const int64_t class_id : classes) {
    const int64_t row = class_id - rows_.first;
    if (row >= 0 && row < rows_.count) rows.push_back(row);
  }
  std::ranges::sort(rows);
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  step_->retire(std::move(rows));
}

NormStatistics PartialFc::norm_statistics() const { return step_->norm_statistics(); }

void PartialFc::set_norm_statistics(const NormStatistics& statistics) { step_->set_norm_statistics(statistics); }

const std::vector<RowTensor>& PartialFc::row_tensors() {
  step_->release_rows();
  return tensors_;
}

at::Tensor& PartialFc::find(const std::string& name) {
  step_->release_rows();
  return std::find_if(tensors_.begin(), tensors_.end(), [&](const RowTensor& tensor) { return tensor.name == name; })
      ->values;
}

at::Tensor PartialFc::sampled() const { return step_->sampled(); }

SampledRows PartialFc::sampled_rows() const {
  const at::Tensor rows = step_->sampled();
  if (const RowWindow* window = step_->window())
    return {rows, window->tensors(), at::tensor(window->slots(), at::kLong)};
  SampledRows result{rows.cpu(), {}, {}};
  const bool on_host = tensors_[0].values.is_cpu();
  for (const RowTensor& tensor : tensors_)
    result.tensors.push_back(on_host ? tensor.values : tensor.values.index_select(0, rows).cpu());
  result.places = on_host ? result.rows : at::arange(rows.numel(), at::kLong);
  return result;
}

at::Tensor PartialFc::sampled_gradient() const { return step_->sampled_gradient(); }

}  // namespace facetrain
