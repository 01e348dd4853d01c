#include "train/integer_sums.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include <atomic>
#include <cmath>

namespace facetrain {
namespace {

constexpr double kUnits = int64_t{1} << 44;  // in 1
constexpr int64_t kGrain = 1 << 15;

}  // namespace

IntegerSums::IntegerSums(int64_t count, int64_t addends)
    : most_(static_cast<double>(int64_t{1} << 62) / static_cast<double>(addends)),
      values_(at::zeros({count}, at::kLong)) {}

void IntegerSums::clear() {
  values_.zero_();
  overflowed_ = false;
}

void IntegerSums::add(const at::Tensor& values) {
  const float* const from = values.const_data_ptr<float>();
  int64_t* const to = values_.data_ptr<int64_t>();
  std::atomic<bool> overflowed{false};
  at::parallel_for(0, values_.numel(), kGrain, [&](int64_t begin, int64_t end) {
    bool fits = true;
    for (int64_t i = begin; i < end; ++i) {
      const double units = from[i] * kUnits;
      const bool own = std::abs(units) <= most_;  // not NaN
      fits &= own;
      to[i] += own ? static_cast<int64_t>(units) : 0;
    }
    if (!fits) overflowed = true;
  });
  overflowed_ |= overflowed;
}

void IntegerSums::read(at::Tensor& out) const {
  const int64_t* const from = values_.const_data_ptr<int64_t>();
  float* const to = out.data_ptr<float>();
  at::parallel_for(0, values_.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = static_cast<float>(static_cast<double>(from[i]) / kUnits);
  });
}

}  // namespace facetrain
