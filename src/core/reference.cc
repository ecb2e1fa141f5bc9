// The definition of the right bits, one element at a time.
#include "core/reference.h"

#include <cstdint>

#include "core/dtype.h"

namespace rmsnorm {
namespace {

// The factor of one column: gamma_offset + gamma, or 1 where gamma is absent.
float Scale(const rmsnorm_vector& gamma, float gamma_offset, int64_t i) {
  if (gamma.data == nullptr) return 1.0f;
  return VisitDtype(gamma.dtype, [&](auto element) {
    return gamma_offset + ToFloat(static_cast<const decltype(element)*>(gamma.data)[i]);
  });
}

float At(const rmsnorm_matrix& m, int64_t row, int64_t i) {
  return VisitDtype(m.dtype,
                    [&](auto element) { return ToFloat(RowOf<decltype(element)>(m, row)[i]); });
}

void Set(const rmsnorm_matrix& m, int64_t row, int64_t i, float value) {
  VisitDtype(m.dtype, [&](auto element) {
    RowOf<decltype(element)>(m, row)[i] = FromFloat<decltype(element)>(value);
  });
}

float Rounded(rmsnorm_dtype dtype, float value) {
  return VisitDtype(dtype,
                    [&](auto element) { return ToFloat(FromFloat<decltype(element)>(value)); });
}

}  // namespace

void ForwardReference(const rmsnorm_forward_args& args, int64_t begin, int64_t end) {
  const float epsilon = static_cast<float>(args.epsilon);
  const float gamma_offset = static_cast<float>(args.gamma_offset);
  for (int64_t row = begin; row < end; ++row) {
    const auto x = [&](int64_t i) { return At(args.x, row, i); };
    const float rstd = Rstd(Dot<float>(args.n, x, x), args.n, epsilon, x);
    for (int64_t i = 0; i < args.n; ++i) {
      float xhat = x(i) * rstd;
      if (args.rounding == RMSNORM_ROUND_BEFORE_GAMMA) xhat = Rounded(args.x.dtype, xhat);
      Set(args.y, row, i, xhat * Scale(args.gamma, gamma_offset, i));
    }
    if (args.rstd != nullptr) args.rstd[row] = FromFloat<float>(rstd);
  }
}

void BackwardReference(const rmsnorm_backward_args& args, int64_t begin, int64_t end,
                       float* column_sums) {
  const float gamma_offset = static_cast<float>(args.gamma_offset);
  const auto dy = [&](int64_t row, int64_t i) { return At(args.dy, row, i); };
  const auto xhat = [&](int64_t row, int64_t i) { return At(args.x, row, i) * args.rstd[row]; };

  if (column_sums != nullptr) {
    for (int64_t i = 0; i < args.n; ++i) {
      column_sums[i] = Tree<float>(0, CeilDiv(end - begin, kLeafRows), [&](int64_t leaf) {
        float acc = 0;
        const int64_t first = begin + kLeafRows * leaf;
        for (int64_t row = first; row < std::min(first + kLeafRows, end); ++row) {
          acc = std::fma(dy(row, i), xhat(row, i), acc);
        }
        return acc;
      });
    }
  }
  if (args.dx.data == nullptr) return;
  for (int64_t row = begin; row < end; ++row) {
    const auto w = [&](int64_t i) { return dy(row, i) * Scale(args.gamma, gamma_offset, i); };
    const auto row_xhat = [&](int64_t i) { return xhat(row, i); };
    const float c = Dot<float>(args.n, w, row_xhat) / static_cast<float>(args.n);
    for (int64_t i = 0; i < args.n; ++i) {
      Set(args.dx, row, i, std::fma(-row_xhat(i), c, w(i)) * args.rstd[row]);
    }
  }
}

}  // namespace rmsnorm
