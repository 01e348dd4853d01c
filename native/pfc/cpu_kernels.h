// The loops of the step on CPUs over single rows: what is neither a matrix product nor a collective. Plain C++ without
// torch, compiled for several instruction sets, which all give the same numbers (clones.h).
#pragma once

#include <cstdint>

#include "pfc/class_sample.h"
#include "pfc/row_update.h"

namespace facetrain::cpu {

// The initial row of a class: the numbers of initial_pair, bit for bit.
void initial_row(uint64_t seed, int64_t class_id, int64_t dim, float* out);

// 1 / |row|, and 0 for a row shorter than 1e-12.
float inverse_norm(const float* row, int64_t dim);

// out = factor row, in float32 or, rounded to the nearest, in bfloat16: as a row of panels (cpu_products.h) that begin
// `panel` numbers after each other, with zeros beyond the last column.
void scale(const float* row, int64_t dim, float factor, float* out, int64_t panel);
void scale(const float* row, int64_t dim, float factor, uint16_t* out, int64_t panel);

// A panel of `rows` rows [rows, kPanel], paired: [rows / 2, kPanel, 2], with zeros below an odd last row.
void pair_rows(const uint16_t* panel, int64_t rows, uint16_t* out);

// float32 to bfloat16, to the nearest; and back.
void round(const float* row, int64_t dim, uint16_t* out);
void widen(const uint16_t* row, int64_t dim, float* out);

// Of a panel of logits [rows, kPanel], a picture in each column: out[i][j] = e^(logit[i][j] - shift[j]), which must not
// exceed e^88 and is 0 below e^-87. Adds the sum over rows, before they are rounded to the type of `out`, to sums[j]. A
// logit above `filter` counts as 0 in the sum, and its out[i][j] is 0. `out` may be `logits`. No shifts: zeros.
void exponentials(const float* logits, int64_t rows, const float* shifts, float filter, float* out, double* sums);
void exponentials(const float* logits, int64_t rows, const float* shifts, float filter, uint16_t* out, double* sums);

// sums[i] += factor values[i], cut to an integer; at most 2^61 either way, which NaN counts as.
void add_integers(const float* values, int64_t count, double factor, int64_t* sums);

// out[j] = the largest of column j of a panel of logits [rows, kPanel], of which those above `filter` count as 0.
void largest(const float* logits, int64_t rows, float filter, float* out);

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
