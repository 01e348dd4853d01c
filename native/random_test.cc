// Pins random.h: models and checkpoints depend on every bit.
#include "random.h"

#include <array>

#include "test/check.h"

using namespace facetrain;

namespace {

// The first numbers of SplitMix64 for the seed 1234567, as Vigna's reference implementation (splitmix64.c, 2015) gives
// them.
void test_splitmix64_sequence() {
  constexpr std::array<uint64_t, 5> kExpected{6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                                              4593380528125082431u, 16408922859458223821u};
  for (uint64_t i = 0; i < kExpected.size(); ++i) CHECK_EQ(sequence_number(1234567, i), kExpected[i]);
  CHECK_EQ(splitmix64(1234567), kExpected[0]);
}

void test_hash_words() {
  CHECK_EQ(hash_words({0, 0, 7}), 15260482647663390196u);
  CHECK_EQ(hash_words({1234567, 0, 7}), 13317941273389514349u);
  CHECK_EQ(hash_words({5}), splitmix64(5));
  CHECK(hash_words({1, 2}) != hash_words({2, 1}));
}

}  // namespace

int main() {
  test_splitmix64_sequence();
  test_hash_words();
  return TEST_RESULT();
}
