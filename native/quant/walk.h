// The network on all calibration pictures at once, layer by layer: what the greedy order of EasyQuant needs, which
// decides about a layer when all pictures have come as far as it. In FP32, in integers, or both side by side.
#pragma once

#include <vector>

#include "quant/model.h"

namespace facetrain {

class Walk {
 public:
  // All must outlive the walk.
  Walk(const LayerGraph& graph, const PictureView& pictures, ThreadPool& pool);

  void start_real();
  void start_integers(const Scales& scales);

  // The layer's output for every picture. Its inputs must be there.
  void run_real(int layer);
  void run_integers(int layer, const Scales& scales);
  // The same before it is quantised, as FP32 [pictures][size]; `into` run_integers would round it.
  std::vector<float> run_unquantised(int layer, const Scales& scales) const;
  // Drops the tensors that no later layer reads.
  void release(int layer);

  // Largest |x| of a tensor in FP32, over all pictures. Throws Error(NotANumber) when one is not finite.
  float largest(int tensor) const;

  int64_t pictures() const { return pictures_.count; }
  const float* real(int tensor, int64_t n) const { return real_[tensor].data() + n * graph_.tensors[tensor].size(); }
  const int8_t* integers(int tensor, int64_t n) const {
    return integers_[tensor].data() + n * graph_.tensors[tensor].size();
  }

  // Bytes that a walk in both, with one output unquantised, needs for a picture.
  static int64_t bytes_per_picture(const LayerGraph& graph);

 private:
  const LayerGraph& graph_;
  const PictureView& pictures_;
  ThreadPool& pool_;
  std::vector<std::vector<float>> real_;       // by tensor
  std::vector<std::vector<int8_t>> integers_;  // by tensor, kOverread longer
};

}  // namespace facetrain
