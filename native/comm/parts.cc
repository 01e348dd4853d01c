#include "comm/parts.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>

namespace facetrain {
namespace {

bool are_equal(const std::vector<int64_t>& lengths) {
  return std::adjacent_find(lengths.begin(), lengths.end(), std::not_equal_to()) == lengths.end();
}

// The sizes of `tensor` with another first one.
std::vector<int64_t> with_length(const at::Tensor& tensor, int64_t length) {
  std::vector<int64_t> sizes = tensor.sizes().vec();
  sizes[0] = length;
  return sizes;
}

}  // namespace

at::Tensor all_gather_parts(Comm& comm, const at::Tensor& part, const std::vector<int64_t>& lengths) {
  if (are_equal(lengths)) {
    at::Tensor all = at::empty(with_length(part, comm.size() * part.size(0)), part.options());
    comm.all_gather(all, part.contiguous());
    return all;
  }
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  at::Tensor own = part;
  if (part.size(0) < longest) {
    own = at::zeros(with_length(part, longest), part.options());
    own.narrow(0, 0, part.size(0)).copy_(part);
  }
  at::Tensor padded = at::empty(with_length(part, comm.size() * longest), part.options());
  comm.all_gather(padded, own.contiguous());
  std::vector<at::Tensor> parts;
  for (int rank = 0; rank < comm.size(); ++rank) parts.push_back(padded.narrow(0, rank * longest, lengths[rank]));
  return at::cat(parts);
}

at::Tensor reduce_scatter_parts(Comm& comm, const at::Tensor& all, const std::vector<int64_t>& lengths) {
  if (are_equal(lengths)) {
    at::Tensor own = at::empty(with_length(all, all.size(0) / comm.size()), all.options());
    comm.reduce_scatter_sum(own, all.contiguous());
    return own;
  }
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  const at::Tensor padded = at::zeros(with_length(all, comm.size() * longest), all.options());
  int64_t first = 0;
  for (int rank = 0; rank < comm.size(); ++rank) {
    const int64_t length = lengths[rank];
    padded.narrow(0, rank * longest, length).copy_(all.narrow(0, first, length));
    first += length;
  }
  at::Tensor own = at::empty(with_length(all, longest), all.options());
  comm.reduce_scatter_sum(own, padded);
  return own.narrow(0, 0, lengths[comm.rank()]);
}

}  // namespace facetrain
