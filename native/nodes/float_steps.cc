#include "nodes/float_steps.h"

#include <algorithm>
#include <string_view>

#include "error.h"
#include "nodes/operator.h"

namespace facetrain {
namespace {

using nodes::in_lines, nodes::kFloatsInLine, nodes::kLargestArray;

constexpr nodes::Operators (*kFamilies[])() = {nodes::axis_operators, nodes::elementwise_operators,
                                               nodes::matrix_operators, nodes::movement_operators,
                                               nodes::window_operators};

const nodes::Operator& operator_of(const FloatStep& step, const std::string& subject) {
  std::vector<std::string_view> names;
  for (const auto family : kFamilies) {
    for (const nodes::Operator& known : family()) {
      if (known.name == step.op) return known;
      names.push_back(known.name);
    }
  }
  std::sort(names.begin(), names.end());
  std::string known;
  for (const std::string_view name : names) known.append(known.empty() ? "one of " : ", ").append(name);
  throw Error("InvalidModel", subject, "operator " + step.op, known);
}

}  // namespace

int64_t count_of(const ArrayDims& dims) {
  int64_t count = 1;
  for (const int64_t dim : dims) {
    if (dim < 0 || (dim > 0 && count > kLargestArray / dim)) return -1;
    count *= dim;
  }
  return count;
}

FloatProgram::FloatProgram(const std::vector<FloatStep>& steps, const std::vector<ArrayDims>& inputs,
                           const std::string& subject) {
  if (steps.empty()) throw Error("InvalidModel", subject, "no operator", "one at least");
  size_t most_operands = 0;
  for (const FloatStep& step : steps) {
    const nodes::Operator& known = operator_of(step, subject);
    std::vector<nodes::Known> operands;
    Step planned;
    for (const auto& [from, index, constant] : step.operands) {
      using From = FloatStep::Operand::From;
      const auto count = static_cast<int>(from == From::step ? steps_.size() : inputs.size());
      if ((from == From::step || from == From::input) && (index < 0 || index >= count))
        throw Error("InvalidModel", subject, "an operand that is not computed before", "an earlier value");
      const bool is_constant = from == From::constant;
      operands.push_back({is_constant           ? constant.dims
                          : from == From::step  ? steps_[index].dims
                          : from == From::input ? inputs[index]
                                                : ArrayDims(),
                          is_constant ? &constant : nullptr, from == From::absent});
      planned.operands.push_back({from, index, is_constant ? constant.values.data() : nullptr});
    }
    nodes::Planned result = known.plan({step, operands, subject});
    planned.dims = std::move(result.dims);
    planned.run = std::move(result.run);
    operator_scratch_ = std::max(operator_scratch_, in_lines(result.scratch));
    most_operands = std::max(most_operands, operands.size());
    steps_.push_back(std::move(planned));
  }
  // The scratch: that of an operator, its operands' addresses, the results of all steps but the last.
  scratch_ = operator_scratch_ + in_lines(static_cast<int64_t>(most_operands * sizeof(float*) / sizeof(float)));
  for (size_t i = 0; i + 1 < steps_.size(); ++i) {
    steps_[i].result = scratch_;
    scratch_ += in_lines(count_of(steps_[i].dims));
  }
}

void FloatProgram::run(const float* const* inputs, float* y, float* scratch) const {
  auto** operands = reinterpret_cast<const float**>(scratch + operator_scratch_);
  for (const Step& step : steps_) {
    for (size_t i = 0; i < step.operands.size(); ++i) {
      using From = FloatStep::Operand::From;
      const Source& source = step.operands[i];
      operands[i] = source.from == From::input  ? inputs[source.index]
                    : source.from == From::step ? scratch + steps_[source.index].result
                                                : source.constant;
    }
    step.run(operands, &step == &steps_.back() ? y : scratch + step.result, scratch);
  }
}

FloatArray run_steps(const std::vector<FloatStep>& steps, const std::vector<FloatArray>& inputs,
                     const std::string& subject) {
  std::vector<ArrayDims> dims;
  std::vector<const float*> values;
  for (const FloatArray& input : inputs) {
    dims.push_back(input.dims);
    values.push_back(input.values.data());
  }
  const FloatProgram program(steps, dims, subject);
  FloatArray result{program.dims(), std::vector<float>(static_cast<size_t>(count_of(program.dims()))), {}};
  std::vector<float> scratch(static_cast<size_t>(program.scratch() + kFloatsInLine));
  float* aligned = scratch.data();
  while (reinterpret_cast<uintptr_t>(aligned) % 64 != 0) ++aligned;
  program.run(values.data(), result.values.data(), aligned);
  return result;
}

}  // namespace facetrain
