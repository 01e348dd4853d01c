// Collectives over tensors whose parts on the ranks have different lengths. The collectives of comm.h want one length:
// shorter parts travel with zeros at their end, up to the longest.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "comm/comm.h"

namespace facetrain {

// In the functions below, lengths[r] is the first dimension of rank r's part, on every rank the same list. An empty
// list: every part is as long as this rank's.

// The parts of all ranks, in rank order: [sum of lengths, ...], from this rank's [length, ...]. float32 or int64.
at::Tensor all_gather_parts(Comm& comm, const at::Tensor& part, const std::vector<int64_t>& lengths);
// This rank's part [length, ...] of the sum over the ranks of `all` [sum of lengths, ...]. float32.
at::Tensor reduce_scatter_parts(Comm& comm, const at::Tensor& all, const std::vector<int64_t>& lengths);

}  // namespace facetrain
