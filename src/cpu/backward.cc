// Backward kernels: one body for every target, and the call that splits rows over threads.
#include "cpu/backward.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/backward.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include <hwy/highway.h>

#include <algorithm>

#include "core/columns.h"
#include "core/reference.h"
#include "cpu/parallel.h"
#include "cpu/row-inl.h"
#include "cpu/targets.h"

HWY_BEFORE_NAMESPACE();
namespace rmsnorm::cpu {
namespace HWY_NAMESPACE {

#if HWY_NATIVE_FMA

// One row's operands; the terms of c = dot(w, xhat) / n.
template <class TDY, class TX, class TG>
struct RowTerms {
  const TDY* dy;
  const TX* x;
  Scale<TG> scale;
  float rstd;

  HWY_INLINE VF Xhat(DF d, size_t i) const {
    return hn::Mul(LoadFloats(d, x + i), hn::Set(d, rstd));
  }
  HWY_INLINE void operator()(DF d, size_t i, VF& w, VF& xhat) const {
    w = hn::Mul(LoadFloats(d, dy + i), scale(d, i));
    xhat = Xhat(d, i);
  }
};

// dx of columns [0, n), which is a multiple of Lanes(d); null: not wanted. Adds dy * xhat to
// sums[0 … n), unless it is null.
template <class Terms, class TX>
HWY_INLINE void GradientColumns(DF d, size_t n, const Terms& terms, float c, TX* dx,
                                float* HWY_RESTRICT sums) {
  const VF cs = hn::Set(d, c);
  const VF rstds = hn::Set(d, terms.rstd);
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const VF dy = LoadFloats(d, terms.dy + i);
    const VF xhat = terms.Xhat(d, i);
    if (sums != nullptr) hn::StoreU(hn::MulAdd(dy, xhat, hn::LoadU(d, sums + i)), d, sums + i);
    if (dx != nullptr) {
      const VF w = hn::Mul(dy, terms.scale(d, i));
      StoreFloats(d, hn::Mul(hn::NegMulAdd(xhat, cs, w), rstds), dx + i);
    }
  }
}

template <class TDY, class TX, class TG>
class BackwardRowsOf {
 public:
  explicit BackwardRowsOf(const rmsnorm_backward_args& args)
      : args_(args), n_(args.n), gamma_tail_(Gamma(), args.n) {}

  // The tree over the columns of leaves [first, first + count) into slots[0 … n), the partial sums
  // of its right branches into the slots after it; dx of those leaves' rows. Rows end at `end`.
  void Leaves(int64_t first, int64_t count, int64_t end, float* slots) const {
    if (count > 1) {
      const int64_t cut = TreeCut(count);
      float* right = slots != nullptr ? slots + n_ : nullptr;
      Leaves(first, cut, end, slots);
      Leaves(first + cut, count - cut, end, right);
      if (slots != nullptr) AddTo(slots, right);
      return;
    }
    if (slots != nullptr) std::fill_n(slots, n_, 0.0f);
    const int64_t begin = first * kLeafRows;
    for (int64_t row = begin; row < std::min(begin + kLeafRows, end); ++row) Row(row, slots);
  }

 private:
  using Terms = RowTerms<TDY, TX, TG>;

  const TG* Gamma() const { return static_cast<const TG*>(args_.gamma.data); }

  HWY_ATTR void AddTo(float* HWY_RESTRICT left, const float* HWY_RESTRICT right) const {
    for (size_t i = 0; i < n_; ++i) left[i] += right[i];
  }

  HWY_ATTR void Row(int64_t row, float* sums) const {
    const DF d;
    const size_t rest = n_ % kLanes;
    const float gamma_offset = static_cast<float>(args_.gamma_offset);
    const float rstd = LoadElement<float>(args_.rstd, row);
    const TDY* dy = RowOf<TDY>(args_.dy, row);
    const TX* x = RowOf<TX>(args_.x, row);
    TX* dx = args_.dx.data != nullptr ? RowOf<TX>(args_.dx, row) : nullptr;
    const Tail<TDY> dy_tail(dy, n_);
    const Tail<TX> x_tail(x, n_);
    const Terms terms{dy, x, {Gamma(), gamma_offset}, rstd};
    const Terms tail{dy_tail.data, x_tail.data, {gamma_tail_.data, gamma_offset}, rstd};
    const float c = dx != nullptr ? DotOfRow(d, n_, terms, tail) / static_cast<float>(n_) : 0;
    GradientColumns(d, n_ - rest, terms, c, dx, sums);
    if (rest == 0) return;
    Tail<TX> dx_tail;
    Tail<float> sums_tail;
    if (sums != nullptr) sums_tail.Load(sums, n_);
    GradientColumns(d, kLanes, tail, c, dx != nullptr ? dx_tail.data : nullptr,
                    sums != nullptr ? sums_tail.data : nullptr);
    if (dx != nullptr) dx_tail.Store(dx, n_);
    if (sums != nullptr) sums_tail.Store(sums, n_);
  }

  const rmsnorm_backward_args& args_;
  const size_t n_;
  const Tail<TG> gamma_tail_;
};

// Rows [begin, end): BackwardRowsReference, in the widest vectors of this target. slots: the
// partial sums of a ColumnBlocks block, or null.
void BackwardRows(const rmsnorm_backward_args& args, int64_t begin, int64_t end, float* slots) {
  const int64_t first = begin / kLeafRows;
  const int64_t leaves = CeilDiv(end - begin, kLeafRows);
  VisitDtype(args.x.dtype, [&](auto x) {
    VisitGamma(args.gamma, [&](auto gamma) {
      using TX = decltype(x);
      using TG = decltype(gamma);
      if (args.dy.dtype == RMSNORM_FLOAT32) {
        BackwardRowsOf<float, TX, TG>(args).Leaves(first, leaves, end, slots);
      } else {
        BackwardRowsOf<TX, TX, TG>(args).Leaves(first, leaves, end, slots);
      }
    });
  });
}

#else  // Without a fused multiply-add there is no fast way to the same bits.

void BackwardRows(const rmsnorm_backward_args& args, int64_t begin, int64_t end, float* slots) {
  BackwardRowsReference(args, begin, end, slots);
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace rmsnorm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace rmsnorm::cpu {

HWY_EXPORT(BackwardRows);

namespace {

// More blocks than threads even out threads of unequal speed.
int64_t BlocksFor(const rmsnorm_runner* runner) {
  const int64_t threads = std::min<int64_t>(Threads(runner), 1 << 20);
  return threads == 1 ? 1 : 4 * threads;
}

// dgamma of columns [begin, end) from the first slot of each block.
void FoldBlocks(const ColumnBlocks& blocks, const rmsnorm_backward_args& args, int64_t begin,
                int64_t end) {
  const float* slots = static_cast<const float*>(args.workspace);
  for (int64_t i = begin; i < end; ++i) {
    const auto block_sum = [&](int64_t block) { return slots[block * blocks.slots * args.n + i]; };
    const float sum = blocks.blocks > 0 ? Tree<float>(0, blocks.blocks, block_sum) : 0.0f;
    StoreElement(args.dgamma, i, FromFloat<float>(sum + 0.0f));
  }
}

}  // namespace

int64_t BackwardWorkspace(int64_t rows, int64_t n, const rmsnorm_runner* runner) {
  return CutColumns(rows, n, BlocksFor(runner), INT64_MAX).bytes;
}

void Backward(const rmsnorm_backward_args& args, const rmsnorm_runner* runner) {
  if (args.x.dtype == RMSNORM_FLOAT64) return BackwardReference(args);
  const auto backward_rows =
      UsesReference() ? &BackwardRowsReference : &HWY_DYNAMIC_DISPATCH(BackwardRows);
  const int64_t row_bytes = args.n * (2 * SizeOf(args.x.dtype) + SizeOf(args.dy.dtype));
  if (args.dgamma == nullptr) {
    ParallelFor(runner, args.rows, kLeafRows, row_bytes,
                [&](int64_t begin, int64_t end) { backward_rows(args, begin, end, nullptr); });
    return;
  }
  const int64_t workspace_size =
      static_cast<int64_t>(std::min<uint64_t>(args.workspace_size, INT64_MAX));
  const ColumnBlocks blocks = CutColumns(args.rows, args.n, BlocksFor(runner), workspace_size);
  float* slots = static_cast<float*>(args.workspace);
  ParallelFor(runner, blocks.blocks, /*unit=*/1, blocks.block_rows * row_bytes,
              [&](int64_t begin, int64_t end) {
                for (int64_t block = begin; block < end; ++block) {
                  const int64_t first = block * blocks.block_rows;
                  backward_rows(args, first, std::min(first + blocks.block_rows, args.rows),
                                slots + block * blocks.slots * args.n);
                }
              });
  ParallelFor(runner, args.n, /*unit=*/64, 4 * (blocks.blocks + 1),
              [&](int64_t begin, int64_t end) { FoldBlocks(blocks, args, begin, end); });
}

}  // namespace rmsnorm::cpu

#endif  // HWY_ONCE
