// Products of matrices.
#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "nodes/operator.h"
#include "nodes/products.h"

namespace facetrain::nodes {
namespace {

Planned matmul(const Call& call) {
  const Dims &a = call[0], &b = call[1];
  if (a.size() < 2 || b.size() < 2 || a.back() != b[b.size() - 2])
    call.refuse("operands that do not fit", "[..., m, k] and [..., k, n]");
  const int64_t m = a[a.size() - 2], k = a.back(), n = b.back();
  const Dims a_stack(a.begin(), a.end() - 2), b_stack(b.begin(), b.end() - 2);
  const Dims stack = broadcast_dims(call, a_stack, b_stack);
  Dims dims = stack;
  dims.insert(dims.end(), {m, n});
  if (k < 1 || count_of(a) < 1 || count_of(b) < 1) call.refuse("an empty operand", "1 to 2^28 numbers");
  const Walk<2> walk = binary_walk(stack, a_stack, b_stack);
  return {checked(call, dims),
          [=](Operands x, float* y, float* scratch) {
            walk.run([&](int64_t out, const std::array<int64_t, 2>& at) {
              for (int64_t i = 0; i < walk.length(); ++i) {
                const float *p = x[0] + (at[0] + i * walk.stride(0)) * m * k,
                            *q = x[1] + (at[1] + i * walk.stride(1)) * k * n;
                multiply(p, q, y + (out + i) * m * n, m, k, n, scratch);
              }
            });
          },
          k * kProductColumns};
}

Planned gemm(const Call& call) {
  // Rows and columns as the product reads them.
  const auto matrix = [&](size_t index, const char* flag) {
    Dims dims = call[index];
    if (dims.size() != 2 || count_of(dims) < 1) call.refuse("an operand that is no matrix", "matrices");
    const bool turned = call.number(flag, 0) != 0;
    if (turned) std::swap(dims[0], dims[1]);
    return std::pair(dims, turned);
  };
  const auto [a, turns_a] = matrix(0, "transA");
  const auto [b, turns_b] = matrix(1, "transB");
  if (a[1] != b[0]) call.refuse("operands that do not fit", "[m, k] and [k, n]");
  const int64_t m = a[0], k = a[1], n = b[1];
  const Dims dims = checked(call, {m, n});
  const float alpha = call.real("alpha", 1), beta = call.real("beta", 1);
  const bool adds = call.has(2);
  if (adds && broadcast_dims(call, dims, call[2]) != dims)
    call.refuse("a larger third operand", "one that is added to [m, n]");
  const Walk<2> bias = binary_walk(dims, dims, adds ? call[2] : dims);
  const Walk<1> turn_a(a, {Dims{1, m}}), turn_b(b, {Dims{1, k}});
  // A constant is turned once.
  std::shared_ptr<std::vector<float>> constant;
  if (turns_b && call.operands[1].constant) {
    constant = std::make_shared<std::vector<float>>(static_cast<size_t>(k * n));
    run_transposed(turn_b, call.constant(1).values.data(), constant->data());
  }
  const int64_t packed = in_lines(k * kProductColumns), room_a = turns_a ? in_lines(m * k) : 0,
                room_b = turns_b && !constant ? in_lines(k * n) : 0;
  return {dims,
          [=, turns_a = turns_a, turns_b = turns_b](Operands x, float* y, float* scratch) {
            const float *p = x[0], *q = constant ? constant->data() : x[1];
            if (turns_a) {
              run_transposed(turn_a, p, scratch + packed);
              p = scratch + packed;
            }
            if (turns_b && !constant) {
              run_transposed(turn_b, q, scratch + packed + room_a);
              q = scratch + packed + room_a;
            }
            multiply(p, q, y, m, k, n, scratch);
            for (int64_t i = 0; i < m * n; ++i) y[i] *= alpha;
            if (adds) run_binary(bias, y, x[2], y, [beta](float sum, float value) { return sum + value * beta; });
          },
          packed + room_a + room_b};
}

}  // namespace

Operators matrix_operators() {
  static constexpr Operator kOperators[]{
      {"Gemm", gemm},
      {"MatMul", matmul},
  };
  return kOperators;
}

}  // namespace facetrain::nodes
