// SGD with momentum and weight decay on flat buffers, in one pass over memory: weights, momentum and gradient are read
// once, weights and momentum written once. As ATen's operators, one for each term, it takes 13 passes with clipping.
// Each number is updated as those of the class centres are (pfc/row_update.h).
#pragma once

#include <ATen/core/Tensor.h>

#include "pfc/row_update.h"

namespace facetrain {

// A step of `sgd` on all elements of three buffers of one size, float32 without gaps on one device. `factor`, a float64
// scalar on that device, multiplies the gradient; if it is not finite, nothing changes. Does not wait for the device.
void sgd_step(const at::Tensor& weights, const at::Tensor& momentum, const at::Tensor& gradients,
              const at::Tensor& factor, const RowSgd& sgd);

namespace cuda {

// The same on a GPU; in a build without CUDA it throws.
void sgd_step(const at::Tensor& weights, const at::Tensor& momentum, const at::Tensor& gradients,
              const at::Tensor& factor, const RowSgd& sgd);

}  // namespace cuda
}  // namespace facetrain
