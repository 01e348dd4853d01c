// A step on CPUs: gather the batch, sample the rows, two passes over tiles of the sampled rows, reduce-scatter the
// gradient. cuda_step.cc has the step on CUDA.
// The first pass sums each picture's exponentials; the second turns the tiles' logits into gradients. Up to kept_logits
// logits are kept between the passes; the second pass computes the others again.
#include "pfc/partial_fc.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "error.h"
#include "pfc/class_sample.h"
#include "pfc/cuda_step.h"
#include "pfc/initial_rows.h"
#include "pfc/row_update.h"

namespace facetrain {

RowRange row_range(int64_t num_classes, int rank, int size) {
  const int64_t each = num_classes / size, remainder = num_classes % size;
  return {each * rank + std::min<int64_t>(rank, remainder), each + (rank < remainder)};
}

namespace {

constexpr double kShortest = 1e-12;  // shorter vectors are treated as zero

// Elements of the largest of a tile's tensors: logits [B, t], rows [t, d], gradients [t, d]. They stay in a core's
// cache between the operations on them.
constexpr int64_t kTileElements = int64_t{1} << 20;
constexpr int64_t kKeptLogits = int64_t{1} << 24;  // 64 MiB

// The logit of a masked cell. Finite, because in a tile where all cells are masked -inf - max would be NaN.
constexpr float kMasked = -1e30f;

// Calls body(first, count) for consecutive parts of [0, n) of `tile` each; the last may be shorter.
template <class Body>
void for_each_tile(int64_t n, int64_t tile, Body body) {
  for (int64_t first = 0; first < n; first += tile) body(first, std::min(tile, n - first));
}

// Rows of a tile of `matrix` [n, d] for a batch of `batch` pictures.
int64_t tile_rows(const at::Tensor& matrix, int64_t batch) {
  return std::max<int64_t>(kTileElements / std::max(batch, matrix.size(1)), 64);
}

// Draws the rows of classes first_class, first_class + 1, ...
void fill_rows(at::Tensor& weight, uint64_t seed, int64_t first_class) {
  const int64_t dim = weight.size(1);
  for_each_tile(weight.size(0), tile_rows(weight, 0), [&](int64_t first, int64_t count) {
    at::Tensor block = at::empty({count, dim}, at::kFloat);
    float* data = block.data_ptr<float>();
    at::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t i = 0; i < dim; i += 2) {
          const Pair values = initial_pair(seed, first_class + first + row, i / 2);
          data[row * dim + i] = values.first;
          if (i + 1 < dim) data[row * dim + i + 1] = values.second;
        }
      }
    });
    weight.narrow(0, first, count).copy_(block);
  });
}

// 1 / |row| [n, 1], and 0 for rows shorter than kShortest.
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

struct Batch {
  at::Tensor features;  // [B, d] of unit length, rank by rank
  at::Tensor labels;    // [B] int64
};

// Gathers the batch in one all-gather. The 64 bits of a label travel as two floats after its features; they are copied
// but never used in arithmetic.
Batch gather(Comm& comm, const at::Tensor& features, const at::Tensor& labels) {
  const int64_t dim = features.size(1);
  const at::Tensor bits = labels.contiguous().view({-1, 1}).view(at::kFloat);
  const at::Tensor packed = at::cat({features, bits}, 1);
  at::Tensor all = at::empty({comm.size() * packed.size(0), packed.size(1)}, packed.options());
  comm.all_gather(all, packed);
  return {all.narrow(1, 0, dim).contiguous(), all.narrow(1, dim, 2).contiguous().view(at::kLong).view({-1})};
}

// The pictures of the global batch whose class this rank owns, by ascending row.
struct Positives {
  std::vector<int64_t> rows;      // of their classes, counted from this rank's first row
  std::vector<int64_t> pictures;  // indices in the global batch
};

Positives find_positives(const at::Tensor& labels, RowRange range) {
  std::vector<std::pair<int64_t, int64_t>> pairs;
  const int64_t* label = labels.data_ptr<int64_t>();
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

// s target(cos) and d target / d cos for cosines [k] float64.
std::pair<at::Tensor, at::Tensor> apply_margins(const Margin& margin, double scale, const at::Tensor& cosines) {
  at::Tensor logits = cosines.clone(), slopes = at::empty_like(logits);
  double* logit = logits.data_ptr<double>();
  double* slope = slopes.data_ptr<double>();
  for (int64_t i = 0; i < logits.numel(); ++i) {
    const auto target = apply_margin(margin, logit[i]);
    logit[i] = scale * target.value;
    slope[i] = target.slope;
  }
  return {logits, slopes};
}

}  // namespace

PartialFc::PartialFc(Comm& comm, const PfcOptions& options)
    : comm_(comm), options_(options), rows_(row_range(options.num_classes, comm.rank(), comm.size())) {
  const auto numbers = at::TensorOptions(options.bf16_rows ? at::kBFloat16 : at::kFloat).device(options.device);
  weight_ = at::empty({rows_.count, options.embedding_dim}, numbers);
  momentum_ = at::zeros_like(weight_);
  if (options.device.is_cuda()) {
    cuda_ = make_cuda_step(comm, options, rows_, weight_, momentum_);
    return;
  }
  fill_rows(weight_, options.seed, rows_.first);
  gradient_ = at::empty({0, options.embedding_dim}, at::kFloat);
  sampled_ = at::empty({0}, at::kLong);
}

PartialFc::~PartialFc() = default;

void PartialFc::set_precision(Precision precision) {
  options_.precision = precision;
  if (cuda_) cuda_->set_precision(precision);
}

at::Tensor& PartialFc::weight() {
  if (cuda_) cuda_->rows_change();
  return weight_;
}

at::Tensor PartialFc::sampled() const { return cuda_ ? cuda_->sampled() : sampled_; }

at::Tensor PartialFc::sampled_gradient() const { return cuda_ ? cuda_->sampled_gradient() : gradient_; }

void PartialFc::check_labels() const {
  const at::Tensor labels = cuda_ ? cuda_->labels() : labels_;
  const int64_t* label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < labels.numel(); ++i) {
    if (label[i] >= 0 && label[i] < options_.num_classes) continue;
    const int64_t batch_of_rank = labels.numel() / comm_.size();
    throw Error("InvalidDataset", "labels",
                "label " + std::to_string(label[i]) + " in the batch of rank " + std::to_string(i / batch_of_rank),
                "0 to " + std::to_string(options_.num_classes - 1) + " for " + std::to_string(options_.num_classes) +
                    " classes");
  }
}

// Chooses the rows of this rank that a step uses (class_sample.h), and stores them in sampled_. `positives` are rows
// that are always chosen: ascending, possibly repeated. Returns the index of each positive in sampled_.
std::vector<int64_t> PartialFc::sample(uint64_t step, const std::vector<int64_t>& positives) {
  if (options_.sample_rate >= 1) {
    if (sampled_.size(0) != rows_.count) sampled_ = at::arange(rows_.count, sampled_.options());
    return positives;
  }
  const ClassSample negatives(options_.seed, step, options_.sample_rate);
  std::vector<int64_t> sampled, columns;
  auto positive = positives.begin();
  for (int64_t row = 0; row < rows_.count; ++row) {
    const bool is_positive = positive != positives.end() && *positive == row;
    for (; positive != positives.end() && *positive == row; ++positive) columns.push_back(sampled.size());
    if (is_positive || negatives.has(rows_.first + row)) sampled.push_back(row);
  }
  sampled_ = indices(sampled);
  return columns;
}

// The sampled rows first to first + count - 1 of a matrix [rows of this rank, d], in float32: a view if all rows are
// sampled and the matrix is float32, otherwise a copy.
at::Tensor PartialFc::sampled_rows(const at::Tensor& matrix, int64_t first, int64_t count) const {
  if (sampled_.size(0) == rows_.count) return matrix.narrow(0, first, count).to(at::kFloat);
  return matrix.index_select(0, sampled_.narrow(0, first, count)).to(at::kFloat);
}

// With x and w of unit length, y the label, t = target(x . w_y), and the other logits l_j = s x . w_j:
//   loss = mean_i (log Z_i - s t_i),  Z = e^(s t) + sum_j e^(l_j),
//   d loss / d cos_j = s / B e^(l_j) / Z,  d loss / d cos_y = s / B (e^(s t) / Z - 1) t'.
//
// Numerics. Z is summed over the ranks without subtracting a maximum, which would cost a collective: |l_j| <= s <=
// 512, and float64 represents e^-745 to e^709, so their exponentials neither overflow nor underflow. (float32 with the
// constant maximum s, a common shortcut, underflows for cos < -0.36 at s = 64.) The target's logit s t can be below -s
// (margin.h), and e^(s t) can underflow to 0. That changes nothing: each other class adds e^-512 or more to Z, next to
// which a term below e^-745 vanishes in float64 anyway. Within a tile, exponentials are
// float32, of the logits minus the row's maximum in that tile. The target's logit is not in the tiles but a separate
// float64, so that a loss near 0 and p - 1 near 0 are not differences of rounded numbers.
PartialFc::Result PartialFc::forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step) {
  if (cuda_) return cuda_->forward_backward(embeddings, labels, step);
  const at::NoGradGuard no_grad;
  const double scale = options_.scale;

  // Gather the batch of all ranks, and choose the rows.
  const at::Tensor inverse_norm = inverse_norms(embeddings);
  const Batch batch = gather(comm_, embeddings * inverse_norm, labels);
  const int64_t batch_size = batch.features.size(0);
  labels_ = batch.labels;
  step_ = step;
  check_labels();

  const Positives positives = find_positives(batch.labels, rows_);
  const std::vector<int64_t> target_columns = sample(step, positives.rows);

  // The target logits of the pictures whose class this rank owns.
  const at::Tensor target_pictures = indices(positives.pictures);
  const at::Tensor target_rows = weight_.index_select(0, indices(positives.rows)).to(at::kDouble);
  const at::Tensor target_cosines =
      (batch.features.index_select(0, target_pictures) * target_rows * inverse_norms(target_rows)).sum(1);
  const auto [target_logits, target_slopes] = apply_margins(options_.margin, scale, target_cosines);

  // The targets in the tile of rows [first, first + count): the index of the first among all targets, and the flat
  // indices of their cells in the tile [B, count].
  const auto targets_in = [&](int64_t first, int64_t count) {
    const auto begin = std::lower_bound(target_columns.begin(), target_columns.end(), first);
    const auto end = std::lower_bound(begin, target_columns.end(), first + count);
    const int64_t offset = begin - target_columns.begin();
    std::vector<int64_t> cells;
    for (auto column = begin; column != end; ++column) {
      cells.push_back(positives.pictures[offset + cells.size()] * count + *column - first);
    }
    return std::pair(offset, indices(cells));
  };

  struct Tile {
    at::Tensor inverse_norms;  // [t, 1]
    at::Tensor logits;         // [B, t]: s cos, without margin and filter; undefined if not kept
  };
  std::vector<Tile> tiles;
  int64_t logits_to_keep = options_.kept_logits >= 0 ? options_.kept_logits : kKeptLogits;
  const at::Tensor scaled_features = batch.features * scale;
  // s cos [B, t].
  const auto score = [&](const at::Tensor& rows, const at::Tensor& inverse_row_norms) {
    return at::mm(scaled_features, rows.t()).mul_(inverse_row_norms.view({1, -1}));
  };
  const std::optional<double> largest_negative =
      options_.interclass_filter ? std::optional(*options_.interclass_filter * scale) : std::nullopt;
  const int64_t tile_size = options_.tile_rows ? options_.tile_rows : tile_rows(weight_, batch_size);
  const int64_t sampled_count = sampled_.size(0);

  // First pass: Z and s t of each picture over this rank's classes; then the sums over all ranks.
  at::Tensor sums = at::zeros({2, batch_size}, batch.features.options().dtype(at::kDouble));
  at::Tensor z = sums[0], target = sums[1];
  for_each_tile(sampled_count, tile_size, [&](int64_t first, int64_t count) {
    const at::Tensor rows = sampled_rows(weight_, first, count);
    Tile& tile = tiles.emplace_back(Tile{inverse_norms(rows), {}});
    at::Tensor logits = score(rows, tile.inverse_norms);
    if (logits.numel() <= logits_to_keep) {
      logits_to_keep -= logits.numel();
      tile.logits = logits;
      logits = logits.clone();
    }
    if (largest_negative) logits.masked_fill_(logits > *largest_negative, 0);
    logits.view(-1).index_fill_(0, targets_in(first, count).second, kMasked);
    const at::Tensor largest = logits.amax(1, /*keepdim=*/true);
    z.addcmul_(largest.to(at::kDouble).exp_().view(-1), logits.sub_(largest).exp_().sum(1).to(at::kDouble));
  });
  z.index_add_(0, target_pictures, target_logits.exp());
  target.index_copy_(0, target_pictures, target_logits);
  comm_.all_reduce_sum(sums);
  const at::Tensor log_z = z.log();

  // Second pass: the gradients of the logits, and from them those of all ranks' features and of the sampled rows.
  const double gradient_scale = scale / batch_size;
  const at::Tensor shift = (log_z - std::log(gradient_scale)).to(at::kFloat).view({-1, 1});
  const at::Tensor target_gradients =
      ((target_logits - log_z.index_select(0, target_pictures)).expm1_() * target_slopes * gradient_scale)
          .to(at::kFloat);
  at::Tensor feature_gradients = at::zeros_like(batch.features);
  gradient_.resize_({sampled_count, options_.embedding_dim});
  for_each_tile(sampled_count, tile_size, [&](int64_t first, int64_t count) {
    const at::Tensor rows = sampled_rows(weight_, first, count);
    const Tile& tile = tiles[first / tile_size];
    const at::Tensor logits = tile.logits.defined() ? tile.logits : score(rows, tile.inverse_norms);
    const at::Tensor filtered = largest_negative ? logits > *largest_negative : at::Tensor();
    const at::Tensor gradients = logits.sub_(shift).exp_();  // overwrites the logits
    if (filtered.defined()) gradients.masked_fill_(filtered, 0);
    const auto [offset, cells] = targets_in(first, count);
    gradients.view(-1).index_copy_(0, cells, target_gradients.narrow(0, offset, cells.size(0)));
    gradients.mul_(tile.inverse_norms.view({1, -1}));
    feature_gradients.addmm_(gradients, rows);
    at::Tensor row_gradients = gradient_.narrow(0, first, count);
    at::mm_out(row_gradients, gradients.t(), batch.features);
    remove_radial(row_gradients, rows, tile.inverse_norms);
  });

  // Sum all ranks' gradients of this rank's features, and go back through the normalization.
  Result result{(log_z - target).mean(), at::empty(embeddings.sizes(), embeddings.options())};
  comm_.reduce_scatter_sum(result.grad_embeddings, feature_gradients);
  result.grad_embeddings.mul_(inverse_norm);
  remove_radial(result.grad_embeddings, embeddings, inverse_norm);
  return result;
}

void PartialFc::apply_sgd(double learning_rate, double momentum, double weight_decay, const at::Tensor& skip) {
  const RowSgd sgd{static_cast<float>(learning_rate), static_cast<float>(momentum), static_cast<float>(weight_decay)};
  if (cuda_) return cuda_->apply_sgd(sgd, skip);
  const at::NoGradGuard no_grad;
  if (skip.defined() && skip.item<float>() != 0) return;
  if (options_.bf16_rows) return update_bf16_rows(sgd);
  const bool all = sampled_.size(0) == rows_.count;
  for_each_tile(sampled_.size(0), tile_rows(weight_, 0), [&](int64_t first, int64_t count) {
    at::Tensor rows = sampled_rows(weight_, first, count), velocity = sampled_rows(momentum_, first, count);
    velocity.mul_(momentum).add_(gradient_.narrow(0, first, count)).add_(rows, weight_decay);
    rows.add_(velocity, -learning_rate);
    if (all) return;  // rows and velocity are views
    const at::Tensor index = sampled_.narrow(0, first, count);
    weight_.index_copy_(0, index, rows);
    momentum_.index_copy_(0, index, velocity);
  });
}

void PartialFc::update_bf16_rows(const RowSgd& sgd) {
  const int64_t dim = options_.embedding_dim;
  const int64_t* const sampled = sampled_.const_data_ptr<int64_t>();
  const float* const gradients = gradient_.const_data_ptr<float>();
  auto* const weights = static_cast<c10::BFloat16*>(weight_.data_ptr());
  auto* const velocities = static_cast<c10::BFloat16*>(momentum_.data_ptr());
  at::parallel_for(0, sampled_.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      const int64_t row = sampled[position];
      for (int64_t i = 0; i < dim; ++i) {
        const uint64_t bits = rounding_bits(options_.seed, step_, rows_.first + row, i / 2) >> (i % 2 * 16);
        c10::BFloat16 &weight = weights[row * dim + i], &velocity = velocities[row * dim + i];
        float w = weight, m = velocity;
        sgd.apply(w, m, gradients[position * dim + i]);
        weight = c10::BFloat16(round_stochastically(w, static_cast<uint16_t>(bits)), c10::BFloat16::from_bits());
        velocity =
            c10::BFloat16(round_stochastically(m, static_cast<uint16_t>(bits >> 32)), c10::BFloat16::from_bits());
      }
    }
  });
}

}  // namespace facetrain
