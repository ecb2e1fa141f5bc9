// What the tests of rows that are spread over several calls share: calls on runs of columns, and
// the tree over their sums.
#ifndef RMSNORM_PARTS_H_
#define RMSNORM_PARTS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "testing.h"

namespace rmsnorm::testing {

// The same call on columns [begin, begin + n) alone.
inline rmsnorm_backward_args ColumnsOf(rmsnorm_backward_args args, int64_t begin, int64_t n) {
  const auto move = [begin](auto& data, rmsnorm_dtype dtype) {
    if (data == nullptr) return;
    const auto address = reinterpret_cast<uintptr_t>(data) + begin * SizeOf(dtype);
    data = reinterpret_cast<std::remove_reference_t<decltype(data)>>(address);
  };
  move(args.dy.data, args.dy.dtype);
  move(args.x.data, args.x.dtype);
  move(args.gamma.data, args.gamma.dtype);
  move(args.dx.data, args.dx.dtype);
  move(args.dgamma, RealOf(args.x.dtype));
  args.n = n;
  return args;
}

// The same call for sums alone.
inline rmsnorm_backward_args ForSums(rmsnorm_backward_args args, void* sums) {
  args.dx.data = nullptr;
  args.dgamma = nullptr;
  args.sums = sums;
  return args;
}

// The columns where rows of n are cut into `parts` runs of leaves: [0, …, n].
inline std::vector<int64_t> Cuts(int64_t n, int64_t parts) {
  std::vector<int64_t> cuts;
  for (int64_t p = 0; p < parts; ++p) cuts.push_back(CeilDiv(n, kLeaf) * p / parts * kLeaf);
  cuts.push_back(n);
  return cuts;
}

// The sums of columns [begin, end): of each largest subtree that no cut divides, sums_of(begin, n)
// gives them, and they are added as the tree adds them.
template <class Real, class SumsOf>
std::vector<Real> AddParts(const std::vector<int64_t>& cuts, int64_t begin, int64_t end,
                           const SumsOf& sums_of) {
  const auto cut = std::upper_bound(cuts.begin(), cuts.end(), begin);
  if (*cut >= end) return sums_of(begin, end - begin);
  const int64_t middle = begin + TreeCut(CeilDiv(end - begin, kLeaf)) * kLeaf;
  std::vector<Real> left = AddParts<Real>(cuts, begin, middle, sums_of);
  const std::vector<Real> right = AddParts<Real>(cuts, middle, end, sums_of);
  for (size_t row = 0; row < left.size(); ++row) left[row] += right[row];
  return left;
}

// Lengths of 1 to 9 leaves, the last one whole or short.
inline std::vector<int64_t> LengthsInLeaves() {
  std::vector<int64_t> lengths;
  for (int64_t leaves = 1; leaves <= 9; ++leaves) {
    lengths.insert(lengths.end(), {leaves * kLeaf - 412, leaves * kLeaf});
  }
  return lengths;
}

}  // namespace rmsnorm::testing

#endif  // RMSNORM_PARTS_H_
