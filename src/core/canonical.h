// The canonical sum, order v1 (docs/numerics.md): the one order in which every kernel adds.
#ifndef RMSNORM_CORE_CANONICAL_H_
#define RMSNORM_CORE_CANONICAL_H_

#include <cstdint>

#ifdef __FAST_MATH__
#error "fast math changes the bits that this library promises"
#endif

namespace rmsnorm {

inline constexpr int64_t kLanes = 64;     // chains that run side by side along a row
inline constexpr int64_t kLeafSteps = 8;  // elements of one chain
inline constexpr int64_t kLeaf = kLanes * kLeafSteps;
inline constexpr int64_t kLeafRows = 16;  // rows of one chain down a column

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// The largest power of two below count, for count >= 2: where a tree over count leaves is cut.
constexpr int64_t TreeCut(int64_t count) {
  int64_t cut = 1;
  while (2 * cut < count) cut *= 2;
  return cut;
}

// tree(leaf(first), …, leaf(first + count - 1)), count >= 1; leaf is called in index order.
// Adding neighbours level by level, an odd last value moving up, is the same as cutting at the
// largest power of two: both put leaf i and leaf j under one node at the same height.
template <class Real, class Leaf>
constexpr Real Tree(int64_t first, int64_t count, const Leaf& leaf) {
  if (count == 1) return leaf(first);
  const int64_t cut = TreeCut(count);
  const Real left = Tree<Real>(first, cut, leaf);
  return left + Tree<Real>(first + cut, count - cut, leaf);
}

// The levels of a tree over count leaves, which is how many partial sums it holds at a time.
constexpr int64_t TreeDepth(int64_t count) {
  int64_t depth = 1;
  while (count > 1) {
    count = CeilDiv(count, 2);
    ++depth;
  }
  return depth;
}

}  // namespace rmsnorm

#endif  // RMSNORM_CORE_CANONICAL_H_
