// Mirroring and translation against their definition, pixel by pixel, for all small sizes and translations.
#include "data/augment.h"

#include <algorithm>
#include <vector>

#include "random.h"
#include "test/check.h"

using namespace facetrain;

static void compare(int height, int width, const Augmentation& augmentation) {
  constexpr size_t kGuard = 8;
  const auto [mirror, dy, dx] = augmentation;
  const size_t bytes = size_t{3} * static_cast<size_t>(height * width);
  // Exactly as large as the picture, so that a sanitizer sees every byte that is read beyond it.
  std::vector<uint8_t> in(bytes);
  for (size_t i = 0; i < bytes; ++i) in[i] = static_cast<uint8_t>(hash_words({i}));
  std::vector<uint8_t> out(bytes + kGuard, 0xaa);
  augment(in.data(), height, width, augmentation, out.data());

  bool right = true;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const int v = std::clamp(y - dy, 0, height - 1), shifted = std::clamp(x - dx, 0, width - 1);
      const int u = mirror ? width - 1 - shifted : shifted;
      for (int c = 0; c < 3; ++c) right &= out[3 * (y * width + x) + c] == in[3 * (v * width + u) + c];
    }
  }
  CHECK(right);
  // The pictures of other threads begin there.
  CHECK(std::all_of(out.end() - kGuard, out.end(), [](uint8_t byte) { return byte == 0xaa; }));
  if (!right) std::cerr << height << " x " << width << ", mirror " << mirror << ", by " << dy << ", " << dx << "\n";
}

int main() {
  for (const int height : {1, 2, 5}) {
    for (int width = 1; width <= 9; ++width) {
      for (int dy = -6; dy <= 6; ++dy) {
        for (int dx = -10; dx <= 10; ++dx) {
          for (const bool mirror : {false, true}) compare(height, width, {mirror, dy, dx});
        }
      }
    }
  }
  compare(112, 112, {true, -3, 16});
  CHECK(!Augmentation{}.changes());
  CHECK(Augmentation{.mirror = true}.changes() && Augmentation{.dy = -1}.changes() && Augmentation{.dx = 1}.changes());
  return TEST_RESULT();
}
