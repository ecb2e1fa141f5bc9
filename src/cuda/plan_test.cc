// How rows are spread over threads: what every choice has to hold, whatever the GPU.
#include "cuda/plan.h"

#include <gtest/gtest.h>

#include <bit>

#include "testing.h"

namespace rmsnorm::cuda {
namespace {

constexpr int kLeafThreadsOf[] = {8, 16};  // 16 bits, float32

TEST(Plan, EveryRowIsHeldWholeOrReadTwice) {
  for (const int leaf_threads : kLeafThreadsOf) {
    for (int64_t n = 1; n <= 1 << 20; n += 1 + n / 100) {
      for (const int max_blocks : {1, kMaxBlocks}) {
        const Plan plan = PlanRows(n, leaf_threads, kMaxThreads, max_blocks);
        if (!plan.held) {
          EXPECT_GT(CeilDiv(n, kLeaf) * leaf_threads, kMaxThreads * max_blocks) << "n = " << n;
          continue;
        }
        const int64_t leaves = int64_t{plan.blocks} * plan.threads / leaf_threads;
        EXPECT_GE(leaves * plan.steps * kLanes, n) << "n = " << n;
        EXPECT_TRUE(plan.steps == kLeafSteps || leaves == 1) << "n = " << n;
        EXPECT_LE(plan.threads * plan.teams, kMaxThreads);
        EXPECT_EQ(plan.threads * plan.teams % kWarp, 0) << "a warp isn't whole";
        EXPECT_TRUE(plan.threads >= kWarp || kWarp % plan.threads == 0) << "a row crosses warps";
        EXPECT_TRUE(plan.blocks == 1 || std::has_single_bit(static_cast<unsigned>(plan.threads)))
            << "parts aren't aligned";
      }
    }
  }
}

TEST(Plan, TheWorkspaceHoldsThePartialSumsOnEveryGpu) {
  for (const rmsnorm_dtype dtype : testing::kDtypes) {
    const int leaf_threads = static_cast<int>(kLanes * SizeOf(dtype) / 16);
    for (const int64_t rows : {0, 1, 16, 17, 1000, 4096, 16384, 1000000}) {
      for (int64_t n = 1; n <= 200000; n += 1 + n / 50) {
        for (const int max_threads :
             {160, 256, 320, 512}) {  // what memory of 99 KB and more allows
          const int threads = dtype == RMSNORM_FLOAT32 ? std::max(max_threads, 256) : max_threads;
          for (const int max_blocks : {1, kMaxBlocks}) {
            const int64_t pieces = PlanGradient(rows, n, leaf_threads, threads, max_blocks).pieces;
            EXPECT_GE(BackwardWorkspace(rows, n, dtype), 4 * n * PartialSums(pieces))
                << "rows = " << rows << ", n = " << n << ", threads = " << threads;
          }
        }
      }
    }
  }
}

TEST(Plan, SizesThatOverflowAreRefusedBySize) {
  const int64_t most = int64_t{1} << 48;
  EXPECT_EQ(BackwardWorkspace(most, most, RMSNORM_FLOAT32), INT64_MAX);
  EXPECT_EQ(rmsnorm_cuda_backward_workspace(-1, 8, RMSNORM_FLOAT32), 0u);
  EXPECT_EQ(rmsnorm_cuda_backward_workspace(8, 0, RMSNORM_FLOAT32), 0u);
  EXPECT_EQ(rmsnorm_cuda_backward_workspace(8, 8, 0), 0u);
}

TEST(Plan, PiecesGrowWithTheRowsAndNotWithTheGpu) {
  // [16384, 4096] of bfloat16: 8 bytes a column for 32 rows, 4 % of what the rows themselves move.
  GradientPlan plan = PlanGradient(16384, 4096, 8, 256, 1);
  EXPECT_EQ(plan.pieces, 512);
  EXPECT_EQ(plan.leaves * plan.rows.teams, 2);
  plan = PlanGradient(1 << 20, 4096, 8, 256, 1);
  EXPECT_EQ(plan.pieces, (1 << 20) / 64);
  plan = PlanGradient(4096, 4096, 8, 256, 1);
  EXPECT_EQ(plan.pieces, 4096 / 16);
}

}  // namespace
}  // namespace rmsnorm::cuda
