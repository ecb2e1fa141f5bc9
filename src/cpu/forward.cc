// Forward kernels: one body for every target, and the call that splits rows over threads.
#include "cpu/forward.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/forward.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include <hwy/highway.h>

#include "core/reference.h"
#include "cpu/parallel.h"
#include "cpu/row-inl.h"
#include "cpu/targets.h"

HWY_BEFORE_NAMESPACE();
namespace rmsnorm::cpu {
namespace HWY_NAMESPACE {

#if HWY_NATIVE_FMA

template <class TX>
struct Squares {
  const TX* x;

  HWY_INLINE void operator()(DF d, size_t i, VF& a, VF& b) const { a = b = LoadFloats(d, x + i); }
};

// y of columns [0, n), which is a multiple of Lanes(d). y may be x.
template <bool kBeforeGamma, class TX, class TG, class TY>
HWY_INLINE void ScaleColumns(DF d, size_t n, const TX* x, float rstd, const Scale<TG>& scale,
                             TY* y) {
  const VF rstds = hn::Set(d, rstd);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    VF xhat = hn::Mul(LoadFloats(d, x + i), rstds);
    if constexpr (kBeforeGamma) xhat = Rounded<TX>(d, xhat);
    StoreFloats(d, hn::Mul(xhat, scale(d, i)), y + i);
  }
}

template <bool kBeforeGamma, class TX, class TG, class TY>
void ForwardRowsOf(const rmsnorm_forward_args& args, int64_t begin, int64_t end) {
  const DF d;
  const size_t n = static_cast<size_t>(args.n);
  const size_t rest = n % kLanes;
  const float epsilon = static_cast<float>(args.epsilon);
  const float gamma_offset = static_cast<float>(args.gamma_offset);
  const TG* gamma = static_cast<const TG*>(args.gamma.data);
  const Tail<TG> gamma_tail(gamma, n);
  for (int64_t row = begin; row < end; ++row) {
    const TX* x = RowOf<TX>(args.x, row);
    TY* y = RowOf<TY>(args.y, row);
    const Tail<TX> x_tail(x, n);
    const float s = DotOfRow(d, n, Squares<TX>{x}, Squares<TX>{x_tail.data});
    const float rstd =
        Rstd(s, args.n, epsilon, [x](int64_t i) { return ToFloat(LoadElement<TX>(x, i)); });
    ScaleColumns<kBeforeGamma>(d, n - rest, x, rstd, Scale<TG>{gamma, gamma_offset}, y);
    if (rest > 0) {
      Tail<TY> y_tail;
      ScaleColumns<kBeforeGamma>(d, kLanes, x_tail.data, rstd,
                                 Scale<TG>{gamma_tail.data, gamma_offset}, y_tail.data);
      y_tail.Store(y, n);
    }
    if (args.rstd != nullptr) StoreElement(args.rstd, row, FromFloat<float>(rstd));
  }
}

// Rows [begin, end): ForwardReference, in the widest vectors of this target.
void ForwardRows(const rmsnorm_forward_args& args, int64_t begin, int64_t end) {
  const bool before_gamma = args.rounding == RMSNORM_ROUND_BEFORE_GAMMA;
  VisitDtype(args.x.dtype, [&](auto x) {
    VisitGamma(args.gamma, [&](auto gamma) {
      using TX = decltype(x);
      using TG = decltype(gamma);
      if constexpr (std::is_same_v<TX, float>) {
        ForwardRowsOf<false, float, TG, float>(args, begin, end);
      } else if (args.y.dtype == RMSNORM_FLOAT32) {
        before_gamma ? ForwardRowsOf<true, TX, TG, float>(args, begin, end)
                     : ForwardRowsOf<false, TX, TG, float>(args, begin, end);
      } else {
        before_gamma ? ForwardRowsOf<true, TX, TG, TX>(args, begin, end)
                     : ForwardRowsOf<false, TX, TG, TX>(args, begin, end);
      }
    });
  });
}

#else  // Without a fused multiply-add there is no fast way to the same bits.

void ForwardRows(const rmsnorm_forward_args& args, int64_t begin, int64_t end) {
  ForwardReference(args, begin, end);
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace rmsnorm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace rmsnorm::cpu {

HWY_EXPORT(ForwardRows);

void Forward(const rmsnorm_forward_args& args, const rmsnorm_runner* runner) {
  const bool reference = UsesReference() || args.x.dtype == RMSNORM_FLOAT64;
  const auto forward_rows = reference ? &ForwardReference : &HWY_DYNAMIC_DISPATCH(ForwardRows);
  const int64_t row_bytes = args.n * (SizeOf(args.x.dtype) + SizeOf(args.y.dtype));
  ParallelFor(runner, args.rows, /*unit=*/1, row_bytes,
              [&](int64_t begin, int64_t end) { forward_rows(args, begin, end); });
}

}  // namespace rmsnorm::cpu

#endif  // HWY_ONCE
