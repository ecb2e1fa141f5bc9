// The definition of the right bits, one element at a time. Real is float, or double for float64.
#include "core/reference.h"

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"

namespace rmsnorm {
namespace {

// Calls f with a value of the C++ type that stands for dtype.
template <class Real, class F>
decltype(auto) VisitElement(rmsnorm_dtype dtype, F&& f) {
  if constexpr (std::is_same_v<Real, double>) {
    return f(double{});
  } else {
    return VisitDtype(dtype, f);
  }
}

// The factor of one column: gamma_offset + gamma, or 1 where gamma is absent.
template <class Real>
Real Scale(const rmsnorm_vector& gamma, double gamma_offset, int64_t i) {
  if (gamma.data == nullptr) return 1;
  return VisitElement<Real>(gamma.dtype, [&](auto element) {
    return static_cast<Real>(gamma_offset) + ToReal(LoadElement<decltype(element)>(gamma.data, i));
  });
}

template <class Real>
Real At(const rmsnorm_matrix& m, int64_t row, int64_t i) {
  return VisitElement<Real>(m.dtype, [&](auto element) {
    using T = decltype(element);
    return ToReal(LoadElement<T>(RowOf<T>(m, row), i));
  });
}

template <class Real>
void Set(const rmsnorm_matrix& m, int64_t row, int64_t i, Real value) {
  VisitElement<Real>(m.dtype, [&](auto element) {
    using T = decltype(element);
    StoreElement(RowOf<T>(m, row), i, FromReal<T>(value));
  });
}

template <class Real>
Real Rounded(rmsnorm_dtype dtype, Real value) {
  return VisitElement<Real>(
      dtype, [&](auto element) { return ToReal(FromReal<decltype(element)>(value)); });
}

template <class Real>
void Forward(const rmsnorm_forward_args& args, int64_t begin, int64_t end) {
  const Real epsilon = static_cast<Real>(args.epsilon);
  for (int64_t row = begin; row < end; ++row) {
    const auto x = [&](int64_t i) { return At<Real>(args.x, row, i); };
    const Real rstd = Rstd(Dot<Real>(args.n, x, x), args.n, epsilon, x);
    for (int64_t i = 0; i < args.n; ++i) {
      Real xhat = x(i) * rstd;
      if (args.rounding == RMSNORM_ROUND_BEFORE_GAMMA) xhat = Rounded(args.x.dtype, xhat);
      Set(args.y, row, i, xhat * Scale<Real>(args.gamma, args.gamma_offset, i));
    }
    if (args.rstd != nullptr) StoreElement(args.rstd, row, FromReal<Real>(rstd));
  }
}

template <class Real>
Real Xhat(const rmsnorm_backward_args& args, int64_t row, int64_t i) {
  return At<Real>(args.x, row, i) * LoadElement<Real>(args.rstd, row);
}

// The tree over the leaves of column i of dy * xhat, from row begin to end > begin.
template <class Real>
Real ColumnSum(const rmsnorm_backward_args& args, int64_t begin, int64_t end, int64_t i) {
  return Tree<Real>(0, CeilDiv(end - begin, kLeafRows), [&](int64_t leaf) {
    Real acc = 0;
    const int64_t first = begin + kLeafRows * leaf;
    for (int64_t row = first; row < std::min(first + kLeafRows, end); ++row) {
      acc = std::fma(At<Real>(args.dy, row, i), Xhat<Real>(args, row, i), acc);
    }
    return acc;
  });
}

template <class Real>
Real W(const rmsnorm_backward_args& args, int64_t row, int64_t i) {
  return At<Real>(args.dy, row, i) * Scale<Real>(args.gamma, args.gamma_offset, i);
}

template <class Real>
Real RowSum(const rmsnorm_backward_args& args, int64_t row) {
  return Dot<Real>(
      args.n, [&](int64_t i) { return W<Real>(args, row, i); },
      [&](int64_t i) { return Xhat<Real>(args, row, i); });
}

template <class Real>
void RowSums(const rmsnorm_backward_args& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    StoreElement(args.sums, row, FromReal<Real>(RowSum<Real>(args, row)));
  }
}

template <class Real>
void Gradient(const rmsnorm_backward_args& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Real rstd = LoadElement<Real>(args.rstd, row);
    const Real c = args.whole_sums != nullptr
                       ? LoadElement<Real>(args.whole_sums, row) / static_cast<Real>(args.whole_n)
                       : RowSum<Real>(args, row) / static_cast<Real>(args.n);
    for (int64_t i = 0; i < args.n; ++i) {
      const Real gradient = std::fma(-Xhat<Real>(args, row, i), c, W<Real>(args, row, i)) * rstd;
      Set(args.dx, row, i, gradient);
    }
  }
}

template <class Real>
void Backward(const rmsnorm_backward_args& args) {
  if (args.sums != nullptr) RowSums<Real>(args, 0, args.rows);
  if (args.dx.data != nullptr) Gradient<Real>(args, 0, args.rows);
  for (int64_t i = 0; args.dgamma != nullptr && i < args.n; ++i) {
    const Real sum = args.rows > 0 ? ColumnSum<Real>(args, 0, args.rows, i) : 0;
    StoreElement(args.dgamma, i, FromReal<Real>(sum + Real{0}));
  }
}

}  // namespace

void ForwardReference(const rmsnorm_forward_args& args, int64_t begin, int64_t end) {
  if (args.x.dtype == RMSNORM_FLOAT64) return Forward<double>(args, begin, end);
  Forward<float>(args, begin, end);
}

void BackwardReference(const rmsnorm_backward_args& args) {
  if (args.x.dtype == RMSNORM_FLOAT64) return Backward<double>(args);
  Backward<float>(args);
}

void BackwardRowsReference(const rmsnorm_backward_args& args, int64_t begin, int64_t end,
                           float* column_sums) {
  if (args.sums != nullptr) RowSums<float>(args, begin, end);
  if (args.dx.data != nullptr) Gradient<float>(args, begin, end);
  if (column_sums == nullptr) return;
  for (int64_t i = 0; i < args.n; ++i) column_sums[i] = ColumnSum<float>(args, begin, end, i);
}

}  // namespace rmsnorm
