#include "train/session.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <type_traits>

#include "available_memory.h"
#include "error.h"
#include "model/pictures.h"
#include "torch_error.h"
#include "train/sgd.h"

namespace facetrain {
namespace {

// Indices in flags_; each counts the ranks for which the flag is true.
enum Flag { kStop, kCheckpoint, kWriting, kFlags };

// Ranks that keep a part of the backbone's state in memory. A smaller part would save little time, and each is a
// broadcast when they are recalled.
constexpr int kMostKeepers = 16;

// The numbers of a state beside its tensors, as each rank keeps them.
struct KeptScalars {
  NormStatistics norms;
  LossScale loss_scale;
};
static_assert(std::is_trivially_copyable_v<KeptScalars>);

// Bytes on the host as a tensor like another, without a copy of them.
at::Tensor view(std::span<uint8_t> bytes, const at::Tensor& like) {
  return at::from_blob(bytes.data(), like.sizes(), like.scalar_type());
}

// A number that is none has a sign for some processors: nan and -nan are the same to a reader.
std::string in_words(double value) { return std::isnan(value) ? "nan" : std::to_string(value); }

at::Tensor flags_of(const Session::Votes& votes) {
  return at::tensor({votes.stop ? 1.F : 0.F, votes.checkpoint ? 1.F : 0.F, votes.writing ? 1.F : 0.F});
}

// Of flags summed over the ranks.
Session::Votes votes_of(const at::Tensor& flags) {
  const at::Tensor host = flags.cpu();
  const float* flag = host.const_data_ptr<float>();
  return {flag[kStop] > 0, flag[kCheckpoint] > 0, flag[kWriting] > 0};
}

// Runs a function that communicates. Turns CommError into Error(PeerLost).
template <class Function>
auto with_peers(const Comm& comm, Function function) {
  try {
    return function();
  } catch (const CommError& error) {
    throw Error("PeerLost", "rank " + std::to_string(comm.rank()) + " of " + std::to_string(comm.size()),
                std::string("lost its peers: ") + error.what(), "start all ranks again from the newest checkpoint");
  }
}

std::unique_ptr<Comm> connect(const RendezvousOptions& options, at::Device device) {
  if (options.size == 1) return make_solo_comm();
  try {
    return device.is_cuda() ? make_nccl_comm(options, device.index()) : make_gloo_comm(options);
  } catch (const CommError& error) {
    throw Error("RendezvousTimeout", "MASTER_ADDR:MASTER_PORT " + master_of(options), error.what(),
                "an address at which rank 0 listens, and all ranks started within the time limit");
  }
}

// The options with what the head has to know: the parts of the ranks, and whether their number must not matter. With
// micro-batches the backbone's passes are the same for any number of ranks, so the sums are made so, too.
SessionOptions for_head(SessionOptions options) {
  const LoaderOptions& data = options.data;
  options.pfc.reproducible = data.micro_batch > 0 && options.pfc.device.is_cpu();
  options.pfc.parts.clear();
  for (int rank = 0; rank < data.size; ++rank)
    options.pfc.parts.push_back(batch_part(data.global_batch, data.micro_batch, rank, data.size).count);
  return options;
}

std::optional<JoinedRanks> joined_ranks(Comm& comm, const SessionOptions& options) {
  if (!options.sync_batch_norm || comm.size() == 1) return std::nullopt;
  JoinedRanks ranks{&comm, {}};
  for (const int64_t count : options.pfc.parts)
    ranks.shares.push_back(static_cast<double>(count) / static_cast<double>(options.data.global_batch));
  return ranks;
}

}  // namespace

Session::Session(std::unique_ptr<Executor> backbone, std::unique_ptr<Comm> comm, std::shared_ptr<const Dataset> dataset,
                 const SessionOptions& options, const std::atomic<bool>& cancelled)
    : backbone_(std::move(backbone)),
      clock_(options.pfc.device),
      comm_(make_timed_comm(std::move(comm), clock_)),
      options_(for_head(options)),
      part_(batch_part(options.data.global_batch, options.data.micro_batch, options.data.rank, options.data.size)),
      norm_ranks_(joined_ranks(*comm_, options_)),
      cancelled_(cancelled),
      centres_(*comm_, options_.pfc),
      batches_(std::move(dataset), options.data, options.pfc.device) {
  use_precision(options.precision);
  backbone_->checkpoint_activations(options.checkpoint_activations);
  if (norm_ranks_) backbone_->join_norms(&*norm_ranks_);
  flatten();
  if (options_.pfc.reproducible) {
    sums_.emplace(gradients_.numel(), options_.data.global_batch / micro_batch());
  } else if (comm_->size() > 1) {
    std::vector<at::Tensor> parameters;
    for (const auto& [name, tensor] : backbone_->parameters()) parameters.push_back(tensor);
    buckets_.emplace(*comm_, shared_, parameters, parameter_layout_);
  }
  broadcast();
}

void Session::use_precision(Precision precision, const LossScale& scale) {
  backbone_->set_precision(resolve_precision(precision, options_.pfc.device));
  centres_.set_precision(precision);
  loss_scale_ = precision == Precision::fp16 ? std::optional(scale) : std::nullopt;
}

void Session::retire(RetiredLabels labels) {
  std::vector<int64_t> classes;
  classes.reserve(labels.size());
  for (const auto& [label, into] : labels) classes.push_back(label);
  centres_.retire(classes);
  batches_.retire(std::move(labels));
}

// Moves the backbone's parameters, gradients and running statistics into the flat buffers.
void Session::flatten() {
  const auto& parameters = backbone_->parameters();
  const auto& buffers = backbone_->buffers();
  for (const auto& [name, tensor] : parameters) parameter_layout_.add(tensor);
  for (const auto& [name, tensor] : buffers) buffer_layout_.add(tensor);
  const auto options = at::TensorOptions(options_.pfc.device).dtype(at::kFloat);
  weights_ = at::zeros({parameter_layout_.size()}, options);
  momentum_ = at::zeros({parameter_layout_.size()}, options);
  const int64_t before = buffer_layout_.size() + FlatLayout::padded(kFlags);
  shared_ = at::zeros({before + parameter_layout_.size()}, options);
  statistics_ = shared_.narrow(0, 0, buffer_layout_.size());
  flags_ = shared_.narrow(0, buffer_layout_.size(), kFlags);
  gradients_ = shared_.narrow(0, before, parameter_layout_.size());

  const auto move_into = [](const at::Tensor& view, const at::Tensor& tensor) {
    view.copy_(tensor.detach());
    tensor.set_data(view);
  };
  for (size_t i = 0; i < parameters.size(); ++i) {
    at::Tensor tensor = parameters[i].tensor;
    move_into(parameter_layout_.view(weights_, i, tensor), tensor);
    tensor.mutable_grad() = parameter_layout_.view(gradients_, i, tensor);
  }
  for (size_t i = 0; i < buffers.size(); ++i) {
    move_into(buffer_layout_.view(statistics_, i, buffers[i].tensor), buffers[i].tensor);
  }
}

void Session::broadcast() {
  with_peers(*comm_, [&] {
    comm_->broadcast(weights_, 0);
    comm_->broadcast(statistics_, 0);
    for (auto& [name, tensor] : backbone_->fixed()) comm_->broadcast(tensor, 0);
  });
}

Session::StepResult Session::step(int64_t step, double learning_rate, Votes votes) {
  stop_if_cancelled();
  clock_.begin();
  batches_.wait(step);
  clock_.enter(Stage::upload);
  const auto [pixels, labels] = batches_.take();
  std::vector<at::Tensor> parts = forward(pixels);
  clock_.enter(Stage::head);
  const at::Tensor embeddings = parts.size() == 1 ? parts[0].detach() : at::cat(parts).detach();
  // `gradient` is that of the mean over the global batch, so the ranks' gradients of the backbone are summed, not
  // averaged.
  const auto [loss_on_device, gradient] = with_peers(*comm_, [&, labels = labels] {
    return centres_.forward_backward(embeddings, labels, static_cast<uint64_t>(step));
  });
  clock_.enter(Stage::backward);
  backward(pixels, std::move(parts), loss_scale_ ? gradient * loss_scale_->value : gradient);
  batches_.prefetch();  // while the device computes, and before the host waits for the loss

  clock_.enter(Stage::update);
  const auto loss = loss_on_device.item<double>();
  if (!std::isfinite(loss)) centres_.check_labels();
  sum_over_ranks(votes);
  const double norm = gradient_norm();
  // Loss and norm are the same on every rank; an overflow on one is in the sum over all.
  const bool skipped = loss_scale_ && std::isfinite(loss) && !std::isfinite(norm) && loss_scale_->shrink();
  if (!skipped && (!std::isfinite(loss) || !std::isfinite(norm))) {
    throw Error("NotANumber", "step " + std::to_string(step),
                "the loss is " + in_words(loss) + ", the L2 norm of the backbone's gradient " + in_words(norm),
                "finite numbers: lower the learning rate, warm up for longer, or clip the gradient");
  }
  if (!skipped) {
    apply_sgd(learning_rate, norm);
    centres_.update_rows(learning_rate * options_.rows_rate_factor, options_.momentum, options_.weight_decay);
    if (loss_scale_) loss_scale_->grow();
  }
  rows_changed_ = !skipped;
  clock_.end();
  return {loss, norm, votes, loss_scale_ ? std::optional(loss_scale_->skipped_steps) : std::nullopt, clock_.take()};
}

// The input of the backbone for the micro-batch with that index.
at::Tensor Session::images(const at::Tensor& pixels, int64_t index) {
  const Stage stage = clock_.enter(Stage::upload);
  const int64_t count = micro_batch();
  at::Tensor images = to_images(pixels.narrow(0, index * count, count), backbone_->range());
  clock_.enter(stage);
  return images;
}

// Embeds the rank's batch by micro-batches. The head needs the embeddings of all before any backward pass can begin.
// The activations of the first are kept: it comes last, and its backward pass first. Those of the others would need
// their memory at the same time, so backward() computes them again.
//
// Each micro-batch moves the running statistics from where they were before the step, as each rank does: afterwards
// they are the sum over the micro-batches, which sum_over_ranks() turns into a mean.
std::vector<at::Tensor> Session::forward(const at::Tensor& pixels) {
  const int64_t count = micro_batches();
  std::vector<at::Tensor> embeddings(static_cast<size_t>(count)), statistics(embeddings.size());
  const at::Tensor before = count > 1 ? statistics_.clone() : at::Tensor();
  for (int64_t i = count - 1; i >= 0; --i) {
    if (count > 1) statistics_.copy_(before);
    const at::Tensor input = images(pixels, i);
    clock_.enter(Stage::forward);
    const c10::AutoGradMode records(i == 0);
    embeddings[i] = with_peers(*comm_, [&] { return backbone_->forward(input, Pass::training); });
    if (count > 1) statistics[i] = statistics_.clone();
    stop_if_cancelled();
  }
  if (sums_) {
    if (count == 1) statistics[0] = statistics_.clone();
    micro_statistics_ = std::move(statistics);
  } else if (count > 1) {
    // In the order of the micro-batches, as the ranks' are summed.
    statistics_.copy_(statistics[0]);
    for (int64_t i = 1; i < count; ++i) statistics_.add_(statistics[i]);
  }
  return embeddings;
}

// Sets gradients_, or sums_, to the sum over the micro-batches, in their order. `gradient` is that of all embeddings.
void Session::backward(const at::Tensor& pixels, std::vector<at::Tensor> embeddings, const at::Tensor& gradient) {
  if (sums_) sums_->clear();
  for (int64_t i = 0; i < micro_batches(); ++i) {
    if (sums_ || i == 0) gradients_.zero_();
    at::Tensor& part = embeddings[i];
    with_peers(*comm_, [&] {
      if (i > 0) part = backbone_->forward(images(pixels, i), Pass::recomputation);
      if (buckets_ && i + 1 == micro_batches()) buckets_->begin();
      part.backward(gradient.narrow(0, i * micro_batch(), micro_batch()));
    });
    part = at::Tensor();  // its activations are freed before the next ones are computed
    if (sums_) sums_->add(gradients_);
    stop_if_cancelled();
  }
}

// The only collectives for the backbone in a step, unless batch norms are joined or sums have no order; backward() has
// begun most of them. Sums the gradients over the ranks; averages running statistics over the pictures, so that rank
// 0's checkpoint is valid for every rank; and sets `votes` that are true on any rank.
void Session::sum_over_ranks(Votes& votes) {
  if (sums_) return sum_in_no_order(votes);
  // statistics_ is the sum over this rank's micro-batches, each of which has this share of the pictures.
  if (micro_batch() < options_.data.global_batch) {
    statistics_.mul_(static_cast<double>(micro_batch()) / static_cast<double>(options_.data.global_batch));
  }
  flags_.copy_(flags_of(votes));
  if (buckets_) with_peers(*comm_, [&] { buckets_->finish(); });
  votes = votes_of(flags_);
}

// The same in two collectives, with sums that do not depend on how the micro-batches are divided among the ranks. The
// statistics of each go to a row of their own, in which other ranks have zeros, and are summed row by row.
void Session::sum_in_no_order(Votes& votes) {
  const int64_t rows = options_.data.global_batch / micro_batch(), columns = statistics_.numel();
  const at::Tensor own = at::zeros({rows * columns + kFlags + 1}, statistics_.options());
  const at::Tensor statistics = own.narrow(0, 0, rows * columns).view({rows, columns});
  for (int64_t i = 0; i < micro_batches(); ++i)
    statistics[part_.first / micro_batch() + i].copy_(micro_statistics_[static_cast<size_t>(i)]);
  const at::Tensor flags = own.narrow(0, rows * columns, kFlags), overflows = own.narrow(0, own.numel() - 1, 1);
  flags.copy_(flags_of(votes));
  overflows.fill_(sums_->overflowed() ? 1 : 0);
  at::Tensor all = own;
  with_peers(*comm_, [&] {
    comm_->all_reduce_sum(all);
    comm_->all_reduce_sum(sums_->values());
  });
  votes = votes_of(flags);
  statistics_.copy_(statistics[0]);
  for (int64_t row = 1; row < rows; ++row) statistics_.add_(statistics[row]);
  statistics_.mul_(1.0 / static_cast<double>(rows));
  sums_->read(gradients_);
  if (overflows.item<float>() > 0) gradients_.fill_(NAN);
}

// L2 norm of the backbone's gradient, without the loss scale, the same on every rank.
double Session::gradient_norm() const {
  const double norm = at::linalg_vector_norm(gradients_, 2, std::nullopt, false, at::kDouble).item<double>();
  return loss_scale_ ? norm / loss_scale_->value : norm;
}

// Takes the loss scale from the gradient, scales it to clip_norm at most, like torch's clip_grad_norm_, and updates the
// weights like torch.optim.SGD, with weight decay on every parameter as in the reference (arcface_torch).
void Session::apply_sgd(double learning_rate, double norm) {
  const double clip = options_.clip_norm ? std::min(1.0, *options_.clip_norm / (norm + 1e-6)) : 1;
  const double factor = loss_scale_ ? clip / loss_scale_->value : clip;
  sgd_step(weights_, momentum_, gradients_, at::full({}, factor, momentum_.options().dtype(at::kDouble)),
           {static_cast<float>(learning_rate), static_cast<float>(options_.momentum),
            static_cast<float>(options_.weight_decay)});
}

void Session::stop_if_cancelled() const {
  if (cancelled_) throw Cancelled();
}

// The part of the state that is in flat buffers like weights_, momentum_ and statistics_, and the fixed tensors.
TrainedState Session::backbone_state(const at::Tensor& weights, const at::Tensor& momentum,
                                     const at::Tensor& statistics) const {
  TrainedState state;
  const auto& parameters = backbone_->parameters();
  const auto& buffers = backbone_->buffers();
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto& [name, tensor] = parameters[i];
    state.tensors.push_back({name, parameter_layout_.view(weights, i, tensor)});
    state.momentum.push_back({name, parameter_layout_.view(momentum, i, tensor)});
  }
  for (size_t i = 0; i < buffers.size(); ++i)
    state.tensors.push_back({buffers[i].name, buffer_layout_.view(statistics, i, buffers[i].tensor)});
  const auto& fixed = backbone_->fixed();
  state.tensors.insert(state.tensors.end(), fixed.begin(), fixed.end());
  return state;
}

TrainedState Session::state() {
  TrainedState state = backbone_state(weights_, momentum_, statistics_);
  for (const auto& [name, values] : centres_.row_tensors()) state.rows.push_back({name, values});
  // Steps may still be queued, and so may what row_tensors() has to do to the rows (dense updates). The state is read
  // on other streams than theirs.
  const at::Device device = options_.pfc.device;
  if (device.is_cuda()) at::accelerator::synchronizeDevice(device.index());
  return state;
}

std::optional<TrainedState> Session::copy_state(bool backbone, std::vector<Executor::Named> former) {
  const at::Device device = options_.pfc.device;
  // Rows that did not fit the device do not as a copy.
  const at::Device preferred = options_.pfc.host_rows ? at::kCPU : device;
  const std::vector<Executor::Named> rows = state().rows;
  uint64_t bytes = backbone ? weights_.nbytes() + momentum_.nbytes() + statistics_.nbytes() : 0;
  if (former.empty()) {
    for (const auto& named : rows) bytes += named.tensor.nbytes();
  }
  std::optional<uint64_t> device_free;
  if (device.is_cuda()) device_free = at::getDeviceAllocator(at::kCUDA)->getMemoryInfo(device.index()).first;
  const auto place = place_for_copy(bytes, preferred, device_free, available_memory());
  if (!place) return std::nullopt;

  const auto copy = [&](const at::Tensor& tensor) {
    return tensor.detach().to(*place, tensor.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  };
  try {
    TrainedState copied;
    if (backbone) copied = backbone_state(copy(weights_), copy(momentum_), copy(statistics_));
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto& [name, tensor] = rows[i];
      copied.rows.push_back({name, former.empty() ? copy(tensor) : former[i].tensor.copy_(tensor)});
    }
    if (device.is_cuda()) at::accelerator::synchronizeDevice(device.index());
    return copied;
  } catch (const std::exception& error) {
    if (memory_error(error)) return std::nullopt;
    throw;
  }
}

// What a rank keeps of what each step changes as a whole. The backbone's state is the same on every rank, so each of
// the first ranks keeps a part of it.
std::vector<at::Tensor> Session::kept_parts(int rank) const {
  const int keepers = std::min(comm_->size(), kMostKeepers);
  if (rank >= keepers) return {};
  std::vector<at::Tensor> parts;
  for (const at::Tensor& buffer : {weights_, momentum_, statistics_}) {
    const int64_t first = buffer.numel() * rank / keepers, end = buffer.numel() * (rank + 1) / keepers;
    parts.push_back(buffer.narrow(0, first, end - first));
  }
  // A checkpoint may have others than the graph.
  if (rank == 0) {
    for (const auto& [name, tensor] : backbone_->fixed()) parts.push_back(tensor.detach());
  }
  return parts;
}

std::vector<Session::KeptStep> Session::open_kept_steps(const std::string& path, const std::string& identity) {
  if (options_.pfc.dense_update) {
    throw Error("InvalidConfig", "checkpoint.inMemory", "with dense updates, which change all class centres",
                "rowUpdate Lazy");
  }
  KeptLayout layout{identity, centres_.rows().count, {}, {}};
  for (const auto& [name, values] : centres_.row_tensors())
    layout.row_bytes.push_back(values.size(1) * values.element_size());
  for (const at::Tensor& part : kept_parts(comm_->rank())) layout.parts.push_back(static_cast<int64_t>(part.nbytes()));
  layout.parts.push_back(sizeof(KeptScalars));
  kept_ = std::make_unique<KeptSteps>(path, std::move(layout));
  std::vector<KeptStep> found;
  for (const int64_t step : kept_->steps()) found.push_back({step, kept_->note(step)});
  return found;
}

void Session::keep_all(int64_t step, const std::string& note) {
  kept_->clear();
  const TrainedState all = state();
  for (size_t i = 0; i < all.rows.size(); ++i) view(kept_->rows(i), all.rows[i].tensor).copy_(all.rows[i].tensor);
  keep_parts(step, note);
}

void Session::keep(int64_t step, const std::string& note) {
  const SampledRows changed = rows_changed_ ? centres_.sampled_rows() : SampledRows{at::empty({0}, at::kLong), {}, {}};
  const int64_t* const rows = changed.rows.const_data_ptr<int64_t>();
  kept_->begin(step, {rows, static_cast<size_t>(changed.rows.numel())});
  for (size_t i = 0; i < changed.tensors.size(); ++i) {
    const int64_t bytes = changed.tensors[i].size(1) * changed.tensors[i].element_size();
    copy_rows(kept_->rows(i).data(), rows, static_cast<const uint8_t*>(changed.tensors[i].const_data_ptr()),
              changed.places.const_data_ptr<int64_t>(), changed.rows.numel(), bytes);
  }
  keep_parts(step, note);
}

void Session::keep_parts(int64_t step, const std::string& note) {
  const std::vector<at::Tensor> parts = kept_parts(comm_->rank());
  for (size_t i = 0; i < parts.size(); ++i) view(kept_->part(step, i), parts[i]).copy_(parts[i]);
  const KeptScalars scalars{centres_.norm_statistics(), loss_scale_.value_or(LossScale())};
  std::memcpy(kept_->part(step, parts.size()).data(), &scalars, sizeof scalars);
  kept_->commit(step, note);
}

void Session::recall(int64_t step) {
  kept_->rewind(step);
  const TrainedState all = state();
  for (size_t i = 0; i < all.rows.size(); ++i) all.rows[i].tensor.copy_(view(kept_->rows(i), all.rows[i].tensor));
  with_peers(*comm_, [&] {
    for (int rank = 0; rank < comm_->size(); ++rank) {
      std::vector<at::Tensor> parts = kept_parts(rank);
      for (size_t i = 0; i < parts.size(); ++i) {
        if (parts[i].numel() == 0) continue;
        if (rank == comm_->rank()) parts[i].copy_(view(kept_->part(step, i), parts[i]));
        comm_->broadcast(parts[i], rank);
      }
    }
  });
  KeptScalars scalars{};
  std::memcpy(&scalars, kept_->part(step, kept_parts(comm_->rank()).size()).data(), sizeof scalars);
  centres_.set_norm_statistics(scalars.norms);
  if (loss_scale_) loss_scale_ = scalars.loss_scale;
}

std::vector<std::vector<float>> Session::all_gather(const std::vector<float>& values) {
  const int size = comm_->size();
  const auto device = options_.pfc.device;
  return with_peers(*comm_, [&] {
    at::Tensor lengths = at::zeros({size}, at::TensorOptions(device).dtype(at::kLong));
    comm_->all_gather(lengths, at::tensor({static_cast<int64_t>(values.size())}, at::kLong).to(device));
    lengths = lengths.cpu();
    const int64_t* length = lengths.const_data_ptr<int64_t>();
    const int64_t longest = *std::max_element(length, length + size);
    std::vector<std::vector<float>> result(static_cast<size_t>(size));
    if (longest == 0) return result;
    at::Tensor padded = at::zeros({longest}, at::kFloat);
    std::copy(values.begin(), values.end(), padded.mutable_data_ptr<float>());
    at::Tensor all = at::zeros({size, longest}, at::TensorOptions(device).dtype(at::kFloat));
    comm_->all_gather(all, padded.to(device));
    all = all.cpu();
    for (int rank = 0; rank < size; ++rank) {
      const float* from = all.const_data_ptr<float>() + rank * longest;
      result[static_cast<size_t>(rank)].assign(from, from + length[rank]);
    }
    return result;
  });
}

void Session::barrier() {
  with_peers(*comm_, [&] { comm_->barrier(); });
}

std::unique_ptr<Session> open_session(const Graph& graph, const std::string& directory,
                                      const RendezvousOptions& rendezvous, const SessionOptions& options,
                                      const std::atomic<bool>& cancelled) {
  auto dataset = open_dataset(directory);
  if (graph.input.channels != 3 || dataset->height() != graph.input.height || dataset->width() != graph.input.width) {
    throw Error("InvalidDataset", directory + "/property",
                "pictures of " + std::to_string(dataset->height()) + " x " + std::to_string(dataset->width()) +
                    " with 3 channels",
                "the model's input is " + std::to_string(graph.input.height) + " x " +
                    std::to_string(graph.input.width) + " with " + std::to_string(graph.input.channels));
  }
  const at::Device device = options.pfc.device;
  auto backbone = make_executor(graph, device);
  SessionOptions resolved = options;
  // After the backbone is there, which has made the device ready.
  if (options.auto_host_rows && device.is_cuda()) {
    // All of the GPU's memory, as the estimate has all that a process takes there. Of the machine's what is left, and
    // before the ranks meet: until then none of them has allocated class centres.
    const auto [free, memory] = at::getDeviceAllocator(at::kCUDA)->getMemoryInfo(device.index());
    resolved.pfc.host_rows = rows_on_host(*options.auto_host_rows, memory, available_memory());
  }
  return std::make_unique<Session>(std::move(backbone), connect(rendezvous, device), std::move(dataset), resolved,
                                   cancelled);
}

}  // namespace facetrain
