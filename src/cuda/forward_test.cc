// Forward kernels for GPUs against the reference, by bits.
#include "core/reference.h"
#include "cuda/on_gpu.h"

namespace rmsnorm {
namespace {

using testing::Case;
using testing::OnGpuOptions;
using testing::Operands;

class ForwardOnEveryGpu : public testing::OnEveryGpu {};
RMSNORM_ON_EVERY_GPU(ForwardOnEveryGpu);

constexpr rmsnorm_rounding kRoundings[] = {RMSNORM_ROUND_ONCE, RMSNORM_ROUND_BEFORE_GAMMA};

void ExpectReferenceBits(const Case& c, const OnGpuOptions& options = {}) {
  Operands expected(c), actual(c);
  ForwardReference(expected.Forward(), 0, c.rows);
  ASSERT_NO_FATAL_FAILURE(testing::RunForwardOnGpu(actual, options));
  const Operands& y = options.in_place ? expected : actual;
  if (options.in_place) {
    EXPECT_TRUE(testing::SameBits(actual.x.bytes, y.y.bytes)) << "y in place; " << c;
  } else {
    EXPECT_TRUE(testing::SameBits(actual.y.bytes, expected.y.bytes)) << "y; " << c;
  }
  if (!options.rstd) expected.rstd.assign(c.rows, -1);
  EXPECT_TRUE(testing::SameBits(actual.rstd, expected.rstd)) << "rstd; " << c;
}

TEST_P(ForwardOnEveryGpu, EveryTypeAndLengthHasTheBitsOfTheReference) {
  for (const int64_t n : testing::kLengths) {
    // So many short rows that the last block is not full.
    for (Case c : testing::EveryType(/*rows=*/n <= 512 ? 37 : 2, n)) {
      for (const rmsnorm_rounding rounding : kRoundings) {
        c.rounding = rounding;
        ExpectReferenceBits(c);
      }
    }
  }
}

// Around the rows that a block, a cluster and no cluster can hold.
TEST_P(ForwardOnEveryGpu, LongRowsHaveTheBitsOfTheReference) {
  for (const int64_t n : {16384, 16392, 32768, 32769, 50000, 131072, 131080, 262145, 1 << 20}) {
    ExpectReferenceBits({.rows = 2, .n = n});
    ExpectReferenceBits({.x = RMSNORM_BFLOAT16, .y = RMSNORM_BFLOAT16, .rows = 2, .n = n});
  }
}

TEST_P(ForwardOnEveryGpu, WithoutRoomForAClusterLongRowsHaveTheBitsOfTheReference) {
  testing::Play(GetParam(), /*seed=*/0, /*most_clusters=*/0);
  for (const int64_t n : {20000, 100000}) ExpectReferenceBits({.rows = 3, .n = n});
}

TEST_P(ForwardOnEveryGpu, HardRowsHaveTheBitsOfTheReference) {
  for (const double epsilon : {0.0, 1e-6}) {
    for (const int64_t n : {5, 64, 100, 200, 513, 2500, 9000, 40000}) {
      for (Case c : testing::EveryType(/*rows=*/n > 9000 ? 9 : 18, n)) {
        c.epsilon = epsilon;
        c.hard_rows = true;
        ExpectReferenceBits(c);
      }
    }
  }
}

TEST_P(ForwardOnEveryGpu, EveryAddressAndStrideHasTheBitsOfTheReference) {
  testing::ForEveryAddressAndStride(
      [](const Case& c, const OnGpuOptions& options) { ExpectReferenceBits(c, options); });
}

TEST_P(ForwardOnEveryGpu, SanitizedKernelsHaveTheBitsOfTheReference) {
  testing::ForEveryKindOfKernel([](const Case& c) { ExpectReferenceBits(c); });
}

TEST_P(ForwardOnEveryGpu, InPlaceGivesTheSameBits) {
  for (const int64_t n : {5, 64, 600, 20000, 300000}) {
    ExpectReferenceBits({.rows = 4, .n = n}, {.in_place = true});
  }
  ExpectReferenceBits({.rows = 9, .n = 4000, .hard_rows = true}, {.in_place = true});
}

TEST_P(ForwardOnEveryGpu, TheOrderOfBlocksAndThreadsChangesNoBit) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    testing::Play(GetParam(), seed);
    for (const int64_t n : {100, 1500, 4097, 40000}) {
      ExpectReferenceBits({.rows = 9, .n = n, .hard_rows = true});
    }
  }
}

TEST_P(ForwardOnEveryGpu, AnRstdThatIsNotWantedIsNotWritten) {
  for (const int64_t n : {64, 5000, 300000}) ExpectReferenceBits({.n = n}, {.rstd = false});
}

TEST_P(ForwardOnEveryGpu, NoRowsAreNothingToDo) {
  ExpectReferenceBits({.rows = 0, .n = 100});
  ExpectReferenceBits({.rows = 0, .n = 300000});
}

TEST_P(ForwardOnEveryGpu, Float64HasTheBitsOfTheReference) {
  testing::Random random(1);
  for (const int64_t n : {1, 63, 513, 70001}) {
    constexpr int64_t kRows = 3;
    std::vector<double> x(kRows * n), gamma(n), y(kRows * n), rstd(kRows);
    for (double& value : x) value = random.Value() * (1 + 0x1p-40);
    for (double& value : gamma) value = random.Value();
    rmsnorm_forward_args args = {};
    args.size = sizeof(args);
    args.rows = kRows;
    args.n = n;
    args.x = {x.data(), n, RMSNORM_FLOAT64};
    args.gamma = {gamma.data(), RMSNORM_FLOAT64};
    args.y = {y.data(), n, RMSNORM_FLOAT64};
    args.rstd = rstd.data();
    args.epsilon = 1e-6;
    args.rounding = RMSNORM_ROUND_ONCE;
    ForwardReference(args, 0, kRows);
    std::vector<double> expected_y = y, expected_rstd = rstd;
    testing::OnGpu x_there(x), gamma_there(gamma), y_there(y), rstd_there(rstd);
    args.x.data = x_there.data();
    args.gamma.data = gamma_there.data();
    args.y.data = y_there.data();
    args.rstd = rstd_there.data();
    ASSERT_EQ(rmsnorm_cuda_forward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
    y.assign(y.size(), -1);
    y_there.Fetch();
    rstd_there.Fetch();
    EXPECT_TRUE(testing::SameBits(y, expected_y)) << "n = " << n;
    EXPECT_TRUE(testing::SameBits(rstd, expected_rstd)) << "n = " << n;
  }
}

}  // namespace
}  // namespace rmsnorm
