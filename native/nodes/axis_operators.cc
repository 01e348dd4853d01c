// Sums, norms and the like over axes.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "nodes/operator.h"

namespace facetrain::nodes {
namespace {

Planned softmax(const Call& call) {
  const Lanes lanes(call[0], call.axis(call.integer("axis", -1), call[0].size()));
  return {call[0],
          [=](Operands x, float* y, float* scratch) {
            auto* powers = reinterpret_cast<double*>(scratch);
            for (int64_t o = 0; o < lanes.outer; ++o) {
              for (int64_t i = 0; i < lanes.inner; ++i) {
                const int64_t first = o * lanes.length * lanes.inner + i;
                const float* from = x[0] + first;
                float largest = from[0];
                for (int64_t k = 1; k < lanes.length; ++k) largest = std::max(largest, from[k * lanes.inner]);
                double sum = 0;
                for (int64_t k = 0; k < lanes.length; ++k)
                  sum += powers[k] = std::exp(double{from[k * lanes.inner]} - largest);
                for (int64_t k = 0; k < lanes.length; ++k) y[first + k * lanes.inner] = rounded(powers[k] / sum);
              }
            }
          },
          2 * lanes.length};
}

// Reduces the axes with `add` from `start` on, in the order of the elements, and maps each result with finish(sum,
// count).
template <typename Add, typename Finish>
Planned reduce(const Call& call, double start, Add add, Finish finish) {
  const Dims& x_dims = call[0];
  Dims axes = call.has(1) ? call.integers(1) : call.list("axes", {});
  if (axes.empty()) {
    axes.resize(x_dims.size());
    std::iota(axes.begin(), axes.end(), 0);
  }
  Dims kept = x_dims, dims;
  std::set<size_t> gone;
  double length = 1;
  for (const int64_t axis : axes) {
    const size_t at = call.axis(axis, x_dims.size());
    length *= static_cast<double>(kept[at]);
    kept[at] = 1;
    gone.insert(at);
  }
  const bool keeps = call.number("keepdims", 1) != 0;
  for (size_t i = 0; i < kept.size(); ++i) {
    if (keeps || !gone.contains(i)) dims.push_back(kept[i]);
  }
  checked(call, x_dims);
  const int64_t count = count_of(kept);
  const Walk<1> walk(x_dims, {broadcast_strides(kept, x_dims.size())});
  return {checked(call, dims),
          [=](Operands x, float* y, float* scratch) {
            auto* sums = reinterpret_cast<double*>(scratch);
            std::fill_n(sums, count, start);
            walk.run([&](int64_t in, const std::array<int64_t, 1>& at) {
              const float* from = x[0] + in;
              if (walk.stride(0) == 0) {
                double sum = sums[at[0]];
                for (int64_t i = 0; i < walk.length(); ++i) sum = add(sum, double{from[i]});
                sums[at[0]] = sum;
              } else {
                for (int64_t i = 0; i < walk.length(); ++i) sums[at[0] + i] = add(sums[at[0] + i], double{from[i]});
              }
            });
            for (int64_t i = 0; i < count; ++i) y[i] = rounded(finish(sums[i], length));
          },
          2 * count};
}

template <typename Add>
Planned reduce(const Call& call, double start, Add add) {
  return reduce(call, start, add, [](double sum, double) { return sum; });
}

// The index of the largest (sign 1) or the least (-1) number along an axis; the first of several.
Planned arg(const Call& call, float sign) {
  const size_t axis = call.axis(call.integer("axis", 0), call[0].size());
  const Lanes lanes(checked(call, call[0]), axis);
  Dims dims = call[0];
  dims[axis] = 1;
  if (call.number("keepdims", 1) == 0) dims.erase(dims.begin() + static_cast<int64_t>(axis));
  const bool last = call.number("select_last_index", 0) != 0;
  return {checked(call, dims), [=](Operands x, float* y, float*) {
            for (int64_t o = 0; o < lanes.outer; ++o) {
              for (int64_t i = 0; i < lanes.inner; ++i) {
                const float* from = x[0] + o * lanes.length * lanes.inner + i;
                int64_t best = 0;
                for (int64_t k = 1; k < lanes.length; ++k) {
                  const float difference = sign * (from[k * lanes.inner] - from[best * lanes.inner]);
                  if (difference > 0 || (last && difference == 0)) best = k;
                }
                *y++ = static_cast<float>(best);
              }
            }
          }};
}

Planned batch_norm(const Call& call) {
  if (call[0].size() < 2) call.refuse("a vector", "[N, C, ...]");
  const Lanes lanes(call[0], 1);
  for (size_t i = 1; i < 5; ++i) {
    if (call.count(i) != lanes.length) call.refuse("another number of channels", "one number for each channel");
  }
  const double epsilon = call.real("epsilon", 1e-5);
  return {call[0], [=](Operands x, float* y, float*) {
            for (int64_t o = 0; o < lanes.outer; ++o) {
              for (int64_t c = 0; c < lanes.length; ++c) {
                const auto scale = rounded(x[1][c] / std::sqrt(x[4][c] + epsilon));
                const float offset = x[2][c] - x[3][c] * scale;
                const int64_t first = (o * lanes.length + c) * lanes.inner;
                for (int64_t i = first; i < first + lanes.inner; ++i) y[i] = x[0][i] * scale + offset;
              }
            }
          }};
}

// Normalizes over the axes from `axis` on.
Planned layer_norm(const Call& call) {
  const Lanes lanes(call[0], call.axis(call.integer("axis", -1), call[0].size()));
  const int64_t outer = lanes.outer, length = lanes.length * lanes.inner;
  const double epsilon = call.real("epsilon", 1e-5);
  if (!call.has(1)) call.refuse("no operand 1", "all operands that it needs");
  for (size_t i = 1; i < 3; ++i) {
    if (call.has(i) && call.count(i) != length)
      call.refuse("another number of values", "one for each value that is normalized");
  }
  const bool shifts = call.has(2);
  return {call[0], [=](Operands x, float* y, float*) {
            for (int64_t o = 0; o < outer; ++o, y += length) {
              const float* from = x[0] + o * length;
              double sum = 0, square = 0;
              for (int64_t i = 0; i < length; ++i) sum += from[i];
              const double mean = sum / static_cast<double>(length);
              for (int64_t i = 0; i < length; ++i) square += (from[i] - mean) * (from[i] - mean);
              const double factor = 1 / std::sqrt(square / static_cast<double>(length) + epsilon);
              for (int64_t i = 0; i < length; ++i) {
                const double offset = shifts ? x[2][i] : 0;
                y[i] = rounded((from[i] - mean) * factor * x[1][i] + offset);
              }
            }
          }};
}

// x / (bias + alpha / size * the sum of squares over `size` neighboring channels)^beta.
Planned local_response_norm(const Call& call) {
  if (call[0].size() < 2) call.refuse("a vector", "[N, C, ...]");
  const Lanes lanes(call[0], 1);
  const int64_t size = call.integer("size", 0);
  // ONNX Runtime knows no even ones.
  if (size < 1 || size > (1 << 14) || size % 2 == 0)
    call.refuse("a size of " + std::to_string(size), "an odd number below 2^14");
  const double alpha = call.real("alpha", 1e-4), beta = call.real("beta", 0.75), bias = call.real("bias", 1);
  return {call[0], [=](Operands x, float* y, float*) {
            for (int64_t o = 0; o < lanes.outer; ++o) {
              for (int64_t c = 0; c < lanes.length; ++c) {
                const int64_t from = std::max<int64_t>(0, c - size / 2), to = std::min(lanes.length, c + size / 2 + 1);
                for (int64_t i = 0; i < lanes.inner; ++i) {
                  const float* first = x[0] + o * lanes.length * lanes.inner + i;
                  double sum = 0;
                  for (int64_t k = from; k < to; ++k) sum += double{first[k * lanes.inner]} * first[k * lanes.inner];
                  const double norm = std::pow(bias + alpha / static_cast<double>(size) * sum, beta);
                  y[(o * lanes.length + c) * lanes.inner + i] = rounded(first[c * lanes.inner] / norm);
                }
              }
            }
          }};
}

}  // namespace

Operators axis_operators() {
  static constexpr Operator kOperators[]{
      {"ArgMax", [](const Call& c) { return arg(c, 1); }},
      {"ArgMin", [](const Call& c) { return arg(c, -1); }},
      {"BatchNormalization", batch_norm},
      {"LRN", local_response_norm},
      {"LayerNormalization", layer_norm},
      {"ReduceMax",
       [](const Call& c) {
         return reduce(c, -std::numeric_limits<double>::infinity(), [](double a, double b) { return std::max(a, b); });
       }},
      {"ReduceMean",
       [](const Call& c) {
         return reduce(
             c, 0, [](double a, double b) { return a + b; }, [](double sum, double n) { return sum / n; });
       }},
      {"ReduceMin",
       [](const Call& c) {
         return reduce(c, std::numeric_limits<double>::infinity(), [](double a, double b) { return std::min(a, b); });
       }},
      {"ReduceL2",
       [](const Call& c) {
         return reduce(
             c, 0, [](double a, double b) { return a + b * b; }, [](double sum, double) { return std::sqrt(sum); });
       }},
      {"ReduceSum", [](const Call& c) { return reduce(c, 0, [](double a, double b) { return a + b; }); }},
      {"Softmax", softmax},
  };
  return kOperators;
}

}  // namespace facetrain::nodes
