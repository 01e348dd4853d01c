// The margin of the target logit, as one functor that the CPU and the CUDA code share.
#pragma once

#if defined(__CUDACC__)
#define FT_HD __host__ __device__
#else
#define FT_HD
#endif

namespace facetrain {

// target(cos θ) = cos(m1 θ + m2) - m3. CosFace: (1, 0, m3); ArcFace: (1, m2, 0).
struct Margin {
  float m1 = 1.0f;
  float m2 = 0.0f;
  float m3 = 0.4f;
};

}  // namespace facetrain
