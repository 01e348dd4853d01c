// Batch norm and PReLU on single values, for the kernels of CPUs (batch_norm_prelu.cc, prelu.cc) and of GPUs
// (batch_norm_prelu.cu). All of it is float32, whatever the type of the activations.
#pragma once

#include "host_device.h"

namespace facetrain {

// z = (x - mean) scale + beta, where scale is gamma / deviation. The mean is subtracted first, because folding it into
// beta would lose digits if it is large.
FT_HD inline float normalized(float centred, float scale, float beta) { return centred * scale + beta; }

// y = z > 0 ? z : slope z.
FT_HD inline float prelu_value(float z, float slope) {
  const float negative = z * slope;
  return z > 0 ? z : negative;
}

// dz and dslope of a gradient dy. Both sides of a choice are computed first: compilers vectorize that.
FT_HD inline float prelu_gradient(float z, float gradient, float slope) {
  const float scaled = gradient * slope;
  return z > 0 ? gradient : scaled;
}
FT_HD inline float prelu_slope_gradient(float z, float gradient) {
  const float product = gradient * z;
  return z > 0 ? 0.f : product;
}

// dx = scale (dz - constant - (x - mean) linear), where dz is the gradient after the normalization. `constant` and
// `linear` are the derivatives through the batch's mean and variance: with n rows and the inverse deviation s,
// constant = sum(dz) / n and linear = s^2 sum(dz (x - mean)) / n; both are 0 when running statistics normalize.
FT_HD inline float norm_gradient(float through, float centred, float scale, float constant, float linear) {
  return scale * (through - constant - centred * linear);
}

// Mean and sum of squared distances from it of `count` values. The one-pass formula E[x^2] - E[x]^2 would lose digits
// by cancellation.
template <class Real>
struct Moments {
  Real count, mean, squares;
};

// Adds a value; `inverse_count` is 1 / (count + 1), which a caller with many channels computes once (Welford, 1962).
template <class Real>
FT_HD inline void add_value(Moments<Real>& moments, Real x, Real inverse_count) {
  const Real distance = x - moments.mean;
  moments.count += 1;
  moments.mean += distance * inverse_count;
  moments.squares += distance * (x - moments.mean);
}

// The moments of two sets of values together (Chan, Golub and LeVeque, 1979).
template <class Real>
FT_HD inline Moments<Real> joined(const Moments<Real>& a, const Moments<Real>& b) {
  if (b.count == 0) return a;
  if (a.count == 0) return b;
  const Real count = a.count + b.count;
  const Real distance = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + distance * share, a.squares + b.squares + distance * distance * a.count * share};
}

}  // namespace facetrain
