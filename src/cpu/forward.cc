// Forward kernels: one body for every target, and the call that splits rows over threads.
#include "cpu/forward.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/forward.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "core/reference.h"
#include "cpu/caches.h"
#include "cpu/parallel.h"
#include "cpu/row-inl.h"
#include "cpu/targets.h"

HWY_BEFORE_NAMESPACE();
namespace rmsnorm::cpu {
namespace HWY_NAMESPACE {

#if HWY_NATIVE_FMA

// The terms of dot(x, x).
template <class TX>
struct Squares {
  const TX* x;

  struct Padded {
    Tail<TX> x;
    Squares terms;
    HWY_INLINE Padded(const Squares& row, size_t columns) : x(row.x, columns), terms{x.data} {}
  };

  HWY_INLINE Squares From(size_t i) const { return {x + i}; }
  HWY_INLINE void operator()(DF d, size_t i, VF& a0, VF& b0, VF& a1, VF& b1) const {
    LoadPair<TX>(d, x + i, a0, a1);
    b0 = a0;
    b1 = a1;
  }
};

// What y of a row is made of, and the row to ask for meanwhile.
template <class TX>
struct Factors {
  const TX* x;
  const float* scale;  // in pairs for TX
  float rstd;
  const TX* next;

  HWY_INLINE Factors From(size_t i) const { return {x + i, scale + i, rstd, next + i}; }
};

// y of `columns`, a multiple of 64. y may be x. kAhead: asks for the row to come meanwhile.
template <bool kBeforeGamma, bool kNaN, bool kAhead, class TX, class TY>
HWY_INLINE void ScaleColumns(DF d, size_t columns, const Factors<TX>& row, TY* y) {
  const size_t N = hn::Lanes(d);
  const VF rstd = hn::Set(d, row.rstd);
  for (size_t i = 0; i < columns; i += 2 * N) {
    VF xhat0, xhat1;
    LoadPair<TX>(d, row.x + i, xhat0, xhat1);
    if constexpr (kAhead) PrefetchLines(row.next + i, 2 * N);
    xhat0 = hn::Mul(xhat0, rstd);
    xhat1 = hn::Mul(xhat1, rstd);
    if constexpr (kBeforeGamma) {
      xhat0 = Rounded<kNaN, TX>(d, xhat0);
      xhat1 = Rounded<kNaN, TX>(d, xhat1);
    }
    StorePair<kNaN, TX>(d, hn::Mul(xhat0, hn::Load(d, row.scale + i)),
                        hn::Mul(xhat1, hn::Load(d, row.scale + i + N)), y + i);
  }
}

template <bool kBeforeGamma, class TX, class TY>
class ForwardRowsOf {
 public:
  ForwardRowsOf(const rmsnorm_forward_args& args, Stores stores)
      : args_(args),
        n_(args.n),
        streams_(stores == Stores::kPastCaches && args.y.data != args.x.data),
        // Rows stay in the first-level cache between the passes.
        grouping_(GroupingOf(n_, n_ * sizeof(TX), 16 << 10, 32 << 10)),
        scales_(args.gamma, args.gamma_offset, args.n) {}

  void Rows(int64_t begin, int64_t end) {
    const DF d;
    for (int64_t row = begin; row < end; row += grouping_.rows) {
      const int64_t rows = std::min(grouping_.rows, end - row);
      const auto squares = [&](size_t r, size_t i) { return Squares<TX>{X(row + r) + i}; };
      RowSums rstds = DotOfRows<TX>(d, n_, rows, squares);
      const bool usual = ToRstds(row, rows, rstds);
      for (size_t i = 0; i < n_; i += kBlock) {
        const float* scale = scales_.At(i);
        const Block block = {row, rows, i, HWY_MIN(kBlock, n_ - i), end};
        const bool nan = !usual || !scales_.AreFinite() || MayOverflow();
        if (streams_) {
          nan ? ScaleRows<true, true>(block, rstds, scale)
              : ScaleRows<false, true>(block, rstds, scale);
        } else {
          nan ? ScaleRows<true, false>(block, rstds, scale)
              : ScaleRows<false, false>(block, rstds, scale);
        }
      }
    }
    if (streams_) hwy::FlushStream();
  }

 private:
  struct Block {
    int64_t row, rows;
    size_t column, columns;
    int64_t end;  // of all rows
  };

  // Whether to_x(x * rstd) may be infinite. Otherwise positive, finite rstd and finite scales make
  // no product a NaN: |x * rstd| is at most sqrt(n), and 65504 is the largest float16.
  bool MayOverflow() const {
    return kBeforeGamma && std::is_same_v<TX, Float16> && n_ > size_t{1} << 31;
  }

  const TX* X(int64_t row) const { return RowOf<TX>(args_.x, row); }

  // Turns the sums of squares of rows from `row` on into rstd, and stores it. Returns whether all
  // are positive and finite.
  bool ToRstds(int64_t row, size_t rows, RowSums& sums) const {
    const DF d;
    const size_t N = hn::Lanes(d);
    const VF n = hn::Set(d, static_cast<float>(n_));
    const VF epsilon = hn::Set(d, static_cast<float>(args_.epsilon));
    const VF infinity = hn::Set(d, HUGE_VALF);
    bool usual = true;
    for (size_t first = 0; first < rows; first += N) {
      float* of = sums.of + first;
      const size_t count = HWY_MIN(N, rows - first);
      const auto others = hn::Not(hn::FirstN(d, count));
      const VF t = hn::Add(hn::Div(hn::Load(d, of), n), epsilon);
      const auto in_range = hn::And(hn::Ge(t, hn::Set(d, kLeastInRange)), hn::Lt(t, infinity));
      if (hn::AllTrue(d, hn::Or(in_range, others))) {
        hn::Store(hn::Div(hn::Set(d, 1.0f), hn::Sqrt(t)), d, of);
      } else {
        for (size_t r = 0; r < count; ++r) of[r] = RstdOf(row + first + r, of[r]);
      }
      const VF rstds = hn::Load(d, of);
      const auto finite = hn::And(hn::Gt(rstds, hn::Zero(d)), hn::Lt(rstds, infinity));
      usual = usual && hn::AllTrue(d, hn::Or(finite, others));
      if (args_.rstd == nullptr) continue;
      HWY_ALIGN float stored[kMaxLanes];
      hn::Store(CanonicalNaN<true>(d, rstds), d, stored);
      CopyFew(stored, count, static_cast<float*>(args_.rstd) + row + first);
    }
    return usual;
  }

  float RstdOf(int64_t row, float sum_of_squares) const {
    return Rstd(sum_of_squares, args_.n, static_cast<float>(args_.epsilon),
                [x = X(row)](int64_t i) { return ToFloat(LoadElement<TX>(x, i)); });
  }

  template <bool kNaN, bool kStreams>
  void ScaleRows(const Block& block, const RowSums& rstds, const float* scale) const {
    const size_t i = block.column;
    for (int64_t r = 0; r < block.rows; ++r) {
      const int64_t row = block.row + r;
      const int64_t next = std::min(row + grouping_.ahead, block.end - 1);
      const Factors<TX> factors = {X(row) + i, scale, rstds.of[r], X(next) + i};
      ScaleRow<kNaN, kStreams>(block.columns, factors, RowOf<TY>(args_.y, row) + i);
    }
  }

  template <bool kNaN, bool kStreams>
  static HWY_INLINE void ScaleRow(size_t columns, const Factors<TX>& row, TY* y) {
    const DF d;
    const size_t rest = columns % kLanes;
    const size_t full = columns - rest;
    HWY_ALIGN TY piece[kPiece];
    if constexpr (kStreams) {
      for (size_t i = 0; i < full; i += kPiece) {
        const size_t count = HWY_MIN(kPiece, full - i);
        ScaleColumns<kBeforeGamma, kNaN, true>(d, count, row.From(i), piece);
        StreamBytes(piece, y + i, count * sizeof(TY));
      }
    } else {
      ScaleColumns<kBeforeGamma, kNaN, false>(d, full, row, y);
    }
    if (rest == 0) return;
    const Tail<TX> x(row.x + full, rest);
    const Factors<TX> tail = {x.data, row.scale + full, row.rstd, x.data};
    ScaleColumns<kBeforeGamma, kNaN, false>(d, kLanes, tail, piece);
    CopyFew(piece, rest, y + full);
  }

  const rmsnorm_forward_args& args_;
  const size_t n_;
  const bool streams_;
  const Grouping grouping_;
  Scales<TX> scales_;
};

// Rows [begin, end): ForwardReference, in the widest vectors of this target.
void ForwardRows(const rmsnorm_forward_args& args, int64_t begin, int64_t end, Stores stores) {
  const bool before_gamma = args.rounding == RMSNORM_ROUND_BEFORE_GAMMA;
  VisitDtype(args.x.dtype, [&](auto x) {
    using TX = decltype(x);
    if constexpr (std::is_same_v<TX, float>) {
      ForwardRowsOf<false, float, float>(args, stores).Rows(begin, end);
    } else if (args.y.dtype == RMSNORM_FLOAT32) {
      before_gamma ? ForwardRowsOf<true, TX, float>(args, stores).Rows(begin, end)
                   : ForwardRowsOf<false, TX, float>(args, stores).Rows(begin, end);
    } else {
      before_gamma ? ForwardRowsOf<true, TX, TX>(args, stores).Rows(begin, end)
                   : ForwardRowsOf<false, TX, TX>(args, stores).Rows(begin, end);
    }
  });
}

#else  // Without a fused multiply-add there is no fast way to the same bits.

void ForwardRows(const rmsnorm_forward_args& args, int64_t begin, int64_t end, Stores) {
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
  const int64_t row_bytes = args.n * (SizeOf(args.x.dtype) + SizeOf(args.y.dtype));
  const bool reference = UsesReference() || args.x.dtype == RMSNORM_FLOAT64;
  const auto kernel = HWY_DYNAMIC_DISPATCH(ForwardRows);
  const Stores stores = StoresFor(args.rows, row_bytes, Threads(runner));
  ParallelFor(runner, args.rows, /*unit=*/1, row_bytes, [&](int64_t begin, int64_t end) {
    reference ? ForwardReference(args, begin, end) : kernel(args, begin, end, stores);
  });
}

}  // namespace rmsnorm::cpu

#endif  // HWY_ONCE
