#include "train/trained_state.h"

#include <ATen/ops/from_blob.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>
#include <map>

namespace facetrain {
namespace {

// A contiguous tensor on the host with the values of `tensor`, or `tensor` itself if it is one. A device copies on a
// stream of its own: kernels of other threads go on meanwhile.
at::Tensor on_host(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor.detach().contiguous();
  const c10::impl::VirtualGuardImpl device(tensor.device().type());
  const c10::StreamGuard guard(device.getStreamFromGlobalPool(tensor.device()));
  return tensor.detach().cpu().contiguous();
}

SavedTensor saved(const Executor::Named& named) {
  const at::Tensor values = on_host(named.tensor);
  const float* data = values.const_data_ptr<float>();
  return {named.name, named.tensor.sizes().vec(), {data, data + values.numel()}};
}

void restore(const std::vector<Executor::Named>& tensors, const std::vector<SavedTensor>& from) {
  std::map<std::string, at::Tensor> by_name;
  for (const auto& named : tensors) by_name.emplace(named.name, named.tensor.detach());
  for (const auto& [name, dims, values] : from) {
    if (const auto to = by_name.find(name); to != by_name.end()) {
      to->second.copy_(at::from_blob(const_cast<float*>(values.data()), dims, at::kFloat));
    }
  }
}

}  // namespace

SavedBackbone TrainedState::save_backbone() const {
  SavedBackbone backbone;
  for (const auto& named : tensors) backbone.tensors.push_back(saved(named));
  for (const auto& named : momentum) backbone.momentum.push_back(saved(named));
  return backbone;
}

void TrainedState::load_backbone(const SavedBackbone& from) const {
  restore(tensors, from.tensors);
  restore(momentum, from.momentum);
}

std::vector<SavedRows> TrainedState::save_rows(int64_t first, int64_t count) const {
  std::vector<SavedRows> saved;
  for (const auto& [name, tensor] : rows) {
    const at::Tensor values = on_host(tensor.narrow(0, first, count));
    std::vector<uint8_t> bytes(values.nbytes());
    if (!bytes.empty()) std::memcpy(bytes.data(), values.const_data_ptr(), bytes.size());
    saved.push_back({name, values.scalar_type(), std::move(bytes)});
  }
  return saved;
}

void TrainedState::load_rows(int64_t first, int64_t count, const std::vector<SavedRows>& from) const {
  for (const auto& [name, type, bytes] : from) {
    for (const auto& own : rows) {
      if (own.name != name) continue;
      auto* data = const_cast<uint8_t*>(bytes.data());
      own.tensor.narrow(0, first, count).copy_(at::from_blob(data, {count, own.tensor.size(1)}, type));
    }
  }
}

std::optional<at::Device> place_for_copy(uint64_t bytes, at::Device device, std::optional<uint64_t> device_free,
                                         std::optional<uint64_t> host_free) {
  const uint64_t needed = bytes + bytes / 4 + (uint64_t{64} << 20);
  if (!device.is_cpu() && device_free && *device_free >= needed) return device;
  if (host_free && *host_free >= needed) return at::kCPU;
  return std::nullopt;
}

}  // namespace facetrain
