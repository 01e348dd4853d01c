// The step: gather, sample, two passes over tiles of the sampled rows, scatter. The first pass sums each sample's
// exponentials; the second turns the tiles' logits into gradients. Up to a fixed number of logits is kept from the
// first pass to the second, the others are computed anew: the batch's logits against all rows never exist at once.
#include "pfc/partial_fc.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "error.h"
#include "random.h"

namespace facetrain {

RowRange row_range(int64_t num_classes, int rank, int size) {
  const int64_t each = num_classes / size, more = num_classes % size;
  return {each * rank + std::min<int64_t>(rank, more), each + (rank < more)};
}

namespace {

constexpr float kInitDeviation = 0.01f;
constexpr double kShortest = 1e-12;

// A tile's logits [B, t], rows [t, d] and gradients [t, d] stay in a core's cache between the operations on them; a GPU
// wants fewer and larger launches.
constexpr int64_t kTileElementsCpu = int64_t{1} << 20, kTileElementsCuda = int64_t{1} << 24;

// Stands for a logit that is not there. Finite: in a tile of nothing else, -inf - max would be NaN.
constexpr float kMasked = -1e30f;

// What a key is for.
enum : uint64_t { kInitStream, kSampleStream };

// Calls body(first, count) for consecutive parts of [0, n), the last one shorter.
template <class Body>
void for_each_tile(int64_t n, int64_t tile, Body body) {
  for (int64_t first = 0; first < n; first += tile) body(first, std::min(tile, n - first));
}

int64_t tile_rows(const at::Tensor& matrix, int64_t batch) {
  const int64_t elements = matrix.is_cuda() ? kTileElementsCuda : kTileElementsCpu;
  return std::max<int64_t>(elements / std::max(batch, matrix.size(1)), 64);
}

void fill_rows(at::Tensor& weight, uint64_t seed, int64_t first_class) {
  const int64_t dim = weight.size(1);
  constexpr float kUnit = 1.0f / (1 << 24);
  constexpr float kTwoPi = 6.28318530717958648f;
  for_each_tile(weight.size(0), tile_rows(weight, 0), [&](int64_t first, int64_t count) {
    at::Tensor block = at::empty({count, dim}, at::kFloat);
    float* data = block.data_ptr<float>();
    at::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const uint64_t key = sequence_number(sequence_number(seed, kInitStream), first_class + first + row);
        for (int64_t i = 0; i < dim; i += 2) {  // Box and Muller: two normal numbers of two uniform ones
          const uint64_t bits = sequence_number(key, i);
          const float u = static_cast<float>((bits >> 40) + 1) * kUnit, v = static_cast<float>(bits & 0xffffff) * kUnit;
          const float radius = kInitDeviation * std::sqrt(-2.0f * std::log(u));
          data[row * dim + i] = radius * std::cos(kTwoPi * v);
          if (i + 1 < dim) data[row * dim + i + 1] = radius * std::sin(kTwoPi * v);
        }
      }
    });
    weight.narrow(0, first, count).copy_(block);
  });
}

// 1 / |row| [n, 1], and 0 for a row without direction.
at::Tensor inverse_norms(const at::Tensor& matrix) {
  const at::Tensor norms = at::linalg_vector_norm(matrix, 2, at::IntArrayRef{1}, /*keepdim=*/true);
  return norms.reciprocal().masked_fill_(norms < kShortest, 0);
}

// What is left of a gradient with respect to x / |x|, already divided by |x|, once it has gone through the
// normalisation: its part at right angles to x.
void remove_radial_(at::Tensor& gradient, const at::Tensor& x, const at::Tensor& inverse_norm) {
  const at::Tensor radial = (gradient * x).sum(1, /*keepdim=*/true).mul_(inverse_norm).mul_(inverse_norm);
  gradient.addcmul_(x, radial, -1);
}

struct Batch {
  at::Tensor features;  // [B, d] of unit length, rank by rank
  at::Tensor labels;    // [B] int64, on the host
};

// One all-gather: a label's 64 bits travel as two floats behind its features, moved but never computed with.
Batch gather(Comm& comm, const at::Tensor& features, const at::Tensor& labels) {
  const int64_t dim = features.size(1);
  const at::Tensor bits = labels.to(features.device()).contiguous().view({-1, 1}).view(at::kFloat);
  const at::Tensor packed = at::cat({features, bits}, 1);
  at::Tensor all = at::empty({comm.size() * packed.size(0), packed.size(1)}, packed.options());
  comm.all_gather(all, packed);
  return {all.narrow(1, 0, dim).contiguous(),
          all.narrow(1, dim, 2).contiguous().view(at::kLong).view({-1}).to(at::kCPU)};
}

void check_labels(const at::Tensor& labels, int64_t num_classes, int64_t batch_of_rank) {
  const int64_t* label = labels.data_ptr<int64_t>();
  for (int64_t i = 0; i < labels.numel(); ++i) {
    if (label[i] >= 0 && label[i] < num_classes) continue;
    throw Error("InvalidDataset", "labels",
                "label " + std::to_string(label[i]) + " in the batch of rank " + std::to_string(i / batch_of_rank),
                "0 to " + std::to_string(num_classes - 1) + " for " + std::to_string(num_classes) + " classes");
  }
}

// The samples whose class this rank owns, by ascending row.
struct Positives {
  std::vector<int64_t> rows, samples;
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
  for (const auto& [row, sample] : pairs) {
    result.rows.push_back(row);
    result.samples.push_back(sample);
  }
  return result;
}

at::Tensor indices(const std::vector<int64_t>& values, at::Device device) {
  return at::tensor(values, at::kLong).to(device);
}

// s target(cos) and d target / d cos of the samples' own classes, each [k] float64. A few numbers, so the functor runs
// on the host wherever the tensors are.
std::pair<at::Tensor, at::Tensor> apply_margins(const Margin& margin, double scale, const at::Tensor& cosines) {
  at::Tensor logits = cosines.to(at::kCPU, at::kDouble), slopes = at::empty_like(logits);
  double* logit = logits.data_ptr<double>();
  double* slope = slopes.data_ptr<double>();
  for (int64_t i = 0; i < logits.numel(); ++i) {
    const auto target = apply_margin(margin, logit[i]);
    logit[i] = scale * target.value;
    slope[i] = target.slope;
  }
  return {logits.to(cosines.device()), slopes.to(cosines.device())};
}

}  // namespace

PartialFc::PartialFc(Comm& comm, const PfcOptions& options)
    : comm_(comm), options_(options), rows_(row_range(options.num_classes, comm.rank(), comm.size())) {
  const auto floats = at::TensorOptions(at::kFloat).device(options.device);
  weight_ = at::empty({rows_.count, options.embedding_dim}, floats);
  fill_rows(weight_, options.seed, rows_.first);
  momentum_ = at::zeros_like(weight_);
  gradient_ = at::empty({0, options.embedding_dim}, floats);
  sampled_ = indices({}, options.device);
}

// A negative class is in the sample if the hash of (seed, step, class) is below sample_rate * 2^64: the decision needs
// no other class and no other rank, so the sample is the same for every number of ranks and costs no collective. Each
// negative is there with probability sample_rate, independently of the others, so the softmax sees the same mixture of
// negatives as with the reference's sample of fixed size; the size is binomial instead, C r give or take
// sqrt(C r (1 - r)): 300 in 100 000 for a million classes at 0.1. Positives come on top and are always kept, however
// many they are (the reference counts them in, and lets the sample grow where they outnumber it).
//
// `positives` ascend and may repeat; returned is the place of each among the sampled rows.
std::vector<int64_t> PartialFc::sample(uint64_t step, const std::vector<int64_t>& positives) {
  if (options_.sample_rate >= 1) {
    if (sampled_.size(0) != rows_.count) sampled_ = at::arange(rows_.count, sampled_.options());
    return positives;
  }
  const auto threshold = static_cast<uint64_t>(std::ldexp(options_.sample_rate, 64));
  const uint64_t key = sequence_number(sequence_number(options_.seed, kSampleStream), step);
  std::vector<int64_t> sampled, columns;
  auto positive = positives.begin();
  for (int64_t row = 0; row < rows_.count; ++row) {
    const bool is_positive = positive != positives.end() && *positive == row;
    for (; positive != positives.end() && *positive == row; ++positive) columns.push_back(sampled.size());
    if (is_positive || sequence_number(key, rows_.first + row) < threshold) sampled.push_back(row);
  }
  sampled_ = indices(sampled, options_.device);
  return columns;
}

// Part of the sampled rows of a [count, d] matrix: a view where all rows are sampled, else a copy.
at::Tensor PartialFc::sampled_rows(const at::Tensor& matrix, int64_t first, int64_t count) const {
  if (sampled_.size(0) == rows_.count) return matrix.narrow(0, first, count);
  return matrix.index_select(0, sampled_.narrow(0, first, count));
}

// With x and w of unit length, t = target(x . w_y), and the other logits l_j = s x . w_j:
//   loss = mean_i (log Z_i - s t_i),  Z = e^(s t) + sum_j e^(l_j),
//   d loss / d cos_j = s / B e^(l_j) / Z,  d loss / d cos_y = s / B (e^(s t) / Z - 1) t'.
//
// Numerics. A rank's share of Z needs no maximum that the ranks would first have to agree on: |l| <= s <= 512, and
// float64 spans e^-745 to e^709, so sums of plain exponentials neither overflow nor vanish, with few classes and
// cosines near -1 too (float32 with a fixed maximum of s, the usual short cut, vanishes below cos = -0.36 at s = 64).
// Exponentials are taken in float32, of a tile's logits less the row's maximum in that tile. The target takes no part
// in the tiles: its logit is a float64 of its own, so that neither a loss near 0 nor p - 1 is a difference of
// roundings.
PartialFc::Result PartialFc::forward_backward(const at::Tensor& embeddings, const at::Tensor& labels, uint64_t step) {
  const at::NoGradGuard no_grad;
  const double scale = options_.scale;

  // The batch of all ranks, and the sample.
  const at::Tensor inverse_norm = inverse_norms(embeddings);
  const Batch batch = gather(comm_, embeddings * inverse_norm, labels);
  const int64_t batch_size = batch.features.size(0);
  check_labels(batch.labels, options_.num_classes, embeddings.size(0));

  const Positives positives = find_positives(batch.labels, rows_);
  const std::vector<int64_t> target_columns = sample(step, positives.rows);

  // The targets that this rank owns.
  const at::Tensor target_samples = indices(positives.samples, options_.device);
  const at::Tensor target_rows = weight_.index_select(0, indices(positives.rows, options_.device)).to(at::kDouble);
  const at::Tensor target_cosines =
      (batch.features.index_select(0, target_samples) * target_rows * inverse_norms(target_rows)).sum(1);
  const auto [target_logits, target_slopes] = apply_margins(options_.margin, scale, target_cosines);

  // The targets in a tile: which of them, and their cells in the tile seen as one row.
  const auto targets_in = [&](int64_t first, int64_t count) {
    const auto begin = std::lower_bound(target_columns.begin(), target_columns.end(), first);
    const auto end = std::lower_bound(begin, target_columns.end(), first + count);
    const int64_t offset = begin - target_columns.begin();
    std::vector<int64_t> cells;
    for (auto column = begin; column != end; ++column) {
      cells.push_back(positives.samples[offset + cells.size()] * count + *column - first);
    }
    return std::pair(offset, indices(cells, options_.device));
  };

  struct Tile {
    at::Tensor inverse_norms;  // [t, 1]
    at::Tensor logits;         // [B, t] s cos, no margin and no filter applied; undefined if not kept
  };
  std::vector<Tile> tiles;
  int64_t logits_to_keep = options_.kept_logits;
  const at::Tensor scaled_features = batch.features * scale;
  const auto score = [&](const at::Tensor& rows, const at::Tensor& inverse_row_norms) {
    return at::mm(scaled_features, rows.t()).mul_(inverse_row_norms.view({1, -1}));
  };
  const std::optional<double> largest_negative =
      options_.interclass_filter ? std::optional(*options_.interclass_filter * scale) : std::nullopt;
  const int64_t tile_size = options_.tile_rows ? options_.tile_rows : tile_rows(weight_, batch_size);
  const int64_t sample_size = sampled_.size(0);

  // First pass: Z and s t of each sample, here over this rank's classes, then over all.
  at::Tensor sums = at::zeros({2, batch_size}, batch.features.options().dtype(at::kDouble));
  at::Tensor z = sums[0], target = sums[1];
  for_each_tile(sample_size, tile_size, [&](int64_t first, int64_t count) {
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
  z.index_add_(0, target_samples, target_logits.exp());
  target.index_copy_(0, target_samples, target_logits);
  comm_.all_reduce_sum(sums);
  const at::Tensor log_z = z.log();

  // Second pass: the gradients of the logits, and from them those of all features and of the sampled rows.
  const double weight_of_sample = scale / batch_size;
  const at::Tensor shift = (log_z - std::log(weight_of_sample)).to(at::kFloat).view({-1, 1});
  const at::Tensor target_gradients =
      ((target_logits - log_z.index_select(0, target_samples)).expm1_() * target_slopes * weight_of_sample)
          .to(at::kFloat);
  at::Tensor feature_gradients = at::zeros_like(batch.features);
  gradient_.resize_({sample_size, options_.embedding_dim});
  for_each_tile(sample_size, tile_size, [&](int64_t first, int64_t count) {
    const at::Tensor rows = sampled_rows(weight_, first, count);
    const Tile& tile = tiles[first / tile_size];
    at::Tensor gradients = tile.logits.defined() ? tile.logits : score(rows, tile.inverse_norms);  // logits at first
    const at::Tensor filtered = largest_negative ? gradients > *largest_negative : at::Tensor();
    gradients.sub_(shift).exp_();
    if (filtered.defined()) gradients.masked_fill_(filtered, 0);
    const auto [offset, cells] = targets_in(first, count);
    gradients.view(-1).index_copy_(0, cells, target_gradients.narrow(0, offset, cells.size(0)));
    gradients.mul_(tile.inverse_norms.view({1, -1}));
    feature_gradients.addmm_(gradients, rows);
    at::Tensor row_gradients = gradient_.narrow(0, first, count);
    at::mm_out(row_gradients, gradients.t(), batch.features);
    remove_radial_(row_gradients, rows, tile.inverse_norms);
  });

  // Everybody's share of this rank's features, and back through their normalisation.
  Result result{(log_z - target).mean().item<double>(), at::empty(embeddings.sizes(), embeddings.options())};
  comm_.reduce_scatter_sum(result.grad_embeddings, feature_gradients);
  result.grad_embeddings.mul_(inverse_norm);
  remove_radial_(result.grad_embeddings, embeddings, inverse_norm);
  return result;
}

void PartialFc::apply_sgd(double learning_rate, double momentum, double weight_decay) {
  const at::NoGradGuard no_grad;
  const bool all = sampled_.size(0) == rows_.count;
  for_each_tile(sampled_.size(0), tile_rows(weight_, 0), [&](int64_t first, int64_t count) {
    at::Tensor rows = sampled_rows(weight_, first, count), velocity = sampled_rows(momentum_, first, count);
    velocity.mul_(momentum).add_(gradient_.narrow(0, first, count)).add_(rows, weight_decay);
    rows.add_(velocity, -learning_rate);
    if (all) return;  // they were views
    const at::Tensor index = sampled_.narrow(0, first, count);
    weight_.index_copy_(0, index, rows);
    momentum_.index_copy_(0, index, velocity);
  });
}

}  // namespace facetrain
