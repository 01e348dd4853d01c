// The scale of the loss in FP16, whose smallest numbers (6e-8) would round most gradients of activations to 0.
//
// The loss, and with it every gradient of the backbone, is multiplied by the scale before the backward pass and divided
// by it afterwards, in float32. When a gradient overflows, the step changes no weight and the scale is halved; after
// 2,000 steps without an overflow it is doubled (Micikevicius et al., arXiv 1710.03740; the numbers are those of
// torch.amp.GradScaler, whose factors are the same).
//
// Every rank has the same scale: an overflow on one rank is in the sum of the gradients over all ranks.
#pragma once

#include <cstdint>

namespace facetrain {

struct LossScale {
  static constexpr double kFirst = 65536, kSmallest = 1;
  static constexpr int64_t kGrowAfter = 2000;

  double value = kFirst;
  int64_t good_steps = 0;     // since the scale has changed, or a step was skipped
  int64_t skipped_steps = 0;  // since the start of training

  // After a step whose gradients were finite.
  void grow() {
    if (++good_steps < kGrowAfter) return;
    value *= 2;
    good_steps = 0;
  }
  // After a step with an overflow, which is skipped. Returns whether a smaller scale may help: without any scaling,
  // what overflows is not finite by itself.
  bool shrink() {
    if (value / 2 < kSmallest) return false;
    value /= 2;
    good_steps = 0;
    ++skipped_steps;
    return true;
  }
};

}  // namespace facetrain
