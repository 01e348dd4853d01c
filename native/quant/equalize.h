// Cross-layer equalization: makes the ranges of a tensor's channels similar before the tensor gets its one scale.
//
// A tensor has one scale, so channels much smaller than its largest get few of the 63 steps. PReLU, addition and
// pooling are positively homogeneous in each channel. So channel c of all tensors that they connect may be divided by
// t_c > 0, if the convolutions that write them divide their filter c by t_c and those that read them multiply their
// weights of input channel c by t_c. The network computes the same function in FP32. (Nagel et al. 2019, arXiv
// 1906.04721, section 4.1, which uses the ranges of the weights before; this uses those of the activations.)
//
// Costs one FP32 pass of the network over the calibration pictures.
#pragma once

#include <functional>

#include "quant/activations.h"
#include "quant/cancellable_pool.h"
#include "quant/model.h"

namespace facetrain {

// Rewrites the layers' weights, biases and offsets. The graph's input and output are not scaled.
//
// t_c = a_c^0.85 / w_c^0.15, where a_c is the largest magnitude of the channel on the pictures and w_c the largest
// |weight| that reads it. Where only depthwise convolutions read the channel, t_c = a_c: they have a scale for each
// channel. t_c is between 1e-6 and 1e6: in a network whose values vanish, as untrained ones do, it would be as small
// as they are, and layers that make large values of them again would get weights of 1e15.
//
// Measured on a pretrained MobileFaceNet with scales from the maximum, as the mean cosine of embeddings with FP32:
// 0.974 with these exponents, 0.968 with 0.5 for both, 0.919 without equalization; 0.954 with the 99.9th percentile as
// a_c, because some channels are rarely active but large when they are.
//
// `on_layer` is called with the number of layers done. Throws Error(NotANumber) when an activation is not finite, and
// Cancelled.
void equalize(LayerGraph& graph, const PictureView& pictures, const CancellablePool& pool, const ActivationSpace& space,
              const std::function<void(int)>& on_layer);

}  // namespace facetrain
