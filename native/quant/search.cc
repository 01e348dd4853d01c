#include "quant/search.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "kernels/clones.h"
#include "kernels/elementwise.h"
#include "quant/equalize.h"
#include "quant/real_tile.h"
#include "quant/walk.h"

namespace facetrain {
namespace detail {

template <typename Integer>
inline void add_products(const Integer* x, const float* target, int64_t pixels, int channels, float* dot,
                         float* square) {
  std::fill_n(dot, channels, 0.0f);
  std::fill_n(square, channels, 0.0f);
  for (int64_t p = 0; p < pixels; ++p, x += channels, target += channels) {
    for (int c = 0; c < channels; ++c) {
      const auto value = static_cast<float>(x[c]);
      dot[c] += value * target[c];
      square[c] += value * value;
    }
  }
}

// Sums over pixels, by channel: of x * target and of x * x.
FACETRAIN_CLONES void channel_products(const int32_t* x, const float* target, int64_t pixels, int channels, float* dot,
                                       float* square) {
  add_products(x, target, pixels, channels, dot, square);
}
FACETRAIN_CLONES void channel_products(const int8_t* x, const float* target, int64_t pixels, int channels, float* dot,
                                       float* square) {
  add_products(x, target, pixels, channels, dot, square);
}
FACETRAIN_CLONES void channel_products(const float* x, const float* target, int64_t pixels, int channels, float* dot,
                                       float* square) {
  add_products(x, target, pixels, channels, dot, square);
}

FACETRAIN_CLONES int64_t count_beyond(const float* x, int64_t count, float bound) {
  int64_t result = 0;
  for (int64_t i = 0; i < count; ++i) result += std::abs(x[i]) > bound;
  return result;
}

}  // namespace detail

namespace {

// Output pixels of a layer that a candidate is scored on, over all pictures.
constexpr int64_t kSampledPixels = 3000;
constexpr int64_t kLeastPixels = 16;  // a picture
// Below this a channel of one picture is too short a vector (a single number has cosine 1 or -1): then a filter's
// cosine is that of all pictures' values in one vector.
constexpr int64_t kShortVector = 32;

double cosine(double dot, double a, double b) {
  if (a == 0 && b == 0) return 1;
  return a == 0 || b == 0 ? 0 : dot / std::sqrt(a * b);
}

// Between two tensors [pixels, channels]. Channels are summed in float32 a few pixels at a time.
template <typename T>
double tensor_cosine(const T* x, const float* target, int64_t pixels, int channels) {
  constexpr int64_t kChunk = 64;
  std::vector<float> sums(int64_t{4} * channels);
  float *dot = sums.data(), *square = dot + channels, *target_square = square + channels,
        *same = target_square + channels;
  double all_dot = 0, all_square = 0, all_target = 0;
  for (int64_t p = 0; p < pixels; p += kChunk) {
    const int64_t count = std::min(kChunk, pixels - p);
    detail::channel_products(x + p * channels, target + p * channels, count, channels, dot, square);
    detail::channel_products(target + p * channels, target + p * channels, count, channels, target_square, same);
    for (int c = 0; c < channels; ++c) {
      all_dot += dot[c];
      all_square += square[c];
      all_target += target_square[c];
    }
  }
  return cosine(all_dot, all_square, all_target);
}

// Pixels of picture n: evenly spread over the area, shifted from picture to picture.
std::vector<int> sample_pixels(int area, int64_t pictures, int64_t n) {
  const auto count = static_cast<int>(std::min<int64_t>(area, std::max(kLeastPixels, kSampledPixels / pictures)));
  const double shift = std::fmod(0.6180339887 * static_cast<double>(n), 1.0);
  std::vector<int> pixels(count);
  for (int i = 0; i < count; ++i) pixels[i] = static_cast<int>((i + shift) * area / count);
  return pixels;
}

// What the taps of a layer's sampled output pixels see: values [picture][pixel][tap][channel].
template <typename T>
class Patches {
 public:
  template <typename Source>
  Patches(const ConvShape& shape, int64_t pictures, ThreadPool& pool, const Source& source) : shape_(shape) {
    pixels_ = static_cast<int>(sample_pixels(shape.out_area(), pictures, 0).size());
    values_.resize(pictures * picture_size() + kOverread);
    const std::vector<T> zeros(shape.in_channels);
    pool.parallel_for(pictures, [&](int64_t n, int) {
      std::vector<const T*> taps(shape.taps());
      T* out = values_.data() + n * picture_size();
      for (const int pixel : sample_pixels(shape.out_area(), pictures, n)) {
        tap_pointers(shape, pixel, source(n), zeros.data(), taps.data());
        for (const T* tap : taps) out = std::copy_n(tap, shape.in_channels, out);
      }
    });
  }

  int pixels() const { return pixels_; }
  int64_t picture_size() const { return int64_t{pixels_} * shape_.taps() * shape_.in_channels; }
  const T* picture(int64_t n) const { return values_.data() + n * picture_size(); }

 private:
  ConvShape shape_;
  int pixels_;
  std::vector<T> values_;
};

// Pointers to the taps of consecutive patches at `x`.
template <typename T>
std::vector<const T*> patch_taps(const ConvShape& shape, int pixels, const T* x) {
  std::vector<const T*> taps(int64_t{pixels} * shape.taps());
  for (auto& tap : taps) {
    tap = x;
    x += shape.in_channels;
  }
  return taps;
}

// FP32 outputs of a convolution at its sampled pixels: values [picture][pixel][channel], squares [picture][channel].
struct Targets {
  std::vector<float> values;
  std::vector<double> squares;

  Targets(const Walk& walk, const LayerGraph& graph, int l, ThreadPool& pool) {
    const Layer& layer = graph.layers[l];
    const ConvShape& shape = layer.shape;
    const Patches<float> patches(shape, walk.pictures(), pool, [&](int64_t n) { return walk.real(layer.input, n); });
    const RealLayer real(graph, l);
    const int64_t size = int64_t{patches.pixels()} * shape.out_channels;
    values.resize(walk.pictures() * size);
    squares.resize(walk.pictures() * shape.out_channels);
    pool.parallel_for(walk.pictures(), [&](int64_t n, int) {
      const auto taps = patch_taps(shape, patches.pixels(), patches.picture(n));
      real.conv().run(taps.data(), patches.pixels(), values.data() + n * size);
      for (int64_t i = 0; i < size; ++i) {
        const double value = values[n * size + i];
        squares[n * shape.out_channels + i % shape.out_channels] += value * value;
      }
    });
  }
};

class Search {
 public:
  Search(LayerGraph& graph, const PictureView& pictures, const SearchOptions& options, ThreadPool& pool,
         const SearchControl& control)
      : graph_(graph), pictures_(pictures), options_(options), pool_(pool), control_(control) {
    const int64_t fit = std::max<int64_t>(1, kSearchBytes / Walk::bytes_per_picture(graph));
    pictures_.count = std::min(pictures_.count, fit);
  }

  SearchResult run();

 private:
  struct Evaluation {
    std::vector<double> cosine;      // by layer
    std::vector<double> saturation;  // by tensor
    double end_to_end = 0;
  };

  void find_maxima();
  void weights_pass();
  void activations_pass();
  void correct_biases();
  void scan_weights(const Walk& walk, int layer);
  void scan_activation(const Walk& walk, int tensor, const std::function<const float*(int64_t)>& unquantised);
  void set_tensor_scale(int tensor, float scale);
  Evaluation evaluate() const;
  void keep_if_better();
  void step();

  LayerGraph& graph_;
  PictureView pictures_;
  const SearchOptions& options_;
  ThreadPool& pool_;
  const SearchControl& control_;
  int steps_ = 0, total_ = 0;
  Scales start_, scales_, best_;
  Evaluation best_evaluation_;
};

void Search::step() {
  if (control_.cancelled) throw Cancelled();
  control_.on_progress(SearchStage::searching, ++steps_, total_);
}

void Search::find_maxima() {
  const int layers = static_cast<int>(graph_.layers.size());
  std::vector<float> maxima(graph_.tensors.size());
  Walk walk(graph_, pictures_, pool_);
  walk.start_real();
  for (int l = 0; l < layers; ++l) {
    if (control_.cancelled) throw Cancelled();
    walk.run_real(l);
    maxima[graph_.layers[l].output] = walk.largest(graph_.layers[l].output);
    walk.release(l);
  }
  maxima[0] = 1;  // whatever the pictures: pixels lie in [-1, 1]
  start_ = scales_from_maximum(graph_, maxima);
}

void Search::set_tensor_scale(int tensor, float scale) {
  scales_.tensors[tensor] = scale;
  for (const int reader : graph_.tensors[tensor].readers) {
    if (graph_.layers[reader].kind == Layer::Kind::conv) quantize_conv_bias(graph_, reader, scales_);
  }
}

// Candidate k of a scale that started at `start`; candidate 0 is the one at hand.
float candidate_scale(const SearchOptions& options, int k, float start, float current) {
  if (k == 0) return current;
  const float step = static_cast<float>(k - 1) / static_cast<float>(options.candidates - 1);
  return start / (options.lower + step * (options.upper - options.lower));
}

void Search::scan_weights(const Walk& walk, int l) {
  const Layer& layer = graph_.layers[l];
  const ConvShape& shape = layer.shape;
  const int outputs = shape.out_channels;
  const int64_t filter = shape.weights() / outputs;
  const float input_scale = scales_.tensors[layer.input];
  const std::vector<float>&start = start_.convs[l].weight, &current = scales_.convs[l].weight;
  const Patches<int8_t> patches(shape, walk.pictures(), pool_,
                                [&](int64_t n) { return walk.integers(layer.input, n); });
  const Targets targets(walk, graph_, l, pool_);
  const int64_t size = int64_t{patches.pixels()} * outputs;
  const bool joined = patches.pixels() < kShortVector;

  const int candidates = options_.candidates + 1;
  std::vector<double> scores(int64_t{candidates} * outputs);
  pool_.parallel_for(candidates, [&](int64_t k, int) {
    if (control_.cancelled) throw Cancelled();
    std::vector<int8_t> weights(shape.weights());
    std::vector<int32_t> bias(outputs), sums(size);
    for (int o = 0; o < outputs; ++o) {
      const float scale = candidate_scale(options_, static_cast<int>(k), start[o], current[o]);
      quantize_weights(layer.weight.data() + o * filter, filter, scale, weights.data() + o * filter);
      bias[o] = quantize_bias(layer.bias[o], scale, input_scale);
    }
    const Conv conv(shape, weights.data());
    std::vector<float> dot(outputs), square(outputs);
    std::vector<double> all_dot(outputs), all_square(outputs), all_target(outputs);
    double* score = scores.data() + k * outputs;
    for (int64_t n = 0; n < walk.pictures(); ++n) {
      const auto taps = patch_taps(shape, patches.pixels(), patches.picture(n));
      conv.run(taps.data(), patches.pixels(), bias.data(), sums.data());
      detail::channel_products(sums.data(), targets.values.data() + n * size, patches.pixels(), outputs, dot.data(),
                               square.data());
      const double* target = targets.squares.data() + n * outputs;
      for (int o = 0; o < outputs; ++o) {
        if (!joined) score[o] += cosine(dot[o], square[o], target[o]);
        all_dot[o] += dot[o];
        all_square[o] += square[o];
        all_target[o] += target[o];
      }
    }
    if (!joined) return;
    for (int o = 0; o < outputs; ++o) score[o] = cosine(all_dot[o], all_square[o], all_target[o]);
  });

  std::vector<float> chosen(outputs);
  for (int o = 0; o < outputs; ++o) {
    int best = 0;
    for (int k = 1; k < candidates; ++k) {
      if (scores[int64_t{k} * outputs + o] > scores[int64_t{best} * outputs + o]) best = k;
    }
    chosen[o] = candidate_scale(options_, best, start[o], current[o]);
  }
  scales_.convs[l].weight = std::move(chosen);
  quantize_conv(graph_, l, scales_);
}

void Search::scan_activation(const Walk& walk, int t, const std::function<const float*(int64_t)>& unquantised) {
  const Tensor& tensor = graph_.tensors[t];
  struct Reader {
    int layer;
    Patches<float> patches;
    Targets targets;
    Conv conv;
  };
  std::vector<Reader> readers;
  for (const int l : tensor.readers) {
    const Layer& layer = graph_.layers[l];
    if (layer.kind != Layer::Kind::conv) continue;
    readers.push_back({l, Patches<float>(layer.shape, walk.pictures(), pool_, unquantised),
                       Targets(walk, graph_, l, pool_), Conv(layer.shape, scales_.convs[l].weights.data())});
  }
  std::vector<float> sampled, sampled_real;  // of the tensor itself, where no convolution reads it
  if (readers.empty()) {
    for (int64_t n = 0; n < walk.pictures(); ++n) {
      for (const int pixel : sample_pixels(tensor.area(), walk.pictures(), n)) {
        const int64_t at = int64_t{pixel} * tensor.channels;
        sampled.insert(sampled.end(), unquantised(n) + at, unquantised(n) + at + tensor.channels);
        sampled_real.insert(sampled_real.end(), walk.real(t, n) + at, walk.real(t, n) + at + tensor.channels);
      }
    }
  }
  // A PReLU shrinks what is negative: what counts is what it lets through.
  const Layer* mapped = nullptr;
  if (readers.empty() && tensor.readers.size() == 1 &&
      graph_.layers[tensor.readers[0]].kind == Layer::Kind::pointwise) {
    mapped = &graph_.layers[tensor.readers[0]];
    real_pointwise(sampled_real.data(), tensor.channels, static_cast<int64_t>(sampled_real.size()) / tensor.channels,
                   mapped->positive.data(), mapped->negative.data(), mapped->offset.data(), sampled_real.data());
  }
  const int64_t sample_size = static_cast<int64_t>(sampled.size()) / walk.pictures();
  const int candidates = options_.candidates + 1;
  std::vector<double> scores(candidates);
  pool_.parallel_for(candidates, [&](int64_t k, int) {
    if (control_.cancelled) throw Cancelled();
    const float scale = candidate_scale(options_, static_cast<int>(k), start_.tensors[t], scales_.tensors[t]);
    for (const auto& [l, patches, targets, conv] : readers) {
      const ConvShape& shape = conv.shape();
      const int outputs = shape.out_channels, pixels = patches.pixels();
      std::vector<int32_t> bias(outputs), sums(int64_t{pixels} * outputs);
      for (int o = 0; o < outputs; ++o) {
        bias[o] = quantize_bias(graph_.layers[l].bias[o], scales_.convs[l].weight[o], scale);
      }
      std::vector<int8_t> integers(patches.picture_size() + kOverread);
      const auto taps = patch_taps(shape, pixels, integers.data());
      std::vector<float> dot(outputs), square(outputs);
      for (int64_t n = 0; n < walk.pictures(); ++n) {
        quantize(patches.picture(n), patches.picture_size(), scale, tensor.limit(), integers.data());
        conv.run(taps.data(), pixels, bias.data(), sums.data());
        detail::channel_products(sums.data(), targets.values.data() + n * pixels * outputs, pixels, outputs, dot.data(),
                                 square.data());
        double all_dot = 0, all_square = 0, all_target = 0;
        for (int o = 0; o < outputs; ++o) {
          const double weight_scale = scales_.convs[l].weight[o];
          all_dot += weight_scale * dot[o];
          all_square += weight_scale * weight_scale * square[o];
          all_target += targets.squares[n * outputs + o];
        }
        scores[k] += cosine(all_dot, all_square, all_target);
      }
    }
    if (!readers.empty()) return;
    // Only added or mapped: the tensor itself is what must keep its direction.
    std::vector<int8_t> integers(sample_size);
    for (int64_t n = 0; n < walk.pictures(); ++n) {
      quantize(sampled.data() + n * sample_size, sample_size, scale, tensor.limit(), integers.data());
      if (mapped != nullptr) {
        std::vector<float> real(sample_size);
        pointwise(integers.data(), tensor.channels, sample_size / tensor.channels, mapped->positive.data(),
                  mapped->negative.data(), mapped->offset.data(), scale, real.data());
        scores[k] += tensor_cosine(real.data(), sampled_real.data() + n * sample_size, sample_size / tensor.channels,
                                   tensor.channels);
        continue;
      }
      scores[k] += tensor_cosine(integers.data(), sampled_real.data() + n * sample_size, sample_size / tensor.channels,
                                 tensor.channels);
    }
  });
  const auto best = std::max_element(scores.begin(), scores.end()) - scores.begin();  // the first of equals
  set_tensor_scale(t, candidate_scale(options_, static_cast<int>(best), start_.tensors[t], scales_.tensors[t]));
}

void Search::weights_pass() {
  Walk walk(graph_, pictures_, pool_);
  walk.start_real();
  walk.start_integers(scales_);
  for (int l = 0; l < static_cast<int>(graph_.layers.size()); ++l) {
    if (graph_.layers[l].kind == Layer::Kind::conv) scan_weights(walk, l);
    walk.run_real(l);
    walk.run_integers(l, scales_);
    walk.release(l);
    step();
  }
}

void Search::activations_pass() {
  Walk walk(graph_, pictures_, pool_);
  walk.start_real();
  scan_activation(walk, 0, [&](int64_t n) { return walk.real(0, n); });
  walk.start_integers(scales_);
  for (int l = 0; l < static_cast<int>(graph_.layers.size()); ++l) {
    const int output = graph_.layers[l].output;
    walk.run_real(l);
    if (graph_.quantised(output)) {
      const auto unquantised = walk.run_unquantised(l, scales_);
      const int64_t size = graph_.tensors[output].size();
      scan_activation(walk, output, [&](int64_t n) { return unquantised.data() + n * size; });
    }
    walk.run_integers(l, scales_);
    walk.release(l);
    step();
  }
}

// What is left of each output channel's mean error goes into its bias (Nagel et al. 2019, section 4.2, empirically).
void Search::correct_biases() {
  Walk walk(graph_, pictures_, pool_);
  walk.start_real();
  walk.start_integers(scales_);
  for (int l = 0; l < static_cast<int>(graph_.layers.size()); ++l) {
    const Layer& layer = graph_.layers[l];
    walk.run_real(l);
    if (layer.kind == Layer::Kind::conv) {
      const int outputs = layer.shape.out_channels;
      const auto integer = walk.run_unquantised(l, scales_);
      const auto count = static_cast<int64_t>(integer.size());
      std::vector<double> error(outputs);
      const float* real = walk.real(layer.output, 0);
      for (int64_t i = 0; i < count; ++i) error[i % outputs] += real[i] - integer[i];
      ConvScales& conv = scales_.convs[l];
      for (int o = 0; o < outputs; ++o) {
        const auto mean = static_cast<float>(error[o] / static_cast<double>(count / outputs));
        conv.bias[o] += quantize_bias(mean, conv.weight[o], scales_.tensors[layer.input]);
      }
    }
    walk.run_integers(l, scales_);
    walk.release(l);
    step();
  }
}

Search::Evaluation Search::evaluate() const {
  Evaluation result{std::vector<double>(graph_.layers.size()), std::vector<double>(graph_.tensors.size()), 0};
  Walk walk(graph_, pictures_, pool_);
  walk.start_real();
  walk.start_integers(scales_);
  for (int l = 0; l < static_cast<int>(graph_.layers.size()); ++l) {
    if (control_.cancelled) throw Cancelled();
    const int output = graph_.layers[l].output;
    const int64_t size = graph_.tensors[output].size();
    walk.run_real(l);
    walk.run_integers(l, scales_);
    const auto unquantised = walk.run_unquantised(l, scales_);
    std::vector<double> cosines(walk.pictures());
    std::vector<int64_t> clipped(walk.pictures());
    pool_.parallel_for(walk.pictures(), [&](int64_t n, int) {
      const Tensor& tensor = graph_.tensors[output];
      const float *real = walk.real(output, n), *values = unquantised.data() + n * size;
      if (!graph_.quantised(output)) {
        cosines[n] = tensor_cosine(values, real, tensor.area(), tensor.channels);
        return;
      }
      cosines[n] = tensor_cosine(walk.integers(output, n), real, tensor.area(), tensor.channels);
      const float bound = scales_.tensors[output] * (static_cast<float>(tensor.limit()) + 0.5f);
      clipped[n] = detail::count_beyond(values, size, bound);
    });
    for (int64_t n = 0; n < walk.pictures(); ++n) {
      result.cosine[l] += cosines[n] / static_cast<double>(walk.pictures());
      result.saturation[output] += static_cast<double>(clipped[n]) / static_cast<double>(size * walk.pictures());
    }
    if (output == graph_.output) result.end_to_end = result.cosine[l];
    walk.release(l);
  }
  return result;
}

void Search::keep_if_better() {
  Evaluation evaluation = evaluate();
  if (evaluation.end_to_end <= best_evaluation_.end_to_end) return;
  best_evaluation_ = std::move(evaluation);
  best_ = scales_;
}

SearchResult Search::run() {
  const int layers = static_cast<int>(graph_.layers.size());
  if (options_.equalize) {
    equalize(graph_, pictures_, pool_, control_.cancelled,
             [&](int done) { control_.on_progress(SearchStage::equalizing, done, layers); });
  }
  total_ = (2 * options_.rounds + (options_.bias_correction ? 1 : 0)) * layers;
  find_maxima();
  scales_ = best_ = start_;
  best_evaluation_ = evaluate();
  const Evaluation first = best_evaluation_;
  for (int round = 0; round < options_.rounds; ++round) {
    const double before = best_evaluation_.end_to_end;
    weights_pass();
    keep_if_better();
    activations_pass();
    keep_if_better();
    if (best_evaluation_.end_to_end <= before) break;
  }
  scales_ = best_;
  if (options_.bias_correction) {
    correct_biases();
    keep_if_better();
  }
  control_.on_progress(SearchStage::searching, total_, total_);
  SearchResult result{best_, {}};
  for (int l = 0; l < layers; ++l) {
    result.layers.push_back(
        {first.cosine[l], best_evaluation_.cosine[l], best_evaluation_.saturation[graph_.layers[l].input]});
  }
  return result;
}

}  // namespace

SearchResult search_scales(LayerGraph& graph, const PictureView& pictures, const SearchOptions& options,
                           ThreadPool& pool, const SearchControl& control) {
  return Search(graph, pictures, options, pool, control).run();
}

}  // namespace facetrain
