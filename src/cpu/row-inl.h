// What forward and backward share on rows: the canonical sums along them, and gamma.
// Included once for each target by foreach_target.h, inside no namespace.
#if defined(RMSNORM_CPU_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RMSNORM_CPU_ROW_INL_H_
#undef RMSNORM_CPU_ROW_INL_H_
#else
#define RMSNORM_CPU_ROW_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/canonical.h"
#include "core/columns.h"
#include "core/dtype.h"
#include "cpu/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rmsnorm::cpu {
namespace HWY_NAMESPACE {

#if HWY_NATIVE_FMA  // other targets use the reference

// The bits of |v|, which are in the order of the numbers, infinity and NaN last.
HWY_INLINE hn::Vec<DU> Magnitude(VF v) {
  return hn::And(hn::BitCast(DU(), v), hn::Set(DU(), 0x7FFFFFFF));
}

// scale[0 … columns) = gamma_offset + gamma[0 … columns), in pairs for TX; columns is a multiple of
// 64. Returns the largest magnitudes.
template <class TX, class TG>
HWY_INLINE hn::Vec<DU> AddOffset(DF d, const TG* gamma, float gamma_offset, size_t columns,
                                 float* HWY_RESTRICT scale) {
  const size_t N = hn::Lanes(d);
  const VF offset = hn::Set(d, gamma_offset);
  auto largest = hn::Zero(DU());
  for (size_t i = 0; i < columns; i += 2 * N) {
    VF v0, v1;
    LoadPair<TX>(d, gamma + i, v0, v1);
    v0 = hn::Add(offset, v0);
    v1 = hn::Add(offset, v1);
    largest = hn::Max(largest, hn::Max(Magnitude(v0), Magnitude(v1)));
    hn::Store(v0, d, scale + i);
    hn::Store(v1, d, scale + i + N);
  }
  return largest;
}

// The same for any number of columns, and something up to the next multiple of 64.
// Returns whether all are finite.
template <class TX, class TG>
HWY_INLINE bool FillScaleFrom(DF d, const TG* gamma, float gamma_offset, size_t columns,
                              float* HWY_RESTRICT scale) {
  const size_t rest = columns % kLanes;
  const size_t full = columns - rest;
  auto largest = AddOffset<TX>(d, gamma, gamma_offset, full, scale);
  if (rest > 0) {
    const Tail<TG> tail(gamma + full, rest);
    largest = hn::Max(largest, AddOffset<TX>(d, tail.data, gamma_offset, kLanes, scale + full));
  }
  return hn::AllTrue(DU(), hn::Lt(largest, hn::Set(DU(), 0x7F800000)));
}

inline constexpr size_t kBlockLeaves = 32;  // leaves whose sums are folded together
inline constexpr size_t kBlock = kBlockLeaves * kLeaf;

// gamma_offset + gamma as floats, in pairs for TX, of one block of columns at a time: rows of one
// block convert gamma once.
template <class TX>
class Scales {
 public:
  Scales(const rmsnorm_vector& gamma, double gamma_offset, size_t n)
      : gamma_(gamma), gamma_offset_(static_cast<float>(gamma_offset)), n_(n) {}

  // Of columns [begin, begin + kBlock), begin a multiple of kBlock.
  const float* At(size_t begin) {
    if (begin != begin_) Fill(begin);
    return scale_;
  }
  // Whether all of the block that At was asked for are finite.
  bool AreFinite() const { return finite_; }

 private:
  void Fill(size_t begin) {
    const DF d;
    const size_t columns = HWY_MIN(kBlock, n_ - begin);
    if (gamma_.data == nullptr) {
      std::fill_n(scale_, PaddedColumns(columns), 1.0f);
    } else {
      finite_ = VisitDtype(gamma_.dtype, [&](auto element) HWY_ATTR {
        const auto* data = static_cast<const decltype(element)*>(gamma_.data);
        return FillScaleFrom<TX>(d, data + begin, gamma_offset_, columns, scale_);
      });
    }
    begin_ = begin;
  }

  HWY_ALIGN float scale_[kBlock];
  const rmsnorm_vector gamma_;
  const float gamma_offset_;
  const size_t n_;
  size_t begin_ = ~size_t{0};
  bool finite_ = true;
};

// lo[0] + lo[1], lo[2] + lo[3], …, hi[0] + hi[1], …
HWY_INLINE VF PairSums(DF d, VF lo, VF hi) {
  return hn::Add(hn::ConcatEven(d, hi, lo), hn::ConcatOdd(d, hi, lo));
}

// acc0 … acc3 += a * b of the 4 Lanes(d) columns from i on.
//   terms(d, i, a0, b0, a1, b1)  loads the pairs a and b of 2 Lanes(d) columns
template <class Terms>
HWY_INLINE void AddProducts(DF d, const Terms& terms, size_t i, VF& acc0, VF& acc1, VF& acc2,
                            VF& acc3) {
  VF a0, b0, a1, b1;
  terms(d, i, a0, b0, a1, b1);
  acc0 = hn::MulAdd(a0, b0, acc0);
  acc1 = hn::MulAdd(a1, b1, acc1);
  terms(d, i + 2 * hn::Lanes(d), a0, b0, a1, b1);
  acc2 = hn::MulAdd(a0, b0, acc2);
  acc3 = hn::MulAdd(a1, b1, acc3);
}

// The same of one pair of which only the first `count` columns count: what terms makes of padding
// may be NaN.
template <class TX, class Terms>
HWY_INLINE void AddFirstProducts(DF d, const Terms& terms, size_t i, size_t count, VF& acc0,
                                 VF& acc1) {
  const size_t N = hn::Lanes(d);
  const auto first0 = hn::FirstN(d, kEvenOdd<TX> ? (count + 1) / 2 : count);
  const auto first1 = hn::FirstN(d, kEvenOdd<TX> ? count / 2 : count > N ? count - N : 0);
  VF a0, b0, a1, b1;
  terms(d, i, a0, b0, a1, b1);
  acc0 = hn::MulAdd(hn::IfThenElseZero(first0, a0), hn::IfThenElseZero(first0, b0), acc0);
  acc1 = hn::MulAdd(hn::IfThenElseZero(first1, a1), hn::IfThenElseZero(first1, b1), acc1);
}

// The chains of 4 Lanes(d) lanes of one leaf, from `lane` on, in pairs for TX.
//   terms  of the leaf's `steps` full steps of 64
//   tail   of its last `rest` columns, padded to 64; none where there are 8 steps
// A chain has at most 8 steps, and 4 independent ones hide the latency of an AVX-512 fma.
template <class TX, class Terms>
HWY_INLINE void LaneSums(DF d, const Terms& terms, size_t steps, const Terms& tail, size_t rest,
                         size_t lane, VF& acc0, VF& acc1, VF& acc2, VF& acc3) {
  acc0 = acc1 = acc2 = acc3 = hn::Zero(d);
  if (steps == kLeafSteps) {  // a constant number unrolls
    for (size_t i = lane; i < kLeaf; i += kLanes) {
      AddProducts(d, terms, i, acc0, acc1, acc2, acc3);
    }
    return;
  }
  for (size_t i = lane; i < kLanes * steps; i += kLanes) {
    AddProducts(d, terms, i, acc0, acc1, acc2, acc3);
  }
  if (rest == 0) return;
  const size_t pair = 2 * hn::Lanes(d);
  if (lane < rest) AddFirstProducts<TX>(d, tail, lane, rest - lane, acc0, acc1);
  if (lane + pair < rest) {
    AddFirstProducts<TX>(d, tail, lane + pair, rest - lane - pair, acc2, acc3);
  }
}

inline constexpr size_t kQuads = kLanes / 4;  // sums of 4 adjacent lanes that one leaf yields
inline constexpr size_t kGroupRows = 16;      // rows at most whose quads are folded together
inline constexpr size_t kHeldQuads = 2 * kBlockLeaves * kQuads;  // of all rows of a group

// quads[k] = tree(lanes 4k … 4k + 3) of one leaf; arguments as for LaneSums.
template <class TX, class Terms>
HWY_INLINE void LeafQuads(DF d, const Terms& terms, size_t steps, const Terms& tail, size_t rest,
                          float* HWY_RESTRICT quads) {
  VF acc0, acc1, acc2, acc3;
  for (size_t lane = 0; lane < kLanes; lane += 4 * hn::Lanes(d)) {
    LaneSums<TX>(d, terms, steps, tail, rest, lane, acc0, acc1, acc2, acc3);
    const VF lo = kEvenOdd<TX> ? hn::Add(acc0, acc1) : PairSums(d, acc0, acc1);
    const VF hi = kEvenOdd<TX> ? hn::Add(acc2, acc3) : PairSums(d, acc2, acc3);
    hn::Store(PairSums(d, lo, hi), d, quads + lane / 4);
  }
}

// One float for each row of a group.
struct RowSums {
  HWY_ALIGN float of[kGroupRows] = {};
};

// sums[r] = tree(values[r * each … (r + 1) * each)), for `each` a power of two. values is
// overwritten, and may be read up to 2 Lanes(d) past its end.
HWY_INLINE void FoldEach(DF d, float* HWY_RESTRICT values, size_t rows, size_t each, float* sums) {
  const size_t N = hn::Lanes(d);
  for (; each > 1 && rows * each > N; each /= 2) {
    for (size_t i = 0; i < rows * each; i += 2 * N) {
      hn::Store(PairSums(d, hn::Load(d, values + i), hn::Load(d, values + i + N)), d,
                values + i / 2);
    }
  }
  for (size_t i = 0; i < rows; i += N) {
    VF v = hn::Load(d, values + i);
    for (size_t left = each; left > 1; left /= 2) v = PairSums(d, v, v);
    hn::Store(v, d, sums + i);
  }
}

// The room that the quads of a row of up to kBlock columns take: a power of two.
inline size_t QuadsOfRow(size_t columns) {
  size_t quads = kQuads;
  while (quads / kQuads * kLeaf < columns) quads *= 2;
  return quads;
}

// The quads of all leaves of one row of up to kBlock columns.
//   Terms::From(i)           the terms from column i on
//   Terms::Padded(terms, k)  holds terms of the first k columns, padded to 64
template <class TX, class Terms>
HWY_INLINE void RowQuads(DF d, const Terms& terms, size_t columns, float* HWY_RESTRICT quads) {
  size_t i = 0;
  for (; i + kLeaf <= columns; i += kLeaf, quads += kQuads) {
    LeafQuads<TX>(d, terms.From(i), kLeafSteps, terms, 0, quads);
  }
  const size_t rest = columns % kLanes;
  if (rest > 0) {
    const typename Terms::Padded tail(terms.From(columns - rest), rest);
    LeafQuads<TX>(d, terms.From(i), (columns - i) / kLanes, tail.terms, rest, quads);
  } else if (i < columns) {
    LeafQuads<TX>(d, terms.From(i), (columns - i) / kLanes, terms, 0, quads);
  }
}

// The part of the dots of `rows` rows that is the tree over columns [begin, begin + columns), one
// block: `columns` is at most kBlock. A Grouping says how many rows there may be.
//   terms(r, begin)  the terms of row r from column `begin` on
template <class TX, class F>
HWY_INLINE RowSums BlockSums(DF d, size_t begin, size_t columns, size_t rows, const F& terms) {
  HWY_ALIGN float quads[kHeldQuads + 2 * kMaxLanes];
  const size_t used = CeilDiv(columns, kLeaf) * kQuads;
  const size_t stride = QuadsOfRow(columns);
  if (columns <= kLeaf && columns % kLanes == 0) {  // query and key norms: little else than sums
    for (size_t r = 0; r < rows; ++r) {
      const auto row = terms(r, begin);
      LeafQuads<TX>(d, row, columns / kLanes, row, 0, quads + r * stride);
    }
  } else {
    for (size_t r = 0; r < rows; ++r) {
      float* row_quads = quads + r * stride;
      RowQuads<TX>(d, terms(r, begin), columns, row_quads);
      // Zeros stand for the leaves up to a power of two; to add zero on the right is to move an odd
      // value up.
      std::fill(row_quads + used, row_quads + stride, 0.0f);
    }
  }
  std::fill_n(quads + rows * stride, 2 * kMaxLanes, 0.0f);
  RowSums sums;
  FoldEach(d, quads, rows, stride, sums.of);
  return sums;
}

// dot of each of `rows` rows of n elements: one row where n is more than a block. Bits: Dot of
// core/reference.h.
template <class TX, class F>
HWY_INLINE RowSums DotOfRows(DF d, size_t n, size_t rows, const F& terms) {
  RowSums sums;
  if (n <= kBlock) {
    sums = BlockSums<TX>(d, 0, n, rows, terms);
  } else {
    sums.of[0] = Tree<float>(0, CeilDiv(n, kBlock), [&](int64_t block) HWY_ATTR {
      const size_t begin = kBlock * block;
      return BlockSums<TX>(d, begin, HWY_MIN(n - begin, kBlock), 1, terms).of[0];
    });
  }
  for (size_t r = 0; r < rows; r += hn::Lanes(d)) {
    hn::Store(hn::Add(hn::Load(d, sums.of + r), hn::Zero(d)), d, sums.of + r);
  }
  return sums;
}

// How rows are taken: `rows` at a time go through one pass and then the other; while one row is
// written, the row `ahead` of it is asked for, so that memory is read during both passes.
struct Grouping {
  int64_t rows;
  int64_t ahead;
};

// group_bytes: of the cache that the rows of a group stay in; row_bytes: what is read of a row.
inline Grouping GroupingOf(size_t n, size_t row_bytes, size_t group_bytes, size_t ahead_bytes) {
  size_t rows = 1;
  if (n <= kBlock) {
    const size_t fit = HWY_MIN(group_bytes / row_bytes, kHeldQuads / QuadsOfRow(n));
    rows = HWY_MAX(rows, HWY_MIN(kGroupRows, fit));
  }
  return {static_cast<int64_t>(rows), static_cast<int64_t>(HWY_MAX(rows, ahead_bytes / row_bytes))};
}

#endif  // HWY_NATIVE_FMA

}  // namespace HWY_NAMESPACE
}  // namespace rmsnorm::cpu
HWY_AFTER_NAMESPACE();

#endif  // RMSNORM_CPU_ROW_INL_H_
