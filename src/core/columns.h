// How the rows are cut into blocks for the column sums of dgamma. No cut changes a bit.
#ifndef RMSNORM_CORE_COLUMNS_H_
#define RMSNORM_CORE_COLUMNS_H_

#include <cstdint>

#include "core/canonical.h"

namespace rmsnorm {

// The floats of one partial sum of n columns, so that whole vectors of it can be used.
constexpr int64_t PaddedColumns(int64_t n) { return CeilDiv(n, kLanes) * kLanes; }

// A block is a run of rows that one worker folds by itself: an aligned, complete subtree (the last
// one may be short). It works in `slots` partial sums of PaddedColumns(n) floats each and leaves
// its own in the first.
struct ColumnBlocks {
  int64_t blocks;
  int64_t block_rows;
  int64_t slots;
  int64_t bytes;  // of all slots of all blocks
};

// The most blocks, at most max_blocks, whose slots fit into max_bytes; one block at the least.
// rows and n are at most 2^48, so that the bytes of one block fit into int64_t.
constexpr ColumnBlocks CutColumns(int64_t rows, int64_t n, int64_t max_blocks, int64_t max_bytes) {
  const int64_t leaves = CeilDiv(rows, kLeafRows);
  const int64_t slot_bytes = 4 * PaddedColumns(n);
  for (int64_t block_leaves = 1;; block_leaves *= 2) {
    const int64_t blocks = CeilDiv(leaves, block_leaves);
    const int64_t slots = TreeDepth(block_leaves);
    if (blocks <= 1 || (blocks <= max_blocks && slots * blocks <= max_bytes / slot_bytes)) {
      return {blocks, block_leaves * kLeafRows, slots, slot_bytes * slots * blocks};
    }
  }
}

}  // namespace rmsnorm

#endif  // RMSNORM_CORE_COLUMNS_H_
