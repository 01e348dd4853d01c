// What the operators of ONNX share: their operands as they are checked, and ways through arrays. A file for each family
// of operators has a table of them; float_steps.cc plans and runs programs of all.
#pragma once

#include <array>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nodes/float_steps.h"

namespace facetrain::nodes {

using Dims = ArrayDims;

// Bounds the memory that a damaged file can ask for. The largest tensors of real networks have a hundredth of it.
inline constexpr int64_t kLargestArray = int64_t{1} << 28;
// Of one axis along which a list of indices is made.
inline constexpr int64_t kLargestAxis = int64_t{1} << 24;
inline constexpr size_t kMostAxes = 8;
inline constexpr int64_t kFloatsInLine = 16;  // 64 bytes

inline int64_t in_lines(int64_t floats) { return (floats + kFloatsInLine - 1) / kFloatsInLine * kFloatsInLine; }

// An operand as it is known when a program is planned.
struct Known {
  Dims dims;
  const FloatArray* constant = nullptr;
  bool absent = false;
};
// The operands of a step alone, of which the first is computed.
std::vector<Known> knowns_of(const FloatStep& step, const Dims& input);

// A step with its operands. All but `has` throw Error(InvalidModel) with the subject where these are not as asked for.
struct Call {
  const FloatStep& step;
  const std::vector<Known>& operands;
  const std::string& subject;

  [[noreturn]] void refuse(const std::string& found, const std::string& allowed) const;
  bool has(size_t index) const { return index < operands.size() && !operands[index].absent; }
  // The dimensions of an operand.
  const Dims& operator[](size_t index) const;
  int64_t count(size_t index) const { return count_of((*this)[index]); }
  const FloatArray& constant(size_t index) const;
  // The integers of a constant operand.
  const Dims& integers(size_t index) const;
  double number(const char* name, double otherwise) const;
  // An attribute that a file holds as a float32. Others spell it by its shortest decimal.
  float real(const char* name, double otherwise) const { return static_cast<float>(number(name, otherwise)); }
  int64_t integer(const char* name, int64_t otherwise) const;
  Dims list(const char* name, const Dims& otherwise) const;
  std::string text(const char* name, const std::string& otherwise) const;
  // An axis from 0 on; a negative one counts from the end.
  size_t axis(int64_t value, size_t rank) const;

 private:
  int64_t whole(double value) const;
};

using Operands = const float* const*;
using Run = std::function<void(Operands x, float* y, float* scratch)>;

// An operator whose operands and attributes are checked.
struct Planned {
  Dims dims;
  Run run;
  int64_t scratch = 0;  // numbers
};

struct Operator {
  std::string_view name;
  Planned (*plan)(const Call&);
};
using Operators = std::span<const Operator>;

Operators elementwise_operators();  // of one, two or three numbers, with broadcasting
Operators axis_operators();         // sums, norms and the like over axes
Operators matrix_operators();
Operators movement_operators();
Operators window_operators();  // pools and convolutions over [N, C, H, W]

// The dimensions of an output, neither empty nor too large.
Dims checked(const Call& call, Dims dims);
Dims strides_of(const Dims& dims);
Dims broadcast_dims(const Call& call, const Dims& a, const Dims& b);
// The strides of an operand along the `rank` axes of what it is broadcast to.
Dims broadcast_strides(const Dims& dims, size_t rank);

inline float rounded(double value) { return static_cast<float>(value); }

// Visits the elements of an array in rows along its last axis, where a step along an axis moves N positions by strides
// of their own. Axes that every position passes in one stride are one axis.
template <int N>
class Walk {
 public:
  Walk(const Dims& dims, const std::array<Dims, N>& strides) {
    for (size_t axis = 0; axis < dims.size(); ++axis) {
      if (dims[axis] == 1) continue;
      bool joins = rank_ > 0;
      for (int n = 0; n < N; ++n) joins = joins && strides_[n][rank_ - 1] == strides[n][axis] * dims[axis];
      if (!joins) sizes_[rank_++] = 1;
      sizes_[rank_ - 1] *= dims[axis];
      for (int n = 0; n < N; ++n) strides_[n][rank_ - 1] = strides[n][axis];
    }
    if (rank_ == 0) sizes_[rank_++] = 1;
  }

  int64_t length() const { return sizes_[rank_ - 1]; }  // of a row
  int64_t stride(int n) const { return strides_[n][rank_ - 1]; }

  // Calls row(first position in the array, the N positions) for each row.
  template <typename Row>
  void run(const Row& row) const {
    std::array<int64_t, kMostAxes> index{};
    std::array<int64_t, N> at{};
    for (int64_t out = 0;; out += length()) {
      row(out, at);
      int axis = rank_ - 2;
      for (; axis >= 0; --axis) {
        for (int n = 0; n < N; ++n) at[n] += strides_[n][axis];
        if (++index[axis] < sizes_[axis]) break;
        for (int n = 0; n < N; ++n) at[n] -= strides_[n][axis] * sizes_[axis];
        index[axis] = 0;
      }
      if (axis < 0) return;
    }
  }

 private:
  int rank_ = 0;
  std::array<int64_t, kMostAxes> sizes_{};
  std::array<std::array<int64_t, kMostAxes>, N> strides_{};
};

// The strides of two operands that are broadcast.
Walk<2> binary_walk(const Dims& dims, const Dims& a, const Dims& b);

// y = function(a, b), where the walk has the strides of a and b, which are 0 or 1 within a row.
template <typename Function>
void run_binary(const Walk<2>& walk, const float* a, const float* b, float* y, const Function& function) {
  const int64_t length = walk.length();
  walk.run([&](int64_t out, const std::array<int64_t, 2>& at) {
    const float *p = a + at[0], *q = b + at[1];
    float* to = y + out;
    if (walk.stride(0) == 1 && walk.stride(1) == 1) {
      for (int64_t i = 0; i < length; ++i) to[i] = function(p[i], q[i]);
    } else if (walk.stride(0) == 1) {
      for (int64_t i = 0; i < length; ++i) to[i] = function(p[i], *q);
    } else if (walk.stride(1) == 1) {
      for (int64_t i = 0; i < length; ++i) to[i] = function(*p, q[i]);
    } else {
      std::fill_n(to, length, function(*p, *q));
    }
  });
}

// Splits an array at an axis into [outer, length, inner].
struct Lanes {
  int64_t outer = 1, length = 1, inner = 1;
  Lanes(const Dims& dims, size_t axis) : length(dims[axis]) {
    for (size_t i = 0; i < axis; ++i) outer *= dims[i];
    for (size_t i = axis + 1; i < dims.size(); ++i) inner *= dims[i];
  }
};

// The operand's numbers in another shape.
Planned copied(const Call& call, Dims dims);

// Copies an array in another order of its axes: the walk has the strides of x in the order of y.
void run_transposed(const Walk<1>& walk, const float* x, float* y);
Planned transposed(const Call& call, const Dims& from, const Dims& order);

}  // namespace facetrain::nodes
