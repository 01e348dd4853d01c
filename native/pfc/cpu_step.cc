// The step on CPUs. In one pass over tiles of the sampled rows, each on one thread: gather the rows at unit length,
// multiply, e^(s cos), its sum for each picture, and its product with the tile's rows. Division by Z is put off, as on
// CUDA (cuda_step.cc): the features' gradient is divided by Z_i in the end, and the rows' gradient is the product of
// the exponentials with features divided by Z_i. So no logit is computed twice, except those beyond kept_logits.
//
// Threads have tiles of their own, and meet twice in a step. A thread's tile stays in its cache from the gather to the
// last product (cpu_products.h). Which thread has which tile depends on the number of threads only, so their sums are
// the same in every run.
//
// With PfcOptions::reproducible, the number of ranks and threads changes no bit. Tiles do not cross blocks of classes,
// which have the same rows for any number of ranks, so a tile's products are the same. Sums of exponentials are one for
// each block, added in the order of the blocks. The features' gradient is summed, once Z is known, as integers: such
// sums have no order (reproducible summation; here the addends have a known bound, as probabilities times unit rows).
// A target's part comes from one rank, and the others add zeros.
//
// e^(s cos) must be in the range of float32. With s above kLargestScale two passes are made instead: the first sums,
// relative to the largest logit of each picture in each tile, and the second computes the logits again, relative to
// log Z.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "comm/parts.h"
#include "pfc/cpu_kernels.h"
#include "pfc/cpu_products.h"
#include "pfc/row_window.h"
#include "pfc/step.h"

namespace facetrain {
namespace {

constexpr double kShortest = 1e-12;  // shorter features are treated as zero

// Numbers in the largest of a tile's matrices: rows [t, d] and logits [B, t]. 256 KiB of float32: a fourth of a core's
// second-level cache.
constexpr int64_t kTileNumbers = int64_t{1} << 16;
// Rows of a tile are a multiple of it, if there are enough.
constexpr int64_t kTileStep = 16;
constexpr int64_t kKeptLogits = int64_t{1} << 26;  // 256 MiB in float32
constexpr int64_t kSampleBlock = 4096;             // rows
// Of the features' gradient in integers, before it is multiplied by s / B: sums of probabilities times unit rows.
constexpr double kUnit = int64_t{1} << 60;
// The logit of a target in its tile: its exponential is 0. Finite, because the difference of two infinities is not.
constexpr float kMasked = -1e30F;

// [n, 1]: 1 / |row|, and 0 for rows shorter than kShortest.
at::Tensor inverse_norms(const at::Tensor& matrix) {
  const at::Tensor norms = at::linalg_vector_norm(matrix, 2, at::IntArrayRef{1}, /*keepdim=*/true);
  return norms.reciprocal().masked_fill_(norms < kShortest, 0);
}

// The backward pass of x / |x|. `gradient` [n, d] is with respect to x / |x|, and already divided by |x|. Projects it
// onto the orthogonal complement of x, row by row.
void remove_radial(at::Tensor& gradient, const at::Tensor& x, const at::Tensor& inverse_norm) {
  const at::Tensor radial = (gradient * x).sum(1, /*keepdim=*/true).mul_(inverse_norm).mul_(inverse_norm);
  gradient.addcmul_(x, radial, -1);
}

std::vector<at::Tensor> values_of(const std::vector<RowTensor>& tensors) {
  std::vector<at::Tensor> values;
  for (const RowTensor& tensor : tensors) values.push_back(tensor.values);
  return values;
}

struct Batch {
  at::Tensor features;  // [B, d] of unit length, rank by rank
  at::Tensor labels;    // [B] int64
  at::Tensor norms;     // [B] float32, of the features before they had unit length
};

// Gathers the batch in one all-gather. The 64 bits of a label travel as two floats after its features; they are copied
// but never used in arithmetic.
Batch gather(Comm& comm, const at::Tensor& features, const at::Tensor& labels, const at::Tensor& norms,
             const std::vector<int64_t>& parts) {
  const int64_t dim = features.size(1);
  const at::Tensor bits = labels.contiguous().view({-1, 1}).view(at::kFloat);
  const at::Tensor all = all_gather_parts(comm, at::cat({features, bits, norms}, 1), parts);
  // A copy also of a single picture, whose label may lie at an odd offset, which has no view in 64 bits.
  const at::Tensor labels_of_all = all.narrow(1, dim, 2).clone(at::MemoryFormat::Contiguous);
  return {all.narrow(1, 0, dim).contiguous(), labels_of_all.view(at::kLong).view({-1}),
          all.select(1, dim + 2).contiguous()};
}

// The pictures of the global batch whose class this rank owns, by ascending row.
struct Positives {
  std::vector<int64_t> rows;      // of their classes, counted from this rank's first row
  std::vector<int64_t> pictures;  // indices in the global batch
};

Positives find_positives(const at::Tensor& labels, RowRange range) {
  std::vector<std::pair<int64_t, int64_t>> pairs;
  const int64_t* label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < labels.numel(); ++i) {
    const int64_t row = label[i] - range.first;
    if (row >= 0 && row < range.count) pairs.emplace_back(row, i);
  }
  std::sort(pairs.begin(), pairs.end());
  Positives result;
  for (const auto& [row, picture] : pairs) {
    result.rows.push_back(row);
    result.pictures.push_back(picture);
  }
  return result;
}

at::Tensor indices(const std::vector<int64_t>& values) { return at::tensor(values, at::kLong); }

// The statistics after a batch with features of these lengths [B]. Sums in the order of the batch, so that it does not
// matter how many ranks there are.
NormStatistics follow(const NormStatistics& before, const at::Tensor& norms) {
  const float* const norm = norms.const_data_ptr<float>();
  const int64_t count = norms.numel();
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < count; ++i) sum += clamp_norm(norm[i]);
  const double mean = sum / static_cast<double>(count);
  for (int64_t i = 0; i < count; ++i) squares += (clamp_norm(norm[i]) - mean) * (clamp_norm(norm[i]) - mean);
  return next_statistics(before, mean, squares, count);
}

// s target(cos) and d target / d cos for cosines [k] float64 of features with lengths `norms` [k].
std::pair<at::Tensor, at::Tensor> apply_margins(const Margin& margin, double scale, const at::Tensor& cosines,
                                                const at::Tensor& norms, const NormStatistics& statistics) {
  at::Tensor logits = cosines.clone(), slopes = at::empty_like(logits);
  double* logit = logits.data_ptr<double>();
  double* slope = slopes.data_ptr<double>();
  for (int64_t i = 0; i < logits.numel(); ++i) {
    const double quality =
        margin.form == MarginForm::adaface ? quality_of(norms.const_data_ptr<float>()[i], statistics, margin.h) : 0;
    const auto target = apply_margin(margin, logit[i], quality);
    logit[i] = scale * target.value;
    slope[i] = target.slope;
  }
  return {logits, slopes};
}

// A matrix as panels (cpu_products.h): [panels, rows, kPanel], or paired in bfloat16 [panels, rows / 2, kPanel, 2].
at::Tensor in_panels(const at::Tensor& matrix, bool paired) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const at::Tensor padded =
      at::constant_pad_nd(matrix, {0, cpu::panels(columns) * cpu::kPanel - columns, 0, paired ? rows % 2 : 0});
  if (!paired) return padded.view({rows, -1, cpu::kPanel}).permute({1, 0, 2}).contiguous();
  return padded.to(at::kBFloat16).view({(rows + 1) / 2, 2, -1, cpu::kPanel}).permute({2, 0, 3, 1}).contiguous();
}

// The matrix [rows, columns] that has these panels.
at::Tensor from_panels(const at::Tensor& in_panels, int64_t columns) {
  return in_panels.permute({1, 0, 2}).reshape({in_panels.size(1), -1}).narrow(1, 0, columns);
}

uint16_t* bits_of(const at::Tensor& bfloat16) { return static_cast<uint16_t*>(bfloat16.data_ptr()); }

// Asks for `bytes` bytes that will be read soon: rows of a sample are far from each other, and each is too short for a
// processor to notice that it is read in order.
void prefetch(const void* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at);
}

// A buffer that is kept from step to step: it is made anew only when it must grow, then by a bit more than that.
class Buffer {
 public:
  at::Tensor of(at::IntArrayRef sizes, at::ScalarType type) {
    const int64_t numbers = c10::multiply_integers(sizes);
    if (!memory_.defined() || memory_.scalar_type() != type || memory_.numel() < numbers) {
      memory_ = at::Tensor();
      memory_ = at::empty({numbers + numbers / 32}, type);
    }
    return memory_.narrow(0, 0, numbers).view(sizes);
  }
  const void* data() const { return memory_.const_data_ptr(); }

 private:
  at::Tensor memory_;
};

struct Tile {
  int64_t first, count;  // of the sampled rows
  int64_t block;         // of classes; -1: any
  int64_t kept;          // where its exponentials begin among those that are kept; negative: they are not
};

// A thread's buffers, and its share of the sums.
struct Worker {
  std::vector<Tile> tiles;
  std::vector<int64_t> negatives;
  Buffer rows, paired_rows, logits, exponentials, paired, features, row, integers;
  at::Tensor z;             // [B, padded to panels] float64: of its tiles
  at::Tensor feature_sums;  // [panels of d, B, kPanel]: exponentials times rows; with `reproducible` of a tile
  at::Tensor integer_sums;  // [B, d] int64, with `reproducible`: of its tiles, times kUnit
};

class CpuStep final : public HeadStep {
 public:
  CpuStep(Comm& comm, const PfcOptions& options, RowRange rows, const std::vector<RowTensor>& tensors)
      : comm_(comm), options_(options), rows_(rows), stored_(values_of(tensors)) {
    if (options.host_rows) window_.emplace(stored_);
    if (options.dense_update) seen_ = at::zeros({rows.count}, at::kInt);
    sampled_ = at::empty({0}, at::kLong);
    gradient_ = at::empty({0, dim()}, at::kFloat);
    draw_rows();
  }

  PfcResult forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step) override;
  void update_rows(const RowRates& rates, const at::Tensor& skip) override;
  at::Tensor sampled() const override { return sampled_.clone(); }
  at::Tensor sampled_gradient() const override;
  const RowWindow* window() const override { return has_window() ? &*window_ : nullptr; }
  void set_precision(Precision precision) override { options_.precision = precision; }
  void retire(std::vector<int64_t> rows) override {
    retired_ = std::move(rows);
    drawn_.reset();
    if (window_) window_->close();
  }
  void release_rows() override;
  NormStatistics norm_statistics() const override { return norm_statistics_; }
  void set_norm_statistics(const NormStatistics& statistics) override { norm_statistics_ = statistics; }
  at::Tensor labels() const override { return labels_; }

 private:
  int64_t dim() const { return options_.embedding_dim; }
  // The type of the products' operands.
  at::ScalarType low() const {
    const bool is_bf16 = options_.precision == Precision::bf16 && cpu::products_of_cpu().bfloat16 != nullptr;
    return is_bf16 ? at::kBFloat16 : at::kFloat;
  }
  void multiply(const cpu::Product& product) const {
    const cpu::Products& products = cpu::products_of_cpu();
    (low() == at::kFloat ? products.float32 : products.bfloat16)(product);
  }
  // One pass, with exponentials relative to 1.
  bool relative() const { return options_.scale <= kLargestScale; }

  class Row;

  template <class Body>
  void for_workers(Body body) {
    const auto count = static_cast<int64_t>(workers_.size());
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(workers_[i]);
    });
  }
  // The rows and what the optimizer keeps for each: of the last step's rows where the step has them, else all of them.
  bool has_window() const { return window_ && window_->is_open(); }
  const std::vector<at::Tensor>& tensors() const { return has_window() ? window_->tensors() : stored_; }
  const at::Tensor& weight() const { return tensors()[0]; }
  // The place in tensors() of the i-th row that the step has sampled.
  int64_t slot(int64_t i) const {
    return has_window() ? window_->slots()[static_cast<size_t>(i)] : sampled_.const_data_ptr<int64_t>()[i];
  }

  void draw_rows();
  bool all_at(uint64_t step) const { return options_.sample_rate_at(step) >= 1 && retired_.empty(); }
  // Copies of all rows, or all but the retired ones, would take as much memory as the rows.
  bool uses_window_at(uint64_t step) const { return options_.sample_rate_at(step) < 1; }
  void draw_negatives(uint64_t step);
  void prefetch_rows(uint64_t step);
  std::vector<int64_t> sample(uint64_t step, const std::vector<int64_t>& positives);
  void make_tiles(int64_t batch);
  struct Range {
    int64_t begin, end, block;  // as Tile's
  };
  std::vector<Range> ranges_of(int64_t thread) const;
  struct Place {
    int64_t index, slot;  // of a row: in the shard, and in tensors()
  };
  template <class PlaceOf>
  void catch_up(int64_t count, PlaceOf place_of);
  // Asks for a row and what the optimizer keeps for it.
  void prefetch_row(int64_t slot) const {
    for (const at::Tensor& tensor : tensors()) {
      const int64_t bytes = tensor.size(1) * tensor.element_size();
      prefetch(static_cast<const char*>(tensor.const_data_ptr()) + slot * bytes, bytes);
    }
  }
  const float* row(int64_t slot, float* scratch) const;
  void gather_rows(Worker& worker, const Tile& tile);
  at::Tensor exponentials_of(Worker& worker, const Tile& tile);
  void add_to_features(Worker& worker, const Tile& tile, const at::Tensor& e, bool add);
  void add_to_integers(Worker& worker, const at::Tensor* z) const;
  at::Tensor sum_of_integers(int64_t count, double gradient_scale);

  Comm& comm_;
  PfcOptions options_;
  const RowRange rows_;
  const std::vector<at::Tensor> stored_;  // the rows, and what the optimizer keeps
  std::optional<RowWindow> window_;       // with host_rows
  std::vector<int64_t> retired_;          // rows, ascending
  std::vector<Worker> workers_;
  std::optional<uint64_t> drawn_;  // the step whose negatives the workers have
  Buffer sample_memory_, gradient_memory_, kept_memory_, norms_memory_;

  NormStatistics norm_statistics_;

  // With dense updates: the updates since all rows were up to date, and how many of them each row has seen, int32.
  std::vector<PendingUpdates> updates_;
  at::Tensor seen_;

  // Of the step in progress: the batch's size, and its features [B, d], transposed and times s, in panels.
  int64_t batch_ = 0;
  at::Tensor scaled_features_;

  // Of the last step. gradient_ [n, d] is with respect to the rows at unit length, whose inverse norms are in norms_.
  uint64_t step_ = 0;
  at::Tensor labels_, sampled_, gradient_, norms_, kept_;
};

void CpuStep::draw_rows() {
  const at::Tensor& rows = stored_[0];
  float* const data = options_.bf16_rows ? nullptr : rows.data_ptr<float>();
  at::parallel_for(0, rows_.count, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(dim()));
    for (int64_t row = begin; row < end; ++row) {
      float* const out = data != nullptr ? data + row * dim() : scratch.data();
      cpu::initial_row(options_.seed, rows_.first + row, dim(), out);
      if (data == nullptr) cpu::round(out, dim(), bits_of(rows) + row * dim());
    }
  });
}

// Writes the step's negatives to the workers, which have a part of the classes each.
void CpuStep::draw_negatives(uint64_t step) {
  const ClassSample sample(options_.seed, step, options_.sample_rate_at(step));
  const int64_t share = (rows_.count + static_cast<int64_t>(workers_.size()) - 1) / std::ssize(workers_);
  for_workers([&](Worker& worker) {
    const int64_t begin = std::min((&worker - workers_.data()) * share, rows_.count),
                  end = std::min(begin + share, rows_.count);
    worker.negatives.clear();
    for (int64_t first = begin; first < end; first += kSampleBlock) {
      int64_t found[kSampleBlock];
      const int64_t count = cpu::negatives(sample, rows_.first + first, std::min(kSampleBlock, end - first), found);
      worker.negatives.insert(worker.negatives.end(), found, found + count);
    }
    if (retired_.empty()) return;
    std::erase_if(worker.negatives,
                  [this](int64_t class_id) { return std::ranges::binary_search(retired_, class_id - rows_.first); });
  });
  drawn_ = step;
}

// A step that samples all rows has no window: it would hold as many rows as there are.
void CpuStep::prefetch_rows(uint64_t step) {
  if (!has_window() || !uses_window_at(step)) return;
  draw_negatives(step);
  std::vector<int64_t> rows;
  for (const Worker& worker : workers_) {
    for (const int64_t class_id : worker.negatives) rows.push_back(class_id - rows_.first);
  }
  window_->prefetch(step, std::move(rows));
}

// Chooses the rows of this rank that a step uses (class_sample.h), and stores them in sampled_. `positives` are rows
// that are always chosen: ascending, possibly repeated. Returns the index of each positive in sampled_.
std::vector<int64_t> CpuStep::sample(uint64_t step, const std::vector<int64_t>& positives) {
  if (all_at(step)) {
    if (sampled_.size(0) != rows_.count) sampled_ = at::arange(rows_.count, at::kLong);
    return positives;
  }
  if (drawn_ != step) draw_negatives(step);
  auto capacity = std::ssize(positives);
  for (const Worker& worker : workers_) capacity += std::ssize(worker.negatives);
  int64_t* const sampled = sample_memory_.of({capacity}, at::kLong).data_ptr<int64_t>();
  std::vector<int64_t> columns;
  columns.reserve(positives.size());
  int64_t count = 0;
  auto positive = positives.begin();
  const auto add = [&](int64_t row) {
    for (; positive != positives.end() && *positive < row; ++positive) {
      if (count == 0 || sampled[count - 1] != *positive) sampled[count++] = *positive;
      columns.push_back(count - 1);
    }
    if (row < rows_.count && (count == 0 || sampled[count - 1] != row)) sampled[count++] = row;
  };
  for (const Worker& worker : workers_) {
    for (const int64_t class_id : worker.negatives) add(class_id - rows_.first);
  }
  add(rows_.count);
  sampled_ = sample_memory_.of({count}, at::kLong);
  return columns;
}

// Gives each thread its part of the sampled rows, in tiles, and chooses whose exponentials are kept.
void CpuStep::make_tiles(int64_t batch) {
  const int64_t threads = std::ssize(workers_);
  const int64_t largest = options_.tile_rows > 0
                              ? options_.tile_rows
                              : std::max(kTileNumbers / std::max(batch, dim()) / kTileStep, int64_t{4}) * kTileStep;
  const int64_t to_keep = relative() ? (options_.kept_logits >= 0 ? options_.kept_logits : kKeptLogits) : 0;
  int64_t kept = 0;
  for (int64_t i = 0; i < threads; ++i) {
    workers_[i].tiles.clear();
    const int64_t kept_before = kept;
    for (const Range& range : ranges_of(i)) {
      for (int64_t first = range.begin; first < range.end; first += largest) {
        const int64_t rows = std::min(largest, range.end - first), logits = rows * cpu::panels(batch) * cpu::kPanel;
        const bool keep = kept - kept_before + logits <= to_keep / threads;
        workers_[i].tiles.push_back({first, rows, range.block, keep ? kept : -1});
        if (keep) kept += logits;
      }
    }
  }
  kept_ = kept_memory_.of({kept}, low());
}

// The sampled rows of a thread that may share tiles.
std::vector<CpuStep::Range> CpuStep::ranges_of(int64_t thread) const {
  const int64_t count = sampled_.size(0), threads = std::ssize(workers_);
  if (!options_.reproducible) {
    const int64_t share = std::max(round_up((count + threads - 1) / threads, kTileStep), kTileStep);
    return {{std::min(thread * share, count), std::min((thread + 1) * share, count), -1}};
  }
  const int64_t* const sampled = sampled_.const_data_ptr<int64_t>();
  const auto place_of = [&](int64_t block) {
    return std::lower_bound(sampled, sampled + count, block_start(options_.num_classes, block) - rows_.first) - sampled;
  };
  const auto [first, last] = rank_blocks(comm_.rank(), comm_.size());
  std::vector<Range> ranges;
  const int64_t blocks = last - first;
  for (int64_t block = first + blocks * thread / threads; block < first + blocks * (thread + 1) / threads; ++block)
    ranges.push_back({place_of(block), place_of(block + 1), block});
  return ranges;
}

// The row in that place of weight(), in float32: itself, or a copy in `scratch`.
const float* CpuStep::row(int64_t slot, float* scratch) const {
  if (!options_.bf16_rows) return weight().const_data_ptr<float>() + slot * dim();
  cpu::widen(bits_of(weight()) + slot * dim(), dim(), scratch);
  return scratch;
}

// Writes the tile's rows at unit length to the worker's rows: in panels, and in bfloat16 also paired. Stores their
// inverse norms.
void CpuStep::gather_rows(Worker& worker, const Tile& tile) {
  float* const norms = norms_.data_ptr<float>() + tile.first;
  float* const scratch = worker.row.of({dim()}, at::kFloat).data_ptr<float>();
  const int64_t panel = tile.count * cpu::kPanel;
  const at::Tensor rows = worker.rows.of({cpu::panels(dim()) * panel}, low());
  for (int64_t i = 0; i < tile.count; ++i) {
    if (i + 1 < tile.count) {
      const int64_t bytes = dim() * weight().element_size();
      prefetch(static_cast<const char*>(weight().const_data_ptr()) + slot(tile.first + i + 1) * bytes, bytes);
    }
    const float* const from = row(slot(tile.first + i), scratch);
    norms[i] = cpu::inverse_norm(from, dim());
    if (low() == at::kFloat) {
      cpu::scale(from, dim(), norms[i], rows.data_ptr<float>() + i * cpu::kPanel, panel);
    } else {
      cpu::scale(from, dim(), norms[i], bits_of(rows) + i * cpu::kPanel, panel);
    }
  }
  if (low() == at::kFloat) return;
  const int64_t paired = round_up(tile.count, 2) * cpu::kPanel;
  uint16_t* const to = bits_of(worker.paired_rows.of({cpu::panels(dim()) * paired}, low()));
  for (int64_t i = 0; i < cpu::panels(dim()); ++i)
    cpu::pair_rows(bits_of(rows) + i * panel, tile.count, to + i * paired);
}

// Where the tile's exponentials are: [panels of B, t, kPanel].
at::Tensor CpuStep::exponentials_of(Worker& worker, const Tile& tile) {
  const std::array<int64_t, 3> sizes{cpu::panels(batch_), tile.count, cpu::kPanel};
  const int64_t numbers = c10::multiply_integers(sizes);
  return tile.kept >= 0 ? kept_.narrow(0, tile.kept, numbers).view(sizes) : worker.exponentials.of(sizes, low());
}

// feature_sums = e^T rows of the worker's tile, or += that.
void CpuStep::add_to_features(Worker& worker, const Tile& tile, const at::Tensor& e, bool add) {
  const void *left = e.const_data_ptr(), *right = worker.rows.data();
  if (low() == at::kBFloat16) {
    const int64_t paired = round_up(tile.count, 2) * cpu::kPanel;
    const at::Tensor pairs = worker.paired.of({e.size(0) * paired}, low());
    for (int64_t i = 0; i < e.size(0); ++i)
      cpu::pair_rows(bits_of(e) + i * tile.count * cpu::kPanel, tile.count, bits_of(pairs) + i * paired);
    left = pairs.const_data_ptr();
    right = worker.paired_rows.data();
  }
  multiply({.rows = batch_,
            .columns = dim(),
            .inner = tile.count,
            .a = left,
            .a_transposed = true,
            .b = right,
            .c = worker.feature_sums.data_ptr<float>(),
            .c_panel = batch_ * cpu::kPanel,
            .c_row = cpu::kPanel,
            .add = add});
}

// With x and w of unit length, y the label, t = target(x . w_y), and the other logits l_j = s x . w_j:
//   loss = mean_i (log Z_i - s t_i),  Z = e^(s t) + sum_j e^(l_j),
//   d loss / d cos_j = s / B e^(l_j) / Z,  d loss / d cos_y = s / B (e^(s t) / Z - 1) t'.
//
// Numerics. Z is summed over tiles and ranks in float64, without subtracting a maximum, which would cost a collective:
// |l_j| <= s <= 512, and float64 represents e^-745 to e^709, so the exponentials neither overflow nor underflow. Those
// of a tile are float32: of the logits themselves where s is at most kLargestScale, else of the logits minus the
// largest of the picture in the tile. (float32 with the constant maximum s, a common shortcut, underflows for cos <
// -0.36 at s = 64.) The target's logit s t can be below -s (margin.h), and e^(s t) can underflow to 0. That changes
// nothing: each other class adds e^-512 or more to Z, next to which a term below e^-745 vanishes in float64 anyway. The
// target's logit is not in the tiles but a separate float64, so that a loss near 0 and p - 1 near 0 are not differences
// of rounded numbers.
PfcResult CpuStep::forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step) {
  const at::NoGradGuard no_grad;
  const double scale = options_.scale;
  if (const auto threads = static_cast<size_t>(std::max(at::get_num_threads(), 1)); workers_.size() != threads) {
    workers_.resize(threads);
    drawn_.reset();
  }
  step_ = step;

  // Gather the batch of all ranks, and choose the rows.
  const at::Tensor inverse_norm = inverse_norms(embeddings);
  const at::Tensor norms = at::linalg_vector_norm(embeddings, 2, at::IntArrayRef{1}, /*keepdim=*/true);
  const Batch batch = gather(comm_, embeddings * inverse_norm, labels, norms, options_.parts);
  const int64_t batch_size = batch.features.size(0);
  labels_ = batch.labels;
  check_labels(labels_, options_.num_classes, comm_.size(), options_.parts);
  const Positives positives = find_positives(batch.labels, rows_);
  const std::vector<int64_t> target_columns = sample(step, positives.rows);
  if (window_) {
    if (uses_window_at(step)) {
      window_->open(step, sampled_.const_data_ptr<int64_t>(), sampled_.size(0));
    } else {
      window_->close();
    }
  }
  norms_ = norms_memory_.of({sampled_.size(0)}, at::kFloat);
  make_tiles(batch_size);
  catch_up(sampled_.size(0), [this](int64_t i) { return Place{sampled_.const_data_ptr<int64_t>()[i], slot(i)}; });

  // The target logits of the pictures whose class this rank owns.
  const at::Tensor target_pictures = indices(positives.pictures);
  std::vector<int64_t> target_slots;
  for (const int64_t column : target_columns) target_slots.push_back(slot(column));
  at::Tensor target_rows = weight().index_select(0, indices(target_slots)).to(at::kDouble);
  target_rows.mul_(inverse_norms(target_rows));
  const at::Tensor target_cosines = (batch.features.index_select(0, target_pictures) * target_rows).sum(1);
  if (options_.margin.form == MarginForm::adaface) norm_statistics_ = follow(norm_statistics_, batch.norms);
  const auto [target_logits, target_slopes] = apply_margins(
      options_.margin, scale, target_cosines, batch.norms.index_select(0, target_pictures), norm_statistics_);

  // The logits s cos of a tile [panels of B, t, kPanel], without margin, those of targets masked. Pictures beyond the
  // batch, in the last panel, have zeros.
  batch_ = batch_size;
  const int64_t padded_batch = cpu::panels(batch_size) * cpu::kPanel;
  scaled_features_ = in_panels((batch.features * scale).t(), low() == at::kBFloat16);
  const auto score = [&](const Worker& worker, const Tile& tile, const at::Tensor& out) {
    float* const logits = out.data_ptr<float>();
    multiply({.rows = tile.count,
              .columns = padded_batch,
              .inner = dim(),
              .a = worker.rows.data(),
              .a_transposed = false,
              .b = scaled_features_.const_data_ptr(),
              .c = logits,
              .c_panel = tile.count * cpu::kPanel,
              .c_row = cpu::kPanel,
              .add = false});
    for (auto i = std::lower_bound(target_columns.begin(), target_columns.end(), tile.first) - target_columns.begin();
         i < std::ssize(target_columns) && target_columns[i] < tile.first + tile.count; ++i) {
      const int64_t picture = positives.pictures[i], row = target_columns[i] - tile.first;
      logits[(picture / cpu::kPanel * tile.count + row) * cpu::kPanel + picture % cpu::kPanel] = kMasked;
    }
  };
  const auto filter =
      options_.interclass_filter ? static_cast<float>(*options_.interclass_filter * scale) : float{INFINITY};
  // e^(logit - shift) of a tile, in the products' type: [panels of B, t, kPanel]. Adds their sums to z [padded B]. With
  // `largest` [padded B], the shifts are the largest logits, which it writes there.
  const auto exponentials = [&](Worker& worker, const Tile& tile, const float* shifts, float* largest, double* z) {
    at::Tensor out = exponentials_of(worker, tile);
    const at::Tensor logits = low() == at::kFloat ? out : worker.logits.of(out.sizes(), at::kFloat);
    score(worker, tile, logits);
    for (int64_t first = 0; first < padded_batch; first += cpu::kPanel) {
      const int64_t at = first * tile.count;
      const float* const from = logits.const_data_ptr<float>() + at;
      const float* shift = shifts == nullptr ? nullptr : shifts + first;
      if (largest != nullptr) {
        cpu::largest(from, tile.count, filter, largest + first);
        shift = largest + first;
      }
      if (low() == at::kFloat) {
        cpu::exponentials(from, tile.count, shift, filter, out.data_ptr<float>() + at, z + first);
      } else {
        cpu::exponentials(from, tile.count, shift, filter, bits_of(out) + at, z + first);
      }
    }
    return out;
  };

  // First pass: Z and s t of each picture over this rank's classes; then the sums over all ranks. Z is in two parts or
  // more: that of the targets and the rest, or those of the targets and of each block.
  at::Tensor sums = at::zeros({options_.reproducible ? 2 + kClassBlocks : 3, batch_size}, at::kDouble);
  at::Tensor target = sums[0], target_z = sums[1], block_z = sums.narrow(0, 2, sums.size(0) - 2);
  for_workers([&](Worker& worker) {
    std::vector<double> tile_z(static_cast<size_t>(padded_batch));
    std::vector<float> largest(relative() ? 0 : tile_z.size());
    worker.z = at::zeros({batch_size}, at::kDouble);
    worker.feature_sums = worker.features.of({cpu::panels(dim()), batch_size, cpu::kPanel}, at::kFloat);
    for (const Tile& tile : worker.tiles) {
      gather_rows(worker, tile);
      std::ranges::fill(tile_z, 0);
      const at::Tensor e = exponentials(worker, tile, nullptr, relative() ? nullptr : largest.data(), tile_z.data());
      double* const z = tile.block < 0 ? worker.z.data_ptr<double>() : block_z[tile.block].data_ptr<double>();
      for (int64_t i = 0; i < batch_size; ++i)
        z[i] += relative() ? tile_z[i] : std::exp(double{largest[i]}) * tile_z[i];
      if (relative() && !options_.reproducible) add_to_features(worker, tile, e, &tile != worker.tiles.data());
    }
  });
  if (!options_.reproducible) {
    for (const Worker& worker : workers_) block_z[0].add_(worker.z);
  }
  target_z.index_copy_(0, target_pictures, target_logits.exp());
  target.index_copy_(0, target_pictures, target_logits);
  comm_.all_reduce_sum(sums);
  const at::Tensor z = target_z.clone();
  for (int64_t block = 0; block < block_z.size(0); ++block) z.add_(block_z[block]);
  const at::Tensor log_z = z.log();

  // Second pass: the gradients of the sampled rows at unit length. Each picture's part has the factor s / B / Z, of
  // which the exponentials have 1 / Z already if they are relative to it.
  const double gradient_scale = scale / static_cast<double>(batch_size);
  const at::Tensor factors = relative() ? z.reciprocal().mul_(gradient_scale) : at::full_like(z, gradient_scale);
  const at::Tensor factors32 = factors.to(at::kFloat).view({-1, 1});
  const at::Tensor weighted_features = in_panels(batch.features * factors32, low() == at::kBFloat16);
  const at::Tensor shifts =
      relative() ? at::Tensor() : at::constant_pad_nd(log_z.to(at::kFloat), {0, padded_batch - batch_size});
  gradient_ = gradient_memory_.of({sampled_.size(0), dim()}, at::kFloat);
  for_workers([&](Worker& worker) {
    std::vector<double> discarded(static_cast<size_t>(padded_batch));
    if (options_.reproducible) worker.integer_sums = worker.integers.of({batch_size, dim()}, at::kLong).zero_();
    for (const Tile& tile : worker.tiles) {
      at::Tensor e = tile.kept >= 0 ? exponentials_of(worker, tile) : at::Tensor();
      if (!e.defined() || options_.reproducible) {
        gather_rows(worker, tile);
        if (!e.defined()) {
          const float* const shift = shifts.defined() ? shifts.const_data_ptr<float>() : nullptr;
          e = exponentials(worker, tile, shift, nullptr, discarded.data());
        }
        if (options_.reproducible) {
          add_to_features(worker, tile, e, /*add=*/false);
          add_to_integers(worker, relative() ? &z : nullptr);
        } else if (!relative()) {
          add_to_features(worker, tile, e, /*add=*/&tile != worker.tiles.data());
        }
      }
      multiply({.rows = tile.count,
                .columns = dim(),
                .inner = batch_size,
                .a = e.const_data_ptr(),
                .a_transposed = false,
                .b = weighted_features.const_data_ptr(),
                .c = gradient_.data_ptr<float>() + tile.first * dim(),
                .c_panel = cpu::kPanel,
                .c_row = dim(),
                .add = false});
    }
  });

  // The targets' part, in float32; and the sum over threads in their order.
  const at::Tensor target_gradients =
      ((target_logits - log_z.index_select(0, target_pictures)).expm1_() * target_slopes * gradient_scale)
          .to(at::kFloat)
          .view({-1, 1});
  gradient_.index_add_(0, indices(target_columns), batch.features.index_select(0, target_pictures) * target_gradients);
  at::Tensor feature_gradients = at::zeros_like(batch.features);
  if (!options_.reproducible) {
    for (const Worker& worker : workers_) {
      if (!worker.tiles.empty()) feature_gradients.add_(from_panels(worker.feature_sums, dim()));
    }
    feature_gradients.mul_(factors32);
  }
  feature_gradients.index_add_(0, target_pictures, target_rows.to(at::kFloat) * target_gradients);

  // Sum all ranks' gradients of this rank's features, and go back through the normalization.
  PfcResult result{(log_z - target).mean(), reduce_scatter_parts(comm_, feature_gradients, options_.parts)};
  if (options_.reproducible) result.grad_embeddings.add_(sum_of_integers(embeddings.size(0), gradient_scale));
  result.grad_embeddings.mul_(inverse_norm);
  remove_radial(result.grad_embeddings, embeddings, inverse_norm);
  prefetch_rows(step + 1);
  return result;
}

// Adds a tile's part of the features' gradient, divided by Z if it is not yet, to the thread's integers.
void CpuStep::add_to_integers(Worker& worker, const at::Tensor* z) const {
  const auto* const sums = worker.feature_sums.const_data_ptr<float>();
  for (int64_t i = 0; i < batch_; ++i) {
    const double factor = z == nullptr ? kUnit : kUnit / z->const_data_ptr<double>()[i];
    for (int64_t first = 0; first < dim(); first += cpu::kPanel) {
      cpu::add_integers(sums + first * batch_ + i * cpu::kPanel, std::min(cpu::kPanel, dim() - first), factor,
                        worker.integer_sums.data_ptr<int64_t>() + i * dim() + first);
    }
  }
}

// The sum over threads and ranks, for the `count` pictures of this rank, as the gradient [count, d].
at::Tensor CpuStep::sum_of_integers(int64_t count, double gradient_scale) {
  at::Tensor all = workers_[0].integer_sums;
  for (size_t i = 1; i < workers_.size(); ++i) all.add_(workers_[i].integer_sums);
  comm_.all_reduce_sum(all);
  int64_t first = comm_.rank() * count;
  if (!options_.parts.empty())
    first = std::accumulate(options_.parts.begin(), options_.parts.begin() + comm_.rank(), int64_t{0});
  return all.narrow(0, first, count).to(at::kDouble).mul_(gradient_scale / kUnit).to(at::kFloat);
}

at::Tensor CpuStep::sampled_gradient() const {
  at::Tensor gradients = gradient_.clone();
  std::vector<float> scratch(static_cast<size_t>(dim()));
  for (int64_t i = 0; i < gradients.size(0); ++i) {
    cpu::project(gradients.data_ptr<float>() + i * dim(), row(slot(i), scratch.data()), dim(),
                 norms_.const_data_ptr<float>()[i]);
  }
  return gradients;
}

// A row and what the optimizer keeps for it, as float32: where they are, or copies that are rounded back
// stochastically.
class CpuStep::Row {
 public:
  Row(const CpuStep& step, Place place, std::vector<float>& scratch) : step_(step), place_(place) {
    const int64_t dim = step.dim();
    for (size_t i = 0; i < step.tensors().size(); ++i) {
      const at::Tensor& tensor = step.tensors()[i];
      if (tensor.scalar_type() == at::kFloat) {
        parts[i] = tensor.data_ptr<float>() + place.slot * tensor.size(1);
      } else {
        parts[i] = scratch.data() + static_cast<int64_t>(i) * dim;
        cpu::widen(bits_of(tensor) + place.slot * dim, dim, parts[i]);
      }
    }
  }

  // `stream`: of the random bits for rounding in step `number`.
  void store(uint64_t number, PfcStream stream) const {
    const int64_t dim = step_.dim(), class_id = step_.rows_.first + place_.index;
    for (size_t i = 0; i < step_.tensors().size(); ++i) {
      const at::Tensor& tensor = step_.tensors()[i];
      if (tensor.scalar_type() == at::kFloat) continue;
      // Half of each hash is for the row, the other half for momentum or first moment; second moments have their own.
      const PfcStream own = i < 2 ? stream : kMomentsStream;
      cpu::round_row(parts[i], dim, rounding_key(step_.options_.seed, number, class_id, own), i == 1 ? 32 : 0,
                     bits_of(tensor) + place_.slot * dim);
    }
  }

  std::array<float*, 4> parts{};  // by tensor: [0] is the row

 private:
  const CpuStep& step_;
  const Place place_;
};

// Applies the pending updates of the rows in place_of(0), place_of(1), ...
template <class PlaceOf>
void CpuStep::catch_up(int64_t count, PlaceOf place_of) {
  if (updates_.empty()) return;
  int32_t* const seen = seen_.data_ptr<int32_t>();
  const auto now = static_cast<int32_t>(updates_.size());
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, now - seen[place_of(i).index]);
  // By how many updates a row has missed. Products of matrices and not quotients: a matrix has the determinant
  // `momentum`, and the inverse of a product of hundreds has no correct digit.
  std::vector<PendingUpdates> missed(static_cast<size_t>(most) + 1);
  for (int32_t i = 1; i <= most; ++i) missed[i] = missed[i - 1].after(updates_[now - i]);
  at::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(std::ssize(stored_) * dim()));
    for (int64_t i = begin; i < end; ++i) {
      const Place place = place_of(i);
      if (i + 1 < end) prefetch_row(place_of(i + 1).slot);
      if (seen[place.index] == now) continue;
      const PendingUpdates& pending = missed[now - seen[place.index]];
      const Row row(*this, place, scratch);
      if (options_.row_optimizer == RowOptimizer::sgd) {
        cpu::apply_pending(pending, dim(), row.parts[0], row.parts[1]);
      } else {
        cpu::apply_pending(pending, dim(), row.parts[0]);
      }
      row.store(step_, kPendingStream);
      seen[place.index] = now;
    }
  });
}

void CpuStep::release_rows() {
  if (window_) window_->close();
  if (updates_.empty()) return;
  catch_up(rows_.count, [](int64_t i) { return Place{i, i}; });
  updates_.clear();
  seen_.zero_();
}

void CpuStep::update_rows(const RowRates& rates, const at::Tensor& skip) {
  if (!labels_.defined() || (skip.defined() && skip.item<float>() != 0)) return;
  const int64_t* const sampled = sampled_.const_data_ptr<int64_t>();
  if (options_.dense_update) updates_.push_back(PendingUpdates::of(options_.row_optimizer, rates));
  at::parallel_for(0, gradient_.size(0), 16, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>((std::ssize(stored_) + 1) * dim()));
    // A copy: the gradient stays what the step made of it.
    float* const gradient = scratch.data() + std::ssize(stored_) * dim();
    for (int64_t i = begin; i < end; ++i) {
      if (i + 1 < end) prefetch_row(slot(i + 1));
      std::copy_n(gradient_.const_data_ptr<float>() + i * dim(), dim(), gradient);
      const Row row(*this, {sampled[i], slot(i)}, scratch);
      cpu::project(gradient, row.parts[0], dim(), norms_.const_data_ptr<float>()[i]);
      switch (options_.row_optimizer) {
        case RowOptimizer::sgd:
          cpu::update_sgd(rates, gradient, dim(), row.parts[0], row.parts[1]);
          break;
        case RowOptimizer::adamw:
          *row.parts[3] += 1;
          cpu::update_adamw(rates, *row.parts[3], gradient, dim(), row.parts[0], row.parts[1], row.parts[2]);
          break;
        case RowOptimizer::adagrad:
          cpu::update_adagrad(rates, gradient, dim(), row.parts[0], row.parts[1]);
          break;
      }
      row.store(step_, kRoundingStream);
      if (options_.dense_update) seen_.data_ptr<int32_t>()[sampled[i]] = static_cast<int32_t>(updates_.size());
    }
  });
}

}  // namespace

std::unique_ptr<HeadStep> make_cpu_step(Comm& comm, const PfcOptions& options, RowRange rows,
                                        const std::vector<RowTensor>& tensors) {
  return std::make_unique<CpuStep>(comm, options, rows, tensors);
}

}  // namespace facetrain
