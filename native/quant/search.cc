#include "quant/search.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "clones.h"
#include "counted.h"
#include "error.h"
#include "kernels/elementwise.h"
#include "quant/cosine.h"
#include "quant/equalize.h"
#include "quant/layerwise_pass.h"
#include "quant/operand_bits.h"
#include "quant/patches.h"
#include "quant/real_tile.h"

namespace facetrain {
namespace detail {

// The number of values below `low` or above `high`.
FACETRAIN_CLONES int64_t count_beyond(const float* x, int64_t count, float low, float high) {
  int64_t result = 0;
  for (int64_t i = 0; i < count; ++i) result += x[i] < low || x[i] > high;
  return result;
}

}  // namespace detail

namespace {

// If fewer pixels than this are sampled per picture, a channel's values in one picture are too short a vector for a
// cosine (that of two single numbers is 1 or -1). A filter's score is then one cosine over its values in all pictures.
constexpr int64_t kShortVector = 32;

// Candidate k for a scale. `start` is its value before the search, `current` its value now, which is candidate 0.
float candidate_scale(const SearchOptions& options, int k, float start, float current) {
  if (k == 0) return current;
  const float step = static_cast<float>(k - 1) / static_cast<float>(options.candidates - 1);
  return start / (options.lower + step * (options.upper - options.lower));
}

// What is searched for a tensor.
struct Quantization {
  float scale;
  int zero_point;
};

// Zero points tried between 0 and the largest, and on either side of the one that is best so far.
constexpr int kZeroPoints = 9, kNearZeroPoints = 3;

bool is_conv(const Layer& layer) { return layer.kind == Layer::Kind::conv; }

// A convolution that reads the tensor whose scale is searched.
struct Reader {
  int layer;
  Patches<float> patches;  // of the tensor before it is quantized
  Targets targets;
  Conv conv;
};

// Sampled pixels of a tensor that no convolution reads, [picture][pixel][channel]: the tensor before it is quantized,
// and its FP32 values.
struct SampledTensor {
  std::vector<float> values, real;
  int64_t pixels;  // of a picture
  // The tensor's only reader, if that is a pointwise layer; else null. Cosines are then measured on this layer's
  // output, and `real` holds its FP32 values: a PReLU shrinks negative values, so their errors count less.
  const Layer* pointwise = nullptr;
};

class Search {
 public:
  Search(LayerGraph& graph, const PictureView& pictures, const SearchOptions& options, const ActivationSpace& space,
         ThreadPool& pool, const SearchControl& control)
      : graph_(graph),
        pictures_(pictures),
        options_(options),
        space_(space),
        pool_(pool, control.cancelled),
        control_(control) {}

  SearchResult run();

 private:
  // Returns a tensor of picture n before it is quantized.
  using Unquantized = std::function<const float*(int64_t n)>;

  // How close the network with the current scales is to FP32; means over the pictures.
  struct Evaluation {
    std::vector<double> cosine;      // by layer: between its INT7 and its FP32 output
    std::vector<double> saturation;  // by tensor: share of clipped values
    double end_to_end = 0;           // cosine of the graph's output; the mean over its outputs
  };

  bool are_decided(int64_t count) const;
  template <typename T>
  std::vector<T> decide(size_t size, const std::function<std::vector<T>()>& make);

  void find_extents();
  void pass_through(int64_t decisions, const std::function<void(const LayerwisePass&)>& decide_input,
                    const std::function<void(const LayerwisePass&, int layer)>& decide_layer);
  void pass_through_convs(const std::function<void(const LayerwisePass&, int layer)>& decide_conv);
  void weights_pass();
  void activations_pass();
  void correct_biases();
  std::vector<float> scan_weights(const LayerwisePass& pass, int layer) const;
  Quantization scan_activation(const LayerwisePass& pass, int tensor, const Unquantized& unquantized) const;
  std::vector<Quantization> with_zero_points(int tensor, const Quantization& scaled) const;
  SampledTensor sample_tensor(const LayerwisePass& pass, int tensor, const Unquantized& unquantized) const;
  void add_reader_cosines(const Reader& reader, float scale, IntegerRange range, double& score) const;
  void add_tensor_cosines(const SampledTensor& sampled, int channels, float scale, IntegerRange range,
                          double& score) const;
  Quantization quantization(int tensor) const { return {scales_.tensors[tensor], scales_.zero_points[tensor]}; }
  void set_quantization(int tensor, const Quantization& chosen);
  Evaluation evaluate();
  Evaluation measure() const;
  void keep_if_better();
  void layer_done();

  LayerGraph& graph_;
  const PictureView& pictures_;
  const SearchOptions& options_;
  const ActivationSpace& space_;
  const CancellablePool pool_;
  const SearchControl& control_;
  size_t next_decision_ = 0;      // of control_.decided
  int steps_ = 0, total_ = 0;     // progress: layers that the passes have done, and will do
  std::vector<Extent> extents_;   // by tensor, of its FP32 values and of those that share its scale
  Scales start_, scales_, best_;  // from the extents; current; those of best_evaluation_
  Evaluation best_evaluation_;
};

// Counts a layer as done and reports the progress. Throws Cancelled.
void Search::layer_done() {
  pool_.check();
  control_.on_progress(SearchStage::searching, ++steps_, total_);
}

// Whether the next `count` decisions are those of an interrupted search.
bool Search::are_decided(int64_t count) const {
  return static_cast<int64_t>(control_.decided.size() - next_decision_) >= count;
}

// The next decision, of `size` numbers: that of the interrupted search, or of `make`.
template <typename T>
std::vector<T> Search::decide(size_t size, const std::function<std::vector<T>()>& make) {
  if (are_decided(1)) {
    const Decision& known = control_.decided[next_decision_++];
    if (known.size() != size) {
      throw Error("InvalidArgument", "decision " + std::to_string(next_decision_), counted(known.size(), "number"),
                  std::to_string(size) + ", of the same search");
    }
    return {known.begin(), known.end()};
  }
  std::vector<T> made = make();
  control_.on_decision({made.begin(), made.end()});
  return made;
}

// Sets extents_, and start_ from them.
void Search::find_extents() {
  const int layers = static_cast<int>(graph_.layers.size());
  extents_.assign(graph_.tensors.size(), {});
  LayerwisePass pass(graph_, pictures_, pool_, space_);
  pass.start_real();
  for (int l = 0; l < layers; ++l) {
    pass.run_real(l);
    extents_[graph_.layers[l].output] = pass.extent(graph_.layers[l].output);
    pass.release(l);
  }
  // The bound of all pixels, not only of those in these pictures.
  for (const float value : pixel_values(graph_)) extents_[0].add(value);
  for (size_t t = 0; t < extents_.size(); ++t) {
    Extent& shared = extents_[graph_.tensors[t].scale_of];
    shared.add(extents_[t].low);
    shared.add(extents_[t].high);
  }
  for (size_t t = 0; t < extents_.size(); ++t) extents_[t] = extents_[graph_.tensors[t].scale_of];
  const auto tensors = [&](std::vector<int> limits) {
    return tensor_scales_from_extents(graph_, extents_, std::move(limits), options_.zero_points);
  };
  const Scales narrow = tensors(narrow_limits(graph_)), wide = tensors(wide_limits(graph_));
  start_ =
      scales_from_extents(graph_, extents_, choose_limits(graph_, narrow, wide, options_.budget), options_.zero_points);
}

// Sets what was chosen for a tensor and for those that share its scale, and requantizes the biases of the convolutions
// that read them.
void Search::set_quantization(int tensor, const Quantization& chosen) {
  for (size_t t = 0; t < graph_.tensors.size(); ++t) {
    if (graph_.tensors[t].scale_of != tensor) continue;
    scales_.tensors[t] = chosen.scale;
    scales_.zero_points[t] = chosen.zero_point;
    for (const int reader : graph_.tensors[t].readers) {
      if (graph_.layers[reader].kind == Layer::Kind::conv) quantize_conv_bias(graph_, reader, scales_);
    }
  }
}

// The best scales of all filters of layer l.
std::vector<float> Search::scan_weights(const LayerwisePass& pass, int l) const {
  const Layer& layer = graph_.layers[l];
  const ConvShape& shape = layer.shape;
  const int outputs = shape.out_channels;
  const int64_t filter = shape.weights() / outputs;
  const float input_scale = scales_.tensors[layer.input];
  const std::vector<float>&start = start_.convs[l].weight, &current = scales_.convs[l].weight;
  const auto candidate = [&](int k, int o) {
    return bounded_weight_scale(candidate_scale(options_, k, start[o], current[o]));
  };
  const Patches<int8_t> patches(shape, pass.pictures(), pool_,
                                [&](int64_t n) { return pass.integers(layer.input, n); });
  const Targets targets(pass, graph_, l, pool_);
  const int64_t size = int64_t{patches.pixels()} * outputs;
  const bool all_pictures_joined = patches.pixels() < kShortVector;

  const int candidates = options_.candidates + 1;
  std::vector<double> scores(int64_t{candidates} * outputs);
  pool_.parallel_for(candidates, [&](int64_t k, int) {
    std::vector<int8_t> weights(shape.weights());
    std::vector<int32_t> bias(outputs), sums(size);
    for (int o = 0; o < outputs; ++o) {
      const float scale = candidate(static_cast<int>(k), o);
      quantize_weights(layer.weight.data() + o * filter, filter, scale, weights.data() + o * filter);
      bias[o] = quantize_bias(layer.bias[o], scale, input_scale);
    }
    const Conv conv(shape, weights.data());
    std::vector<float> dot(outputs), square(outputs);
    std::vector<double> all_dot(outputs), all_square(outputs), all_target(outputs);
    double* score = scores.data() + k * outputs;
    for (int64_t n = 0; n < pass.pictures(); ++n) {
      pool_.check();
      const auto taps = patch_taps(shape, patches.pixels(), patches.picture(n));
      conv.run(taps.data(), patches.pixels(), bias.data(), sums.data());
      channel_products(sums.data(), targets.values.data() + n * size, patches.pixels(), outputs, dot.data(),
                       square.data());
      const double* target = targets.squares.data() + n * outputs;
      for (int o = 0; o < outputs; ++o) {
        if (!all_pictures_joined) score[o] += cosine(dot[o], square[o], target[o]);
        all_dot[o] += dot[o];
        all_square[o] += square[o];
        all_target[o] += target[o];
      }
    }
    if (!all_pictures_joined) return;
    for (int o = 0; o < outputs; ++o) score[o] = cosine(all_dot[o], all_square[o], all_target[o]);
  });

  std::vector<float> chosen(outputs);
  for (int o = 0; o < outputs; ++o) {
    int best = 0;
    for (int k = 1; k < candidates; ++k) {
      if (scores[int64_t{k} * outputs + o] > scores[int64_t{best} * outputs + o]) best = k;
    }
    chosen[o] = candidate(best, o);
  }
  return chosen;
}

SampledTensor Search::sample_tensor(const LayerwisePass& pass, int t, const Unquantized& unquantized) const {
  const Tensor& tensor = graph_.tensors[t];
  SampledTensor result;
  for (int64_t n = 0; n < pass.pictures(); ++n) {
    pool_.check();
    for (const int pixel : sample_pixels(tensor.area(), pass.pictures(), n)) {
      const int64_t at = int64_t{pixel} * tensor.channels;
      result.values.insert(result.values.end(), unquantized(n) + at, unquantized(n) + at + tensor.channels);
      result.real.insert(result.real.end(), pass.real(t, n) + at, pass.real(t, n) + at + tensor.channels);
    }
  }
  const auto all_pixels = static_cast<int64_t>(result.real.size()) / tensor.channels;
  result.pixels = all_pixels / pass.pictures();
  if (tensor.readers.size() == 1 && graph_.layers[tensor.readers[0]].kind == Layer::Kind::pointwise) {
    const Layer& layer = graph_.layers[tensor.readers[0]];
    result.pointwise = &layer;
    real_pointwise(result.real.data(), tensor.channels, all_pixels, layer.positive.data(), layer.negative.data(),
                   layer.offset.data(), result.real.data());
  }
  return result;
}

// Adds the cosine of the reader's output for each picture, with `scale` and `range` for its input.
void Search::add_reader_cosines(const Reader& reader, float scale, IntegerRange range, double& score) const {
  const auto& [l, patches, targets, conv] = reader;
  const ConvShape& shape = conv.shape();
  const int outputs = shape.out_channels, pixels = patches.pixels();
  std::vector<int32_t> bias(outputs), sums(int64_t{pixels} * outputs);
  for (int o = 0; o < outputs; ++o) {
    bias[o] = quantize_bias(graph_.layers[l].bias[o], scales_.convs[l].weight[o], scale);
  }
  std::vector<int8_t> integers(patches.picture_size() + kOverread);
  const auto taps = patch_taps(shape, pixels, integers.data());
  std::vector<float> dot(outputs), square(outputs);
  for (int64_t n = 0; n < pictures_.count; ++n) {
    pool_.check();
    quantize(patches.picture(n), patches.picture_size(), scale, range, integers.data());
    conv.run(taps.data(), pixels, bias.data(), sums.data());
    channel_products(sums.data(), targets.values.data() + n * pixels * outputs, pixels, outputs, dot.data(),
                     square.data());
    double all_dot = 0, all_square = 0, all_target = 0;
    for (int o = 0; o < outputs; ++o) {
      const double weight_scale = scales_.convs[l].weight[o];
      all_dot += weight_scale * dot[o];
      all_square += weight_scale * weight_scale * square[o];
      all_target += targets.squares[n * outputs + o];
    }
    score += cosine(all_dot, all_square, all_target);
  }
}

// Adds the cosine of the tensor for each picture, after the pointwise layer that reads it, if there is one.
void Search::add_tensor_cosines(const SampledTensor& sampled, int channels, float scale, IntegerRange range,
                                double& score) const {
  const int64_t size = sampled.pixels * channels;
  std::vector<int8_t> integers(size);
  std::vector<float> mapped(sampled.pointwise == nullptr ? 0 : size);
  for (int64_t n = 0; n < pictures_.count; ++n) {
    pool_.check();
    const float* real = sampled.real.data() + n * size;
    quantize(sampled.values.data() + n * size, size, scale, range, integers.data());
    if (sampled.pointwise == nullptr) {
      score += tensor_cosine(integers.data(), real, sampled.pixels, channels);
      continue;
    }
    const Layer& layer = *sampled.pointwise;
    pointwise(integers.data(), channels, sampled.pixels, layer.positive.data(), layer.negative.data(),
              layer.offset.data(), scale, mapped.data());
    score += tensor_cosine(mapped.data(), real, sampled.pixels, channels);
  }
}

// The best scale of tensor t, and then its best zero point if it may have one. A candidate's score is the cosine of the
// convolutions that read the tensor, or, if there are none, of the tensor itself.
Quantization Search::scan_activation(const LayerwisePass& pass, int t, const Unquantized& unquantized) const {
  const Tensor& tensor = graph_.tensors[t];
  std::vector<Reader> readers;
  for (const int l : tensor.readers) {
    const Layer& layer = graph_.layers[l];
    if (layer.kind != Layer::Kind::conv) continue;
    readers.push_back({l, Patches<float>(layer.shape, pass.pictures(), pool_, unquantized),
                       Targets(pass, graph_, l, pool_), Conv(layer.shape, scales_.convs[l].weights.data())});
  }
  std::optional<SampledTensor> sampled;
  if (readers.empty()) sampled = sample_tensor(pass, t, unquantized);

  // The best of the candidates, the first of equals.
  const auto choose = [&](const std::vector<Quantization>& candidates) {
    std::vector<double> scores(candidates.size());
    pool_.parallel_for(static_cast<int64_t>(candidates.size()), [&](int64_t k, int) {
      const auto& [scale, zero_point] = candidates[k];
      const IntegerRange range{scales_.limits[t], zero_point};
      for (const Reader& reader : readers) add_reader_cosines(reader, scale, range, scores[k]);
      if (sampled) add_tensor_cosines(*sampled, tensor.channels, scale, range, scores[k]);
    });
    return candidates[std::max_element(scores.begin(), scores.end()) - scores.begin()];
  };

  const Quantization current = quantization(t);
  const float start = extent_scale(extents_[t], scales_.limits[t], current.zero_point);
  std::vector<Quantization> candidates;
  for (int k = 0; k <= options_.candidates; ++k)
    candidates.push_back({bounded_scale(candidate_scale(options_, k, start, current.scale)), current.zero_point});
  const Quantization scaled = choose(candidates);
  return start_.zero_points[t] == 0 ? scaled : choose(with_zero_points(t, scaled));
}

// Candidates for a tensor's zero point. They keep the bound of the side on which the tensor reaches farther, and so
// differ in where they saturate the other.
std::vector<Quantization> Search::with_zero_points(int t, const Quantization& scaled) const {
  const int side = start_.zero_points[t] < 0 ? -1 : 1;
  const auto steps = [&](int zero_point) { return static_cast<float>(kOperandLimit + side * zero_point); };
  const float bound = scaled.scale * steps(scaled.zero_point);
  std::vector<Quantization> result{scaled};
  const auto add = [&](int zero_point) {
    if (side * zero_point >= 0 && side * zero_point <= kOperandLimit)
      result.push_back({bounded_scale(bound / steps(zero_point)), zero_point});
  };
  for (int k = 0; k < kZeroPoints; ++k) add(side * kOperandLimit * k / (kZeroPoints - 1));
  for (int k = 1; k <= kNearZeroPoints; ++k) {
    add(scaled.zero_point - k);
    add(scaled.zero_point + k);
  }
  return result;
}

// Goes through the network once, to make `decisions` decisions: calls decide_input when the FP32 input is known, and
// decide_layer for each layer when its FP32 output and its integer inputs are. Its integer output follows from what was
// decided. Runs nothing if all decisions are known.
void Search::pass_through(int64_t decisions, const std::function<void(const LayerwisePass&)>& decide_input,
                          const std::function<void(const LayerwisePass&, int layer)>& decide_layer) {
  const bool known = are_decided(decisions);
  LayerwisePass pass(graph_, pictures_, pool_, space_);
  if (!known) pass.start_real();
  decide_input(pass);
  if (!known) pass.start_integers(scales_);
  for (int l = 0; l < static_cast<int>(graph_.layers.size()); ++l) {
    if (!known) pass.run_real(l);
    decide_layer(pass, l);
    if (!known) {
      pass.run_integers(l, scales_);
      pass.release(l);
    }
    layer_done();
  }
}

// The same for decisions about convolutions, one for each.
void Search::pass_through_convs(const std::function<void(const LayerwisePass&, int layer)>& decide_conv) {
  pass_through(
      std::count_if(graph_.layers.begin(), graph_.layers.end(), is_conv), [](const LayerwisePass&) {},
      [&](const LayerwisePass& pass, int l) {
        if (is_conv(graph_.layers[l])) decide_conv(pass, l);
      });
}

void Search::weights_pass() {
  pass_through_convs([&](const LayerwisePass& pass, int l) {
    scales_.convs[l].weight = decide<float>(graph_.layers[l].shape.out_channels, [&] { return scan_weights(pass, l); });
    quantize_conv(graph_, l, scales_);
  });
}

void Search::activations_pass() {
  const auto is_searched = [&](int t) { return graph_.quantized(t) && graph_.tensors[t].scale_of == t; };
  int64_t searched = is_searched(0) ? 1 : 0;
  for (const Layer& layer : graph_.layers) searched += is_searched(layer.output) ? 1 : 0;
  const auto search = [&](const LayerwisePass& pass, int t, const std::function<Unquantized()>& unquantized) {
    const auto chosen = decide<float>(2, [&] {
      const auto [scale, zero_point] = scan_activation(pass, t, unquantized());
      return std::vector<float>{scale, static_cast<float>(zero_point)};
    });
    set_quantization(t, {chosen[0], static_cast<int>(chosen[1])});
  };
  pass_through(
      searched,
      [&](const LayerwisePass& pass) {
        if (is_searched(0))
          search(pass, 0, [&]() -> Unquantized { return [&](int64_t n) { return pass.real(0, n); }; });
      },
      [&](const LayerwisePass& pass, int l) {
        const int output = graph_.layers[l].output;
        if (!is_searched(output)) return;
        Activations<float> values;
        search(pass, output, [&]() -> Unquantized {
          values = pass.run_unquantized(l, scales_);
          return [&, size = graph_.tensors[output].size()](int64_t n) { return values.data() + n * size; };
        });
      });
}

// Adds each output channel's mean error on the pictures to its bias (Nagel et al. 2019, arXiv 1906.04721, section 4.2:
// the variant that measures the error).
void Search::correct_biases() {
  pass_through_convs([&](const LayerwisePass& pass, int l) {
    const Layer& layer = graph_.layers[l];
    const int outputs = layer.shape.out_channels;
    scales_.convs[l].bias = decide<int32_t>(outputs, [&] {
      const auto integer = pass.run_unquantized(l, scales_);
      const int64_t pixels = pass.pictures() * graph_.tensors[layer.output].area();
      std::vector<double> error(outputs);
      const float *real = pass.real(layer.output, 0), *values = integer.data();
      for (int64_t p = 0; p < pixels; ++p, real += outputs, values += outputs) {
        pool_.check();
        for (int o = 0; o < outputs; ++o) error[o] += real[o] - values[o];
      }
      const ConvScales& conv = scales_.convs[l];
      std::vector<int32_t> bias = conv.bias;
      for (int o = 0; o < outputs; ++o) {
        const auto mean = static_cast<float>(error[o] / static_cast<double>(pixels));
        const int64_t corrected = int64_t{bias[o]} + quantize_bias(mean, conv.weight[o], scales_.tensors[layer.input]);
        bias[o] = static_cast<int32_t>(std::clamp<int64_t>(corrected, -kLargestBias, kLargestBias));
      }
      return bias;
    });
  });
}

Search::Evaluation Search::evaluate() {
  const size_t layers = graph_.layers.size(), tensors = graph_.tensors.size();
  const Decision figures = decide<double>(layers + tensors + 1, [&] {
    Evaluation found = measure();
    Decision all = std::move(found.cosine);
    all.insert(all.end(), found.saturation.begin(), found.saturation.end());
    all.push_back(found.end_to_end);
    return all;
  });
  const auto saturation = figures.begin() + static_cast<std::ptrdiff_t>(layers);
  return {{figures.begin(), saturation}, {saturation, figures.end() - 1}, figures.back()};
}

Search::Evaluation Search::measure() const {
  Evaluation result{std::vector<double>(graph_.layers.size()), std::vector<double>(graph_.tensors.size()), 0};
  LayerwisePass pass(graph_, pictures_, pool_, space_);
  pass.start_real();
  pass.start_integers(scales_);
  for (int l = 0; l < static_cast<int>(graph_.layers.size()); ++l) {
    const int output = graph_.layers[l].output;
    const int64_t size = graph_.tensors[output].size();
    pass.run_real(l);
    pass.run_integers(l, scales_);
    const auto unquantized = pass.run_unquantized(l, scales_);
    std::vector<double> cosines(pass.pictures());
    std::vector<int64_t> clipped(pass.pictures());
    pool_.parallel_for(pass.pictures(), [&](int64_t n, int) {
      const Tensor& tensor = graph_.tensors[output];
      const float *real = pass.real(output, n), *values = unquantized.data() + n * size;
      if (!graph_.quantized(output)) {
        cosines[n] = tensor_cosine(values, real, tensor.area(), tensor.channels);
        return;
      }
      cosines[n] = tensor_cosine(pass.integers(output, n), real, tensor.area(), tensor.channels);
      const IntegerRange range = scales_.range(output);
      const float scale = scales_.tensors[output];
      clipped[n] = detail::count_beyond(values, size, scale * (static_cast<float>(range.low) - 0.5f),
                                        scale * (static_cast<float>(range.high) + 0.5f));
    });
    for (int64_t n = 0; n < pass.pictures(); ++n) {
      result.cosine[l] += cosines[n] / static_cast<double>(pass.pictures());
      result.saturation[output] += static_cast<double>(clipped[n]) / static_cast<double>(size * pass.pictures());
    }
    if (graph_.is_output(output)) result.end_to_end += result.cosine[l] / static_cast<double>(graph_.outputs.size());
    pass.release(l);
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
    equalize(graph_, pictures_, pool_, space_,
             [&](int done) { control_.on_progress(SearchStage::equalizing, done, layers); });
  }
  total_ = (2 * options_.rounds + (options_.bias_correction ? 1 : 0)) * layers;
  control_.on_progress(SearchStage::searching, 0, total_);  // extents and their evaluation are no steps, but take time
  find_extents();
  scales_ = best_ = start_;
  best_evaluation_ = evaluate();
  if (options_.zero_points) {
    // Zero points from the least and largest values are not always better. Begins with what is; the rounds try both.
    scales_ = scales_from_extents(graph_, extents_, start_.limits, false);
    keep_if_better();
    scales_ = best_;
  }
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
                           const ActivationSpace& space, ThreadPool& pool, const SearchControl& control) {
  return Search(graph, pictures, options, space, pool, control).run();
}

}  // namespace facetrain
