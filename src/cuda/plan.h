// How rows are spread over a GPU's threads and blocks. No choice made here changes a bit.
#ifndef RMSNORM_CUDA_PLAN_H_
#define RMSNORM_CUDA_PLAN_H_

#include <algorithm>
#include <cstdint>

#include "core/canonical.h"
#include "core/dtype.h"

namespace rmsnorm::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kMaxThreads = 512;  // of a block
inline constexpr int kSmallBlock = 128;  // the same, where each row takes a warp or less
inline constexpr int kMaxBlocks = 8;     // of a cluster, on every GPU that has clusters

// The threads that share a row are a team: of a warp (1, 2, 4 … of its threads), of a block, or of
// the blocks of a cluster. A thread takes kWidth neighbouring lanes of a leaf, 16 bytes of x in
// each step.
struct Plan {
  int steps;    // of a leaf that a thread takes: 8, or 1, 2 or 4 where a row is that short
  int threads;  // of a block that share a row
  int teams;    // rows side by side in a block
  int blocks;   // of a cluster that share a row
  bool held;    // false: a row is too long for that, and read twice
};
inline constexpr Plan kReadTwice = {kLeafSteps, kMaxThreads, 1, 1, false};

// The fewest steps of kLanes elements that hold a row of n, as a power of two.
constexpr int StepsOf(int64_t n) {
  int steps = 1;
  while (steps < kLeafSteps && steps * kLanes < n) steps *= 2;
  return steps;
}

// max_threads: of a block that can hold one row; max_blocks: of a cluster, 1 where there are none.
constexpr Plan PlanRows(int64_t n, int leaf_threads, int max_threads, int max_blocks) {
  const int64_t threads = CeilDiv(n, kLeaf) * leaf_threads;
  if (threads <= kWarp) {
    int team = leaf_threads;
    while (team < threads) team *= 2;
    return {StepsOf(n), team, kSmallBlock / team, 1, true};
  }
  const int64_t warps = CeilDiv(threads, kWarp);
  if (warps * kWarp <= max_threads) {
    return {kLeafSteps, static_cast<int>(warps * kWarp), 1, 1, true};
  }
  int part = kWarp;  // each block of a cluster takes an aligned power of two of leaves
  while (2 * part <= max_threads) part *= 2;
  const int64_t blocks = CeilDiv(threads, part);
  if (blocks <= max_blocks) return {kLeafSteps, part, 1, static_cast<int>(blocks), true};
  return kReadTwice;
}

// How backward walks down the rows. A team takes one or two leaves of rows one after another; the
// teams of a block leave one partial sum of each column together, the piece's.
struct GradientPlan {
  Plan rows;
  int leaves;      // that a team takes
  int64_t pieces;  // aligned powers of two of leaves
};

// With fewer pieces, a large GPU's multiprocessors would wait for the last ones.
inline constexpr int64_t kPiecesWorthFolding = 512;

// rows and n are at most 2^48. leaf_threads and the maxima as in PlanRows.
constexpr GradientPlan PlanGradient(int64_t rows, int64_t n, int leaf_threads, int max_threads,
                                    int max_blocks) {
  GradientPlan plan = {PlanRows(n, leaf_threads, max_threads, max_blocks), 1, 0};
  Plan& team = plan.rows;
  team.teams = team.threads < kWarp ? kWarp / team.threads : 1;
  const auto pieces = [&](int leaves) {
    return CeilDiv(rows, int64_t{kLeafRows} * team.teams * leaves);
  };
  if (!team.held) return {team, 1, pieces(1)};
  while (2 * team.teams * team.threads <= kSmallBlock && pieces(2) >= kPiecesWorthFolding) {
    team.teams *= 2;
  }
  if (pieces(2) >= kPiecesWorthFolding) plan.leaves = 2;
  plan.pieces = pieces(plan.leaves);
  return plan;
}

// Partial sums that one block folds at a time.
inline constexpr int64_t kFoldedTogether = 256;

// The partial sums of all levels below dgamma itself, from `pieces` on.
constexpr int64_t PartialSums(int64_t pieces) {
  int64_t sums = pieces;
  while (pieces > kFoldedTogether) {
    pieces = CeilDiv(pieces, kFoldedTogether);
    sums += pieces;
  }
  return sums;
}

// The longest rows that every GPU can hold in backward.
inline constexpr int64_t kHeldEverywhere = 8192;

// Bytes of the partial sums of dgamma, whatever the GPU; INT64_MAX where they can't be counted.
constexpr int64_t BackwardWorkspace(int64_t rows, int64_t n, rmsnorm_dtype x) {
  const int64_t size = SizeOf(x);
  const bool held = n <= kHeldEverywhere && x != RMSNORM_FLOAT64;
  const int64_t pieces =
      held ? PlanGradient(rows, n, static_cast<int>(kLanes * size / 16), kMaxThreads, 1).pieces
           : CeilDiv(rows, kLeafRows);
  int64_t bytes = 0;
  const bool overflow = __builtin_mul_overflow(PartialSums(pieces) * SizeOf(RealOf(x)), n, &bytes);
  return overflow ? INT64_MAX : bytes;
}

}  // namespace rmsnorm::cuda

#endif  // RMSNORM_CUDA_PLAN_H_
