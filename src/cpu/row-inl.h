// What forward and backward share on one row: loads, stores, and the canonical sum along it.
// Included once for each target by foreach_target.h, inside no namespace.
#if defined(RMSNORM_CPU_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RMSNORM_CPU_ROW_INL_H_
#undef RMSNORM_CPU_ROW_INL_H_
#else
#define RMSNORM_CPU_ROW_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "core/canonical.h"
#include "core/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace rmsnorm::cpu {
namespace HWY_NAMESPACE {

#if HWY_NATIVE_FMA  // other targets use the reference

namespace hn = hwy::HWY_NAMESPACE;

// Vectors of at most 16 lanes, so that four of them never hold more than the 64 of a leaf's step.
using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;
using DU = hn::Repartition<uint32_t, DF>;
using D16 = hn::Rebind<uint16_t, DF>;
using DHalf = hn::Rebind<hwy::float16_t, DF>;

struct NoGamma {};  // the element type of an absent gamma

// Calls f with a value of gamma's element type.
template <class F>
void VisitGamma(const rmsnorm_vector& gamma, F&& f) {
  if (gamma.data == nullptr) return f(NoGamma{});
  VisitDtype(gamma.dtype, f);
}

HWY_INLINE VF LoadFloats(DF d, const float* p) { return hn::LoadU(d, p); }
HWY_INLINE VF LoadFloats(DF d, const BFloat16* p) {
  const auto bits = hn::PromoteTo(DU(), hn::LoadU(D16(), reinterpret_cast<const uint16_t*>(p)));
  return hn::BitCast(d, hn::ShiftLeft<16>(bits));
}
HWY_INLINE VF LoadFloats(DF d, const Float16* p) {
  return hn::PromoteTo(d, hn::LoadU(DHalf(), reinterpret_cast<const hwy::float16_t*>(p)));
}

// Highway's conversions to bfloat16 differ between targets, so the rounding is spelled out here:
// the 16 result bits, in 32-bit lanes.
HWY_INLINE hn::Vec<DU> BFloat16Bits(VF v) {
  const DU du;
  const auto bits = hn::BitCast(du, v);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(upper, hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7FFF)), odd));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), hn::Set(du, kNaN16), rounded);
}

HWY_INLINE VF CanonicalNaN(DF d, VF v) {
  return hn::IfThenElse(hn::IsNaN(v), hn::BitCast(d, hn::Set(DU(), kNaN32)), v);
}

HWY_INLINE void StoreFloats(DF d, VF v, float* p) { hn::StoreU(CanonicalNaN(d, v), d, p); }
HWY_INLINE void StoreFloats(DF, VF v, BFloat16* p) {
  const auto bits = hn::BitCast(hn::RebindToSigned<DU>(), BFloat16Bits(v));
  hn::StoreU(hn::DemoteTo(D16(), bits), D16(), reinterpret_cast<uint16_t*>(p));
}
HWY_INLINE void StoreFloats(DF d, VF v, Float16* p) {
  const auto half = hn::DemoteTo(DHalf(), CanonicalNaN(d, v));
  hn::StoreU(half, DHalf(), reinterpret_cast<hwy::float16_t*>(p));
}

// v as it would be read back from an element of type T.
template <class T>
HWY_INLINE VF Rounded(DF d, VF v);
template <>
HWY_INLINE VF Rounded<float>(DF, VF v) {
  return v;
}
template <>
HWY_INLINE VF Rounded<BFloat16>(DF d, VF v) {
  return hn::BitCast(d, hn::ShiftLeft<16>(BFloat16Bits(v)));
}
template <>
HWY_INLINE VF Rounded<Float16>(DF d, VF v) {
  return hn::PromoteTo(d, hn::DemoteTo(DHalf(), v));
}

// The columns past the last full step of 64, padded with zeros, so that no vector reads or writes
// past the row.
template <class T>
struct Tail {
  HWY_ALIGN T data[kLanes];

  HWY_INLINE Tail() {}
  HWY_INLINE Tail(const T* row, size_t n) { Load(row, n); }

  HWY_INLINE void Load(const T* row, size_t n) {
    const size_t rest = n % kLanes;
    if (rest == 0) return;
    std::memset(static_cast<void*>(data), 0, sizeof(data));
    std::memcpy(data, row + (n - rest), rest * sizeof(T));
  }
  HWY_INLINE void Store(T* row, size_t n) const {
    const size_t rest = n % kLanes;
    std::memcpy(row + (n - rest), data, rest * sizeof(T));
  }
};
template <>
struct Tail<NoGamma> {
  NoGamma data[1];
  HWY_INLINE Tail(const NoGamma*, size_t) {}
};

// gamma_offset + gamma of the columns at i.
template <class TG>
struct Scale {
  const TG* gamma;
  float gamma_offset;

  HWY_INLINE VF operator()(DF d, size_t i) const {
    return hn::Add(hn::Set(d, gamma_offset), LoadFloats(d, gamma + i));
  }
};
template <>
struct Scale<NoGamma> {
  const NoGamma* gamma;
  float gamma_offset;

  HWY_INLINE VF operator()(DF d, size_t) const { return hn::Set(d, 1.0f); }
};

// lo[0] + lo[1], lo[2] + lo[3], …, hi[0] + hi[1], …
HWY_INLINE VF PairSums(DF d, VF lo, VF hi) {
  return hn::Add(hn::ConcatEven(d, hi, lo), hn::ConcatOdd(d, hi, lo));
}

// The chains of 4 Lanes(d) lanes of one leaf, from `lane` on, in four accumulators.
//   terms(d, i, a, b)  loads the elements at i into a and b
//   begin, steps       first column of the leaf, its full steps of 64
//   tail, rest         the same for the row's padded tail, and how many of its lanes count: what
//                      terms makes of padding may be NaN, so the others are masked; 0: no tail
// A chain has at most 8 steps, and 4 independent ones hide the latency of an AVX-512 fma.
template <class Terms>
HWY_INLINE void LaneSums(DF d, const Terms& terms, size_t begin, size_t steps, const Terms& tail,
                         size_t rest, size_t lane, VF& acc0, VF& acc1, VF& acc2, VF& acc3) {
  const size_t N = hn::Lanes(d);
  acc0 = acc1 = acc2 = acc3 = hn::Zero(d);
  VF a, b;
  for (size_t i = begin + lane; i < begin + kLanes * steps + lane; i += kLanes) {
    terms(d, i, a, b);
    acc0 = hn::MulAdd(a, b, acc0);
    terms(d, i + N, a, b);
    acc1 = hn::MulAdd(a, b, acc1);
    terms(d, i + 2 * N, a, b);
    acc2 = hn::MulAdd(a, b, acc2);
    terms(d, i + 3 * N, a, b);
    acc3 = hn::MulAdd(a, b, acc3);
  }
  if (rest == 0) return;
  const auto add_tail = [&](size_t at, VF& acc) HWY_ATTR {
    if (at >= rest) return;
    tail(d, at, a, b);
    const auto counts = hn::FirstN(d, rest - at);
    acc = hn::MulAdd(hn::IfThenElseZero(counts, a), hn::IfThenElseZero(counts, b), acc);
  };
  add_tail(lane, acc0);
  add_tail(lane + N, acc1);
  add_tail(lane + 2 * N, acc2);
  add_tail(lane + 3 * N, acc3);
}

inline constexpr size_t kQuads = kLanes / 4;  // sums of 4 adjacent lanes that one leaf yields
inline constexpr size_t kBlockLeaves = 16;    // leaves whose quads are folded together

// quads[k] = tree(lanes 4k … 4k + 3) of one leaf.
template <class Terms>
HWY_INLINE void LeafQuads(DF d, const Terms& terms, size_t begin, size_t steps, const Terms& tail,
                          size_t rest, float* HWY_RESTRICT quads) {
  VF acc0, acc1, acc2, acc3;
  for (size_t lane = 0; lane < kLanes; lane += 4 * hn::Lanes(d)) {
    LaneSums(d, terms, begin, steps, tail, rest, lane, acc0, acc1, acc2, acc3);
    hn::Store(PairSums(d, PairSums(d, acc0, acc1), PairSums(d, acc2, acc3)), d, quads + lane / 4);
  }
}

// The tree over the quads of `leaves` leaves. Zeros stand for the leaves up to a power of two; to
// add zero on the right is to move an odd value up.
HWY_INLINE float FoldQuads(DF d, float* HWY_RESTRICT quads, size_t leaves) {
  size_t count = kQuads;
  while (count < kQuads * leaves) count *= 2;
  const size_t N = hn::Lanes(d);
  for (size_t i = kQuads * leaves; i < count; i += N) hn::Store(hn::Zero(d), d, quads + i);
  for (; count > N; count /= 2) {
    for (size_t i = 0; i < count; i += 2 * N) {
      hn::Store(PairSums(d, hn::Load(d, quads + i), hn::Load(d, quads + i + N)), d, quads + i / 2);
    }
  }
  VF sums = hn::Load(d, quads);
  for (; count > 1; count /= 2) sums = PairSums(d, sums, sums);
  return hn::GetLane(sums);
}

// dot of a row of n elements. Bits: Dot of core/reference.h.
template <class Terms>
HWY_INLINE float DotOfRow(DF d, size_t n, const Terms& terms, const Terms& tail) {
  constexpr size_t kBlock = kBlockLeaves * kLeaf;
  const auto block_sum = [&](int64_t block) HWY_ATTR {
    HWY_ALIGN float quads[kBlockLeaves * kQuads];
    size_t leaves = 0;
    const size_t end = HWY_MIN(n, kBlock * (block + 1));
    for (size_t i = kBlock * block; i < end; i += kLeaf, ++leaves) {
      const size_t length = HWY_MIN(size_t{kLeaf}, end - i);
      LeafQuads(d, terms, i, length / kLanes, tail, length % kLanes, quads + leaves * kQuads);
    }
    return FoldQuads(d, quads, leaves);
  };
  return Tree<float>(0, CeilDiv(n, kBlock), block_sum) + 0.0f;
}

#endif  // HWY_NATIVE_FMA

}  // namespace HWY_NAMESPACE
}  // namespace rmsnorm::cpu
HWY_AFTER_NAMESPACE();

#endif  // RMSNORM_CPU_ROW_INL_H_
