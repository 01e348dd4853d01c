#include "int7/prelu_parts.h"

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <utility>

namespace facetrain::int7 {
namespace {

class Joiner {
 public:
  explicit Joiner(const OnnxFile& file) : file_(file) {
    for (const OnnxNode& node : file.nodes) {
      for (const std::string_view value : node.inputs) ++readers_[value];
      if (node.outputs.size() == 1) makers_[node.outputs[0]] = &node;
    }
    for (const std::string_view value : file.outputs) ++readers_[value];
  }

  std::vector<OnnxNode> join() {
    std::map<const OnnxNode*, OnnxNode> joined;
    for (const OnnxNode& node : file_.nodes) {
      if (node.op != "Add" || node.inputs.size() != 2) continue;
      for (const bool swapped : {false, true}) {
        if (const auto inputs = inputs_of(node.inputs[swapped ? 1 : 0], node.inputs[swapped ? 0 : 1]);
            !inputs.empty()) {
          OnnxNode prelu = node;
          prelu.op = "PRelu";
          prelu.inputs = inputs;
          joined.emplace(&node, std::move(prelu));
          break;
        }
      }
    }
    std::vector<OnnxNode> result;
    for (const OnnxNode& node : file_.nodes) {
      if (parts_.count(&node) > 0) continue;
      const auto found = joined.find(&node);
      result.push_back(found == joined.end() ? node : found->second);
    }
    return result;
  }

 private:
  struct Operands {
    std::string_view computed, constant;
  };

  // What the PRelu of a sum reads: the tensor and its slopes. Empty where the summands are no parts of one.
  std::vector<std::string_view> inputs_of(std::string_view a, std::string_view b) {
    const OnnxNode *positive = part("Relu", a), *negative = part("Mul", b);
    if (positive == nullptr || positive->inputs.size() != 1 || negative == nullptr) return {};
    Operands product, least;
    if (!operands(*negative, &Joiner::is_constant, product)) return {};
    const OnnxNode* below = part("Min", product.computed);
    if (below == nullptr || !operands(*below, &Joiner::is_zero, least)) return {};
    if (positive->inputs[0] != least.computed) return {};
    parts_.insert({positive, negative, below});
    return {least.computed, product.constant};
  }

  // The node of that operator that makes the value, if nothing else reads it.
  const OnnxNode* part(std::string_view op, std::string_view value) const {
    const auto maker = makers_.find(value);
    return maker != makers_.end() && maker->second->op == op && readers_.at(value) == 1 ? maker->second : nullptr;
  }

  bool is_constant(std::string_view value) const { return file_.constants.count(value) > 0; }
  bool is_zero(std::string_view value) const {
    const auto found = file_.constants.find(value);
    if (found == file_.constants.end() || found->second.type != kFloat || found->second.unreadable) return false;
    const std::string_view raw = found->second.raw;
    return raw.size() == sizeof(float) && std::all_of(raw.begin(), raw.end(), [](char byte) { return byte == 0; });
  }

  // The operand of two that is no such constant, and the constant.
  bool operands(const OnnxNode& node, bool (Joiner::*wanted)(std::string_view) const, Operands& result) const {
    if (node.inputs.size() != 2) return false;
    const std::string_view a = node.inputs[0], b = node.inputs[1];
    if ((this->*wanted)(a) == (this->*wanted)(b)) return false;
    result = (this->*wanted)(a) ? Operands{b, a} : Operands{a, b};
    return true;
  }

  const OnnxFile& file_;
  std::map<std::string_view, int> readers_;
  std::map<std::string_view, const OnnxNode*> makers_;
  std::set<const OnnxNode*> parts_;
};

}  // namespace

std::vector<OnnxNode> join_prelus(const OnnxFile& file) { return Joiner(file).join(); }

}  // namespace facetrain::int7
