#include "pfc/partial_fc.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "error.h"
#include "pfc/step.h"

namespace facetrain {

RowRange row_range(int64_t num_classes, int rank, int size) {
  const int64_t each = num_classes / size, remainder = num_classes % size;
  return {each * rank + std::min<int64_t>(rank, remainder), each + (rank < remainder)};
}

void check_labels(const at::Tensor& labels, int64_t num_classes, int ranks) {
  const int64_t* label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < labels.numel(); ++i) {
    if (label[i] >= 0 && label[i] < num_classes) continue;
    const int64_t batch_of_rank = labels.numel() / ranks;
    throw Error("InvalidDataset", "labels",
                "label " + std::to_string(label[i]) + " in the batch of rank " + std::to_string(i / batch_of_rank),
                "0 to " + std::to_string(num_classes - 1) + " for " + std::to_string(num_classes) + " classes");
  }
}

PartialFc::PartialFc(Comm& comm, const PfcOptions& options)
    : ranks_(comm.size()),
      num_classes_(options.num_classes),
      rows_(row_range(options.num_classes, comm.rank(), comm.size())) {
  const auto numbers = at::TensorOptions(options.bf16_rows ? at::kBFloat16 : at::kFloat).device(options.device);
  weight_ = at::empty({rows_.count, options.embedding_dim}, numbers);
  momentum_ = at::zeros_like(weight_);
  const auto make_step = options.device.is_cuda() ? make_cuda_step : make_cpu_step;
  step_ = make_step(comm, options, rows_, weight_, momentum_);
}

PartialFc::~PartialFc() = default;

PfcResult PartialFc::forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step) {
  return step_->forward_backward(embeddings, labels, step);
}

void PartialFc::check_labels() const { facetrain::check_labels(step_->labels(), num_classes_, ranks_); }

void PartialFc::apply_sgd(double learning_rate, double momentum, double weight_decay, const at::Tensor& skip) {
  step_->apply_sgd({static_cast<float>(learning_rate), static_cast<float>(momentum), static_cast<float>(weight_decay)},
                   skip);
}

void PartialFc::set_precision(Precision precision) { step_->set_precision(precision); }

at::Tensor& PartialFc::weight() {
  step_->rows_change();
  return weight_;
}

at::Tensor PartialFc::sampled() const { return step_->sampled(); }

at::Tensor PartialFc::sampled_gradient() const { return step_->sampled_gradient(); }

}  // namespace facetrain
