// The loops of the step on CPUs over single rows: what is neither a matrix product nor a collective. Plain C++ without
// torch, compiled for several instruction sets, which all give the same numbers (kernels/clones.h).
#pragma once

#include <cstdint>

#include "pfc/class_sample.h"
#include "pfc/row_update.h"

namespace facetrain::cpu {

// The initial row of a class: the numbers of initial_pair, bit for bit.
void initial_row(uint64_t seed, int64_t class_id, int64_t dim, float* out);

// 1 / |row|, and 0 for a row shorter than 1e-12.
float inverse_norm(const float* row, int64_t dim);

// out = factor row, in float32 or, rounded to the nearest, in bfloat16.
void scale(const float* row, int64_t dim, float factor, float* out);
void scale(const float* row, int64_t dim, float factor, uint16_t* out);

// bfloat16 to float32.
void widen(const uint16_t* row, int64_t dim, float* out);

// out[j] = e^(logit[j] - shift), which must not exceed e^88 and is 0 below e^-87; returns the sum over j, before it is
// rounded to the type of `out`. A logit above `filter` counts as 0 in the sum, and its out[j] is 0. `out` may be
// `logits`.
double exponentials(const float* logits, int64_t count, float shift, float filter, float* out);
double exponentials(const float* logits, int64_t count, float shift, float filter, uint16_t* out);

// sums[i] += factor values[i], cut to an integer; at most 2^61 either way, which NaN counts as.
void add_integers(const float* values, int64_t count, double factor, int64_t* sums);

// The largest of `count` > 0 logits, of which those above `filter` count as 0.
float largest(const float* logits, int64_t count, float filter);

// The gradient with respect to w / |w| becomes that with respect to w: it loses its part along w.
void project(float* gradient, const float* row, int64_t dim, float inverse_norm);

// The updates of row_update.h: a row, its gradient (after project()) and its state in float32.
void update_sgd(const RowRates& rates, const float* gradient, int64_t dim, float* row, float* momentum);
// `updates`: of this row, this one included.
void update_adamw(const RowRates& rates, double updates, const float* gradient, int64_t dim, float* row,
                  float* first_moment, float* second_moment);
void update_adagrad(const RowRates& rates, const float* gradient, int64_t dim, float* row, float* squares);
void apply_pending(const PendingUpdates& pending, int64_t dim, float* row, float* momentum);
// Without a momentum.
void apply_pending(const PendingUpdates& pending, int64_t dim, float* row);

// To bfloat16, stochastically: the random bits of number i are 16 of rounding_bits(key, i / 2), from `first_bit` on for
// an even i, and the next 16 for an odd one.
void round_row(const float* row, int64_t dim, uint64_t key, int first_bit, uint16_t* out);

// Which of `count` classes from `first` on are negatives of the step: writes them to `out`, and returns how many.
// `out` has room for `count`.
int64_t negatives(const ClassSample& sample, int64_t first, int64_t count, int64_t* out);

}  // namespace facetrain::cpu
