#include "model/grouped_conv.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <vector>

#include "model/rows.h"

namespace facetrain {
namespace {

// Channels are in blocks of 16 in all buffers: [block][pixel][16]. Rows of all channels would lie at distances of
// powers of two, and fall on few lines of the cache.
constexpr int64_t kLanes = 16;
using Vector = float __attribute__((vector_size(kLanes * sizeof(float)), aligned(alignof(float)), may_alias));

int64_t blocks_of(int64_t channels) { return (channels + kLanes - 1) / kLanes; }

// The pictures and the kernel of one pass: from `rows` x `columns` pixels, between which there are `spread` - 1 zeros
// in both directions, to `out_rows` x `out_columns`.
struct Shape {
  int64_t channels, group, kernel;
  int64_t rows, columns, spread;
  int64_t out_rows, out_columns, stride;
  int64_t top, left;  // pads

  int64_t blocks() const { return blocks_of(channels); }
  int64_t taps() const { return kernel * kernel * group; }
  // Pixels of a row in a buffer, pads included.
  int64_t width() const { return (out_columns - 1) * stride + kernel; }
  int64_t row_values() const { return blocks() * group * width() * kLanes; }
};

using Bits = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
using Halves = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));

FT_ALWAYS_INLINE inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
FT_ALWAYS_INLINE inline Vector load(const uint16_t* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  return std::bit_cast<Vector>(__builtin_convertvector(halves, Bits) << 16);
}

// As rows.h rounds.
FT_ALWAYS_INLINE inline void store(const Vector& value, float* to) { *reinterpret_cast<Vector*>(to) = value; }
FT_ALWAYS_INLINE inline void store(const Vector& value, uint16_t* to) {
  const Bits bits = std::bit_cast<Bits>(value);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Halves halves =
      __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? Bits{} + 0x7fc0u : rounded, Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

// The j-th channel of its group for each channel.
template <int64_t kGroup>
FT_ALWAYS_INLINE inline Vector of_group(const Vector& all, int64_t j) {
  if constexpr (kGroup == 1) return all;
  Vector result;
  for (int64_t lane = 0; lane < kLanes; ++lane) result[lane] = all[lane / kGroup * kGroup + j];
  return result;
}

// Copies a row of pixels to [block][j][pixel][16], to pixel `left` and every `spread`-th after it; the others are zeros
// already.
template <int64_t kGroup, class T>
FT_ALWAYS_INLINE inline void spread_row_of(const T* FT_RESTRICT from, const Shape& shape, float* FT_RESTRICT to) {
  const int64_t width = shape.width(), plane = width * kLanes;
  const int64_t count = std::min(shape.columns, (width - shape.left + shape.spread - 1) / shape.spread);
  for (int64_t first = 0; first < shape.channels; first += kLanes, to += kGroup * plane) {
    const int64_t lanes = shape.channels - first;
    const T* FT_RESTRICT source = from + first;
    float* FT_RESTRICT pixel = to + shape.left * kLanes;
    for (int64_t column = 0; column < count; ++column, source += shape.channels, pixel += shape.spread * kLanes) {
      Vector all{};
      if (lanes >= kLanes) {
        all = load(source);
      } else {
        for (int64_t lane = 0; lane < lanes; ++lane) all[lane] = widened(source[lane]);
      }
      for (int64_t j = 0; j < kGroup; ++j) store(of_group<kGroup>(all, j), pixel + j * plane);
    }
  }
}

template <class T>
FACETRAIN_CLONES void spread_row(const T* FT_RESTRICT from, const Shape& shape, float* FT_RESTRICT to) {
  if (shape.group == 1) return spread_row_of<1>(from, shape, to);
  if (shape.group == 2) return spread_row_of<2>(from, shape, to);
  spread_row_of<4>(from, shape, to);
}

template <int64_t kPixels>
FT_ALWAYS_INLINE inline void sum_pixels(const float* const* rows, int64_t row_offset, const float* weights,
                                        const Shape& shape, float* to) {
  const int64_t plane = shape.width() * kLanes, kernel = shape.kernel, step = shape.stride * kLanes;
  Vector sums[kPixels] = {};
  for (int64_t y = 0; y < kernel; ++y) {
    if (!rows[y]) continue;
    for (int64_t j = 0; j < shape.group; ++j) {
      const float* const from = rows[y] + row_offset + j * plane;
      const float* const weight = weights + (y * shape.group + j) * kernel * kLanes;
      for (int64_t x = 0; x < kernel; ++x) {
        const Vector by = load(weight + x * kLanes);
        for (int64_t i = 0; i < kPixels; ++i) sums[i] += by * load(from + x * kLanes + i * step);
      }
    }
  }
  for (int64_t i = 0; i < kPixels; ++i) store(sums[i], to + i * kLanes);
}

// One row of results, [block][pixel][16]. `rows`: of the kernel's height, null for zeros. `weights`:
// [block][y][j][x][16].
FACETRAIN_CLONES void sum_row(const float* const* rows, const float* weights, const Shape& shape, float* to) {
  for (int64_t block = 0; block < shape.blocks(); ++block) {
    const int64_t offset = block * shape.group * shape.width() * kLanes;
    int64_t column = 0;
    for (; column + 4 <= shape.out_columns; column += 4, to += 4 * kLanes)
      sum_pixels<4>(rows, offset + column * shape.stride * kLanes, weights, shape, to);
    for (; column < shape.out_columns; ++column, to += kLanes)
      sum_pixels<1>(rows, offset + column * shape.stride * kLanes, weights, shape, to);
    weights += shape.taps() * kLanes;
  }
}

// `bias`: [block][16].
template <class T>
FACETRAIN_CLONES void store_row(const float* FT_RESTRICT sums, const float* FT_RESTRICT bias, const Shape& shape,
                                T* FT_RESTRICT to) {
  for (int64_t first = 0; first < shape.channels; first += kLanes, bias += kLanes) {
    const int64_t lanes = shape.channels - first;
    T* FT_RESTRICT pixel = to + first;
    for (int64_t column = 0; column < shape.out_columns; ++column, sums += kLanes, pixel += shape.channels) {
      const Vector value = load(sums) + load(bias);
      if (lanes >= kLanes) {
        store(value, pixel);
      } else {
        for (int64_t lane = 0; lane < lanes; ++lane) facetrain::store(value[lane], pixel[lane]);
      }
    }
  }
}

// Adds sum over a row of x[column stride + i] above[column] to sums[i], for kTaps neighboring taps.
template <int64_t kTaps>
FT_ALWAYS_INLINE inline void add_taps(const float* x, const float* above, int64_t columns, int64_t stride,
                                      float* sums) {
  Vector of_row[kTaps] = {};
  for (int64_t column = 0; column < columns; ++column) {
    const Vector gradient = load(above + column * kLanes);
    for (int64_t i = 0; i < kTaps; ++i) of_row[i] += gradient * load(x + (column * stride + i) * kLanes);
  }
  for (int64_t i = 0; i < kTaps; ++i) store(load(sums + i * kLanes) + of_row[i], sums + i * kLanes);
}

// Adds a row's part to the gradient of the weights, [block][y][j][x][16]. `above`: the gradient of that row of results,
// [block][pixel][16].
FACETRAIN_CLONES void add_weight_gradient(const float* const* rows, const float* above, const Shape& shape,
                                          float* sums) {
  const int64_t plane = shape.width() * kLanes, kernel = shape.kernel;
  for (int64_t block = 0; block < shape.blocks(); ++block, above += shape.out_columns * kLanes) {
    for (int64_t y = 0; y < kernel; ++y) {
      for (int64_t j = 0; j < shape.group; ++j, sums += kernel * kLanes) {
        if (!rows[y]) continue;
        const float* const from = rows[y] + (block * shape.group + j) * plane;
        int64_t x = 0;
        for (; x + 3 <= kernel; x += 3)
          add_taps<3>(from + x * kLanes, above, shape.out_columns, shape.stride, sums + x * kLanes);
        for (; x < kernel; ++x)
          add_taps<1>(from + x * kLanes, above, shape.out_columns, shape.stride, sums + x * kLanes);
      }
    }
  }
}

// The last rows of a picture that a kernel needs, as spread_row makes them.
template <class T>
class RowWindow {
 public:
  explicit RowWindow(const Shape& shape)
      : shape_(shape), buffers_(static_cast<size_t>(shape.kernel * shape.row_values()), 0.f), pointers_(shape.kernel) {
    held_.assign(static_cast<size_t>(shape.kernel), -1);
  }

  void begin(const T* picture) {
    picture_ = picture;
    std::fill(held_.begin(), held_.end(), -1);
  }

  // For each row of the kernel at row `out_row` of the results, the pixels below it, or null for zeros.
  const float* const* at(int64_t out_row) {
    for (int64_t y = 0; y < shape_.kernel; ++y) {
      const int64_t row = out_row * shape_.stride + y - shape_.top;  // among the spread ones
      const int64_t source = row / shape_.spread;
      const bool zero = row < 0 || row % shape_.spread != 0 || source >= shape_.rows;
      pointers_[y] = zero ? nullptr : held(source);
    }
    return pointers_.data();
  }

 private:
  const float* held(int64_t row) {
    const int64_t slot = row % shape_.kernel;
    float* const buffer = buffers_.data() + slot * shape_.row_values();
    if (held_[slot] != row) {
      spread_row(picture_ + row * shape_.columns * shape_.channels, shape_, buffer);
      held_[slot] = row;
    }
    return buffer;
  }

  const Shape& shape_;
  std::vector<float> buffers_;
  std::vector<const float*> pointers_;
  std::vector<int64_t> held_;
  const T* picture_ = nullptr;
};

// [block][16] of a value by channel, or zeros.
std::vector<float> by_block(const at::Tensor& values, int64_t channels) {
  std::vector<float> result(static_cast<size_t>(blocks_of(channels) * kLanes), 0.f);
  if (!values.defined()) return result;
  const at::Tensor wide = values.to(at::kFloat).contiguous();
  std::copy_n(wide.const_data_ptr<float>(), channels, result.begin());
  return result;
}

// Where the weight of channel c, copy j and tap [y, x] is in [block][y][j][x][16].
int64_t place(const Shape& shape, int64_t c, int64_t j, int64_t y, int64_t x) {
  const int64_t k = shape.kernel;
  return (((c / kLanes * k + y) * shape.group + j) * k + x) * kLanes + c % kLanes;
}

// Calls function(c, j, y, x, offset in a contiguous weight [C, group, K, K]).
template <class Function>
void for_each_weight(const Shape& shape, Function function) {
  int64_t offset = 0;
  for (int64_t c = 0; c < shape.channels; ++c)
    for (int64_t j = 0; j < shape.group; ++j)
      for (int64_t y = 0; y < shape.kernel; ++y)
        for (int64_t x = 0; x < shape.kernel; ++x) function(c, j, y, x, offset++);
}

// The numbers of a weight in the order that sum_row takes, each at place_of(c, j, y, x).
std::vector<float> arranged(const at::Tensor& weight, const Shape& shape, const auto& place_of) {
  const at::Tensor wide = weight.to(at::kFloat).contiguous();
  std::vector<float> result(static_cast<size_t>(shape.blocks() * shape.taps() * kLanes), 0.f);
  for_each_weight(shape,
                  [&, from = wide.const_data_ptr<float>()](int64_t c, int64_t j, int64_t y, int64_t x, int64_t offset) {
                    result[place_of(c, j, y, x)] = from[offset];
                  });
  return result;
}

template <class T>
void for_each_picture(int64_t pictures, const Shape& shape, const auto& function) {
  at::parallel_for(0, pictures, /*grain_size=*/1, [&](int64_t first, int64_t last) {
    RowWindow<T> window(shape);
    std::vector<float> row(static_cast<size_t>(shape.blocks() * shape.out_columns * kLanes));
    for (int64_t picture = first; picture < last; ++picture) function(picture, window, row.data());
  });
}

// `weights` as sum_row takes them.
at::Tensor convolve(const at::Tensor& x, const std::vector<float>& weights, const std::vector<float>& bias,
                    const Shape& shape) {
  at::Tensor y = at::empty({x.size(0), shape.channels, shape.out_rows, shape.out_columns}, x.options(),
                           at::MemoryFormat::ChannelsLast);
  with_type_of(x, [&]<class T>(T) {
    const int64_t picture_values = shape.rows * shape.columns * shape.channels;
    const int64_t row_values = shape.out_columns * shape.channels;
    for_each_picture<T>(
        x.size(0), shape,
        [&, from = values_of<T>(x), to = mutable_values_of<T>(y)](int64_t picture, RowWindow<T>& window, float* sums) {
          window.begin(from + picture * picture_values);
          for (int64_t row = 0; row < shape.out_rows; ++row) {
            sum_row(window.at(row), weights.data(), shape, sums);
            store_row(sums, bias.data(), shape, to + (picture * shape.out_rows + row) * row_values);
          }
        });
  });
  return y;
}

// Of the type and shape of `weight`.
at::Tensor weight_gradient(const at::Tensor& x, const at::Tensor& above, const at::Tensor& weight, const Shape& shape) {
  const int64_t values = shape.blocks() * shape.taps() * kLanes;
  at::Tensor partial = at::zeros({x.size(0), values}, x.options().dtype(at::kFloat));
  // A row of the gradient becomes [block][pixel][16], as a row of pixels without pads.
  Shape row_above = shape;
  row_above.group = row_above.kernel = row_above.stride = row_above.spread = 1;
  row_above.columns = shape.out_columns;
  row_above.left = 0;
  with_type_of(x, [&]<class T>(T) {
    const int64_t picture_values = shape.rows * shape.columns * shape.channels;
    const int64_t row_values = shape.out_columns * shape.channels;
    for_each_picture<T>(
        x.size(0), shape,
        [&, from = values_of<T>(x), gradient = values_of<T>(above), to = partial.mutable_data_ptr<float>()](
            int64_t picture, RowWindow<T>& window, float* row_gradient) {
          window.begin(from + picture * picture_values);
          for (int64_t row = 0; row < shape.out_rows; ++row) {
            spread_row(gradient + (picture * shape.out_rows + row) * row_values, row_above, row_gradient);
            add_weight_gradient(window.at(row), row_gradient, shape, to + picture * values);
          }
        });
  });
  const at::Tensor sums = partial.sum(0);
  at::Tensor result = at::empty(weight.sizes(), sums.options());
  for_each_weight(shape, [&, from = sums.const_data_ptr<float>(), to = result.mutable_data_ptr<float>()](
                             int64_t c, int64_t j, int64_t y, int64_t x, int64_t offset) {
    to[offset] = from[place(shape, c, j, y, x)];
  });
  return result.to(weight.scalar_type());
}

Shape forward_shape(const at::Tensor& x, const at::Tensor& weight, const GroupedWindow& window) {
  const auto& [top, left, bottom, right] = window.pads;
  const int64_t kernel = weight.size(2), stride = window.stride;
  const auto out = [&](int64_t size, int64_t pads) { return (size + pads - kernel) / stride + 1; };
  return {.channels = x.size(1),
          .group = weight.size(1),
          .kernel = kernel,
          .rows = x.size(2),
          .columns = x.size(3),
          .spread = 1,
          .out_rows = out(x.size(2), top + bottom),
          .out_columns = out(x.size(3), left + right),
          .stride = stride,
          .top = top,
          .left = left};
}

// Of the pass from the gradient of y to that of x.
Shape backward_shape(const Shape& forward) {
  Shape shape = forward;
  std::swap(shape.rows, shape.out_rows);
  std::swap(shape.columns, shape.out_columns);
  std::swap(shape.spread, shape.stride);
  shape.top = forward.kernel - 1 - forward.top;
  shape.left = forward.kernel - 1 - forward.left;
  return shape;
}

class GroupedConv : public torch::autograd::Function<GroupedConv> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const GroupedWindow& window) {
    context->save_for_backward({x, weight});
    context->saved_data["stride"] = window.stride;
    context->saved_data["pads"] = std::vector<int64_t>(window.pads.begin(), window.pads.end());
    context->saved_data["bias"] = bias.has_value();
    const Shape shape = forward_shape(x, weight, window);
    const std::vector<float> weights = arranged(
        weight, shape, [&](int64_t c, int64_t j, int64_t ky, int64_t kx) { return place(shape, c, j, ky, kx); });
    return convolve(x, weights, by_block(bias.value_or(at::Tensor()), shape.channels), shape);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const std::vector<int64_t> pads = context->saved_data["pads"].toIntVector();
    const GroupedWindow window{context->saved_data["stride"].toInt(), {pads[0], pads[1], pads[2], pads[3]}};
    const Shape shape = forward_shape(x, weight, window), back = backward_shape(shape);
    const at::Tensor above = gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    at::Tensor to_x, to_weight, to_bias;
    if (context->needs_input_grad(0)) {
      // Channel c of x meets, in copy j of the gradient, the j-th output of its group.
      const std::vector<float> weights = arranged(weight, shape, [&](int64_t c, int64_t j, int64_t ky, int64_t kx) {
        const int64_t input = c / shape.group * shape.group + j, last = shape.kernel - 1;
        return place(back, input, c % shape.group, last - ky, last - kx);
      });
      to_x = convolve(above, weights, by_block({}, shape.channels), back);
    }
    if (context->needs_input_grad(1)) to_weight = weight_gradient(x, above, weight, shape);
    if (context->saved_data["bias"].toBool() && context->needs_input_grad(2))
      to_bias = above.sum({0, 2, 3}, /*keepdim=*/false, at::kFloat).to(above.scalar_type());
    return {to_x, to_weight, to_bias, {}};
  }
};

}  // namespace

bool has_grouped_conv(const at::Tensor& x, const at::Tensor& weight, const GroupedWindow& window, int64_t groups) {
  const int64_t group = weight.size(1), kernel = weight.size(2);
  return x.dim() == 4 && has_cpu_rows(x) && weight.scalar_type() == x.scalar_type() &&
         (group == 1 || group == 2 || group == 4) && weight.size(0) == x.size(1) && groups * group == x.size(1) &&
         kernel == weight.size(3) && *std::max_element(window.pads.begin(), window.pads.end()) < kernel &&
         x.size(2) + window.pads[0] + window.pads[2] >= kernel && x.size(3) + window.pads[1] + window.pads[3] >= kernel;
}

at::Tensor grouped_conv(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                        const GroupedWindow& window) {
  return GroupedConv::apply(x, weight, bias.defined() ? std::optional(bias) : std::nullopt, window);
}

}  // namespace facetrain
