// Runs the network layer by layer on all calibration pictures at once, in FP32, in integers, or in both. EasyQuant
// needs this order: it chooses the scales of a layer when the inputs of that layer are known for all pictures.
//
// Keeps the tensors that later layers still read: bytes_per_picture() for each picture, in memory or in a file.
#pragma once

#include <vector>

#include "quant/activations.h"
#include "quant/cancellable_pool.h"
#include "quant/model.h"

namespace facetrain {

class LayerwisePass {
 public:
  // All arguments must outlive the pass. What goes through all pictures throws Cancelled.
  LayerwisePass(const LayerGraph& graph, const PictureView& pictures, const CancellablePool& pool,
                const ActivationSpace& space);

  // Sets the graph's input from the pictures, in FP32 or in integers.
  void start_real();
  void start_integers(const Scales& scales);

  // Computes the layer's output for every picture. Its inputs must have been computed and not released.
  void run_real(int layer);
  void run_integers(int layer, const Scales& scales);
  // The output of the integer layer before it is quantized, as FP32 [pictures][size of the tensor]: the values that
  // run_integers rounds. Does not keep them.
  Activations<float> run_unquantized(int layer, const Scales& scales) const;
  // Frees the tensors that no layer after `layer` reads.
  void release(int layer);

  // Of an FP32 tensor over all pictures. Throws Error(NotANumber) when a value is not finite.
  Extent extent(int tensor) const;

  int64_t pictures() const { return pictures_.count; }
  // The tensor's values for picture n.
  const float* real(int tensor, int64_t n) const { return real_[tensor].data() + n * graph_.tensors[tensor].size(); }
  const int8_t* integers(int tensor, int64_t n) const {
    return integers_[tensor].data() + n * graph_.tensors[tensor].size();
  }
  // The same in the INT7 network, where it may stay real.
  Operand operand(int tensor, int64_t n) const;

  // The most bytes that a picture takes in a pass in both kinds, with one unquantized output.
  static int64_t bytes_per_picture(const LayerGraph& graph);

 private:
  std::vector<Operand> operands(const Layer& layer, int64_t n) const;

  const LayerGraph& graph_;
  const PictureView& pictures_;
  const CancellablePool& pool_;
  const std::string* const directory_;           // of the files with activations; null: they are in memory
  std::vector<Activations<float>> real_;         // by tensor
  std::vector<Activations<int8_t>> integers_;    // by tensor, each with kOverread more bytes
  std::vector<Activations<float>> unquantized_;  // by tensor: those that stay real in the INT7 network
};

}  // namespace facetrain
