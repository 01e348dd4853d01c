// The step on a CUDA device. cpu_step.cc has the mathematics.
//
// The host only queues work. What it must know before, the number of sampled rows, is counted a step ahead: the
// negatives of a step depend on its number alone, so they are drawn at the end of the step before, and their number is
// on the host long before it is needed. With the B positives at most it bounds the rows of the step, and the buffers
// have that many rows; the true number stays on the device, where kernels skip what is beyond it. (A fixed capacity
// would overflow once in a while, and need a way out.) Only a step that does not follow the last one waits for the
// device.
//
// In one pass over tiles of the sample, with cosines in float32 by cuBLAS: e^(s cos) of a tile, in the type of the
// products, its sum for each picture, and its product with the tile's rows. Division by Z, which is known after the
// last tile, is put off: the features' gradient is divided by Z_i in the end, and the rows' gradient is the product of
// the exponentials with features divided by Z_i. So no logit is computed twice, except those beyond kept_logits. The
// targets' terms are added in float32, not in the products' type. e^(s cos) must be in the products' range of
// exponents: with float16, or s above kLargestScale, two passes are made instead, and the second computes each tile's
// logits again, relative to log Z.
#include "error.h"
#include "pfc/step.h"

#if !defined(FACETRAIN_CUDA)

namespace facetrain {

std::unique_ptr<HeadStep> make_cuda_step(Comm&, const PfcOptions&, RowRange, const std::vector<RowTensor>&) {
  throw Error("InvalidConfig", "device", "cuda, but this build has no CUDA", "cpu");
}

}  // namespace facetrain

#else

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cmath>
#include <deque>

#include "comm/parts.h"
#include "pfc/cuda_kernels.h"

namespace facetrain {
namespace {

// Cosines of a tile: 128 MiB. Tiles of 16 to 32 MiB, which stay in the second-level cache, are slower by a third on an
// H200: their products are too small for cuBLAS.
constexpr int64_t kTileElements = int64_t{1} << 25;
// Exponentials that are kept for the rows' gradient: 2 GiB in bfloat16.
constexpr int64_t kKeptLogits = int64_t{1} << 30;
// Probabilities in float16 are multiplied by it: below 6e-5 / 2^14 they lose digits, and 2^14 is in its range.
constexpr double kHalfUnit = 1 << 14;

at::ScalarType type_of(Precision precision) {
  switch (precision) {
    case Precision::bf16:
      return at::kBFloat16;
    case Precision::fp16:
      return at::kHalf;
    case Precision::fp32:
    case Precision::tf32:
      break;
  }
  return at::kFloat;
}

cuda::Numbers numbers(const at::Tensor& tensor) {
  const auto type = tensor.scalar_type();
  return {tensor.data_ptr(), type == at::kFloat      ? cuda::Number::float32
                             : type == at::kBFloat16 ? cuda::Number::bfloat16
                                                     : cuda::Number::float16};
}

// out = a b, summed in float32.
void product(at::Tensor out, const at::Tensor& a, const at::Tensor& b) {
  if (out.scalar_type() == a.scalar_type()) {
    at::mm_out(out, a, b);
  } else {
    at::mm_out(out, a, b, out.scalar_type());
  }
}

// A number that the device computes and the host reads later.
class LateCount {
 public:
  explicit LateCount(at::Device device)
      : on_device(at::empty({1}, at::TensorOptions(device).dtype(at::kInt))),
        on_host_(at::empty({1}, at::TensorOptions(at::kInt).pinned_memory(true))) {
    C10_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
  }
  LateCount(const LateCount&) = delete;
  LateCount& operator=(const LateCount&) = delete;
  ~LateCount() { cudaEventDestroy(event_); }

  void fetch(cudaStream_t stream) {
    C10_CUDA_CHECK(cudaMemcpyAsync(on_host_.data_ptr<int32_t>(), on_device.data_ptr<int32_t>(), sizeof(int32_t),
                                   cudaMemcpyDeviceToHost, stream));
    C10_CUDA_CHECK(cudaEventRecord(event_, stream));
  }
  int64_t wait() const {
    C10_CUDA_CHECK(cudaEventSynchronize(event_));
    return *on_host_.const_data_ptr<int32_t>();
  }

  const at::Tensor on_device;

 private:
  const at::Tensor on_host_;
  cudaEvent_t event_ = nullptr;
};

// Rows as kernels address them. Those in host memory are locked there: kernels read and write them over the bus, and
// find what the kernels before them on the stream have written, as in the device's own memory. The tensor has its pages
// to itself.
class StoredRows {
 public:
  StoredRows(at::Tensor tensor, at::Device device)
      : tensor_(std::move(tensor)), device_(device), on_device_(numbers(tensor_)) {
    if (tensor_.is_cuda() || tensor_.nbytes() == 0) return;
    const c10::cuda::CUDAGuard guard(device_);
    if (const cudaError_t error = cudaHostRegister(tensor_.data_ptr(), tensor_.nbytes(), cudaHostRegisterMapped);
        error != cudaSuccess) {
      cudaGetLastError();  // the next check would report it again
      throw Error(
          "InsufficientMemory", "loss.rows.placement",
          "Host, but " + std::to_string(tensor_.nbytes()) +
              " bytes of host memory cannot be locked for the GPU: " + cudaGetErrorString(error),
          "host memory that a process may lock (in Kubernetes resources.limits.memory), more trainers.replicas, "
          "or placement Device");
    }
    is_locked_ = true;
    C10_CUDA_CHECK(cudaHostGetDevicePointer(&on_device_.data, tensor_.data_ptr(), 0));
  }
  StoredRows(const StoredRows&) = delete;
  StoredRows& operator=(const StoredRows&) = delete;
  ~StoredRows() {
    if (!is_locked_) return;
    const c10::cuda::CUDAGuard guard(device_);
    cudaDeviceSynchronize();  // kernels that use the rows may be queued
    cudaHostUnregister(tensor_.data_ptr());
  }

  cuda::Numbers on_device() const { return on_device_; }

 private:
  const at::Tensor tensor_;
  const at::Device device_;
  cuda::Numbers on_device_;
  bool is_locked_ = false;
};

class Step final : public HeadStep {
 public:
  Step(Comm& comm, const PfcOptions& options, RowRange rows, const std::vector<RowTensor>& tensors)
      : comm_(comm),
        options_(options),
        rows_(rows),
        device_(options.device),
        count_(at::full({1}, rows.count, of(at::kInt))),
        negatives_(device_) {
    const c10::cuda::CUDAGuard guard(device_);
    for (const RowTensor& tensor : tensors) stored_.emplace_back(tensor.values, device_);
    if (options.dense_update) {
      row_count_ = count_.clone();
      seen_ = at::zeros({rows.count}, of(at::kInt));
      update_count_ = at::zeros({1}, of(at::kInt));
      forget_updates();
    }
    set_precision(options.precision);
    if (options.margin.form == MarginForm::adaface) {
      statistics_ = at::empty({2}, of(at::kDouble));
      set_norm_statistics({});
    }
    cuda::initialize_rows(stored(0), rows_.count, options.embedding_dim, options.seed, rows_.first, stream());
  }

  PfcResult forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step) override;

  void update_rows(const RowRates& rates, const at::Tensor& skip) override {
    if (!gradient_.defined()) return;
    const c10::cuda::CUDAGuard guard(device_);
    const cuda::RowUpdate update{.sampled = sample(),
                                 .d = dim(),
                                 .gradient = row_gradient(),
                                 .skip = skip.defined() ? skip.const_data_ptr<float>() : nullptr,
                                 .seed = options_.seed,
                                 .step = step_,
                                 .first = rows_.first};
    // Where all rows are sampled, SGD makes the next step's unit rows; after another optimizer they are gathered.
    cuda::UnitRows next{};
    if (options_.row_optimizer != RowOptimizer::sgd) {
      unit_rows_ = at::Tensor();
    } else if (unit_rows_.defined()) {
      next = {numbers(unit_rows_), inverse_norms_.data_ptr<float>()};
    }
    switch (options_.row_optimizer) {
      case RowOptimizer::sgd:
        cuda::update_sgd(stored(0), stored(1), RowSgd::of(rates), update, next, stream());
        break;
      case RowOptimizer::adamw:
        cuda::update_adamw(stored(0), stored(1), stored(2), static_cast<float*>(stored(3).data), rates, update,
                           stream());
        break;
      case RowOptimizer::adagrad:
        cuda::update_adagrad(stored(0), static_cast<float*>(stored(1).data), rates, update, stream());
        break;
    }
    if (!options_.dense_update) return;
    remember_update(PendingUpdates::of(options_.row_optimizer, rates), update.skip);
    cuda::mark_up_to_date(update.sampled, missed(), update.skip, stream());
  }

  void set_precision(Precision precision) override {
    low_ = type_of(precision);
    relative_ = options_.scale <= kLargestScale && low_ != at::kHalf;
    release_rows();
  }

  void retire(std::vector<int64_t> rows) override {
    const c10::cuda::CUDAGuard guard(device_);
    live_words_ = at::Tensor();
    if (!rows.empty()) {
      at::Tensor live = at::full({word_count()}, -1, at::kInt);
      uint32_t* const words = bits(live);
      for (const int64_t row : rows) words[row / 32] &= ~(uint32_t{1} << (row % 32));
      live_words_ = live.to(device_);
    }
    drawn_.reset();
    release_rows();
  }

  void release_rows() override {
    const c10::cuda::CUDAGuard guard(device_);
    unit_rows_ = at::Tensor();
    if (update_limit_ > 0) {
      catch_up({nullptr, row_count_.const_data_ptr<int32_t>(), rows_.count});
      forget_updates();
    }
    // The host reads such rows without asking the device.
    if (options_.host_rows) C10_CUDA_CHECK(cudaStreamSynchronize(stream()));
  }

  at::Tensor sampled() const override {
    if (!gradient_.defined()) return at::empty({0}, of(at::kLong));
    return all_ ? at::arange(rows_.count, of(at::kLong)) : sampled_.narrow(0, 0, count_.item<int>());
  }

  at::Tensor sampled_gradient() const override {
    if (!gradient_.defined()) return at::empty({0, dim()}, of(at::kFloat));
    const c10::cuda::CUDAGuard guard(device_);
    at::Tensor out = at::empty({capacity_, dim()}, of(at::kFloat));
    cuda::row_gradients(stored(0), sample(), dim(), row_gradient(), out.data_ptr<float>(), stream());
    return out.narrow(0, 0, count_.item<int>());
  }

  NormStatistics norm_statistics() const override {
    if (!statistics_.defined()) return {};
    const at::Tensor values = statistics_.cpu();
    return {values[0].item<double>(), values[1].item<double>()};
  }
  void set_norm_statistics(const NormStatistics& statistics) override {
    if (statistics_.defined()) statistics_.copy_(at::tensor({statistics.mean, statistics.deviation}, at::kDouble));
  }

  at::Tensor labels() const override {
    return packed_.narrow(1, dim(), 2).clone(at::MemoryFormat::Contiguous).view(at::kLong).view({-1}).to(at::kCPU);
  }

 private:
  at::TensorOptions of(at::ScalarType type) const { return at::TensorOptions(device_).dtype(type); }
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(device_.index()).stream(); }
  int64_t dim() const { return options_.embedding_dim; }
  // The rows, or what their optimizer keeps: by the order of RowTensor::name.
  cuda::Numbers stored(size_t i) const { return stored_[i].on_device(); }
  // Whether every row is in the sample of a step: then there is no list of them.
  bool all_at(uint64_t step) const { return options_.sample_rate_at(step) >= 1 && !live_words_.defined(); }
  int64_t word_count() const { return (rows_.count + 31) / 32; }

  cuda::Sampled sample() const {
    return {all_ ? nullptr : sampled_.const_data_ptr<int64_t>(), count_.const_data_ptr<int32_t>(), capacity_};
  }
  cuda::RowGradient row_gradient() const {
    return {numbers(gradient_), inverse_norms_.const_data_ptr<float>(), static_cast<float>(gradient_unit_)};
  }
  static uint32_t* bits(const at::Tensor& words) { return reinterpret_cast<uint32_t*>(words.data_ptr<int32_t>()); }

  cuda::MissedUpdates missed() const {
    return {seen_.data_ptr<int32_t>(), update_count_.data_ptr<int32_t>(), pending(last_updates_)};
  }
  static PendingUpdates* pending(const at::Tensor& updates) {
    return reinterpret_cast<PendingUpdates*>(updates.data_ptr<double>());
  }
  // No update is pending in any row.
  void forget_updates() {
    seen_.zero_();
    update_count_.zero_();
    last_updates_ = at::tensor({1.0, 0.0, 0.0, 1.0}, at::kDouble).to(device_).view({1, 4});
    update_limit_ = 0;
  }
  // Those of all updates since forget_updates() are kept: a row may have missed all of them. 32 bytes each.
  void remember_update(const PendingUpdates& update, const float* skip) {
    const at::Tensor next = at::empty({update_limit_ + 2, 4}, of(at::kDouble));
    cuda::add_update(update, pending(last_updates_), update_limit_, skip, pending(next),
                     update_count_.data_ptr<int32_t>(), stream());
    last_updates_ = next;
    ++update_limit_;
  }
  void catch_up(const cuda::Sampled& sampled) const {
    const bool has_momentum = options_.row_optimizer == RowOptimizer::sgd;
    cuda::catch_up(stored(0), has_momentum ? stored(1) : cuda::Numbers{nullptr, stored(0).type}, sampled, dim(),
                   missed(), options_.seed, step_, rows_.first, stream());
  }
  void make_sample_memory() {
    words_ = at::empty({word_count()}, of(at::kInt));
    next_words_ = at::empty_like(words_);
    word_offsets_ = at::empty_like(words_);
    offsets_ = at::empty({cuda::sample_blocks(rows_.count)}, of(at::kInt));
  }
  void draw_negatives(uint64_t step);
  void choose_rows(uint64_t step, int64_t batch);

  Comm& comm_;
  const PfcOptions options_;
  const RowRange rows_;
  const at::Device device_;
  at::ScalarType low_ = at::kFloat;  // of the products' operands
  bool relative_ = true;             // one pass, with exponentials relative to 1
  std::deque<StoredRows> stored_;    // as RowTensors

  // Of dense updates: cuda::MissedUpdates. The host does not know which updates were skipped, only how many there are
  // at most: update_limit_.
  at::Tensor row_count_, seen_, update_count_, last_updates_;  // [1], [rows] and [1] int32, [update_limit_ + 1, 4]
  int64_t update_limit_ = 0;

  at::Tensor live_words_;  // as words_: the rows that are not retired; undefined: all
  // The sample of the last step, and the negatives of step drawn_. The words are made when a step first needs them.
  at::Tensor words_, word_offsets_, offsets_, sampled_, count_, next_words_;
  LateCount negatives_;
  std::optional<uint64_t> drawn_;
  int64_t capacity_ = 0;
  bool all_ = true;  // of the last step: all_at. Then count_ is the number of rows

  at::Tensor statistics_;  // [2] float64: NormStatistics, of AdaFace

  // Of the last step.
  uint64_t step_ = 0;
  at::Tensor packed_, inverse_norms_, gradient_;
  double gradient_unit_ = 1;
  // All rows at unit length, up to date, if the last step sampled all; undefined after somebody wrote to the rows.
  at::Tensor unit_rows_;
};

void Step::draw_negatives(uint64_t step) {
  if (!words_.defined()) make_sample_memory();
  cuda::sample_negatives(ClassSample(options_.seed, step, options_.sample_rate_at(step)), rows_.first, rows_.count,
                         bits(next_words_), stream());
  if (live_words_.defined()) next_words_.bitwise_and_(live_words_);
  cuda::count_sample(bits(next_words_), rows_.count, offsets_.data_ptr<int32_t>(),
                     negatives_.on_device.data_ptr<int32_t>(), stream());
  negatives_.fetch(stream());
  drawn_ = step;
}

void Step::choose_rows(uint64_t step, int64_t batch) {
  const bool before = all_;
  all_ = all_at(step);
  if (all_) {
    if (!before) count_.fill_(rows_.count);
    capacity_ = round_up(rows_.count, cuda::kCapacityStep);
    return;
  }
  if (drawn_ != step) draw_negatives(step);
  std::swap(words_, next_words_);
  drawn_.reset();  // they are taken
  capacity_ = round_up(std::min(negatives_.wait() + batch, rows_.count), cuda::kCapacityStep);
  cuda::mark_positives(packed_.const_data_ptr<float>(), batch, dim(), rows_.first, rows_.count, bits(words_), stream());
  sampled_ = at::empty({capacity_}, of(at::kLong));
  cuda::count_sample(bits(words_), rows_.count, offsets_.data_ptr<int32_t>(), count_.data_ptr<int32_t>(), stream());
  cuda::list_sample(bits(words_), rows_.count, offsets_.const_data_ptr<int32_t>(), sampled_.data_ptr<int64_t>(),
                    word_offsets_.data_ptr<int32_t>(), stream());
  if (!all_at(step + 1)) draw_negatives(step + 1);
}

PfcResult Step::forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step) {
  const at::NoGradGuard no_grad;
  const c10::cuda::CUDAGuard guard(device_);
  step_ = step;
  gradient_ = at::Tensor();  // before the new one is made: it may be gigabytes
  const int64_t own_batch = embeddings.size(0), d = dim();
  const double scale = options_.scale;

  // Gather the batch of all ranks, and choose the rows.
  const at::Tensor x = embeddings.contiguous();
  const at::Tensor own_labels = labels.to(of(at::kLong), /*non_blocking=*/true).contiguous();
  at::Tensor own_packed = at::empty({own_batch, cuda::packed_floats(d)}, of(at::kFloat));
  at::Tensor feature_inverse_norms = at::empty({own_batch}, of(at::kFloat));
  cuda::pack_features(x.const_data_ptr<float>(), own_labels.const_data_ptr<int64_t>(), own_batch, d,
                      own_packed.data_ptr<float>(), feature_inverse_norms.data_ptr<float>(), stream());
  packed_ = comm_.size() > 1 ? all_gather_parts(comm_, own_packed, options_.parts) : own_packed;
  const int64_t batch = packed_.size(0);
  const float* const packed = packed_.const_data_ptr<float>();
  choose_rows(step, batch);
  if (update_limit_ > 0) catch_up(sample());

  // The targets, in float64, and rows and features at unit length in the products' type.
  const at::Tensor columns = at::empty({batch}, of(at::kInt)), doubles = at::empty({4, batch}, of(at::kDouble));
  const cuda::Targets targets{columns.data_ptr<int32_t>(), doubles[0].data_ptr<double>(),
                              doubles[1].data_ptr<double>()};
  auto* const statistics = statistics_.defined() ? static_cast<NormStatistics*>(statistics_.data_ptr()) : nullptr;
  if (statistics != nullptr) cuda::follow_norms(packed, batch, d, statistics, stream());
  cuda::find_targets(packed, batch, d, stored(0), rows_.first, rows_.count, all_ ? nullptr : bits(words_),
                     all_ ? nullptr : word_offsets_.const_data_ptr<int32_t>(), options_.margin, statistics, scale,
                     targets, stream());
  if (!all_ || !unit_rows_.defined()) {
    unit_rows_ = at::empty({capacity_, d}, of(low_));
    inverse_norms_ = at::empty({capacity_}, of(at::kFloat));
    cuda::gather_unit_rows(stored(0), sample(), d, numbers(unit_rows_), inverse_norms_.data_ptr<float>(), stream());
  }
  const at::Tensor rows = unit_rows_;
  if (!all_) unit_rows_ = at::Tensor();
  const at::Tensor features = at::empty({batch, d}, of(low_));
  cuda::scale_features(packed, nullptr, batch, d, numbers(features), stream());

  // Tiles of the sample.
  const int64_t wanted = options_.tile_rows > 0 ? options_.tile_rows : kTileElements / batch;
  const int64_t tile_columns = std::min(std::max(wanted / cuda::kTileStep, int64_t{1}) * cuda::kTileStep,
                                        std::max(capacity_, cuda::kCapacityStep));
  const at::Tensor tile_cosines = at::empty({batch * tile_columns}, of(at::kFloat));
  const auto for_tiles = [&](int64_t from, auto body) {
    for (int64_t first = from; first < capacity_; first += tile_columns) {
      const int64_t t = std::min(tile_columns, capacity_ - first);
      at::Tensor cosines = tile_cosines.narrow(0, 0, batch * t).view({batch, t});
      const at::Tensor tile_rows = rows.narrow(0, first, t);
      product(cosines, features, tile_rows.t());
      const float filter = options_.interclass_filter ? *options_.interclass_filter : INFINITY;
      body(cuda::Tile{cosines.const_data_ptr<float>(), batch, first, t, count_.const_data_ptr<int32_t>(),
                      targets.columns, options_.scale, filter},
           tile_rows);
    }
  };
  const auto exponentials = [&](const cuda::Tile& tile, const at::Tensor& shifts, const at::Tensor& out,
                                const at::Tensor& sums) {
    cuda::exponentials(tile, shifts.defined() ? shifts.const_data_ptr<float>() : nullptr, numbers(out), out.stride(0),
                       sums.defined() ? sums.data_ptr<double>() : nullptr, stream());
  };
  const int64_t keep = options_.kept_logits >= 0 ? options_.kept_logits : kKeptLogits;
  const int64_t kept = !relative_                  ? 0
                       : batch * capacity_ <= keep ? capacity_
                                                   : keep / batch / tile_columns * tile_columns;
  const at::Tensor kept_exponentials = at::empty({batch, kept}, of(low_));
  const at::Tensor tile_exponentials = at::empty({kept < capacity_ ? batch * tile_columns : 0}, of(low_));
  const auto place_of = [&](const cuda::Tile& tile) {
    return tile.first < kept ? kept_exponentials.narrow(1, tile.first, tile.t)
                             : tile_exponentials.narrow(0, 0, batch * tile.t).view({batch, tile.t});
  };
  // The products of the exponentials with the rows: of all kept ones in one product, which is faster; in float32 tile
  // by tile, because a sum of a million products loses digits.
  const bool at_once = low_ != at::kFloat;
  at::Tensor feature_sums;
  const auto add_feature_sums = [&](const at::Tensor& exponentials, const at::Tensor& tile_rows) {
    if (!feature_sums.defined()) {
      feature_sums = at::empty({batch, d}, of(at::kFloat));
      product(feature_sums, exponentials, tile_rows);
    } else if (low_ == at::kFloat) {
      feature_sums.addmm_(exponentials, tile_rows);
    } else {
      feature_sums = at::addmm(feature_sums, exponentials, tile_rows, at::kFloat);
    }
  };

  // First pass: Z and s t of each picture over this rank's classes; then the sums over all ranks.
  const int64_t blocks = round_up(capacity_, cuda::kTileStep) / cuda::kTileStep;
  const at::Tensor sums = at::empty({blocks, batch}, of(at::kDouble));
  for_tiles(0, [&](const cuda::Tile& tile, const at::Tensor& tile_rows) {
    if (!relative_) return cuda::sum_exponentials(tile, sums.data_ptr<double>(), stream());
    const at::Tensor place = place_of(tile);
    exponentials(tile, {}, place, sums);
    if (!at_once || tile.first >= kept) add_feature_sums(place, tile_rows);
  });
  if (at_once && kept > 0) add_feature_sums(kept_exponentials, rows.narrow(0, 0, kept));
  at::Tensor shared = doubles.narrow(0, 2, 2);
  double *const z = shared[0].data_ptr<double>(), *const target = shared[1].data_ptr<double>();
  cuda::finish_sums(sums.const_data_ptr<double>(), blocks, batch, targets, z, target, stream());
  if (comm_.size() > 1) comm_.all_reduce_sum(shared);
  const at::Tensor floats = at::empty({3, batch}, of(at::kFloat)), loss = at::empty({}, of(at::kDouble));
  const cuda::Coefficients by_picture{floats[0].data_ptr<float>(), floats[1].data_ptr<float>(),
                                      floats[2].data_ptr<float>()};
  const double unit = low_ == at::kHalf ? kHalfUnit : 1;
  cuda::coefficients(z, target, packed, batch, d, options_.num_classes, scale, relative_, unit, targets, by_picture,
                     loss.data_ptr<double>(), stream());

  // Second pass: the gradients of the sampled rows.
  gradient_unit_ = relative_ ? 1 : scale / static_cast<double>(batch) / unit;
  at::Tensor scaled = features;
  if (relative_) {
    scaled = at::empty_like(features);
    cuda::scale_features(packed, by_picture.factors, batch, d, numbers(scaled), stream());
  }
  // In the products' type, as autograd would have it; of float16 the range is too small for it.
  gradient_ = at::empty({capacity_, d}, of(low_ == at::kBFloat16 ? at::kBFloat16 : at::kFloat));
  if (kept > 0) product(gradient_.narrow(0, 0, kept), kept_exponentials.t(), scaled);
  for_tiles(kept, [&](const cuda::Tile& tile, const at::Tensor& tile_rows) {
    const at::Tensor place = place_of(tile);
    exponentials(tile, relative_ ? at::Tensor() : floats[2], place, {});
    if (!relative_) add_feature_sums(place, tile_rows);
    product(gradient_.narrow(0, tile.first, tile.t), place.t(), scaled);
  });
  cuda::add_target_gradients(packed, batch, d, targets, by_picture.target_gradients, gradient_unit_, numbers(gradient_),
                             stream());

  // The gradients of all ranks' features, their sum over the ranks, and back through the normalization.
  if (!feature_sums.defined()) feature_sums = at::zeros({batch, d}, of(at::kFloat));
  at::Tensor feature_gradients = at::empty({batch, d}, of(at::kFloat));
  cuda::feature_gradients(feature_sums.const_data_ptr<float>(), by_picture.factors, by_picture.target_gradients, batch,
                          d, targets, stored(0), sample(), inverse_norms_.const_data_ptr<float>(),
                          feature_gradients.data_ptr<float>(), stream());
  at::Tensor result = feature_gradients;
  if (comm_.size() > 1) result = reduce_scatter_parts(comm_, feature_gradients, options_.parts);
  cuda::unnormalize_gradients(x.const_data_ptr<float>(), feature_inverse_norms.const_data_ptr<float>(), own_batch, d,
                              result.data_ptr<float>(), stream());
  return {loss, result};
}

}  // namespace

std::unique_ptr<HeadStep> make_cuda_step(Comm& comm, const PfcOptions& options, RowRange rows,
                                         const std::vector<RowTensor>& tensors) {
  return std::make_unique<Step>(comm, options, rows, tensors);
}

}  // namespace facetrain

#endif
