// Backward kernels for GPUs against the reference, by bits.
#include <bit>

#include "core/reference.h"
#include "cuda/on_gpu.h"

namespace rmsnorm {
namespace {

using testing::Case;
using testing::OnGpuOptions;
using testing::Operands;

class BackwardOnEveryGpu : public testing::OnEveryGpu {};
RMSNORM_ON_EVERY_GPU(BackwardOnEveryGpu);

void ExpectReferenceBits(Operands expected, const OnGpuOptions& options = {}) {
  Operands actual = expected;
  BackwardReference(expected.Backward());
  ASSERT_NO_FATAL_FAILURE(testing::RunBackwardOnGpu(actual, options));
  if (options.dx) {
    EXPECT_TRUE(testing::SameBits(actual.dx.bytes, expected.dx.bytes)) << "dx; " << actual.c;
  }
  if (options.dgamma) {
    EXPECT_TRUE(testing::SameBits(actual.dgamma, expected.dgamma)) << "dgamma; " << actual.c;
  }
}

void ExpectReferenceBits(const Case& c, const OnGpuOptions& options = {}) {
  Operands call(c);
  ForwardReference(call.Forward(), 0, c.rows);
  ExpectReferenceBits(call, options);
}

TEST_P(BackwardOnEveryGpu, EveryTypeAndLengthHasTheBitsOfTheReference) {
  for (const int64_t n : testing::kLengths) {
    for (const Case& c : testing::EveryType(/*rows=*/n <= 512 ? 37 : 3, n)) ExpectReferenceBits(c);
  }
}

TEST_P(BackwardOnEveryGpu, EveryNumberOfRowsHasTheBitsOfTheReference) {
  for (int64_t rows = 1; rows <= 70; ++rows) ExpectReferenceBits({.rows = rows, .n = 70});
  // Enough pieces for more teams in a block, for two leaves in each, for two levels of folding.
  for (const int64_t rows : {1000, 5000, 9001}) {
    for (const int64_t n : {3, 70, 1000}) {
      ExpectReferenceBits({.rows = rows, .n = n});
      ExpectReferenceBits({.x = RMSNORM_BFLOAT16, .y = RMSNORM_BFLOAT16, .rows = rows, .n = n});
    }
  }
  ExpectReferenceBits({.rows = 16 * 256 * 17, .n = 8});
  ExpectReferenceBits({.rows = 9000, .n = 2050});
}

// Around the rows that a block, a cluster and no cluster can hold.
TEST_P(BackwardOnEveryGpu, LongRowsHaveTheBitsOfTheReference) {
  for (const int64_t n : {8192, 8200, 16384, 24000, 65536, 131080}) {
    for (const rmsnorm_dtype dy : {RMSNORM_BFLOAT16, RMSNORM_FLOAT32}) {
      ExpectReferenceBits({.x = RMSNORM_BFLOAT16, .y = dy, .rows = 18, .n = n});
    }
    ExpectReferenceBits({.rows = 18, .n = n});
  }
  ExpectReferenceBits({.rows = 2, .n = (1 << 20) + 1});
}

TEST_P(BackwardOnEveryGpu, WithoutRoomForAClusterLongRowsHaveTheBitsOfTheReference) {
  testing::Play(GetParam(), /*seed=*/0, /*most_clusters=*/0);
  for (const int64_t n : {20000, 100000}) ExpectReferenceBits({.rows = 18, .n = n});
}

TEST_P(BackwardOnEveryGpu, HardRowsHaveTheBitsOfTheReference) {
  for (const double epsilon : {0.0, 1e-6}) {
    for (const int64_t n : {5, 64, 100, 200, 513, 2500}) {
      for (Case c : testing::EveryType(/*rows=*/18, n)) {
        c.epsilon = epsilon;
        c.hard_rows = true;
        ExpectReferenceBits(c);
      }
    }
  }
}

TEST_P(BackwardOnEveryGpu, EveryAddressAndStrideHasTheBitsOfTheReference) {
  testing::ForEveryAddressAndStride(
      [](const Case& c, const OnGpuOptions& options) { ExpectReferenceBits(c, options); });
}

TEST_P(BackwardOnEveryGpu, TheOrderOfBlocksAndThreadsChangesNoBit) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    testing::Play(GetParam(), seed);
    for (const int64_t n : {100, 1500, 4097, 20000}) ExpectReferenceBits({.rows = 70, .n = n});
  }
}

TEST_P(BackwardOnEveryGpu, SanitizedKernelsHaveTheBitsOfTheReference) {
  testing::ForEveryKindOfKernel([](const Case& c) { ExpectReferenceBits(c); });
}

TEST_P(BackwardOnEveryGpu, EachGradientAloneHasTheBitsOfBothTogether) {
  for (const int64_t n : {577, 200000}) {
    ExpectReferenceBits({.rows = 50, .n = n}, {.dx = false});
    ExpectReferenceBits({.rows = 50, .n = n}, {.dgamma = false});
  }
}

TEST_P(BackwardOnEveryGpu, NoRowsGiveAGradientOfZeroForGamma) {
  ExpectReferenceBits({.rows = 0, .n = 100});
  ExpectReferenceBits({.rows = 0, .n = 200000});
}

void ExpectReferenceBitsInFloat64(int64_t rows, int64_t n, double scale_of_x) {
  testing::Random random(1);
  std::vector<double> x(rows * n), dy(rows * n), gamma(n), rstd(rows), dx(rows * n), dgamma(n);
  for (double& value : x) value = (random.Value() - 3) * scale_of_x;
  for (double& value : dy) value = (random.Value() + 3) * scale_of_x;
  for (double& value : gamma) value = random.Value();
  for (double& value : rstd) value = 1;
  rmsnorm_backward_args args = {};
  args.size = sizeof(args);
  args.rows = rows;
  args.n = n;
  args.dy = {dy.data(), n, RMSNORM_FLOAT64};
  args.x = {x.data(), n, RMSNORM_FLOAT64};
  args.gamma = {gamma.data(), RMSNORM_FLOAT64};
  args.rstd = rstd.data();
  args.dx = {dx.data(), n, RMSNORM_FLOAT64};
  args.dgamma = dgamma.data();
  BackwardReference(args);
  const std::vector<double> expected_dx = dx, expected_dgamma = dgamma;
  args.workspace_size = rmsnorm_cuda_backward_workspace(rows, n, RMSNORM_FLOAT64);
  std::vector<char> workspace(args.workspace_size);
  testing::OnGpu dy_there(dy), x_there(x), gamma_there(gamma), rstd_there(rstd), dx_there(dx),
      dgamma_there(dgamma), workspace_there(workspace);
  args.dy.data = dy_there.data();
  args.x.data = x_there.data();
  args.gamma.data = gamma_there.data();
  args.rstd = rstd_there.data();
  args.dx.data = dx_there.data();
  args.dgamma = dgamma_there.data();
  args.workspace = workspace_there.data();
  dx.assign(dx.size(), -1);
  dgamma.assign(n, -1);
  ASSERT_EQ(rmsnorm_cuda_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  dx_there.Fetch();
  dgamma_there.Fetch();
  EXPECT_TRUE(testing::SameBits(dx, expected_dx)) << "n = " << n;
  EXPECT_TRUE(testing::SameBits(dgamma, expected_dgamma)) << "n = " << n;
}

TEST_P(BackwardOnEveryGpu, Float64HasTheBitsOfTheReference) {
  for (const int64_t n : {1, 63, 514, 70001}) ExpectReferenceBitsInFloat64(/*rows=*/35, n, 1);
}

// 256 leaves, so that no zero of padding is added to them.
TEST_P(BackwardOnEveryGpu, SumsThatUnderflowToMinusZeroBecomePlusZero) {
  ExpectReferenceBitsInFloat64(/*rows=*/4096, /*n=*/3, /*scale_of_x=*/1e-200);
}

TEST_P(BackwardOnEveryGpu, AnRstdThatIsWrongStillGivesTheBitsOfTheReference) {
  const float wrong[] = {0.0f, -0.0f, HUGE_VALF, -HUGE_VALF, std::nanf(""), -1.0f, 1e-45f, 3e38f};
  for (const int64_t n : {5, 100, 577, 8193}) {
    for (const Case& c : testing::EveryType(/*rows=*/40, n)) {
      Operands call(c);
      testing::Random random(/*seed=*/n);
      for (int64_t r = 0; r < c.rows; ++r) {
        const uint32_t any_bits = static_cast<uint32_t>(random.Bits());
        call.rstd[r] = r % 2 ? std::bit_cast<float>(any_bits) : wrong[r / 2 % 8];
      }
      ExpectReferenceBits(call);
    }
  }
}

TEST_P(BackwardOnEveryGpu, WhatPaddingMakesOfAnInfiniteRstdIsNotAdded) {
  for (const int64_t n : {5, 64, 70, 577}) {
    Operands call({.rows = 1, .n = n});
    for (int64_t i = 0; i < n; ++i) {
      call.x.Set(i, 1);
      call.dy.Set(i, 1);
      call.gamma.Set(i, 1);
    }
    call.rstd[0] = HUGE_VALF;
    ExpectReferenceBits(call);
  }
}

}  // namespace
}  // namespace rmsnorm
