// FT_HD marks a function that code for CPUs and CUDA kernels share. What it includes must compile for both.
#pragma once

#if defined(__CUDACC__)
#define FT_HD __host__ __device__
#else
#define FT_HD
#endif
