// Backward kernels: one body for every target, and the call that splits rows over threads.
#include "cpu/backward.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/backward.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/columns.h"
#include "core/reference.h"
#include "cpu/caches.h"
#include "cpu/parallel.h"
#include "cpu/row-inl.h"
#include "cpu/targets.h"

HWY_BEFORE_NAMESPACE();
namespace rmsnorm::cpu {
namespace HWY_NAMESPACE {

#if HWY_NATIVE_FMA

// One row's operands; the terms of c = dot(w, xhat) / n.
template <class TDY, class TX>
struct RowTerms {
  const TDY* dy;
  const TX* x;
  const float* scale;  // in pairs for TX
  float rstd;

  struct Padded {
    Tail<TDY> dy;
    Tail<TX> x;
    RowTerms terms;
    HWY_INLINE Padded(const RowTerms& row, size_t columns)
        : dy(row.dy, columns), x(row.x, columns), terms{dy.data, x.data, row.scale, row.rstd} {}
  };

  HWY_INLINE RowTerms From(size_t i) const { return {dy + i, x + i, scale + i, rstd}; }
  HWY_INLINE void Load(DF d, size_t i, VF& dy0, VF& xhat0, VF& dy1, VF& xhat1) const {
    LoadPair<TX>(d, dy + i, dy0, dy1);
    LoadPair<TX>(d, x + i, xhat0, xhat1);
    xhat0 = hn::Mul(xhat0, hn::Set(d, rstd));
    xhat1 = hn::Mul(xhat1, hn::Set(d, rstd));
  }
  HWY_INLINE void operator()(DF d, size_t i, VF& w0, VF& xhat0, VF& w1, VF& xhat1) const {
    Load(d, i, w0, xhat0, w1, xhat1);
    w0 = hn::Mul(w0, hn::Load(d, scale + i));
    w1 = hn::Mul(w1, hn::Load(d, scale + i + hn::Lanes(d)));
  }
};

// What the gradients of a row are made of, and the row to ask for meanwhile.
template <class TDY, class TX>
struct GradientTerms {
  RowTerms<TDY, TX> row;
  float c;
  const TDY* next_dy;
  const TX* next_x;

  HWY_INLINE GradientTerms From(size_t i) const {
    return {row.From(i), c, next_dy + i, next_x + i};
  }
};

// What is wanted of a row's gradients. kNaN: dx may hold one.
template <bool kNaNValue, bool kDxValue, bool kSumsValue>
struct Wanted {
  static constexpr bool kNaN = kNaNValue, kDx = kDxValue, kSums = kSumsValue;
};

// Of `columns`, a multiple of 64: writes dx, adds dy * xhat to sums, in pairs for TX.
template <class W, class TDY, class TX>
HWY_INLINE void GradientColumns(DF d, size_t columns, const GradientTerms<TDY, TX>& terms, TX* dx,
                                float* HWY_RESTRICT sums) {
  const size_t N = hn::Lanes(d);
  const VF c = hn::Set(d, terms.c);
  const VF rstd = hn::Set(d, terms.row.rstd);
  for (size_t i = 0; i < columns; i += 2 * N) {
    VF dy0, dy1, xhat0, xhat1;
    terms.row.Load(d, i, dy0, xhat0, dy1, xhat1);
    PrefetchLines(terms.next_x + i, 2 * N);
    PrefetchLines(terms.next_dy + i, 2 * N);
    if constexpr (W::kSums) {
      hn::Store(hn::MulAdd(dy0, xhat0, hn::Load(d, sums + i)), d, sums + i);
      hn::Store(hn::MulAdd(dy1, xhat1, hn::Load(d, sums + i + N)), d, sums + i + N);
    }
    if constexpr (W::kDx) {
      const VF w0 = hn::Mul(dy0, hn::Load(d, terms.row.scale + i));
      const VF w1 = hn::Mul(dy1, hn::Load(d, terms.row.scale + i + N));
      StorePair<W::kNaN, TX>(d, hn::Mul(hn::NegMulAdd(xhat0, c, w0), rstd),
                             hn::Mul(hn::NegMulAdd(xhat1, c, w1), rstd), dx + i);
    }
  }
}

template <class TDY, class TX>
class BackwardRowsOf {
 public:
  BackwardRowsOf(const rmsnorm_backward_args& args, Stores stores)
      : args_(args),
        n_(args.n),
        slot_(PaddedColumns(args.n)),
        whole_n_(static_cast<float>(args.whole_sums != nullptr ? args.whole_n : args.n)),
        streams_(stores == Stores::kPastCaches),
        // Rows stay in the second-level cache between the passes; the second goes leaf by leaf, so
        // that its part of gamma and of the sums stays in the first.
        grouping_(GroupingOf(n_, n_ * (sizeof(TDY) + sizeof(TX)), 128 << 10, 64 << 10)),
        scales_(args.gamma, args.gamma_offset, args.n) {}

  // dx or sums of rows [begin, end), and the tree over their leaves of the columns of dy * xhat in
  // slots[0 … n), unless slots is null.
  void Rows(int64_t begin, int64_t end, float* slots) {
    Leaves(begin / kLeafRows, CeilDiv(end - begin, kLeafRows), end, slots);
    if (slots != nullptr && kEvenOdd<TX>) {
      const DF d;
      for (size_t i = 0; i < slot_; i += 2 * hn::Lanes(d)) {
        const VF even = hn::Load(d, slots + i);
        const VF odd = hn::Load(d, slots + i + hn::Lanes(d));
        hn::StoreInterleaved2(even, odd, d, slots + i);
      }
    }
    if (streams_) hwy::FlushStream();
  }

 private:
  using Terms = RowTerms<TDY, TX>;

  // The tree over the columns of leaves [first, first + count), in pairs for TX, in the first slot;
  // the partial sums of its right branches in the slots after it.
  void Leaves(int64_t first, int64_t count, int64_t end, float* slots) {
    if (count > 1) {
      const int64_t cut = TreeCut(count);
      float* right = slots != nullptr ? slots + slot_ : nullptr;
      Leaves(first, cut, end, slots);
      Leaves(first + cut, count - cut, end, right);
      if (slots != nullptr) AddTo(slots, right);
      return;
    }
    if (slots != nullptr) std::fill_n(slots, slot_, 0.0f);
    const int64_t begin = first * kLeafRows;
    const int64_t leaf_end = std::min(begin + kLeafRows, end);
    for (int64_t row = begin; row < leaf_end; row += grouping_.rows) {
      Group(row, std::min(grouping_.rows, leaf_end - row), end, slots);
    }
  }

  void AddTo(float* HWY_RESTRICT left, const float* HWY_RESTRICT right) const {
    const DF d;
    for (size_t i = 0; i < slot_; i += hn::Lanes(d)) {
      hn::Store(hn::Add(hn::Load(d, left + i), hn::Load(d, right + i)), d, left + i);
    }
  }

  const TDY* Dy(int64_t row) const { return RowOf<TDY>(args_.dy, row); }
  const TX* X(int64_t row) const { return RowOf<TX>(args_.x, row); }

  HWY_INLINE Terms TermsAt(int64_t row, size_t i) {
    const float* scale = scales_.At(i / kBlock * kBlock) + i % kBlock;
    return {Dy(row) + i, X(row) + i, scale, LoadElement<float>(args_.rstd, row)};
  }

  // Not inlined into the recursion above, whose every level would hold its memory.
  HWY_NOINLINE void Group(int64_t row, int64_t rows, int64_t end, float* sums) {
    if (args_.dx.data == nullptr && args_.sums == nullptr) {
      return Gradients<Wanted<false, false, true>>(row, rows, RowSums(), end, sums);
    }
    RowSums c = SumsOfRows(row, rows);
    if (args_.sums != nullptr) {
      for (int64_t r = 0; r < rows; ++r) {
        StoreElement(args_.sums, row + r, FromFloat<float>(c.of[r]));
      }
      return;
    }
    bool usual = args_.whole_sums == nullptr;
    for (int64_t r = 0; r < rows; ++r) {
      c.of[r] /= whole_n_;
      // A finite c implies finite w and xhat, so that dx holds no NaN: w - xhat * c may be
      // infinite, but where rstd is 0, so is xhat, and it is w. A c that was given implies nothing.
      usual = usual && std::isfinite(c.of[r]);
    }
    if (sums == nullptr) {
      Gradients<Wanted<true, true, false>>(row, rows, c, end, sums);
    } else if (usual) {
      Gradients<Wanted<false, true, true>>(row, rows, c, end, sums);
    } else {
      Gradients<Wanted<true, true, true>>(row, rows, c, end, sums);
    }
  }

  // dot(w, xhat) of the whole rows.
  HWY_INLINE RowSums SumsOfRows(int64_t row, int64_t rows) {
    if (args_.whole_sums == nullptr) {
      const auto terms = [&](size_t r, size_t i) { return TermsAt(row + r, i); };
      return DotOfRows<TX>(DF(), n_, rows, terms);
    }
    RowSums sums;
    for (int64_t r = 0; r < rows; ++r) sums.of[r] = LoadElement<float>(args_.whole_sums, row + r);
    return sums;
  }

  template <class W>
  void Gradients(int64_t row, int64_t rows, const RowSums& c, int64_t end, float* sums) {
    for (size_t i = 0; i < n_; i += kLeaf) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t next = std::min(row + r + grouping_.ahead, end - 1);
        const GradientTerms<TDY, TX> terms = {TermsAt(row + r, i), c.of[r], Dy(next) + i,
                                              X(next) + i};
        GradientLeaf<W>(HWY_MIN(size_t{kLeaf}, n_ - i), terms,
                        W::kDx ? RowOf<TX>(args_.dx, row + r) + i : nullptr,
                        W::kSums ? sums + i : nullptr);
      }
    }
  }

  template <class W>
  HWY_INLINE void GradientLeaf(size_t columns, const GradientTerms<TDY, TX>& terms, TX* dx,
                               float* sums) const {
    const DF d;
    const size_t rest = columns % kLanes;
    const size_t full = columns - rest;
    HWY_ALIGN TX piece[kPiece];
    const bool streams = W::kDx && streams_;
    if (!streams) GradientColumns<W>(d, full, terms, dx, sums);
    for (size_t i = 0; streams && i < full; i += kPiece) {
      const size_t count = HWY_MIN(kPiece, full - i);
      GradientColumns<W>(d, count, terms.From(i), piece, W::kSums ? sums + i : nullptr);
      StreamBytes(piece, dx + i, count * sizeof(TX));
    }
    if (rest == 0) return;
    const typename Terms::Padded tail(terms.row.From(full), rest);
    const GradientTerms<TDY, TX> tail_terms = {tail.terms, terms.c, tail.dy.data, tail.x.data};
    GradientColumns<W>(d, kLanes, tail_terms, piece, W::kSums ? sums + full : nullptr);
    if (W::kDx) CopyFew(piece, rest, dx + full);
  }

  const rmsnorm_backward_args& args_;
  const size_t n_;
  const size_t slot_;  // floats
  const float whole_n_;
  const bool streams_;
  const Grouping grouping_;
  Scales<TX> scales_;
};

// Rows [begin, end): BackwardRowsReference, in the widest vectors of this target. slots: the
// partial sums of a ColumnBlocks block, or null.
void BackwardRows(const rmsnorm_backward_args& args, int64_t begin, int64_t end, Stores stores,
                  float* slots) {
  VisitDtype(args.x.dtype, [&](auto x) {
    using TX = decltype(x);
    if (args.dy.dtype == RMSNORM_FLOAT32) {
      BackwardRowsOf<float, TX>(args, stores).Rows(begin, end, slots);
    } else {
      BackwardRowsOf<TX, TX>(args, stores).Rows(begin, end, slots);
    }
  });
}

#else  // Without a fused multiply-add there is no fast way to the same bits.

void BackwardRows(const rmsnorm_backward_args& args, int64_t begin, int64_t end, Stores,
                  float* slots) {
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

// dgamma of columns [begin, end): the tree over the first slot of each block, which it overwrites.
void FoldBlocks(const ColumnBlocks& blocks, const rmsnorm_backward_args& args, int64_t begin,
                int64_t end) {
  char* dgamma = static_cast<char*>(args.dgamma) + begin * sizeof(float);
  const size_t bytes = (end - begin) * sizeof(float);
  if (blocks.blocks == 0) {
    std::memset(dgamma, 0, bytes);
    return;
  }
  float* slots = static_cast<float*>(args.workspace);
  const int64_t block_floats = blocks.slots * PaddedColumns(args.n);
  for (int64_t step = 1; step < blocks.blocks; step *= 2) {
    for (int64_t block = 0; block + step < blocks.blocks; block += 2 * step) {
      float* left = slots + block * block_floats;
      const float* right = left + step * block_floats;
      for (int64_t i = begin; i < end; ++i) left[i] += right[i];
    }
  }
  for (int64_t i = begin; i < end; ++i) slots[i] = FromFloat<float>(slots[i] + 0.0f);
  std::memcpy(dgamma, slots + begin, bytes);
}

}  // namespace

int64_t BackwardWorkspace(int64_t rows, int64_t n, const rmsnorm_runner* runner) {
  return CutColumns(rows, n, BlocksFor(runner), INT64_MAX).bytes;
}

int64_t LeastBackwardWorkspace(const rmsnorm_backward_args& args) {
  return CutColumns(args.rows, args.n, /*max_blocks=*/1, INT64_MAX).bytes;
}

void Backward(const rmsnorm_backward_args& args, const rmsnorm_runner* runner) {
  if (args.dx.data == nullptr && args.dgamma == nullptr && args.sums == nullptr) return;
  if (args.x.dtype == RMSNORM_FLOAT64) return BackwardReference(args);
  const int64_t row_bytes = args.n * (2 * SizeOf(args.x.dtype) + SizeOf(args.dy.dtype));
  const bool reference = UsesReference();
  const auto kernel = HWY_DYNAMIC_DISPATCH(BackwardRows);
  const Stores stores = StoresFor(args.rows, row_bytes, Threads(runner));
  const auto backward_rows = [&](int64_t begin, int64_t end, float* slots) {
    reference ? BackwardRowsReference(args, begin, end, slots)
              : kernel(args, begin, end, stores, slots);
  };
  if (args.dgamma == nullptr) {
    ParallelFor(runner, args.rows, kLeafRows, row_bytes,
                [&](int64_t begin, int64_t end) { backward_rows(begin, end, nullptr); });
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
                  backward_rows(first, std::min(first + blocks.block_rows, args.rows),
                                slots + block * blocks.slots * PaddedColumns(args.n));
                }
              });
  ParallelFor(runner, args.n, /*unit=*/64, 4 * (blocks.blocks + 1),
              [&](int64_t begin, int64_t end) { FoldBlocks(blocks, args, begin, end); });
}

}  // namespace rmsnorm::cpu

#endif  // HWY_ONCE
