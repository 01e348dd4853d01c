#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>

#include "pfc/cuda_kernels.h"

namespace facetrain::cuda {
namespace {

constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xffffffff;
constexpr float kShortest = 1e-12f;
constexpr int kWordsInBlock = kThreads;  // of the sample: a word for each thread

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}
void check_launch() { check(cudaGetLastError()); }

unsigned blocks_for(int64_t items, int64_t in_block) {
  return static_cast<unsigned>(items == 0 ? 0 : (items + in_block - 1) / in_block);
}

// Calls function(T*) for the pointer's type.
template <class Function>
void with_type(Number type, Function function) {
  switch (type) {
    case Number::float32:
      return function(static_cast<float*>(nullptr));
    case Number::bfloat16:
      return function(static_cast<__nv_bfloat16*>(nullptr));
    case Number::float16:
      return function(static_cast<__half*>(nullptr));
  }
}

// Rows and their gradients are never float16.
template <class Function>
void with_row_type(Number type, Function function) {
  if (type == Number::bfloat16) return function(static_cast<__nv_bfloat16*>(nullptr));
  return function(static_cast<float*>(nullptr));
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void from_float(float x, float& to) { to = x; }
__device__ inline void from_float(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ inline void from_float(float x, __half& to) { to = __float2half_rn(x); }

template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T values[kWidth];
};

template <int kWidth, class T>
__device__ inline void load(const T* from, float* to) {
  const auto vector = *reinterpret_cast<const Vector<T, kWidth>*>(from);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) to[j] = to_float(vector.values[j]);
}

template <int kWidth, class T>
__device__ inline void store(const float* from, T* to) {
  Vector<T, kWidth> vector;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) from_float(from[j], vector.values[j]);
  *reinterpret_cast<Vector<T, kWidth>*>(to) = vector;
}

__device__ inline float sum_of_warp(float x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAll, x, distance);
  return x;
}
__device__ inline double sum_of_warp(double x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAll, x, distance);
  return x;
}
__device__ inline float largest_of_warp(float x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, distance));
  return x;
}

// A row of d numbers in the registers of a warp: kParts times kWidth consecutive numbers in each lane.
template <int kParts, int kWidth>
struct WarpRow {
  float values[kParts * kWidth];

  template <class T>
  __device__ void load_from(const T* from, int d) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int i = index(part);
      if (i < d) {
        load<kWidth>(from + i, values + part * kWidth);
      } else {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) values[part * kWidth + j] = 0;
      }
    }
  }
  template <class T>
  __device__ void store_to(T* to, int d) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int i = index(part);
      if (i < d) store<kWidth>(values + part * kWidth, to + i);
    }
  }
  __device__ float dot(const WarpRow& other) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kParts * kWidth; ++i) sum += values[i] * other.values[i];
    return sum_of_warp(sum);
  }
  __device__ void multiply(float factor) {
#pragma unroll
    for (int i = 0; i < kParts * kWidth; ++i) values[i] *= factor;
  }
  // The place in the row of a part's first number.
  __device__ static int index(int part) { return (part * kWarp + static_cast<int>(threadIdx.x % kWarp)) * kWidth; }
};

// Calls function(WarpRow) with a row that holds d numbers.
template <class Function>
void with_warp_row(int64_t d, Function function) {
  if (d % 4 == 0) {
    if (d <= 128) return function(WarpRow<1, 4>{});
    if (d <= 256) return function(WarpRow<2, 4>{});
    if (d <= 512) return function(WarpRow<4, 4>{});
    if (d <= 1024) return function(WarpRow<8, 4>{});
    if (d <= 4096) return function(WarpRow<32, 4>{});
  } else {
    if (d <= 32) return function(WarpRow<1, 1>{});
    if (d <= 512) return function(WarpRow<16, 1>{});
    if (d <= 4096) return function(WarpRow<128, 1>{});
  }
  throw std::invalid_argument("embeddings of " + std::to_string(d) + " numbers; at most 4096");
}

// The row that this warp works on.
__device__ inline int64_t row_of_warp() { return int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; }
__device__ inline bool first_lane() { return threadIdx.x % kWarp == 0; }

__device__ inline float inverse_norm(float squares) {
  const float norm = sqrtf(squares);
  return norm < kShortest ? 0.f : 1.f / norm;
}

// ---- initial rows ----

template <class T>
__global__ void initialize_rows_kernel(T* rows, int64_t count, int64_t d, uint64_t seed, int64_t first) {
  const int64_t row = blockIdx.x;
  const int64_t pairs = (d + 1) / 2;
  for (int64_t pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
    const Pair values = initial_pair(seed, first + row, pair);
    from_float(values.first, rows[row * d + 2 * pair]);
    if (2 * pair + 1 < d) from_float(values.second, rows[row * d + 2 * pair + 1]);
  }
}

// ---- features ----

template <class Row>
__global__ void pack_features_kernel(const float* x, const int64_t* labels, int64_t b, int d, float* packed,
                                     float* inverse_norms) {
  const int64_t i = row_of_warp();
  if (i >= b) return;
  Row row;
  row.load_from(x + i * d, d);
  const float squares = row.dot(row), inverse = inverse_norm(squares);
  row.multiply(inverse);
  float* const to = packed + i * packed_floats(d);
  row.store_to(to, d);  // packed_floats keeps rows as aligned as the dimension lets them be
  if (first_lane()) {
    inverse_norms[i] = inverse;
    memcpy(to + d, labels + i, sizeof(int64_t));
    to[d + 2] = sqrtf(squares);
  }
}

__device__ inline int64_t label_of(const float* packed, int64_t i, int64_t d) {
  int64_t label;
  memcpy(&label, packed + i * packed_floats(d) + d, sizeof label);
  return label;
}

template <class T>
__global__ void scale_features_kernel(const float* packed, const float* factors, int64_t b, int64_t d, T* out) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= b * d) return;
  const int64_t i = at / d, k = at % d;
  const float value = packed[i * packed_floats(d) + k];
  from_float(factors ? factors[i] * value : value, out[at]);
}

// ---- sample ----

__global__ void sample_negatives_kernel(ClassSample sample, int64_t first, int64_t count, int64_t word_count,
                                        uint32_t* words) {
  const int64_t word = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (word < word_count) words[word] = sample.word(word, first, count);
}

__global__ void mark_positives_kernel(const float* packed, int64_t b, int64_t d, int64_t first, int64_t count,
                                      uint32_t* words) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= b) return;
  const int64_t row = label_of(packed, i, d) - first;
  if (row >= 0 && row < count) atomicOr(words + row / 32, 1u << (row % 32));
}

// The sum over the block of `value`, in every thread. Uses `shared` [kWarps].
__device__ int sum_of_block(int value, int* shared) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAll, value, distance);
  if (first_lane()) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  int sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp];
  __syncthreads();
  return sum;
}

// The sum of `value` over the threads before this one. Uses `shared` [kWarps].
__device__ int sum_before(int value, int* shared) {
  int inclusive = value;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_up_sync(kAll, inclusive, distance);
    if (static_cast<int>(threadIdx.x % kWarp) >= distance) inclusive += other;
  }
  if (threadIdx.x % kWarp == kWarp - 1) shared[threadIdx.x / kWarp] = inclusive;
  __syncthreads();
  int before = inclusive - value;
  for (int warp = 0; warp < static_cast<int>(threadIdx.x / kWarp); ++warp) before += shared[warp];
  __syncthreads();
  return before;
}

__global__ void count_blocks_kernel(const uint32_t* words, int64_t word_count, int32_t* counts) {
  __shared__ int shared[kWarps];
  const int64_t word = int64_t{blockIdx.x} * kWordsInBlock + threadIdx.x;
  const int sum = sum_of_block(word < word_count ? __popc(words[word]) : 0, shared);
  if (threadIdx.x == 0) counts[blockIdx.x] = sum;
}

// One block: replaces the counts by the sums of those before.
__global__ void scan_blocks_kernel(int32_t* counts, int64_t blocks, int32_t* total) {
  __shared__ int shared[kWarps];
  int offset = 0;
  for (int64_t begin = 0; begin < blocks; begin += kThreads) {
    const int64_t block = begin + threadIdx.x;
    const int value = block < blocks ? counts[block] : 0;
    const int before = sum_before(value, shared), sum = sum_of_block(value, shared);
    if (block < blocks) counts[block] = offset + before;
    offset += sum;
  }
  if (threadIdx.x == 0) *total = offset;
}

__global__ void list_sample_kernel(const uint32_t* words, int64_t word_count, const int32_t* offsets, int64_t* sampled,
                                   int32_t* word_offsets) {
  __shared__ int shared[kWarps];
  const int64_t word = int64_t{blockIdx.x} * kWordsInBlock + threadIdx.x;
  uint32_t bits = word < word_count ? words[word] : 0;
  int to = offsets[blockIdx.x] + sum_before(__popc(bits), shared);
  if (word >= word_count) return;
  word_offsets[word] = to;
  for (; bits != 0; bits &= bits - 1) sampled[to++] = 32 * word + __ffs(static_cast<int>(bits)) - 1;
}

// ---- rows ----

// The row at a position of the sample, or -1 beyond it.
__device__ inline int64_t row_at(const Sampled& sampled, int64_t position) {
  if (position >= *sampled.count) return -1;
  return sampled.rows ? sampled.rows[position] : position;
}

template <class Row, class T, class Unit>
__global__ void gather_unit_rows_kernel(const T* rows, Sampled sampled, int d, Unit* unit, float* inverse_norms) {
  const int64_t position = row_of_warp();
  if (position >= sampled.capacity) return;
  const int64_t from = row_at(sampled, position);
  Row row;
  row.load_from(rows + (from < 0 ? 0 : from) * d, from < 0 ? 0 : d);
  const float inverse = inverse_norm(row.dot(row));
  row.multiply(inverse);
  row.store_to(unit + position * d, d);
  if (first_lane()) inverse_norms[position] = inverse;
}

__device__ inline double norm_of(const float* packed, int64_t i, int64_t d) {
  return packed[i * packed_floats(d) + d + 2];
}

constexpr int kNormThreads = 256;

// The sum over the block of `value`, in every thread and in a fixed order. Uses `shared` [kNormThreads].
__device__ double sum_of_norms(double value, double* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int half = kNormThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  const double sum = shared[0];
  __syncthreads();
  return sum;
}

// One block.
__global__ void follow_norms_kernel(const float* packed, int64_t b, int64_t d, NormStatistics* statistics) {
  __shared__ double shared[kNormThreads];
  double sum = 0, squares = 0;
  for (int64_t i = threadIdx.x; i < b; i += kNormThreads) sum += clamp_norm(norm_of(packed, i, d));
  const double mean = sum_of_norms(sum, shared) / static_cast<double>(b);
  for (int64_t i = threadIdx.x; i < b; i += kNormThreads) {
    const double difference = clamp_norm(norm_of(packed, i, d)) - mean;
    squares += difference * difference;
  }
  squares = sum_of_norms(squares, shared);
  if (threadIdx.x == 0) *statistics = next_statistics(*statistics, mean, squares, b);
}

template <class T>
__global__ void find_targets_kernel(const float* packed, int64_t b, int64_t d, const T* rows, int64_t first,
                                    int64_t count, const uint32_t* words, const int32_t* word_offsets, Margin margin,
                                    const NormStatistics* statistics, double scale, Targets targets) {
  const int64_t i = row_of_warp();
  if (i >= b) return;
  const int64_t row = label_of(packed, i, d) - first;
  if (row < 0 || row >= count) {
    if (first_lane()) {
      targets.columns[i] = -1;
      targets.logits[i] = targets.slopes[i] = 0;
    }
    return;
  }
  const float* const feature = packed + i * packed_floats(d);
  double dot = 0, squares = 0;
  for (int64_t k = threadIdx.x % kWarp; k < d; k += kWarp) {
    const double w = to_float(rows[row * d + k]);
    dot += feature[k] * w;
    squares += w * w;
  }
  dot = sum_of_warp(dot);
  const double norm = sqrt(sum_of_warp(squares));
  if (!first_lane()) return;
  const double quality = statistics ? quality_of(norm_of(packed, i, d), *statistics, margin.h) : 0;
  const auto target = apply_margin<double>(margin, norm < kShortest ? 0 : dot / norm, quality);
  targets.logits[i] = scale * target.value;
  targets.slopes[i] = target.slope;
  targets.columns[i] =
      words ? word_offsets[row / 32] + __popc(words[row / 32] & ((1u << (row % 32)) - 1)) : static_cast<int32_t>(row);
}

// ---- tiles ----

constexpr int kColumns = 4;                                // that a thread loads at once
constexpr int kSteps = kTileStep / (kThreads * kColumns);  // loads of a thread
constexpr float kNoLogit = -1e30f;

enum Cell { kOrdinary, kFiltered, kAbsent };

__device__ inline Cell cell_of(const Tile& tile, int64_t column, float cosine, int64_t target, int64_t count) {
  if (column == target || column >= count) return kAbsent;
  return cosine > tile.filter ? kFiltered : kOrdinary;
}

__device__ float sum_of_block(float value, float* shared) {
  value = sum_of_warp(value);
  if (first_lane()) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp];
  return sum;
}

// Block (i, k): picture i and columns [k kTileStep, (k + 1) kTileStep) of the tile.
template <class T>
__global__ void exponentials_kernel(Tile tile, const float* shifts, T* out, int64_t stride, double* sums) {
  __shared__ float shared[kWarps];
  const int64_t i = blockIdx.x, target = tile.targets[i], count = *tile.sampled_count;
  const float shift = shifts ? shifts[i] : 0.f;
  float sum = 0;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int64_t column = int64_t{blockIdx.y} * kTileStep + (step * kThreads + threadIdx.x) * kColumns;
    if (column >= tile.t) break;
    float values[kColumns];
    load<kColumns>(tile.cosines + i * tile.t + column, values);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const Cell cell = cell_of(tile, tile.first + column + j, values[j], target, count);
      const float exponential = expf((cell == kFiltered ? 0.f : tile.scale * values[j]) - shift);
      if (cell != kAbsent) sum += exponential;
      values[j] = cell == kOrdinary ? exponential : 0.f;
    }
    store<kColumns>(values, out + i * stride + column);
  }
  if (!sums) return;
  sum = sum_of_block(sum, shared);
  if (threadIdx.x == 0) sums[(tile.first / kTileStep + blockIdx.y) * tile.b + i] = sum;
}

__global__ void sum_exponentials_kernel(Tile tile, double* sums) {
  __shared__ float shared_largest[kWarps], shared[kWarps];
  const int64_t i = blockIdx.x, target = tile.targets[i], count = *tile.sampled_count;
  float logits[kSteps * kColumns];
  float largest = kNoLogit;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int64_t column = int64_t{blockIdx.y} * kTileStep + (step * kThreads + threadIdx.x) * kColumns;
    float values[kColumns] = {};
    if (column < tile.t) load<kColumns>(tile.cosines + i * tile.t + column, values);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const Cell cell = column < tile.t ? cell_of(tile, tile.first + column + j, values[j], target, count) : kAbsent;
      const float logit = cell == kAbsent ? kNoLogit : cell == kFiltered ? 0.f : tile.scale * values[j];
      logits[step * kColumns + j] = logit;
      largest = fmaxf(largest, logit);
    }
  }
  largest = largest_of_warp(largest);
  if (first_lane()) shared_largest[threadIdx.x / kWarp] = largest;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) largest = fmaxf(largest, shared_largest[warp]);
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kSteps * kColumns; ++k) sum += logits[k] == kNoLogit ? 0.f : expf(logits[k] - largest);
  sum = sum_of_block(sum, shared);
  if (threadIdx.x == 0) {
    sums[(tile.first / kTileStep + blockIdx.y) * tile.b + i] =
        largest == kNoLogit ? 0 : sum * exp(static_cast<double>(largest));
  }
}

// Block of 32 pictures by 32 parts of the column blocks.
__global__ void finish_sums_kernel(const double* sums, int64_t blocks, int64_t b, Targets targets, double* z,
                                   double* target) {
  __shared__ double parts[kWarp][kWarp + 1];
  const int64_t i = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  double sum = 0;
  if (i < b)
    for (int64_t block = threadIdx.y; block < blocks; block += kWarp) sum += sums[block * b + i];
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= b) return;
  sum = 0;
  for (int part = 0; part < kWarp; ++part) sum += parts[part][threadIdx.x];
  z[i] = targets.columns[i] < 0 ? sum : sum + exp(targets.logits[i]);
  target[i] = targets.logits[i];
}

constexpr int kLossThreads = 1024;

// One block.
__global__ void coefficients_kernel(const double* z, const double* target, const float* packed, int64_t b, int64_t d,
                                    int64_t num_classes, double scale, bool relative, double unit, Targets targets,
                                    Coefficients out, double* loss) {
  __shared__ double shared[kLossThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < b; i += kLossThreads) {
    const double log_z = log(z[i]);
    out.factors[i] = static_cast<float>(relative ? scale / b / z[i] : scale / b / unit);
    out.shifts[i] = static_cast<float>(log_z - log(unit));
    out.target_gradients[i] =
        targets.columns[i] < 0 ? 0.f
                               : static_cast<float>(scale / b * expm1(targets.logits[i] - log_z) * targets.slopes[i]);
    const int64_t label = label_of(packed, i, d);
    sum += label < 0 || label >= num_classes ? nan("") : log_z - target[i];
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kLossThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) *loss = shared[0] / b;
}

// ---- gradients ----

// Block i: the row of picture i's class, if no picture before i has the same.
template <class T>
__global__ void add_target_gradients_kernel(const float* packed, int64_t b, int64_t d, Targets targets,
                                            const float* target_gradients, float factor, T* gradient) {
  __shared__ uint32_t same[kWarps];
  const int64_t i = blockIdx.x;
  const int32_t column = targets.columns[i];
  if (column < 0) return;
  bool earlier = false;
  for (int64_t j = threadIdx.x; j < i; j += kThreads) earlier |= targets.columns[j] == column;
  if (__syncthreads_or(earlier)) return;
  for (int64_t begin = i; begin < b; begin += kThreads) {
    const int64_t mine = begin + threadIdx.x;
    const uint32_t bits = __ballot_sync(kAll, mine < b && targets.columns[mine] == column);
    if (first_lane()) same[threadIdx.x / kWarp] = bits;
    __syncthreads();
    for (int warp = 0; warp < kWarps; ++warp) {
      for (uint32_t rest = same[warp]; rest != 0; rest &= rest - 1) {
        const int64_t j = begin + warp * kWarp + __ffs(static_cast<int>(rest)) - 1;
        const float scaled = factor * target_gradients[j];
        for (int64_t k = threadIdx.x; k < d; k += kThreads) {
          T& to = gradient[column * d + k];
          from_float(to_float(to) + scaled * packed[j * packed_floats(d) + k], to);
        }
      }
    }
    __syncthreads();
  }
}

template <class T>
__global__ void feature_gradients_kernel(const float* sums, const float* factors, const float* target_gradients,
                                         int64_t d, Targets targets, const T* rows, Sampled sampled,
                                         const float* inverse_norms, float* out) {
  const int64_t i = blockIdx.x;
  const int32_t column = targets.columns[i];
  const float of_row = column < 0 ? 0.f : target_gradients[i] * inverse_norms[column];
  const T* const row = column < 0 ? nullptr : rows + row_at(sampled, column) * d;
  for (int64_t k = threadIdx.x; k < d; k += blockDim.x) {
    float value = factors[i] * sums[i * d + k];
    if (row) value += of_row * to_float(row[k]);
    out[i * d + k] = value;
  }
}

template <class Row>
__global__ void unnormalize_gradients_kernel(const float* x, const float* inverse_norms, int64_t b, int d,
                                             float* gradients) {
  const int64_t i = row_of_warp();
  if (i >= b) return;
  const float inverse = inverse_norms[i];
  Row row, gradient;
  row.load_from(x + i * d, d);
  gradient.load_from(gradients + i * d, d);
  row.multiply(inverse);
  const float radial = row.dot(gradient);
#pragma unroll
  for (int k = 0; k < static_cast<int>(sizeof(row.values) / sizeof(float)); ++k)
    gradient.values[k] = (gradient.values[k] - radial * row.values[k]) * inverse;
  gradient.store_to(gradients + i * d, d);
}

// Replaces the gradient with respect to w / |w| by the one with respect to w.
template <class Row>
__device__ void unnormalize(Row& gradient, const Row& weight, float inverse, float unit) {
  gradient.multiply(unit);
  const float radial = weight.dot(gradient) * inverse * inverse;
#pragma unroll
  for (int k = 0; k < static_cast<int>(sizeof(weight.values) / sizeof(float)); ++k)
    gradient.values[k] = (gradient.values[k] - radial * weight.values[k]) * inverse;
}

template <class Row, class T, class G>
__global__ void row_gradients_kernel(const T* rows, Sampled sampled, int d, const G* gradients,
                                     const float* inverse_norms, float unit, float* out) {
  const int64_t position = row_of_warp();
  if (position >= sampled.capacity) return;
  const int64_t from = row_at(sampled, position);
  if (from < 0) return;
  Row weight, gradient;
  weight.load_from(rows + from * d, d);
  gradient.load_from(gradients + position * d, d);
  unnormalize(gradient, weight, inverse_norms[position], unit);
  gradient.store_to(out + position * d, d);
}

// Stores weight and velocity, and sets the former to what was stored. `key`: of the random bits.
template <int kParts, int kWidth>
__device__ void store_rounded(WarpRow<kParts, kWidth>& weight, const WarpRow<kParts, kWidth>& velocity, float* w,
                              float* m, int d, uint64_t) {
  weight.store_to(w, d);
  velocity.store_to(m, d);
}

template <int kParts, int kWidth>
__device__ void store_rounded(WarpRow<kParts, kWidth>& weight, const WarpRow<kParts, kWidth>& velocity,
                              __nv_bfloat16* w, __nv_bfloat16* m, int d, uint64_t key) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int i = WarpRow<kParts, kWidth>::index(part);
    if (i >= d) continue;
    Vector<uint16_t, kWidth> weights, velocities;
    uint64_t bits = 0;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (j % 2 == 0) bits = rounding_bits(key, (i + j) / 2);
      const int shift = (i + j) % 2 * 16;
      float& number = weight.values[part * kWidth + j];
      weights.values[j] = round_stochastically(number, static_cast<uint16_t>(bits >> shift));
      velocities.values[j] =
          round_stochastically(velocity.values[part * kWidth + j], static_cast<uint16_t>(bits >> (32 + shift)));
      number = __uint_as_float(uint32_t{weights.values[j]} << 16);
    }
    *reinterpret_cast<Vector<uint16_t, kWidth>*>(w + i) = weights;
    *reinterpret_cast<Vector<uint16_t, kWidth>*>(m + i) = velocities;
  }
}

template <class Row, class T, class G, class Unit>
__global__ void update_rows_kernel(T* rows, T* momentum, Sampled sampled, int d, const G* gradients,
                                   const float* inverse_norms, float unit, RowSgd sgd, const float* skip, uint64_t seed,
                                   uint64_t step, int64_t first, Unit* next, float* next_inverse_norms) {
  const int64_t position = row_of_warp();
  if (position >= sampled.capacity || (skip && *skip != 0)) return;
  const int64_t row = row_at(sampled, position);
  if (row < 0) return;
  Row weight, gradient, velocity;
  weight.load_from(rows + row * d, d);
  gradient.load_from(gradients + position * d, d);
  velocity.load_from(momentum + row * d, d);
  unnormalize(gradient, weight, inverse_norms[position], unit);
#pragma unroll
  for (int k = 0; k < static_cast<int>(sizeof(weight.values) / sizeof(float)); ++k)
    sgd.apply(weight.values[k], velocity.values[k], gradient.values[k]);
  store_rounded(weight, velocity, rows + row * d, momentum + row * d, d, rounding_key(seed, step, first + row));
  if (!next) return;
  const float inverse = inverse_norm(weight.dot(weight));
  weight.multiply(inverse);
  weight.store_to(next + position * d, d);
  if (first_lane()) next_inverse_norms[position] = inverse;
}

// Stores a row, and sets it to what was stored. `key`: of the random bits, of which the first are for this row.
template <int kParts, int kWidth>
__device__ void store_row(WarpRow<kParts, kWidth>& row, float* to, int d, uint64_t) {
  row.store_to(to, d);
}

template <int kParts, int kWidth>
__device__ void store_row(WarpRow<kParts, kWidth>& row, __nv_bfloat16* to, int d, uint64_t key) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int i = WarpRow<kParts, kWidth>::index(part);
    if (i >= d) continue;
    Vector<uint16_t, kWidth> rounded;
    uint64_t bits = 0;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (j % 2 == 0) bits = rounding_bits(key, (i + j) / 2);
      float& number = row.values[part * kWidth + j];
      rounded.values[j] = round_stochastically(number, static_cast<uint16_t>(bits >> ((i + j) % 2 * 16)));
      number = __uint_as_float(uint32_t{rounded.values[j]} << 16);
    }
    *reinterpret_cast<Vector<uint16_t, kWidth>*>(to + i) = rounded;
  }
}

// What one lane reads for the warp, whose first lane may replace it afterwards.
template <class T>
__device__ T read_for_warp(const T* from) {
  return __shfl_sync(kAll, first_lane() ? *from : T{}, 0);
}

// Loads a sampled row and the gradient with respect to it.
template <class Row, class T, class G>
__device__ void load_sampled(const RowUpdate& update, int64_t position, const T* row, const G* gradients, Row& weight,
                             Row& gradient) {
  const int d = static_cast<int>(update.d);
  weight.load_from(row, d);
  gradient.load_from(gradients + position * d, d);
  unnormalize(gradient, weight, update.gradient.inverse_norms[position], update.gradient.unit);
}

template <class Row, class T, class G>
__global__ void update_adamw_kernel(T* rows, T* first_moments, T* second_moments, float* updates, RowRates rates,
                                    RowUpdate update, const G* gradients) {
  const int64_t position = row_of_warp();
  if (position >= update.sampled.capacity || (update.skip && *update.skip != 0)) return;
  const int64_t row = row_at(update.sampled, position);
  if (row < 0) return;
  const int d = static_cast<int>(update.d);
  Row weight, gradient, first_moment, second_moment;
  load_sampled(update, position, rows + row * d, gradients, weight, gradient);
  first_moment.load_from(first_moments + row * d, d);
  second_moment.load_from(second_moments + row * d, d);
  const float count = read_for_warp(updates + row) + 1;
  const RowAdamW adamw = RowAdamW::of(rates, count);
#pragma unroll
  for (int k = 0; k < static_cast<int>(sizeof(weight.values) / sizeof(float)); ++k)
    adamw.apply(weight.values[k], first_moment.values[k], second_moment.values[k], gradient.values[k]);
  const int64_t class_id = update.first + row;
  store_rounded(weight, first_moment, rows + row * d, first_moments + row * d, d,
                rounding_key(update.seed, update.step, class_id));
  store_row(second_moment, second_moments + row * d, d,
            rounding_key(update.seed, update.step, class_id, kMomentsStream));
  if (first_lane()) updates[row] = count;
}

template <class Row, class T, class G>
__global__ void update_adagrad_kernel(T* rows, float* squares, RowRates rates, RowUpdate update, const G* gradients) {
  const int64_t position = row_of_warp();
  if (position >= update.sampled.capacity || (update.skip && *update.skip != 0)) return;
  const int64_t row = row_at(update.sampled, position);
  if (row < 0) return;
  const int d = static_cast<int>(update.d);
  Row weight, gradient;
  load_sampled(update, position, rows + row * d, gradients, weight, gradient);
  const float sum = read_for_warp(squares + row) + gradient.dot(gradient) / static_cast<float>(d);
  const RowAdaGrad adagrad = RowAdaGrad::of(rates, sum);
#pragma unroll
  for (int k = 0; k < static_cast<int>(sizeof(weight.values) / sizeof(float)); ++k)
    adagrad.apply(weight.values[k], gradient.values[k]);
  store_row(weight, rows + row * d, d, rounding_key(update.seed, update.step, update.first + row));
  if (first_lane()) squares[row] = sum;
}

__global__ void add_update_kernel(PendingUpdates update, const PendingUpdates* last, int64_t limit, const float* skip,
                                  PendingUpdates* next, int32_t* count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i > limit) return;
  const bool skipped = skip && *skip != 0;
  if (skipped) {
    next[i] = last[i];
  } else {
    next[i + 1] = update.after(last[i]);
  }
  if (i == 0 && !skipped) {
    next[0] = PendingUpdates();
    ++*count;
  }
}

template <class Row, class T>
__global__ void catch_up_kernel(T* rows, T* momentum, Sampled sampled, int d, MissedUpdates missed, uint64_t seed,
                                uint64_t step, int64_t first) {
  const int64_t position = row_of_warp();
  if (position >= sampled.capacity) return;
  const int64_t row = row_at(sampled, position);
  if (row < 0) return;
  const int32_t count = *missed.count, behind = count - read_for_warp(missed.seen + row);
  if (behind == 0) return;
  const PendingUpdates updates = missed.last[behind];
  const uint64_t key = rounding_key(seed, step, first + row, kPendingStream);
  Row weight;
  weight.load_from(rows + row * d, d);
  if (momentum) {
    Row velocity;
    velocity.load_from(momentum + row * d, d);
#pragma unroll
    for (int k = 0; k < static_cast<int>(sizeof(weight.values) / sizeof(float)); ++k)
      updates.apply(weight.values[k], velocity.values[k]);
    store_rounded(weight, velocity, rows + row * d, momentum + row * d, d, key);
  } else {
#pragma unroll
    for (int k = 0; k < static_cast<int>(sizeof(weight.values) / sizeof(float)); ++k) updates.apply(weight.values[k]);
    store_row(weight, rows + row * d, d, key);
  }
  if (first_lane()) missed.seen[row] = count;
}

__global__ void mark_up_to_date_kernel(Sampled sampled, MissedUpdates missed, const float* skip) {
  const int64_t position = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (position >= sampled.capacity || (skip && *skip != 0)) return;
  const int64_t row = row_at(sampled, position);
  if (row >= 0) missed.seen[row] = *missed.count;
}

}  // namespace

void initialize_rows(Numbers rows, int64_t count, int64_t d, uint64_t seed, int64_t first, cudaStream_t stream) {
  if (count == 0) return;
  with_row_type(rows.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    initialize_rows_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(static_cast<T*>(rows.data), count, d,
                                                                                  seed, first);
  });
  check_launch();
}

void pack_features(const float* x, const int64_t* labels, int64_t b, int64_t d, float* packed, float* inverse_norms,
                   cudaStream_t stream) {
  with_warp_row(d, [&](auto row) {
    pack_features_kernel<decltype(row)>
        <<<blocks_for(b, kWarps), kThreads, 0, stream>>>(x, labels, b, static_cast<int>(d), packed, inverse_norms);
  });
  check_launch();
}

void scale_features(const float* packed, const float* factors, int64_t b, int64_t d, Numbers out, cudaStream_t stream) {
  with_type(out.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    scale_features_kernel<<<blocks_for(b * d, kThreads), kThreads, 0, stream>>>(packed, factors, b, d,
                                                                                static_cast<T*>(out.data));
  });
  check_launch();
}

static int64_t sample_words(int64_t count) { return (count + 31) / 32; }

int64_t sample_blocks(int64_t count) { return blocks_for(sample_words(count), kWordsInBlock); }

void sample_negatives(const ClassSample& sample, int64_t first, int64_t count, uint32_t* words, cudaStream_t stream) {
  if (count == 0) return;
  sample_negatives_kernel<<<blocks_for(sample_words(count), kThreads), kThreads, 0, stream>>>(
      sample, first, count, sample_words(count), words);
  check_launch();
}

void mark_positives(const float* packed, int64_t b, int64_t d, int64_t first, int64_t count, uint32_t* words,
                    cudaStream_t stream) {
  mark_positives_kernel<<<blocks_for(b, kThreads), kThreads, 0, stream>>>(packed, b, d, first, count, words);
  check_launch();
}

void count_sample(const uint32_t* words, int64_t count, int32_t* offsets, int32_t* total, cudaStream_t stream) {
  if (count > 0) {
    count_blocks_kernel<<<static_cast<unsigned>(sample_blocks(count)), kWordsInBlock, 0, stream>>>(
        words, sample_words(count), offsets);
    check_launch();
  }
  scan_blocks_kernel<<<1, kThreads, 0, stream>>>(offsets, sample_blocks(count), total);
  check_launch();
}

void list_sample(const uint32_t* words, int64_t count, const int32_t* offsets, int64_t* sampled, int32_t* word_offsets,
                 cudaStream_t stream) {
  if (count == 0) return;
  list_sample_kernel<<<static_cast<unsigned>(sample_blocks(count)), kWordsInBlock, 0, stream>>>(
      words, sample_words(count), offsets, sampled, word_offsets);
  check_launch();
}

void gather_unit_rows(Numbers rows, Sampled sampled, int64_t d, Numbers unit, float* inverse_norms,
                      cudaStream_t stream) {
  if (sampled.capacity == 0) return;
  with_warp_row(d, [&](auto row) {
    with_row_type(rows.type, [&](auto* row_type) {
      with_type(unit.type, [&](auto* unit_type) {
        using T = std::remove_pointer_t<decltype(row_type)>;
        using Unit = std::remove_pointer_t<decltype(unit_type)>;
        gather_unit_rows_kernel<decltype(row)><<<blocks_for(sampled.capacity, kWarps), kThreads, 0, stream>>>(
            static_cast<const T*>(rows.data), sampled, static_cast<int>(d), static_cast<Unit*>(unit.data),
            inverse_norms);
      });
    });
  });
  check_launch();
}

void follow_norms(const float* packed, int64_t b, int64_t d, NormStatistics* statistics, cudaStream_t stream) {
  follow_norms_kernel<<<1, kNormThreads, 0, stream>>>(packed, b, d, statistics);
  check_launch();
}

void find_targets(const float* packed, int64_t b, int64_t d, Numbers rows, int64_t first, int64_t count,
                  const uint32_t* words, const int32_t* word_offsets, const Margin& margin,
                  const NormStatistics* statistics, double scale, Targets targets, cudaStream_t stream) {
  with_row_type(rows.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    find_targets_kernel<<<blocks_for(b, kWarps), kThreads, 0, stream>>>(packed, b, d, static_cast<const T*>(rows.data),
                                                                        first, count, words, word_offsets, margin,
                                                                        statistics, scale, targets);
  });
  check_launch();
}

static dim3 tile_blocks(const Tile& tile) { return {static_cast<unsigned>(tile.b), blocks_for(tile.t, kTileStep), 1}; }

void exponentials(const Tile& tile, const float* shift, Numbers out, int64_t stride, double* sums,
                  cudaStream_t stream) {
  with_type(out.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    exponentials_kernel<<<tile_blocks(tile), kThreads, 0, stream>>>(tile, shift, static_cast<T*>(out.data), stride,
                                                                    sums);
  });
  check_launch();
}

void sum_exponentials(const Tile& tile, double* sums, cudaStream_t stream) {
  sum_exponentials_kernel<<<tile_blocks(tile), kThreads, 0, stream>>>(tile, sums);
  check_launch();
}

void finish_sums(const double* sums, int64_t blocks, int64_t b, Targets targets, double* z, double* target,
                 cudaStream_t stream) {
  finish_sums_kernel<<<blocks_for(b, kWarp), dim3(kWarp, kWarp), 0, stream>>>(sums, blocks, b, targets, z, target);
  check_launch();
}

void coefficients(const double* z, const double* target, const float* packed, int64_t b, int64_t d, int64_t num_classes,
                  double scale, bool relative, double unit, Targets targets, Coefficients out, double* loss,
                  cudaStream_t stream) {
  coefficients_kernel<<<1, kLossThreads, 0, stream>>>(z, target, packed, b, d, num_classes, scale, relative, unit,
                                                      targets, out, loss);
  check_launch();
}

void add_target_gradients(const float* packed, int64_t b, int64_t d, Targets targets, const float* target_gradients,
                          double unit, Numbers gradient, cudaStream_t stream) {
  with_row_type(gradient.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    add_target_gradients_kernel<<<static_cast<unsigned>(b), kThreads, 0, stream>>>(
        packed, b, d, targets, target_gradients, static_cast<float>(1 / unit), static_cast<T*>(gradient.data));
  });
  check_launch();
}

void feature_gradients(const float* sums, const float* factors, const float* target_gradients, int64_t b, int64_t d,
                       Targets targets, Numbers rows, Sampled sampled, const float* inverse_norms, float* out,
                       cudaStream_t stream) {
  with_row_type(rows.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    feature_gradients_kernel<<<static_cast<unsigned>(b), kThreads, 0, stream>>>(
        sums, factors, target_gradients, d, targets, static_cast<const T*>(rows.data), sampled, inverse_norms, out);
  });
  check_launch();
}

void unnormalize_gradients(const float* x, const float* inverse_norms, int64_t b, int64_t d, float* gradient,
                           cudaStream_t stream) {
  with_warp_row(d, [&](auto row) {
    unnormalize_gradients_kernel<decltype(row)>
        <<<blocks_for(b, kWarps), kThreads, 0, stream>>>(x, inverse_norms, b, static_cast<int>(d), gradient);
  });
  check_launch();
}

// Calls function(WarpRow, T*, G*) for the types of rows and gradient.
template <class Function>
static void with_row_types(int64_t d, Number rows, Number gradient, Function function) {
  with_warp_row(d, [&](auto row) {
    with_row_type(rows, [&](auto* row_type) {
      with_row_type(gradient, [&](auto* gradient_type) { function(row, row_type, gradient_type); });
    });
  });
}

void row_gradients(Numbers rows, Sampled sampled, int64_t d, RowGradient gradient, float* out, cudaStream_t stream) {
  if (sampled.capacity == 0) return;
  with_row_types(d, rows.type, gradient.values.type, [&](auto row, auto* row_type, auto* gradient_type) {
    using T = std::remove_pointer_t<decltype(row_type)>;
    using G = std::remove_pointer_t<decltype(gradient_type)>;
    row_gradients_kernel<decltype(row)><<<blocks_for(sampled.capacity, kWarps), kThreads, 0, stream>>>(
        static_cast<const T*>(rows.data), sampled, static_cast<int>(d), static_cast<const G*>(gradient.values.data),
        gradient.inverse_norms, gradient.unit, out);
  });
  check_launch();
}

static unsigned warps_for(const Sampled& sampled) { return blocks_for(sampled.capacity, kWarps); }

void update_sgd(Numbers rows, Numbers momentum, RowSgd sgd, const RowUpdate& update, UnitRows next,
                cudaStream_t stream) {
  if (update.sampled.capacity == 0) return;
  const RowGradient& gradient = update.gradient;
  const auto launch = [&](auto row, auto* row_type, auto* gradient_type, auto* unit_type) {
    using T = std::remove_pointer_t<decltype(row_type)>;
    using G = std::remove_pointer_t<decltype(gradient_type)>;
    using Unit = std::remove_pointer_t<decltype(unit_type)>;
    update_rows_kernel<decltype(row)><<<warps_for(update.sampled), kThreads, 0, stream>>>(
        static_cast<T*>(rows.data), static_cast<T*>(momentum.data), update.sampled, static_cast<int>(update.d),
        static_cast<const G*>(gradient.values.data), gradient.inverse_norms, gradient.unit, sgd, update.skip,
        update.seed, update.step, update.first, static_cast<Unit*>(next.values.data), next.inverse_norms);
  };
  // Gradients in bfloat16 come with unit rows in bfloat16.
  with_row_types(update.d, rows.type, gradient.values.type, [&](auto row, auto* row_type, auto* gradient_type) {
    if constexpr (std::is_same_v<decltype(gradient_type), float*>) {
      if (next.values.type == Number::float16)
        return launch(row, row_type, gradient_type, static_cast<__half*>(nullptr));
    }
    launch(row, row_type, gradient_type, gradient_type);
  });
  check_launch();
}

void update_adamw(Numbers rows, Numbers first_moment, Numbers second_moment, float* updates, const RowRates& rates,
                  const RowUpdate& update, cudaStream_t stream) {
  if (update.sampled.capacity == 0) return;
  const Numbers gradients = update.gradient.values;
  with_row_types(update.d, rows.type, gradients.type, [&](auto row, auto* row_type, auto* gradient_type) {
    using T = std::remove_pointer_t<decltype(row_type)>;
    using G = std::remove_pointer_t<decltype(gradient_type)>;
    update_adamw_kernel<decltype(row)><<<warps_for(update.sampled), kThreads, 0, stream>>>(
        static_cast<T*>(rows.data), static_cast<T*>(first_moment.data), static_cast<T*>(second_moment.data), updates,
        rates, update, static_cast<const G*>(gradients.data));
  });
  check_launch();
}

void update_adagrad(Numbers rows, float* squares, const RowRates& rates, const RowUpdate& update, cudaStream_t stream) {
  if (update.sampled.capacity == 0) return;
  const Numbers gradients = update.gradient.values;
  with_row_types(update.d, rows.type, gradients.type, [&](auto row, auto* row_type, auto* gradient_type) {
    using T = std::remove_pointer_t<decltype(row_type)>;
    using G = std::remove_pointer_t<decltype(gradient_type)>;
    update_adagrad_kernel<decltype(row)><<<warps_for(update.sampled), kThreads, 0, stream>>>(
        static_cast<T*>(rows.data), squares, rates, update, static_cast<const G*>(gradients.data));
  });
  check_launch();
}

void add_update(PendingUpdates update, const PendingUpdates* last, int64_t limit, const float* skip,
                PendingUpdates* next, int32_t* count, cudaStream_t stream) {
  add_update_kernel<<<blocks_for(limit + 1, kThreads), kThreads, 0, stream>>>(update, last, limit, skip, next, count);
  check_launch();
}

void catch_up(Numbers rows, Numbers momentum, Sampled sampled, int64_t d, const MissedUpdates& missed, uint64_t seed,
              uint64_t step, int64_t first, cudaStream_t stream) {
  if (sampled.capacity == 0) return;
  with_warp_row(d, [&](auto row) {
    with_row_type(rows.type, [&](auto* row_type) {
      using T = std::remove_pointer_t<decltype(row_type)>;
      catch_up_kernel<decltype(row)>
          <<<warps_for(sampled), kThreads, 0, stream>>>(static_cast<T*>(rows.data), static_cast<T*>(momentum.data),
                                                        sampled, static_cast<int>(d), missed, seed, step, first);
    });
  });
  check_launch();
}

void mark_up_to_date(Sampled sampled, const MissedUpdates& missed, const float* skip, cudaStream_t stream) {
  if (sampled.capacity == 0) return;
  mark_up_to_date_kernel<<<blocks_for(sampled.capacity, kThreads), kThreads, 0, stream>>>(sampled, missed, skip);
  check_launch();
}

}  // namespace facetrain::cuda
