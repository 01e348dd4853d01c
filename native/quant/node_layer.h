// Runs a layer of kind node in FP32: converts its inputs from [height, width, channels] to ONNX's order and the output
// back.
#pragma once

#include <vector>

#include "quant/layer_graph.h"

namespace facetrain {

// Computes the output y of the layer. Inputs and output are [height, width, channels], or, of other ranks than 4, in
// ONNX's order. Throws Error(InvalidModel) where the operators do not fit, or give other dimensions than the layer
// declares.
void run_node(const LayerGraph& graph, const Layer& layer, const std::vector<const float*>& inputs, float* y);

// Computes MaxPool, Concat along the channels and Gather of channels without leaving [height, width, channels]: numbers
// are only moved, so `T` may be float or int8_t; integers of inputs and output must have one scale. Returns whether the
// layer is one of these, and computed.
template <typename T>
bool run_moves(const LayerGraph& graph, const Layer& layer, const std::vector<const T*>& inputs, T* y);

// y[i] = the layer's function of x[i], for an elementwise node.
void run_elementwise(const Layer& layer, const float* x, int64_t count, float* y);

}  // namespace facetrain
