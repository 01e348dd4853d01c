// Pools and convolutions over [N, C, height, width].
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "nodes/operator.h"
#include "nodes/products.h"

namespace facetrain::nodes {
namespace {

void expect_explicit_pads(const Call& call) {
  const std::string mode = call.text("auto_pad", "NOTSET");
  if (mode != "NOTSET") call.refuse("auto_pad " + mode, "explicit pads");
}

PoolWindow window_of(const Call& call, const Dims& x, const Dims& kernel) {
  expect_explicit_pads(call);
  PoolWindow window;
  const Dims strides = call.list("strides", {1, 1}), dilations = call.list("dilations", {1, 1}),
             pads = call.list("pads", {0, 0, 0, 0});
  if (x.size() != 4 || kernel.size() != 2 || strides.size() != 2 || dilations.size() != 2 || pads.size() != 4)
    call.refuse("other than two dimensions", "a height and a width");
  const bool up = call.number("ceil_mode", 0) != 0;
  for (int i = 0; i < 2; ++i) {
    window.size[i] = x[2 + i];
    window.kernel[i] = kernel[i];
    window.strides[i] = strides[i];
    window.dilations[i] = dilations[i];
    window.pads[i] = pads[i];
    for (const int64_t value : {kernel[i], strides[i], dilations[i], pads[i] + 1, pads[i + 2] + 1}) {
      if (value < 1 || value > (1 << 14)) call.refuse("a window of " + std::to_string(value), "1 to 2^14");
    }
    const int64_t room = window.size[i] + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1;
    if (room < 0) call.refuse("a kernel that is larger than its padded operand", "a smaller kernel");
    window.out[i] = (room + (up ? strides[i] - 1 : 0)) / strides[i] + 1;
    // A window that begins behind the operand and its first pads is left out.
    if (up && (window.out[i] - 1) * strides[i] >= window.size[i] + pads[i]) --window.out[i];
  }
  return window;
}

PoolWindow pool_window_of(const Call& call) {
  if (call.step.op == "AveragePool" && call.number("ceil_mode", 0) != 0 && call.number("count_include_pad", 0) != 0)
    call.refuse("ceil_mode and count_include_pad", "one of them");
  return window_of(call, call[0], call.list("kernel_shape", {}));
}

// Calls pixel(plane, rows of taps, columns of taps) for each output.
template <typename Pixel>
Planned pool(const Call& call, const Pixel& pixel) {
  const Dims& x_dims = call[0];
  const PoolWindow window = pool_window_of(call);
  const int64_t planes = x_dims[0] * x_dims[1], area = window.size[0] * window.size[1];
  return {checked(call, {x_dims[0], x_dims[1], window.out[0], window.out[1]}), [=](Operands x, float* y, float*) {
            for (int64_t plane = 0; plane < planes; ++plane) {
              for (int64_t row = 0; row < window.out[0]; ++row) {
                const PoolWindow::Taps rows = window.taps(0, row);
                for (int64_t column = 0; column < window.out[1]; ++column)
                  *y++ = pixel(window, x[0] + plane * area, rows, window.taps(1, column));
              }
            }
          }};
}

template <typename Visit>
void visit_taps(const PoolWindow& window, const float* x, const PoolWindow::Taps& rows, const PoolWindow::Taps& columns,
                const Visit& visit) {
  for (int64_t ky = rows.first; ky < rows.last; ++ky) {
    const float* row = x + (rows.origin + ky * window.dilations[0]) * window.size[1] + columns.origin;
    for (int64_t kx = columns.first; kx < columns.last; ++kx) visit(row[kx * window.dilations[1]]);
  }
}

Planned max_pool(const Call& call) {
  return pool(call, [](const PoolWindow& window, const float* x, const PoolWindow::Taps& rows,
                       const PoolWindow::Taps& columns) {
    float largest = std::numeric_limits<float>::lowest();
    visit_taps(window, x, rows, columns, [&](float value) { largest = std::max(largest, value); });
    return largest;
  });
}

Planned average_pool(const Call& call) {
  const bool count_pads = counts_pads(call.step);
  return pool(call, [count_pads](const PoolWindow& window, const float* x, const PoolWindow::Taps& rows,
                                 const PoolWindow::Taps& columns) {
    float sum = 0;
    visit_taps(window, x, rows, columns, [&](float value) { sum += value; });
    const int64_t count =
        count_pads ? window.kernel[0] * window.kernel[1]
                   : std::max<int64_t>(0, rows.last - rows.first) * std::max<int64_t>(0, columns.last - columns.first);
    return count == 0 ? 0 : sum / static_cast<float>(count);
  });
}

// (Σ |x|^p)^(1/p) of a window.
Planned lp_pool(const Call& call) {
  const int64_t power = call.integer("p", 2);
  if (power < 1) call.refuse("p of " + std::to_string(power), "1 or more");
  const auto p = static_cast<double>(power);
  return pool(call, [p](const PoolWindow& window, const float* x, const PoolWindow::Taps& rows,
                        const PoolWindow::Taps& columns) {
    double sum = 0;
    visit_taps(window, x, rows, columns, [&](float value) { sum += std::pow(std::abs(double{value}), p); });
    return rounded(std::pow(sum, 1 / p));
  });
}

// Over all axes behind the channels.
Planned global_pool(const Call& call, bool largest) {
  const Dims& x_dims = call[0];
  if (x_dims.size() < 3) call.refuse("no height and width", "[N, C, H, W]");
  checked(call, x_dims);
  Dims dims(x_dims.size(), 1);
  dims[0] = x_dims[0];
  dims[1] = x_dims[1];
  const int64_t planes = dims[0] * dims[1], area = count_of(x_dims) / planes;
  return {dims, [=](Operands x, float* y, float*) {
            for (int64_t plane = 0; plane < planes; ++plane) {
              const float* in = x[0] + plane * area;
              y[plane] = largest ? *std::max_element(in, in + area)
                                 : std::accumulate(in, in + area, 0.0f) / static_cast<float>(area);
            }
          }};
}

struct Groups {
  int64_t count, in, out;  // channels of a group
};

Groups groups_of(const Call& call, int64_t in, int64_t out) {
  const int64_t count = call.integer("group", 1);
  if (count < 1 || in % count != 0 || out % count != 0)
    call.refuse("groups that do not fit", "divisors of the channels");
  return {count, in / count, out / count};
}

// The outputs from `first` on, `count` of them, of which tap `tap` along an axis lies on the operand.
struct OnOperand {
  int64_t first, count;
  OnOperand(const PoolWindow& window, int axis, int64_t tap) {
    const int64_t shift = tap * window.dilations[axis] - window.pads[axis], stride = window.strides[axis];
    first = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
    const int64_t last = window.size[axis] - 1 - shift;  // of output * stride
    const int64_t end = last < 0 ? 0 : std::min(window.out[axis], last / stride + 1);
    count = std::max<int64_t>(0, end - first);
  }
};

// Sums from the bias on, by tap and then by input channel.
Planned conv(const Call& call) {
  const Dims &d = call[0], &w = call[1];
  if (d.size() != 4 || w.size() != 4) call.refuse("other than two dimensions", "a height and a width");
  const PoolWindow window = window_of(call, d, {w[2], w[3]});
  const Groups groups = groups_of(call, d[1], w[0]);
  if (w[1] != groups.in || (call.has(2) && call.count(2) != w[0]))
    call.refuse("weights that do not fit", "[outputs, inputs / groups, height, width]");
  const bool adds = call.has(2);
  const int64_t pictures = d[0], inputs = d[1], outputs = w[0];
  return {checked(call, {pictures, outputs, window.out[0], window.out[1]}), [=](Operands x, float* y, float*) {
            const int64_t area = window.size[0] * window.size[1], taps = window.kernel[0] * window.kernel[1];
            for (int64_t n = 0; n < pictures; ++n) {
              for (int64_t o = 0; o < outputs; ++o) {
                const float *planes = x[0] + (n * inputs + o / groups.out * groups.in) * area,
                            *weights = x[1] + o * groups.in * taps;
                for (int64_t row = 0; row < window.out[0]; ++row, y += window.out[1]) {
                  std::fill_n(y, window.out[1], adds ? x[2][o] : 0.0f);
                  const PoolWindow::Taps rows = window.taps(0, row);
                  for (int64_t ky = rows.first; ky < rows.last; ++ky) {
                    for (int64_t kx = 0; kx < window.kernel[1]; ++kx) {
                      const OnOperand on(window, 1, kx);
                      if (on.count == 0) continue;
                      const float* from = planes + (rows.origin + ky * window.dilations[0]) * window.size[1] +
                                          on.first * window.strides[1] - window.pads[1] + kx * window.dilations[1];
                      for (int64_t i = 0; i < groups.in; ++i)
                        add_product(from + i * area, window.strides[1], weights[i * taps + ky * window.kernel[1] + kx],
                                    on.count, y + on.first);
                    }
                  }
                }
              }
            }
          }};
}

// The gradient of a convolution: its outputs here are the pixels x, and its input is y. Sums run by input channel, row
// and column of x.
Planned conv_transpose(const Call& call) {
  expect_explicit_pads(call);
  const Dims &d = call[0], &w = call[1];
  const Dims strides = call.list("strides", {1, 1}), dilations = call.list("dilations", {1, 1}),
             pads = call.list("pads", {0, 0, 0, 0}), extra = call.list("output_padding", {0, 0});
  if (d.size() != 4 || w.size() != 4 || w[0] != d[1] || strides.size() != 2 || dilations.size() != 2 ||
      pads.size() != 4 || extra.size() != 2 || call.step.numbers.contains("output_shape"))
    call.refuse("operands or attributes that do not fit", "two dimensions, and explicit pads");
  const int64_t group = call.integer("group", 1);
  if (group < 1 || group > d[1]) call.refuse("groups that do not fit", "divisors of the channels");
  const int64_t outputs = w[1] * group, pictures = d[0];
  const Groups groups = groups_of(call, d[1], outputs);
  if (call.has(2) && call.count(2) != outputs) call.refuse("another number of biases", "one for each output channel");
  PoolWindow window;
  for (int i = 0; i < 2; ++i) {
    for (const int64_t value : {strides[i], dilations[i], pads[i] + 1, pads[i + 2] + 1, extra[i] + 1, w[2 + i]}) {
      if (value < 1 || value > (1 << 14)) call.refuse("a window of " + std::to_string(value), "1 to 2^14");
    }
    window.out[i] = d[2 + i];
    window.kernel[i] = w[2 + i];
    window.strides[i] = strides[i];
    window.dilations[i] = dilations[i];
    window.pads[i] = pads[i];
    window.size[i] = strides[i] * (d[2 + i] - 1) + extra[i] + (w[2 + i] - 1) * dilations[i] + 1 - pads[i] - pads[i + 2];
  }
  const bool adds = call.has(2);
  return {checked(call, {pictures, outputs, window.size[0], window.size[1]}), [=](Operands x, float* y, float*) {
            const int64_t area = window.size[0] * window.size[1], in_area = window.out[0] * window.out[1],
                          taps = window.kernel[0] * window.kernel[1];
            for (int64_t n = 0; n < pictures; ++n) {
              for (int64_t o = 0; o < outputs; ++o, y += area) {
                std::fill_n(y, area, adds ? x[2][o] : 0.0f);
                const int64_t first = o / groups.out * groups.in;
                for (int64_t i = first; i < first + groups.in; ++i) {
                  const float *in = x[0] + (n * groups.count * groups.in + i) * in_area,
                              *weights = x[1] + (i * groups.out + o % groups.out) * taps;
                  for (int64_t row = 0; row < window.out[0]; ++row) {
                    const PoolWindow::Taps rows = window.taps(0, row);
                    for (int64_t ky = rows.first; ky < rows.last; ++ky) {
                      float* to = y + (rows.origin + ky * window.dilations[0]) * window.size[1];
                      // Of the taps that write a pixel, the last one reads the first column.
                      for (int64_t kx = window.kernel[1]; kx-- > 0;) {
                        const OnOperand on(window, 1, kx);
                        const float weight = weights[ky * window.kernel[1] + kx];
                        const int64_t shift = kx * window.dilations[1] - window.pads[1];
                        for (int64_t c = on.first; c < on.first + on.count; ++c)
                          to[c * window.strides[1] + shift] += in[row * window.out[1] + c] * weight;
                      }
                    }
                  }
                }
              }
            }
          }};
}

}  // namespace

Operators window_operators() {
  static constexpr Operator kOperators[]{
      {"Conv", conv},
      {"ConvTranspose", conv_transpose},
      {"AveragePool", average_pool},
      {"GlobalAveragePool", [](const Call& c) { return global_pool(c, false); }},
      {"GlobalMaxPool", [](const Call& c) { return global_pool(c, true); }},
      {"LpPool", lp_pool},
      {"MaxPool", max_pool},
  };
  return kOperators;
}

}  // namespace facetrain::nodes

namespace facetrain {

PoolWindow::Taps PoolWindow::taps(int axis, int64_t position) const {
  const int64_t origin = position * strides[axis] - pads[axis], step = dilations[axis];
  const int64_t first = origin >= 0 ? 0 : (-origin + step - 1) / step, end = size[axis] - 1 - origin;
  return {first, end < 0 ? 0 : std::min(kernel[axis], end / step + 1), origin};
}

PoolWindow pool_window(const FloatStep& step, const ArrayDims& input, const std::string& subject) {
  const std::vector<nodes::Known> operands = nodes::knowns_of(step, input);
  return nodes::pool_window_of({step, operands, subject});
}

bool counts_pads(const FloatStep& step) {
  const auto found = step.numbers.find("count_include_pad");
  return found != step.numbers.end() && !found->second.empty() && found->second[0] != 0;
}

}  // namespace facetrain
