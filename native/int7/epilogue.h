// The stages of kernels.h's Epilogue, written once for every instruction set. V is a type with the vector operations of
// one (kernels_<isa>.cc): Real, kLanes, and functions on them. store_bytes rounds half to even.
//
// A file that includes this compiles it for its own instruction set, so everything here is in an anonymous namespace:
// the linker must not take one file's version for another's.
#pragma once

#include <type_traits>

#include "int7/kernels.h"

namespace facetrain::int7 {
namespace {

// The stages hold in registers what is the same for all pixels: the bytes that are stored could alias anything in
// memory, so the compiler would load it again for each.
template <class V>
struct Saturation {
  typename V::Real low, high;

  Saturation(float low, float high) : low(V::all(low)), high(V::all(high)) {}
  typename V::Real clamp(typename V::Real x) const { return V::max(V::min(x, high), low); }
};

// For the channels of one vector.
template <class V>
struct Pointwise {
  using Real = typename V::Real;
  Saturation<V> saturation;
  Real positive, negative, offset, x_scale, y_scale;
  bool has_offset, divides;

  Pointwise(const PointwiseStage& stage, int channel)
      : saturation(stage.low, stage.high),
        positive(V::load(stage.positive + channel)),
        negative(V::load(stage.negative + channel)),
        offset(stage.offset ? V::load(stage.offset + channel) : V::all(0)),
        x_scale(V::all(stage.x_scale)),
        y_scale(V::all(stage.y_scale)),
        has_offset(stage.offset != nullptr),
        divides(stage.divides) {}

  // Not rounded.
  Real operator()(Real q) const {
    if (divides) q = V::mul(q, x_scale);
    Real y = V::mul(V::select_positive(q, positive, negative), q);
    if (has_offset) y = V::add(y, offset);
    if (divides) y = V::div(y, y_scale);
    return saturation.clamp(y);
  }
};

template <class V>
struct Addition {
  using Real = typename V::Real;
  Saturation<V> saturation;
  Real scale, second_scale, y_scale;
  int second_zero;
  bool divides;

  explicit Addition(const AddStage& stage)
      : saturation(stage.low, stage.high),
        scale(V::all(stage.scale)),
        second_scale(V::all(stage.second_scale)),
        y_scale(V::all(stage.y_scale)),
        second_zero(stage.second_zero),
        divides(stage.divides) {}

  // Not rounded.
  Real operator()(Real q, const uint8_t* second) const {
    Real y = V::add(V::mul(q, scale), V::mul(V::load_bytes(second, second_zero), second_scale));
    if (divides) y = V::div(y, y_scale);
    return saturation.clamp(y);
  }
};

// Stands for a stage that is not there.
struct Nothing {
  template <typename... T>
  explicit Nothing(const T&...) {}
};

template <class V, bool Sums, bool First, bool Add, bool Last>
void run_epilogue(const Epilogue& e, const EpilogueRow& given) {
  const EpilogueRow row = given;
  const Saturation<V> sums(e.low, e.high);
  const std::conditional_t<Add, Addition<V>, Nothing> add(e.add);
  const int source_zero = e.source_zero, middle_zero = e.middle_zero, zero = e.zero;
  for (int c = 0; c < row.channels; c += V::kLanes) {
    const int channel = row.channel + c;
    const auto multiplier = Sums ? V::load(e.multipliers + channel) : V::all(0);
    const std::conditional_t<First, Pointwise<V>, Nothing> first(e.first, channel);
    const std::conditional_t<Last, Pointwise<V>, Nothing> last(e.last, channel);
    for (int p = 0; p < row.pixels; ++p) {
      // Rounded before each stage; what is stored is rounded by that.
      typename V::Real q;
      if constexpr (Sums) {
        q = sums.clamp(V::mul(V::load_sums(row.sums + p * row.sums_stride + c), multiplier));
      } else {
        q = V::load_bytes(row.source + p * row.source_stride + c, source_zero);
      }
      if constexpr (First) q = first(Sums ? V::round(q) : q);
      if constexpr (Add) {
        q = add(Sums || First ? V::round(q) : q, row.second + p * row.second_stride + c);
        if (row.middle) V::store_bytes(row.middle + p * row.middle_stride + c, q, middle_zero);
      }
      if constexpr (Last) q = last(V::round(q));
      V::store_bytes(row.y + p * row.y_stride + c, q, zero);
    }
  }
}

template <class V, bool Sums, bool First, bool Add>
void choose_last(const Epilogue& e, const EpilogueRow& row) {
  e.has_last ? run_epilogue<V, Sums, First, Add, true>(e, row) : run_epilogue<V, Sums, First, Add, false>(e, row);
}

template <class V, bool Sums, bool First>
void choose_add(const Epilogue& e, const EpilogueRow& row) {
  e.has_add ? choose_last<V, Sums, First, true>(e, row) : choose_last<V, Sums, First, false>(e, row);
}

template <class V, bool Sums>
void choose_first(const Epilogue& e, const EpilogueRow& row) {
  e.has_first ? choose_add<V, Sums, true>(e, row) : choose_add<V, Sums, false>(e, row);
}

template <class V>
void epilogue_of(const Epilogue& e, const EpilogueRow& row) {
  e.multipliers ? choose_first<V, true>(e, row) : choose_first<V, false>(e, row);
}

}  // namespace
}  // namespace facetrain::int7
