#include "model/checkpoint.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <limits>
#include <numeric>

namespace facetrain {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

// Where blocks may begin and end, in ascending order: 0, after each cut, and at the end.
struct Border {
  size_t step;    // the first one behind it
  int64_t bytes;  // of the value at it, which a division with this border keeps
  int64_t until;  // of all outputs before it
};

// The division with the fewest bytes between blocks, among those whose peak is at most `peak`: for each border, the
// border before it. Empty if there is none.
std::vector<size_t> divide(const std::vector<Border>& borders, int64_t peak) {
  std::vector<int64_t> kept(borders.size(), kNone);  // between blocks, up to and including the border
  std::vector<size_t> before(borders.size(), 0);
  kept[0] = 0;
  for (size_t end = 1; end < borders.size(); ++end) {
    for (size_t first = 0; first < end; ++first) {
      if (kept[first] == kNone || kept[first] + borders[end].until - borders[first].until > peak) continue;
      const int64_t all = kept[first] + borders[end].bytes;
      if (all >= kept[end]) continue;
      kept[end] = all;
      before[end] = first;
    }
  }
  return kept.back() == kNone ? std::vector<size_t>() : before;
}

// What autograd keeps of a block.
struct Holder : torch::CustomClassHolder {
  explicit Holder(std::shared_ptr<const Recomputed> block) : block(std::move(block)) {}
  const std::shared_ptr<const Recomputed> block;
};

class Checkpoint : public torch::autograd::Function<Checkpoint> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& value,
                            const at::TensorList& parameters, const c10::intrusive_ptr<Holder>& holder, Pass pass) {
    static_cast<void>(parameters);  // an argument, so that autograd knows what the result depends on
    context->save_for_backward({value});
    context->saved_data["block"] = at::IValue::make_capsule(holder);
    const at::Tensor result = holder->block->run(value, pass);
    return result.is_alias_of(value) ? result.clone() : result;  // autograd takes no view of an argument
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto block = static_cast<Holder*>(context->saved_data["block"].toCapsule().get())->block;
    const at::Tensor saved = context->get_saved_variables()[0], value = saved.detach();
    value.set_requires_grad(saved.requires_grad());
    std::vector<at::Tensor> inputs = block->parameters;
    if (saved.requires_grad()) inputs.push_back(value);
    const c10::AutoGradMode records(true);
    const at::Tensor result = block->run(value, Pass::recomputation);
    auto computed = torch::autograd::grad({result}, inputs, {gradients[0]}, /*retain_graph=*/false,
                                          /*create_graph=*/false, /*allow_unused=*/true);
    torch::autograd::variable_list list(1);
    if (saved.requires_grad()) {
      list[0] = computed.back();
      computed.pop_back();
    }
    list.insert(list.end(), computed.begin(), computed.end());
    list.resize(list.size() + 2);  // of holder and pass
    return list;
  }
};

}  // namespace

std::vector<StepRange> choose_blocks(std::span<const ActivationStep> steps) {
  std::vector<Border> borders{{0, 0, 0}};
  int64_t all = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    all += steps[i].bytes;
    if (steps[i].is_cut || i + 1 == steps.size()) borders.push_back({i + 1, steps[i].bytes, all});
  }
  // The smallest peak, by bisection: one block has the peak `all`.
  int64_t low = 0, high = all;
  while (low < high) {
    const int64_t middle = std::midpoint(low, high);
    if (divide(borders, middle).empty())
      low = middle + 1;
    else
      high = middle;
  }
  const std::vector<size_t> before = divide(borders, low);
  std::vector<StepRange> blocks;
  for (size_t end = borders.size() - 1; end > 0; end = before[end])
    blocks.insert(blocks.begin(), {borders[before[end]].step, borders[end].step});
  return blocks;
}

at::Tensor checkpoint(const at::Tensor& value, const std::shared_ptr<const Recomputed>& block, Pass pass) {
  return Checkpoint::apply(value, at::TensorList(block->parameters), c10::make_intrusive<Holder>(block), pass);
}

}  // namespace facetrain
