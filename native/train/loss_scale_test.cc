// The scale over steps with and without overflow.
#include "train/loss_scale.h"

#include "test/check.h"

using namespace facetrain;

int main() {
  LossScale scale;
  CHECK_EQ(scale.value, 65536.0);
  for (int i = 0; i < 1999; ++i) scale.grow();
  CHECK_EQ(scale.value, 65536.0);
  scale.grow();
  CHECK_EQ(scale.value, 131072.0);
  CHECK_EQ(scale.skipped_steps, 0);

  // An overflow halves it, and the good steps count anew.
  for (int i = 0; i < 1999; ++i) scale.grow();
  CHECK(scale.shrink());
  CHECK_EQ(scale.value, 65536.0);
  CHECK_EQ(scale.good_steps, 0);
  CHECK_EQ(scale.skipped_steps, 1);
  for (int i = 0; i < 1999; ++i) scale.grow();
  CHECK_EQ(scale.value, 65536.0);

  // It does not fall below 1.
  LossScale falling;
  for (int i = 0; i < 16; ++i) CHECK(falling.shrink());
  CHECK_EQ(falling.value, 1.0);
  CHECK(!falling.shrink());
  CHECK_EQ(falling.value, 1.0);
  CHECK_EQ(falling.skipped_steps, 16);
  return TEST_RESULT();
}
