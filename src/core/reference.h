// Each operator in plain loops: the definition of the right bits.
#ifndef RMSNORM_CORE_REFERENCE_H_
#define RMSNORM_CORE_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/canonical.h"
#include "rmsnorm/rmsnorm.h"

namespace rmsnorm {

// Writes y and rstd of rows [begin, end).
void ForwardReference(const rmsnorm_forward_args& args, int64_t begin, int64_t end);

// Writes dx and dgamma, or sums, without the workspace.
void BackwardReference(const rmsnorm_backward_args& args);

// Writes dx or sums of rows [begin, end), where begin is a multiple of kLeafRows, and, unless it is
// null, the tree over those rows' leaves of each column of dy * xhat to column_sums[0 … n). Not
// float64.
void BackwardRowsReference(const rmsnorm_backward_args& args, int64_t begin, int64_t end,
                           float* column_sums);

// The chain of one lane of one leaf. a and b map an index to an element; Real is float or double.
template <class Real, class A, class B>
Real LaneSum(int64_t leaf, int64_t lane, int64_t n, const A& a, const B& b) {
  Real acc = 0;
  for (int64_t s = 0; s < kLeafSteps; ++s) {
    const int64_t i = kLeaf * leaf + kLanes * s + lane;
    if (i < n) acc = std::fma(Real{a(i)}, Real{b(i)}, acc);
  }
  return acc;
}

// dot(a, b) of n elements.
template <class Real, class A, class B>
Real Dot(int64_t n, const A& a, const B& b) {
  const auto leaf_sum = [&](int64_t leaf) {
    return Tree<Real>(0, kLanes, [&](int64_t lane) { return LaneSum<Real>(leaf, lane, n, a, b); });
  };
  return Tree<Real>(0, CeilDiv(n, kLeaf), leaf_sum) + Real{0};
}

// Below it the sum of squares may have lost bits to underflow.
inline constexpr float kLeastInRange = 0x1p-90f;

// rstd of a row from the sum of its squares. Where that sum or its square root would leave the
// range of float, the sum is taken again in double from x, which maps an index to an element.
template <class Real, class X>
Real Rstd(Real sum_of_squares, int64_t n, Real epsilon, const X& x) {
  const Real t = sum_of_squares / static_cast<Real>(n) + epsilon;
  if constexpr (std::is_same_v<Real, float>) {
    if (t < kLeastInRange || t == HUGE_VALF) {
      return static_cast<float>(Rstd<double>(Dot<double>(n, x, x), n, epsilon, x));
    }
  }
  return Real{1} / std::sqrt(t);
}

}  // namespace rmsnorm

#endif  // RMSNORM_CORE_REFERENCE_H_
