#include "kernels/conv.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <algorithm>

#include "clones.h"
#include "kernels/conv_tile.h"

namespace facetrain {
namespace detail {

FACETRAIN_CLONES int32_t sum_bytes(const int8_t* x, int count) {
  int32_t sum = 0;
  for (int i = 0; i < count; ++i) sum += x[i];
  return sum;
}

}  // namespace detail

void conv_tile_portable(const int8_t* const* taps, int tap_count, int64_t offset, int channels, const uint8_t* weights,
                        int pixels, int32_t (*y)[kPanel]) {
  const int quads = (channels + 3) / 4;
  for (int p = 0; p < pixels; ++p) {
    std::fill_n(y[p], kPanel, 0);
    for (int tap = 0; tap < tap_count; ++tap) {
      const int8_t* x = taps[p * tap_count + tap] + offset;
      for (int c = 0; c < channels; ++c) {
        const uint8_t* w = weights + (int64_t{tap} * quads + c / 4) * 4 * kPanel + c % 4;
        for (int o = 0; o < kPanel; ++o) y[p][o] += x[c] * w[o * 4];
      }
    }
  }
}

void depthwise_pixel_portable(const int8_t* const* taps, int tap_count, int channels, const int16_t* weights,
                              const int32_t* bias, int32_t* y) {
  std::copy_n(bias, channels, y);
  for (int tap = 0; tap < tap_count; ++tap, weights += channels) {
    for (int c = 0; c < channels; ++c) y[c] += taps[tap][c] * weights[c];
  }
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx2direct:
      return "avx2direct";
    case Isa::avx2int32:
      return "avx2int32";
    case Isa::avx2:
      return "avx2";
    case Isa::avxvnni:
      return "avxvnni";
    case Isa::avx512vnni:
      return "avx512vnni";
    case Isa::neon:
      return "neon";
    case Isa::neondot:
      return "neondot";
    case Isa::portable:
      break;
  }
  return "portable";
}

#if defined(__x86_64__)
// CPUID leaf 7, subleaf 1, EAX bit 4 (Intel's manual, volume 2A). Clang 14 cannot be asked for it.
static bool has_avxvnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1U << 4) != 0;
}
#endif

bool supported(Isa isa) {
#if defined(__x86_64__)
  // What CMakeLists.txt compiles int7/kernels_avx512vnni.cc for.
  if (isa == Isa::avx512vnni) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
  }
  if (isa == Isa::avxvnni) return __builtin_cpu_supports("avx2") && has_avxvnni();
  if (isa == Isa::avx2 || isa == Isa::avx2direct || isa == Isa::avx2int32) return __builtin_cpu_supports("avx2");
#elif defined(__aarch64__)
  if (isa == Isa::neon) return true;
#if defined(__linux__)
  if (isa == Isa::neondot) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
#endif
  return isa == Isa::portable;
}

Isa best_isa() {
  static const Isa best = [] {
    Isa found = Isa::portable;
    for (const Isa isa : kIsas) {
      if (supported(isa)) found = isa;
    }
    return found;
  }();
  return best;
}

static ConvTile tile_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512vnni) return conv_tile_avx512vnni;
  if (isa != Isa::portable) return conv_tile_avx2;
#endif
  (void)isa;
  return conv_tile_portable;
}

static DepthwisePixel depthwise_for(Isa isa) {
#if defined(__x86_64__)
  if (isa != Isa::portable) return depthwise_pixel_avx2;
#endif
  (void)isa;
  return depthwise_pixel_portable;
}

Conv::Conv(const ConvShape& shape, const int8_t* weights, Isa isa)
    : shape_(shape), isa_(isa), zeros_(shape.in_channels + kOverread) {
  if (shape.depthwise()) {
    depthwise_.resize(shape.weights());
    for (int c = 0; c < shape.in_channels; ++c) {
      for (int t = 0; t < shape.taps(); ++t) {
        depthwise_[int64_t{t} * shape.in_channels + c] = weights[shape.weight_index(c, 0, t)];
      }
    }
    return;
  }
  const int quads = (shape.group_in() + 3) / 4, panels = (shape.group_out() + kPanel - 1) / kPanel;
  panels_.resize(int64_t{shape.group} * panels * shape.taps() * quads * 4 * kPanel);
  for (int o = 0; o < shape.out_channels; ++o) {
    const int g = o / shape.group_out(), in_group = o % shape.group_out();
    const int64_t panel = int64_t{g} * panels + in_group / kPanel;
    for (int t = 0; t < shape.taps(); ++t) {
      for (int i = 0; i < shape.group_in(); ++i) {
        const int64_t quad = (panel * shape.taps() + t) * quads + i / 4;
        panels_[(quad * kPanel + in_group % kPanel) * 4 + i % 4] =
            static_cast<uint8_t>(weights[shape.weight_index(o, i, t)] + kWeightBias);
      }
    }
  }
}

void Conv::run(const int8_t* const* taps, int pixels, const int32_t* bias, int32_t* y) const {
  if (!shape_.depthwise()) return run_panels(taps, pixels, bias, y);
  const DepthwisePixel pixel = depthwise_for(isa_);
  for (int p = 0; p < pixels; ++p) {
    pixel(taps + int64_t{p} * shape_.taps(), shape_.taps(), shape_.in_channels, depthwise_.data(), bias,
          y + int64_t{p} * shape_.out_channels);
  }
}

void Conv::run_panels(const int8_t* const* taps, int pixels, const int32_t* bias, int32_t* y) const {
  const ConvTile tile = tile_for(isa_);
  const int tap_count = shape_.taps(), channels = shape_.group_in(), outputs = shape_.group_out();
  const int quads = (channels + 3) / 4, panels = (outputs + kPanel - 1) / kPanel;
  const int64_t panel_size = int64_t{tap_count} * quads * 4 * kPanel;
  for (int first = 0; first < pixels; first += kTilePixels) {
    const int count = std::min(kTilePixels, pixels - first);
    const int8_t* const* tile_taps = taps + int64_t{first} * tap_count;
    for (int g = 0; g < shape_.group; ++g) {
      const int64_t offset = int64_t{g} * channels;
      int32_t excess[kTilePixels] = {};
      for (int p = 0; p < count; ++p) {
        for (int t = 0; t < tap_count; ++t) {
          excess[p] += detail::sum_bytes(tile_taps[p * tap_count + t] + offset, channels);
        }
        excess[p] *= kWeightBias;
      }
      for (int panel = 0; panel < panels; ++panel) {
        int32_t sums[kTilePixels][kPanel];
        tile(tile_taps, tap_count, offset, channels, panels_.data() + (int64_t{g} * panels + panel) * panel_size, count,
             sums);
        const int o = g * outputs + panel * kPanel, n = std::min(kPanel, outputs - panel * kPanel);
        for (int p = 0; p < count; ++p) {
          int32_t* out = y + int64_t{first + p} * shape_.out_channels + o;
          for (int i = 0; i < n; ++i) out[i] = sums[p][i] - excess[p] + bias[o + i];
        }
      }
    }
  }
}

void Conv::run_image(const int8_t* x, int first_pixel, int pixels, const int32_t* bias, int32_t* y) const {
  constexpr int kChunk = 64;
  std::vector<const int8_t*> taps(int64_t{kChunk} * shape_.taps());
  for (int done = 0; done < pixels; done += kChunk) {
    const int count = std::min(kChunk, pixels - done);
    for (int p = 0; p < count; ++p) {
      tap_pointers(shape_, first_pixel + done + p, x, zeros_.data(), taps.data() + int64_t{p} * shape_.taps());
    }
    run(taps.data(), count, bias, y + int64_t{done} * shape_.out_channels);
  }
}

}  // namespace facetrain
