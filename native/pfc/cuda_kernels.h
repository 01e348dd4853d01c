// The CUDA kernels of the Partial FC step, without the products, which cuBLAS computes. cuda_step.cc calls them in
// order and has the mathematics. Knows no torch.
//
// Every function queues work on the stream and returns. Pointers are to device memory. Sums are made in a fixed order,
// so results are the same bit for bit in every run. Rows, features and gradients are row-major and dense; B is the
// global batch, d the dimension of an embedding, n the number of sampled rows. n is a number in device memory: buffers
// by sampled row have a `capacity` of rows, which the host knows, and rows from n on count as not sampled.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "pfc/class_sample.h"
#include "pfc/margin.h"
#include "pfc/row_update.h"

namespace facetrain::cuda {

// Types of numbers in memory. Arithmetic is in float32, or in float64 where a function says so.
enum class Number { float32, bfloat16, float16 };

// A matrix or vector of numbers of a type that is known at run time.
struct Numbers {
  void* data;
  Number type;
};

// Multiples of which a tile's number of columns must be, except in the last tile, and of which capacities must be.
inline constexpr int64_t kTileStep = 4096, kCapacityStep = 128;

// Bytes 0 to 4 d of a packed feature are the feature of unit length, float32; the next 8 are its label, and the next 4
// the length that it had, float32.
constexpr int64_t packed_floats(int64_t d) { return d + 4; }

// Draws rows [count, d] of classes first, first + 1, ...: initial_pair.
void initialize_rows(Numbers rows, int64_t count, int64_t d, uint64_t seed, int64_t first, cudaStream_t stream);

// packed [b, packed_floats(d)] and inverse_norms [b] of embeddings x [b, d] and labels [b]. The inverse norm of a
// vector shorter than 1e-12 is 0.
void pack_features(const float* x, const int64_t* labels, int64_t b, int64_t d, float* packed, float* inverse_norms,
                   cudaStream_t stream);
// out [B, d] = factors [B] (1 if null) times the packed features.
void scale_features(const float* packed, const float* factors, int64_t b, int64_t d, Numbers out, cudaStream_t stream);

// The sample as bits (class_sample.h). The number of words is (count + 31) / 32, and that of blocks
// sample_blocks(count).
int64_t sample_blocks(int64_t count);
void sample_negatives(const ClassSample& sample, int64_t first, int64_t count, uint32_t* words, cudaStream_t stream);
void mark_positives(const float* packed, int64_t b, int64_t d, int64_t first, int64_t count, uint32_t* words,
                    cudaStream_t stream);
// offsets [blocks]: sampled rows before each block; total [1]: of all.
void count_sample(const uint32_t* words, int64_t count, int32_t* offsets, int32_t* total, cudaStream_t stream);
// sampled [capacity]: the rows, ascending; word_offsets [words]: sampled rows before each word.
void list_sample(const uint32_t* words, int64_t count, const int32_t* offsets, int64_t* sampled, int32_t* word_offsets,
                 cudaStream_t stream);

// The sampled rows of `rows`: all, in order, if `sampled` is null.
struct Sampled {
  const int64_t* rows;
  const int32_t* count;
  int64_t capacity;
};

// unit [capacity, d]: the sampled rows at unit length, and 0 beyond n; inverse_norms [capacity].
void gather_unit_rows(Numbers rows, Sampled sampled, int64_t d, Numbers unit, float* inverse_norms,
                      cudaStream_t stream);

// `statistics` on the device: follows the lengths of the packed features (margin.h).
void follow_norms(const float* packed, int64_t b, int64_t d, NormStatistics* statistics, cudaStream_t stream);

// What this rank knows of the target of each picture [B]. Pictures whose class another rank owns have column -1.
struct Targets {
  int32_t* columns;  // positions in the sample
  double* logits;    // s target(cos)
  double* slopes;    // d target / d cos
};
// Computes them in float64 from the float32 features. `words` and `word_offsets` are null if all rows are sampled;
// `statistics`, on the device, is null for another margin than AdaFace.
void find_targets(const float* packed, int64_t b, int64_t d, Numbers rows, int64_t first, int64_t count,
                  const uint32_t* words, const int32_t* word_offsets, const Margin& margin,
                  const NormStatistics* statistics, double scale, Targets targets, cudaStream_t stream);

// Cosines [B, t] of all pictures and columns [first, first + t) of the sample; t is a multiple of 8.
struct Tile {
  const float* cosines;
  int64_t b, first, t;
  const int32_t* sampled_count;
  const int32_t* targets;  // columns of the targets [B]
  float scale;
  float filter;  // a larger cosine has logit 0 and no gradient; at least 1: none
};
// exponentials[i, j] = e^(s cos - shift_i), row stride `stride`; 0 for targets, filtered cells and columns from n on.
// `shift` may be null for 0. If sums [column blocks, B] is not null, row (first / kTileStep + k) of it gets the sums
// over the columns [k kTileStep, (k + 1) kTileStep) of this tile in float64; a filtered cell counts as e^0.
void exponentials(const Tile& tile, const float* shift, Numbers out, int64_t stride, double* sums, cudaStream_t stream);
// Only the sums, of e^(s cos), for any s: within the range of float64, not of float32.
void sum_exponentials(const Tile& tile, double* sums, cudaStream_t stream);

// z [B] = the sum over `blocks` rows of sums, and e^target of this rank's targets; target [B] = the target's logit, or
// 0.
void finish_sums(const double* sums, int64_t blocks, int64_t b, Targets targets, double* z, double* target,
                 cudaStream_t stream);

// From z and target, summed over all ranks: loss [1] = mean (log z - target), NaN when a label is not in [0, C); and
// for each picture: factors = s / (B z) if `relative`, else s / (B unit); target_gradients = s / B (e^target / z - 1)
// slope, 0 for targets of other ranks; shifts = log z - log unit.
struct Coefficients {
  float *factors, *target_gradients, *shifts;
};
void coefficients(const double* z, const double* target, const float* packed, int64_t b, int64_t d, int64_t num_classes,
                  double scale, bool relative, double unit, Targets targets, Coefficients out, double* loss,
                  cudaStream_t stream);

// gradient [capacity, d] += the targets' part, divided by `unit`: target_gradient_i x_i in the row of picture i's
// class.
void add_target_gradients(const float* packed, int64_t b, int64_t d, Targets targets, const float* target_gradients,
                          double unit, Numbers gradient, cudaStream_t stream);
// out [B, d] = factors_i sums_i + target_gradient_i w_i / |w_i|, w_i the row of picture i's class.
void feature_gradients(const float* sums, const float* factors, const float* target_gradients, int64_t b, int64_t d,
                       Targets targets, Numbers rows, Sampled sampled, const float* inverse_norms, float* out,
                       cudaStream_t stream);
// The backward pass of x / |x|: gradient [b, d], in place.
void unnormalize_gradients(const float* x, const float* inverse_norms, int64_t b, int64_t d, float* gradient,
                           cudaStream_t stream);

// The sampled rows' gradient with respect to rows of unit length, divided by `unit`.
struct RowGradient {
  Numbers values;              // [capacity, d]
  const float* inverse_norms;  // [capacity]
  float unit;
};
// out [capacity, d]: with respect to the rows.
void row_gradients(Numbers rows, Sampled sampled, int64_t d, RowGradient gradient, float* out, cudaStream_t stream);
// What gather_unit_rows makes.
struct UnitRows {
  Numbers values;        // [capacity, d]
  float* inverse_norms;  // [capacity]
};
// An update of the sampled rows, for any optimizer. Nothing changes when *skip is not 0; null: 0. `seed`, `step` and
// `first`, the first row's class, are for the stochastic rounding of rows in bfloat16.
struct RowUpdate {
  Sampled sampled;
  int64_t d;
  RowGradient gradient;
  const float* skip;
  uint64_t seed, step;
  int64_t first;
};
// The updates of row_update.h. What an optimizer keeps has the type of the rows, but `updates` and `squares` [rows]. If
// next.values.data is not null, SGD's also does for the new rows what gather_unit_rows would.
void update_sgd(Numbers rows, Numbers momentum, RowSgd sgd, const RowUpdate& update, UnitRows next,
                cudaStream_t stream);
void update_adamw(Numbers rows, Numbers first_moment, Numbers second_moment, float* updates, const RowRates& rates,
                  const RowUpdate& update, cudaStream_t stream);
void update_adagrad(Numbers rows, float* squares, const RowRates& rates, const RowUpdate& update, cudaStream_t stream);

// What dense updates have yet to do to rows that steps have not sampled.
struct MissedUpdates {
  int32_t* seen;   // [rows]: of a row, how many of the updates it has had
  int32_t* count;  // [1]: updates until now
  // [i]: the last i updates, first to last; [0]: none. It has as many as *count allows, and one.
  PendingUpdates* last;
};
// Another update, unless *skip is not 0: next[0 .. limit + 1] of last[0 .. limit], which stays, and *count. limit is at
// least *count.
void add_update(PendingUpdates update, const PendingUpdates* last, int64_t limit, const float* skip,
                PendingUpdates* next, int32_t* count, cudaStream_t stream);
// Does to the sampled rows what they have missed. `momentum` is for SGD; its data is null for AdaGrad. `seed`, `step`
// and `first` as in RowUpdate.
void catch_up(Numbers rows, Numbers momentum, Sampled sampled, int64_t d, const MissedUpdates& missed, uint64_t seed,
              uint64_t step, int64_t first, cudaStream_t stream);
// The sampled rows have had all updates, unless *skip is not 0.
void mark_up_to_date(Sampled sampled, const MissedUpdates& missed, const float* skip, cudaStream_t stream);

}  // namespace facetrain::cuda
