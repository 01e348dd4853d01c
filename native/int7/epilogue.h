// The stages of kernels.h's Epilogue, written once for every instruction set. V is a type with the vector operations of
// one (kernels_<isa>.cc): Real and Mask, kLanes, and functions on them.
//
// A file that includes this compiles it for its own instruction set, so everything here is in an anonymous namespace:
// the linker must not take one file's version for another's.
#pragma once

#include "int7/kernels.h"

namespace facetrain::int7 {
namespace {

template <class V>
inline typename V::Real saturate(typename V::Real x, float limit) {
  return V::round(V::max(V::min(x, V::all(limit)), V::all(-limit)));
}

template <class V>
inline typename V::Real pointwise_stage(const PointwiseStage& stage, typename V::Real q, int channel) {
  const auto positive = V::load(stage.positive + channel), negative = V::load(stage.negative + channel);
  typename V::Real y;
  if (stage.divides) {
    const auto real = V::mul(q, V::all(stage.x_scale));
    y = V::mul(V::select_positive(real, positive, negative), real);
    if (stage.offset) y = V::add(y, V::load(stage.offset + channel));
    y = V::div(y, V::all(stage.y_scale));
  } else {
    y = V::mul(V::select_positive(q, positive, negative), q);
    if (stage.offset) y = V::add(y, V::load(stage.offset + channel));
  }
  return saturate<V>(y, stage.limit);
}

template <class V>
inline typename V::Real add_stage(const AddStage& stage, typename V::Real q, const uint8_t* second) {
  auto y = V::add(V::mul(q, V::all(stage.scale)),
                  V::mul(V::load_bytes(second, stage.second_zero), V::all(stage.second_scale)));
  if (stage.divides) y = V::div(y, V::all(stage.y_scale));
  return saturate<V>(y, stage.limit);
}

template <class V, bool Sums, bool First, bool Add, bool Last>
void run_epilogue(const Epilogue& e, const EpilogueRow& row) {
  for (int c = 0; c < row.channels; c += V::kLanes) {
    const int channel = row.channel + c;
    for (int p = 0; p < row.pixels; ++p) {
      typename V::Real q;
      if constexpr (Sums) {
        q = saturate<V>(V::mul(V::load_sums(row.sums + p * row.sums_stride + c), V::load(e.multipliers + channel)),
                        e.limit);
      } else {
        q = V::load_bytes(row.source + p * row.source_stride + c, e.source_zero);
      }
      if constexpr (First) q = pointwise_stage<V>(e.first, q, channel);
      if constexpr (Add) {
        q = add_stage<V>(e.add, q, row.second + p * row.second_stride + c);
        if (row.middle) V::store_bytes(row.middle + p * row.middle_stride + c, q, e.middle_zero);
      }
      if constexpr (Last) q = pointwise_stage<V>(e.last, q, channel);
      V::store_bytes(row.y + p * row.y_stride + c, q, e.zero);
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
