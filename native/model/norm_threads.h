// What one thread of the kernels in batch_norm_prelu.cu does, and which rows and channels are its own. Compiles for the
// host as well, where executor_test.cc runs all threads of a grid one after the other.
//
// A grid divides the rows into chunks and the channels into columns; a block has a chunk of a column. Its threads lie
// side by side along the channels, several rows of them. The division depends on the shape alone, and each sum is made
// in the order thread, block, grid: no result depends on the GPU or on the order in which blocks run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "host_device.h"
#include "model/norm_math.h"

namespace facetrain::cuda {

constexpr int kThreads = 256;  // of a block
constexpr int kAtOnce = 4;     // loads that a thread has under way
constexpr int kBlocks = 512;   // about this many in a grid: four for each of an H100's 132 multiprocessors
constexpr int kVector = 4;     // channels that a thread loads at once (8 or 16 bytes), where their number allows it

struct Tiling {
  int64_t rows, channels;
  int width, height;  // threads of a block along channels and along rows, powers of two
  int columns;        // blocks along channels
  int chunks;         // blocks along rows
  int64_t chunk;      // rows of a block

  // `vector` divides `channels`.
  Tiling(int64_t rows, int64_t channels, int vector) : rows(rows), channels(channels), width(1) {
    const int64_t vectors = channels / vector;
    while (width < vectors && width < 32) width *= 2;
    height = kThreads / width;
    columns = static_cast<int>((vectors + width - 1) / width);
    const int64_t wanted = std::max(1, kBlocks / columns), step = int64_t{height} * kAtOnce;
    chunk = ((rows + wanted - 1) / wanted + step - 1) / step * step;
    chunks = static_cast<int>((rows + chunk - 1) / chunk);
  }

  // Whether every thread has rows, also in the last chunk.
  bool all_busy() const { return rows - (chunks - 1) * chunk >= height; }
};

// A thread's part of a grid.
struct Part {
  int64_t channel;   // the first of its channels
  int64_t row, end;  // its rows are row, row + stride, ... before end; none if its channels are beyond the last
  int64_t stride;

  FT_HD Part(const Tiling& tiling, int vector, int column, int chunk, int x, int y)
      : channel((int64_t{column} * tiling.width + x) * vector),
        row(chunk * tiling.chunk + y),
        end(row - y + tiling.chunk),
        stride(tiling.height) {
    if (end > tiling.rows) end = tiling.rows;
    if (channel >= tiling.channels) end = row;
  }
};

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T values[kWidth];
};

template <class T, int kWidth>
FT_HD inline void load(const T* from, float (&to)[kWidth]) {
  const auto vector = *reinterpret_cast<const Vector<T, kWidth>*>(from);
  for (int i = 0; i < kWidth; ++i) to[i] = static_cast<float>(vector.values[i]);
}

template <class T, int kWidth>
FT_HD inline void store(const float (&from)[kWidth], T* to) {
  Vector<T, kWidth> vector;
  for (int i = 0; i < kWidth; ++i) vector.values[i] = static_cast<T>(from[i]);
  *reinterpret_cast<Vector<T, kWidth>*>(to) = vector;
}

template <int kWidth>
FT_HD inline void load_channels(const float* from, int64_t channel, float (&to)[kWidth]) {
  for (int i = 0; i < kWidth; ++i) to[i] = from[channel + i];
}

// Calls function(offsets, std::integral_constant<int, n>) for the rows of the part, n = kAtOnce at a time and the last
// ones alone: the offsets of the first value of the part in n rows.
template <class Function>
FT_HD inline void for_each_rows(const Part& part, int64_t channels, Function function) {
  int64_t row = part.row;
  for (; row + (kAtOnce - 1) * part.stride < part.end; row += kAtOnce * part.stride) {
    int64_t offsets[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i) offsets[i] = (row + i * part.stride) * channels + part.channel;
    function(offsets, std::integral_constant<int, kAtOnce>());
  }
  for (; row < part.end; row += part.stride) {
    const int64_t offsets[1] = {row * channels + part.channel};
    function(offsets, std::integral_constant<int, 1>());
  }
}

// Moments of the part's values, by channel; `moments` start at 0.
template <class T, int kWidth>
FT_HD inline void add_moments(const T* x, int64_t channels, const Part& part, Moments<float> (&moments)[kWidth]) {
  for_each_rows(part, channels, [&](const auto& offsets, auto count) {
    constexpr int kRows = decltype(count)::value;
    float values[kRows][kWidth];
    for (int i = 0; i < kRows; ++i) load<T, kWidth>(x + offsets[i], values[i]);
    for (int i = 0; i < kRows; ++i) {
      const float inverse_count = 1.f / (moments[0].count + 1.f);
      for (int c = 0; c < kWidth; ++c) add_value(moments[c], values[i][c], inverse_count);
    }
  });
}

// The operator's values by channel, and the sums that are divided by the number of rows (norm_math.h). Null: slope
// without PReLU, the others in the forward pass.
struct ByChannel {
  const float *mean, *scale, *beta, *slope, *constant, *linear;
};

enum class After { nothing, prelu, residual };

template <class T, int kWidth, After kAfter>
FT_HD inline void forward_part(const T* x, const T* residual, const ByChannel& by, int64_t channels, const Part& part,
                               T* y) {
  if (part.row >= part.end) return;
  float mean[kWidth], scale[kWidth], beta[kWidth], slope[kWidth];
  load_channels(by.mean, part.channel, mean);
  load_channels(by.scale, part.channel, scale);
  load_channels(by.beta, part.channel, beta);
  if (kAfter == After::prelu) load_channels(by.slope, part.channel, slope);
  for_each_rows(part, channels, [&](const auto& offsets, auto count) {
    constexpr int kRows = decltype(count)::value;
    float values[kRows][kWidth], others[kRows][kWidth];
    for (int i = 0; i < kRows; ++i) {
      load<T, kWidth>(x + offsets[i], values[i]);
      if (kAfter == After::residual) load<T, kWidth>(residual + offsets[i], others[i]);
    }
    for (int i = 0; i < kRows; ++i) {
      for (int c = 0; c < kWidth; ++c) {
        float& value = values[i][c];
        value = normalized(value - mean[c], scale[c], beta[c]);
        if (kAfter == After::prelu) value = prelu_value(value, slope[c]);
        if (kAfter == After::residual) value += others[i][c];
      }
      store<T, kWidth>(values[i], y + offsets[i]);
    }
  });
}

// By channel: the gradients of beta, of gamma (still to be divided by the deviation) and of the slope.
constexpr int kSums = 3;

template <class T, int kWidth, bool kPRelu>
FT_HD inline void add_sums(const T* x, const T* gradient, const ByChannel& by, int64_t channels, const Part& part,
                           float (&sums)[kSums][kWidth]) {
  if (part.row >= part.end) return;
  float mean[kWidth], scale[kWidth], beta[kWidth], slope[kWidth];
  load_channels(by.mean, part.channel, mean);
  if (kPRelu) {
    load_channels(by.scale, part.channel, scale);
    load_channels(by.beta, part.channel, beta);
    load_channels(by.slope, part.channel, slope);
  }
  for_each_rows(part, channels, [&](const auto& offsets, auto count) {
    constexpr int kRows = decltype(count)::value;
    float values[kRows][kWidth], gradients[kRows][kWidth];
    for (int i = 0; i < kRows; ++i) {
      load<T, kWidth>(x + offsets[i], values[i]);
      load<T, kWidth>(gradient + offsets[i], gradients[i]);
    }
    for (int i = 0; i < kRows; ++i) {
      for (int c = 0; c < kWidth; ++c) {
        const float centred = values[i][c] - mean[c];
        float through = gradients[i][c];
        if (kPRelu) {
          const float z = normalized(centred, scale[c], beta[c]);
          sums[2][c] += prelu_slope_gradient(z, through);
          through = prelu_gradient(z, through, slope[c]);
        }
        sums[0][c] += through;
        sums[1][c] += through * centred;
      }
    }
  });
}

template <class T, int kWidth, bool kPRelu>
FT_HD inline void backward_part(const T* x, const T* gradient, const ByChannel& by, int64_t channels, const Part& part,
                                T* x_gradient) {
  if (part.row >= part.end) return;
  float mean[kWidth], scale[kWidth], beta[kWidth], slope[kWidth], constant[kWidth], linear[kWidth];
  load_channels(by.mean, part.channel, mean);
  load_channels(by.scale, part.channel, scale);
  load_channels(by.constant, part.channel, constant);
  load_channels(by.linear, part.channel, linear);
  if (kPRelu) {
    load_channels(by.beta, part.channel, beta);
    load_channels(by.slope, part.channel, slope);
  }
  for_each_rows(part, channels, [&](const auto& offsets, auto count) {
    constexpr int kRows = decltype(count)::value;
    float values[kRows][kWidth], gradients[kRows][kWidth];
    for (int i = 0; i < kRows; ++i) {
      load<T, kWidth>(x + offsets[i], values[i]);
      load<T, kWidth>(gradient + offsets[i], gradients[i]);
    }
    for (int i = 0; i < kRows; ++i) {
      for (int c = 0; c < kWidth; ++c) {
        const float centred = values[i][c] - mean[c];
        float through = gradients[i][c];
        if (kPRelu) through = prelu_gradient(normalized(centred, scale[c], beta[c]), through, slope[c]);
        values[i][c] = norm_gradient(through, centred, scale[c], constant[c], linear[c]);
      }
      store<T, kWidth>(values[i], x_gradient + offsets[i]);
    }
  });
}

// One value by channel from the whole grid, summed over the chunks in float64 as `kJoiners` threads do it: thread y
// takes chunks y, y + kJoiners, ...
constexpr int kJoiners = 16;

FT_HD inline Moments<double> moments_of_chunks(const Tiling& tiling, const float* means, const float* squares,
                                               int64_t channel, int y) {
  Moments<double> all{0, 0, 0};
  for (int chunk = y; chunk < tiling.chunks; chunk += kJoiners) {
    const int64_t first = chunk * tiling.chunk;
    const int64_t count = first + tiling.chunk < tiling.rows ? tiling.chunk : tiling.rows - first;
    const int64_t at = chunk * tiling.channels + channel;
    all = joined(all, Moments<double>{static_cast<double>(count), means[at], squares[at]});
  }
  return all;
}

FT_HD inline double sum_of_chunks(const Tiling& tiling, const float* partial, int sum, int64_t channel, int y) {
  double all = 0;
  for (int chunk = y; chunk < tiling.chunks; chunk += kJoiners)
    all += partial[(int64_t{chunk} * kSums + sum) * tiling.channels + channel];
  return all;
}

}  // namespace facetrain::cuda
