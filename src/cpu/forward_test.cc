// Forward kernels against the reference, by bits.
#include "cpu/forward.h"

#include <omp.h>

#include "core/reference.h"
#include "testing.h"

namespace rmsnorm {
namespace {

using testing::Case;
using testing::Operands;

class ForwardOnEveryTarget : public testing::OnEveryTarget {};
RMSNORM_ON_EVERY_TARGET(ForwardOnEveryTarget);

constexpr rmsnorm_rounding kRoundings[] = {RMSNORM_ROUND_ONCE, RMSNORM_ROUND_BEFORE_GAMMA};

void ExpectReferenceBits(const Case& c, const rmsnorm_runner* runner) {
  Operands expected(c), actual(c);
  ForwardReference(expected.Forward(), 0, c.rows);
  const rmsnorm_forward_args args = actual.Forward();
  ASSERT_EQ(rmsnorm_forward(&args, runner), RMSNORM_OK) << rmsnorm_last_error();
  EXPECT_TRUE(testing::SameBits(actual.y.bytes, expected.y.bytes)) << "y; " << c;
  EXPECT_TRUE(testing::SameBits(actual.rstd, expected.rstd)) << "rstd; " << c;
}

TEST_P(ForwardOnEveryTarget, EveryTypeAndLengthHasTheBitsOfTheReference) {
  for (const int64_t n : testing::kLengths) {
    for (Case c : testing::EveryType(/*rows=*/2, n)) {
      for (const rmsnorm_rounding rounding : kRoundings) {
        c.rounding = rounding;
        ExpectReferenceBits(c, nullptr);
      }
    }
  }
}

TEST_P(ForwardOnEveryTarget, HardRowsHaveTheBitsOfTheReference) {
  for (const double epsilon : {0.0, 1e-6}) {
    for (const int64_t n : {5, 64, 100, 513, 2500, 9000}) {
      for (Case c : testing::EveryType(/*rows=*/18, n)) {
        c.epsilon = epsilon;
        c.hard_rows = true;
        for (const rmsnorm_rounding rounding : kRoundings) {
          c.rounding = rounding;
          ExpectReferenceBits(c, nullptr);
        }
      }
    }
  }
}

TEST_P(ForwardOnEveryTarget, TheSplitOfRowsOverThreadsChangesNoBit) {
  for (const int64_t threads : {1, 2, 3, 7, 64}) {
    const testing::Backwards runner(threads);
    ExpectReferenceBits({.rows = 97, .n = 4097}, runner.get());
  }
  for (const int threads : {1, 2, 5}) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    ExpectReferenceBits({.rows = 97, .n = 4097}, nullptr);
    omp_set_num_threads(before);
  }
}

TEST_P(ForwardOnEveryTarget, OutputsLargeEnoughToGoPastTheCachesHaveTheBitsOfTheReference) {
  for (const rmsnorm_dtype dtype : testing::kDtypes) {
    ExpectReferenceBits({.x = dtype, .y = dtype, .rows = 2100, .n = 1030, .gap = 3}, nullptr);
  }
  ExpectReferenceBits({.x = RMSNORM_BFLOAT16, .y = RMSNORM_FLOAT32, .rows = 40, .n = 33000},
                      nullptr);
}

TEST_P(ForwardOnEveryTarget, InPlaceGivesTheSameBits) {
  for (const int64_t n : {5, 64, 600, 300000}) {
    const Case c{.rows = 4, .n = n};
    Operands apart(c), in_place(c);
    rmsnorm_forward_args args = apart.Forward();
    ASSERT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_OK);
    args = in_place.Forward();
    args.y = args.x;
    ASSERT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
    EXPECT_TRUE(testing::SameBits(in_place.x.bytes, apart.y.bytes)) << "n = " << n;
  }
}

}  // namespace
}  // namespace rmsnorm
