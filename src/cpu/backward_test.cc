// Backward kernels against the reference, by bits.
#include "cpu/backward.h"

#include <omp.h>

#include <bit>

#include "core/reference.h"
#include "testing.h"

namespace rmsnorm {
namespace {

using testing::Case;
using testing::Operands;

class BackwardOnEveryTarget : public testing::OnEveryTarget {};
RMSNORM_ON_EVERY_TARGET(BackwardOnEveryTarget);

// The reference's dx and dgamma for a case whose rstd is that of the forward call.
Operands Expected(const Case& c) {
  Operands call(c);
  ForwardReference(call.Forward(), 0, c.rows);
  BackwardReference(call.Backward());
  return call;
}

void ExpectReferenceBits(const Case& c, const rmsnorm_runner* runner) {
  const Operands expected = Expected(c);
  Operands actual(c);
  actual.rstd = expected.rstd;
  const rmsnorm_backward_args args = actual.Backward(runner);
  ASSERT_EQ(rmsnorm_backward(&args, runner), RMSNORM_OK) << rmsnorm_last_error();
  EXPECT_TRUE(testing::SameBits(actual.dx.bytes, expected.dx.bytes)) << "dx; " << c;
  EXPECT_TRUE(testing::SameBits(actual.dgamma, expected.dgamma)) << "dgamma; " << c;
}

TEST_P(BackwardOnEveryTarget, EveryTypeAndLengthHasTheBitsOfTheReference) {
  for (const int64_t n : testing::kLengths) {
    for (const Case& c : testing::EveryType(/*rows=*/3, n)) ExpectReferenceBits(c, nullptr);
  }
}

TEST_P(BackwardOnEveryTarget, EveryNumberOfRowsHasTheBitsOfTheReference) {
  for (int64_t rows = 1; rows <= 130; ++rows) ExpectReferenceBits({.rows = rows, .n = 70}, nullptr);
  ExpectReferenceBits({.rows = 5000, .n = 65}, nullptr);
}

TEST_P(BackwardOnEveryTarget, HardRowsHaveTheBitsOfTheReference) {
  for (const double epsilon : {0.0, 1e-6}) {
    for (const int64_t n : {5, 64, 100, 513, 2500}) {
      for (Case c : testing::EveryType(/*rows=*/18, n)) {
        c.epsilon = epsilon;
        c.hard_rows = true;
        ExpectReferenceBits(c, nullptr);
      }
    }
  }
}

TEST_P(BackwardOnEveryTarget, TheSplitOfRowsOverThreadsChangesNoBit) {
  for (const int64_t threads : {1, 2, 3, 7, 64}) {
    const testing::Backwards runner(threads);
    ExpectReferenceBits({.rows = 1000, .n = 513}, runner.get());
  }
  for (const int threads : {1, 2, 5}) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    ExpectReferenceBits({.rows = 1000, .n = 513}, nullptr);
    omp_set_num_threads(before);
  }
}

TEST_P(BackwardOnEveryTarget, OutputsLargeEnoughToGoPastTheCachesHaveTheBitsOfTheReference) {
  for (const rmsnorm_dtype dtype : testing::kDtypes) {
    ExpectReferenceBits({.x = dtype, .y = dtype, .rows = 2100, .n = 1030, .gap = 3}, nullptr);
  }
}

TEST_P(BackwardOnEveryTarget, LessWorkspaceGivesTheSameBits) {
  const Case c{.rows = 1000, .n = 65};
  const Operands expected = Expected(c);
  const testing::Backwards many(16), one(1);
  Operands actual(c);
  actual.rstd = expected.rstd;
  rmsnorm_backward_args args = actual.Backward(many.get());
  args.workspace_size = rmsnorm_backward_workspace(c.rows, c.n, one.get());
  ASSERT_EQ(rmsnorm_backward(&args, many.get()), RMSNORM_OK) << rmsnorm_last_error();
  EXPECT_TRUE(testing::SameBits(actual.dgamma, expected.dgamma));
}

TEST_P(BackwardOnEveryTarget, EachGradientAloneHasTheBitsOfBothTogether) {
  const Case c{.x = RMSNORM_FLOAT16, .y = RMSNORM_FLOAT16, .rows = 50, .n = 577};
  const Operands expected = Expected(c);
  Operands actual(c);
  actual.rstd = expected.rstd;
  rmsnorm_backward_args args = actual.Backward();
  args.dx.data = nullptr;
  ASSERT_EQ(rmsnorm_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  EXPECT_TRUE(testing::SameBits(actual.dgamma, expected.dgamma));
  args = actual.Backward();
  args.dgamma = nullptr;
  args.workspace = nullptr;
  args.workspace_size = 0;
  ASSERT_EQ(rmsnorm_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  EXPECT_TRUE(testing::SameBits(actual.dx.bytes, expected.dx.bytes));
}

TEST_P(BackwardOnEveryTarget, NoGradientWantedIsNothingToDo) {
  Operands call({.rows = 50, .n = 577});
  rmsnorm_backward_args args = call.Backward();
  args.dx.data = nullptr;
  args.dgamma = nullptr;
  EXPECT_EQ(rmsnorm_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
}

TEST_P(BackwardOnEveryTarget, NoRowsGiveAGradientOfZeroForGamma) {
  Operands call({.rows = 0, .n = 100});
  const rmsnorm_backward_args args = call.Backward();
  ASSERT_EQ(rmsnorm_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  EXPECT_TRUE(testing::SameBits(call.dgamma, std::vector<float>(100, 0.0f)));
}

TEST_P(BackwardOnEveryTarget, AnRstdThatIsWrongStillGivesTheBitsOfTheReferenceAndNoOtherBytes) {
  const float wrong[] = {0.0f, -0.0f, HUGE_VALF, -HUGE_VALF, std::nanf(""), -1.0f, 1e-45f, 3e38f};
  for (const int64_t n : {5, 100, 577}) {
    for (Case c : testing::EveryType(/*rows=*/40, n)) {
      c.gap = 3;
      Operands expected(c), actual(c);
      testing::Random random(/*seed=*/n);
      for (int64_t r = 0; r < c.rows; ++r) {
        const uint32_t any_bits = static_cast<uint32_t>(random.Bits());
        const float rstd = r % 2 ? std::bit_cast<float>(any_bits) : wrong[r / 2 % 8];
        expected.rstd[r] = actual.rstd[r] = rstd;
      }
      for (Operands* call : {&expected, &actual}) call->dgamma.resize(n + 16, -1);  // canaries
      BackwardReference(expected.Backward());
      const rmsnorm_backward_args args = actual.Backward();
      ASSERT_EQ(rmsnorm_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
      EXPECT_TRUE(testing::SameBits(actual.dx.bytes, expected.dx.bytes)) << "dx; " << c;
      EXPECT_TRUE(testing::SameBits(actual.dgamma, expected.dgamma)) << "dgamma; " << c;
    }
  }
}

TEST_P(BackwardOnEveryTarget, WhatPaddingMakesOfAnInfiniteRstdIsNotAdded) {
  Operands expected({.rows = 1, .n = 5}), actual({.rows = 1, .n = 5});
  for (Operands* call : {&expected, &actual}) {
    for (int64_t i = 0; i < 5; ++i) {
      call->x.Set(i, 1);
      call->dy.Set(i, 1);
      call->gamma.Set(i, 1);
    }
    call->rstd[0] = HUGE_VALF;
  }
  BackwardReference(expected.Backward());
  EXPECT_EQ(expected.dx.Get(0), -HUGE_VALF);  // padding times infinity would make it NaN
  const rmsnorm_backward_args args = actual.Backward();
  ASSERT_EQ(rmsnorm_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  EXPECT_TRUE(testing::SameBits(actual.dx.bytes, expected.dx.bytes));
}

TEST_P(BackwardOnEveryTarget, SumsThatUnderflowToMinusZeroBecomePlusZero) {
  Operands call({.gamma = testing::kAbsent, .rows = 1, .n = 128});
  for (int64_t i = 0; i < 128; ++i) {
    call.x.Set(i, -1e-30f);
    call.dy.Set(i, 1e-30f);
  }
  call.x.Set(0, 1);
  call.dy.Set(0, -0.0f);
  call.rstd[0] = 1;
  Operands by_reference = call;
  BackwardReference(by_reference.Backward());
  const rmsnorm_backward_args args = call.Backward();
  ASSERT_EQ(rmsnorm_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  for (const Operands& result : {call, by_reference}) {
    EXPECT_TRUE(std::signbit(result.dx.Get(0))) << "c was -0";
    EXPECT_TRUE(testing::SameBits(result.dgamma, std::vector<float>(128, 0.0f)));
  }
}

}  // namespace
}  // namespace rmsnorm
