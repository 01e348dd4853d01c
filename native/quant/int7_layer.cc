#include "quant/int7_layer.h"

#include <algorithm>

#include "kernels/elementwise.h"

namespace facetrain {
namespace {

// Pixels (of at most 512 channels) whose intermediate results stay in the second-level cache.
constexpr int kChunk = 64;

}  // namespace

Int7Layer::Int7Layer(const LayerGraph& graph, int l, const Scales& scales)
    : layer_(&graph.layers[l]),
      channels_(graph.tensors[layer_->input].channels),
      area_(graph.tensors[layer_->input].area()),
      limit_(graph.tensors[layer_->output].limit()),
      input_scale_(scales.tensors[layer_->input]),
      second_scale_(layer_->second < 0 ? 0 : scales.tensors[layer_->second]),
      output_scale_(scales.tensors[layer_->output]) {
  if (layer_->kind != Layer::Kind::conv) return;
  const ConvScales& conv = scales.convs[l];
  conv_ = Conv(layer_->shape, conv.weights.data());
  bias_ = conv.bias;
  for (const float weight_scale : conv.weight) {
    scales_.push_back(input_scale_ * weight_scale);
    multipliers_.push_back(scales_.back() / output_scale_);
  }
}

void Int7Layer::run(const int8_t* x, const int8_t* second, int8_t* y) const {
  switch (layer_->kind) {
    case Layer::Kind::conv: {
      const int outputs = layer_->shape.out_channels, area = layer_->shape.out_area();
      std::vector<int32_t> sums(int64_t{kChunk} * outputs);
      for (int p = 0; p < area; p += kChunk) {
        const int count = std::min(kChunk, area - p);
        conv_.run_image(x, p, count, bias_.data(), sums.data());
        requantize(sums.data(), outputs, count, multipliers_.data(), limit_, y + int64_t{p} * outputs);
      }
      break;
    }
    case Layer::Kind::pointwise: {
      std::vector<float> real(int64_t{kChunk} * channels_);
      for (int p = 0; p < area_; p += kChunk) {
        const int64_t first = int64_t{p} * channels_, count = std::min(kChunk, area_ - p);
        pointwise(x + first, channels_, count, layer_->positive.data(), layer_->negative.data(), layer_->offset.data(),
                  input_scale_, real.data());
        quantize(real.data(), count * channels_, output_scale_, limit_, y + first);
      }
      break;
    }
    case Layer::Kind::add: {
      std::vector<float> real(int64_t{kChunk} * channels_);
      for (int p = 0; p < area_; p += kChunk) {
        const int64_t first = int64_t{p} * channels_, count = int64_t{std::min(kChunk, area_ - p)} * channels_;
        add(x + first, input_scale_, second + first, second_scale_, count, real.data());
        quantize(real.data(), count, output_scale_, limit_, y + first);
      }
      break;
    }
    case Layer::Kind::pool: {
      std::vector<float> real(channels_);
      pool(x, channels_, area_, input_scale_, real.data());
      quantize(real.data(), channels_, output_scale_, limit_, y);
      break;
    }
  }
}

void Int7Layer::run_real(const int8_t* x, const int8_t* second, float* y) const {
  switch (layer_->kind) {
    case Layer::Kind::conv: {
      const int outputs = layer_->shape.out_channels, area = layer_->shape.out_area();
      std::vector<int32_t> sums(int64_t{kChunk} * outputs);
      for (int p = 0; p < area; p += kChunk) {
        const int count = std::min(kChunk, area - p);
        conv_.run_image(x, p, count, bias_.data(), sums.data());
        dequantize(sums.data(), outputs, count, scales_.data(), y + int64_t{p} * outputs);
      }
      break;
    }
    case Layer::Kind::pointwise:
      pointwise(x, channels_, area_, layer_->positive.data(), layer_->negative.data(), layer_->offset.data(),
                input_scale_, y);
      break;
    case Layer::Kind::add:
      add(x, input_scale_, second, second_scale_, int64_t{area_} * channels_, y);
      break;
    case Layer::Kind::pool:
      pool(x, channels_, area_, input_scale_, y);
      break;
  }
}

}  // namespace facetrain
