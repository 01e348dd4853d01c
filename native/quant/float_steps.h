// ONNX operators in FP32 on arrays of any rank, for one picture (a batch of 1): what Layer::Kind::node computes.
//
// They are plain loops. The results are those of ONNX Runtime, to the rounding of sums and of functions such as exp,
// which are computed in float64 and rounded once, so that every machine gives the same numbers. The semantics are those
// of operator set 17, with explicit pads.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace facetrain {

// An array in row-major order. A constant of integers, such as the target of a Reshape, has its numbers in `integers`,
// too: operators of values and those of integers read it.
struct FloatArray {
  std::vector<int64_t> dims;
  std::vector<float> values;
  std::vector<int64_t> integers;
};

// One ONNX node.
struct FloatStep {
  struct Operand {
    enum class From { input, step, constant, absent };
    From from = From::absent;
    int index = 0;        // of the layer's input, or of an earlier step
    FloatArray constant;  // if from == constant
  };
  std::string op;
  std::map<std::string, std::vector<double>> numbers;  // attributes: numbers, and lists of them
  std::map<std::string, std::string> texts;            // attributes: strings
  std::vector<Operand> operands;
};

// Computes the steps in order. Returns the last one's output. Throws Error(InvalidModel) with `subject` if an operator
// is unknown, or its operands do not fit.
FloatArray run_steps(const std::vector<FloatStep>& steps, const std::vector<FloatArray>& inputs,
                     const std::string& subject);

// Whether every step is a function of each number by itself: of the layer's one input, of earlier steps, and of
// constants that are single numbers.
bool elementwise(const std::vector<FloatStep>& steps);

// Whether the step only moves numbers (a MaxPool chooses them), so that its output may have its input's scale: the
// integers of the output are then integers of the input, or zeros.
bool moves_numbers(const FloatStep& step);

}  // namespace facetrain
