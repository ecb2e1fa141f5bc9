// The order of the sum: trees, cuts and blocks against their definition.
#include "core/canonical.h"

#include <gtest/gtest.h>

#include <vector>

#include "core/columns.h"
#include "core/reference.h"
#include "testing.h"

namespace rmsnorm {
namespace {

std::vector<float> RandomValues(int64_t count, uint64_t seed) {
  testing::Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = random.Value();
  return values;
}

TEST(CanonicalSum, TreeByCutsIsTheTreeByLevels) {
  for (int64_t count = 1; count <= 300; ++count) {
    const std::vector<float> values = RandomValues(count, count);
    const float by_cuts = Tree<float>(0, count, [&](int64_t i) { return values[i]; });
    EXPECT_EQ(by_cuts, testing::TreeByLevels(values)) << "count = " << count;
  }
}

TEST(CanonicalSum, TreeVisitsLeavesInOrder) {
  std::vector<int64_t> visited;
  Tree<float>(5, 13, [&](int64_t i) {
    visited.push_back(i);
    return 0.0f;
  });
  for (size_t i = 0; i < visited.size(); ++i) EXPECT_EQ(visited[i], 5 + static_cast<int64_t>(i));
  EXPECT_EQ(visited.size(), 13u);
}

TEST(CanonicalSum, AnAlignedCutOfLeavesChangesNoBit) {
  const std::vector<float> values = RandomValues(77, 7);
  const float whole = Tree<float>(0, 77, [&](int64_t i) { return values[i]; });
  for (const int64_t run : {1, 2, 4, 8, 16, 32, 64, 128}) {
    const float cut = Tree<float>(0, CeilDiv(77, run), [&](int64_t block) {
      const int64_t first = block * run;
      return Tree<float>(first, std::min(run, 77 - first), [&](int64_t i) { return values[i]; });
    });
    EXPECT_EQ(cut, whole) << "run = " << run;
  }
}

TEST(CanonicalSum, DotAddsLanesThenLeavesAsStated) {
  for (const int64_t n : testing::kLengths) {
    const std::vector<float> a = RandomValues(n, 1), b = RandomValues(n, 2);
    const float dot =
        Dot<float>(n, [&](int64_t i) { return a[i]; }, [&](int64_t i) { return b[i]; });
    EXPECT_EQ(dot, testing::DotByLevels(a, b)) << "n = " << n;
  }
}

TEST(ColumnBlocks, AreCompleteSubtreesThatCoverTheRows) {
  for (const int64_t rows : {0, 1, 15, 16, 17, 100, 1000, 4096, 100000}) {
    for (const int64_t max_blocks : {1, 2, 3, 8, 64}) {
      const ColumnBlocks cut = CutColumns(rows, 8, max_blocks, INT64_MAX);
      const int64_t leaves = cut.block_rows / kLeafRows;
      EXPECT_EQ(cut.block_rows % kLeafRows, 0);
      EXPECT_EQ(leaves & (leaves - 1), 0) << "not a power of two";
      EXPECT_LE(cut.blocks, max_blocks);
      EXPECT_GE(cut.blocks * cut.block_rows, rows);
      EXPECT_LT((cut.blocks - 1) * cut.block_rows, std::max<int64_t>(rows, 1));
      EXPECT_EQ(cut.slots, TreeDepth(leaves));
      EXPECT_EQ(cut.bytes, cut.blocks * cut.slots * PaddedColumns(8) * 4);
    }
  }
}

TEST(ColumnBlocks, ShrinkToTheMemoryThatIsThere) {
  const ColumnBlocks roomy = CutColumns(4096, 8, 16, INT64_MAX);
  const ColumnBlocks tight = CutColumns(4096, 8, 16, roomy.bytes - 1);
  EXPECT_LT(tight.blocks, roomy.blocks);
  EXPECT_LE(tight.bytes, roomy.bytes - 1);
}

}  // namespace
}  // namespace rmsnorm
