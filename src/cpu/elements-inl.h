// Elements in and out of vectors: conversions, the ends of rows, stores past the caches.
// Included once for each target by foreach_target.h, inside no namespace.
#if defined(RMSNORM_CPU_ELEMENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RMSNORM_CPU_ELEMENTS_INL_H_
#undef RMSNORM_CPU_ELEMENTS_INL_H_
#else
#define RMSNORM_CPU_ELEMENTS_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/canonical.h"
#include "core/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace rmsnorm::cpu {
namespace HWY_NAMESPACE {

#if HWY_NATIVE_FMA  // other targets use the reference

namespace hn = hwy::HWY_NAMESPACE;

// Vectors of at most 16 lanes, so that four of them never hold more than the 64 of a leaf's step.
inline constexpr size_t kMaxLanes = 16;
using DF = hn::CappedTag<float, kMaxLanes>;
using VF = hn::Vec<DF>;
using DU = hn::Repartition<uint32_t, DF>;
using DU16 = hn::Repartition<uint16_t, DF>;
using D16 = hn::Rebind<uint16_t, DF>;
using DHalf = hn::Rebind<hwy::float16_t, DF>;

// Columns are loaded and stored in pairs of vectors. Where x is bfloat16, the first holds the even
// and the second the odd columns of a run of 2 Lanes(d), since a shift and a mask split the words
// of memory like that; otherwise the first and the second half of the run.
template <class TX>
inline constexpr bool kEvenOdd = std::is_same_v<TX, BFloat16>;

HWY_INLINE VF LoadFloats(DF d, const float* p) { return hn::LoadU(d, p); }
HWY_INLINE VF LoadFloats(DF d, const BFloat16* p) {
  const auto bits = hn::PromoteTo(DU(), hn::LoadU(D16(), reinterpret_cast<const uint16_t*>(p)));
  return hn::BitCast(d, hn::ShiftLeft<16>(bits));
}
HWY_INLINE VF LoadFloats(DF d, const Float16* p) {
  return hn::PromoteTo(d, hn::LoadU(DHalf(), reinterpret_cast<const hwy::float16_t*>(p)));
}

// 2 Lanes(d) elements as floats, in the order of a pair for TX.
template <class TX, class T>
HWY_INLINE void LoadPair(DF d, const T* p, VF& v0, VF& v1) {
  if constexpr (kEvenOdd<TX> && std::is_same_v<T, BFloat16>) {
    const auto words = hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(p));
    v0 = hn::BitCast(d, hn::ShiftLeft<16>(words));
    v1 = hn::BitCast(d, hn::And(words, hn::Set(DU(), 0xFFFF0000)));
  } else {
    const VF lo = LoadFloats(d, p);
    const VF hi = LoadFloats(d, p + hn::Lanes(d));
    v0 = kEvenOdd<TX> ? hn::ConcatEven(d, hi, lo) : lo;
    v1 = kEvenOdd<TX> ? hn::ConcatOdd(d, hi, lo) : hi;
  }
}

// v, every NaN as these bits. kNaN: v may hold one.
template <bool kNaN>
HWY_INLINE VF CanonicalNaN(DF d, VF v, uint32_t bits = kNaN32) {
  if constexpr (!kNaN) return v;
  return hn::IfThenElse(hn::IsNaN(v), hn::BitCast(d, hn::Set(DU(), bits)), v);
}

// Words whose upper half is v as bfloat16. Highway's conversions differ between targets, so the
// rounding is spelled out here.
template <bool kNaN>
HWY_INLINE hn::Vec<DU> BFloat16Words(VF v) {
  const DU du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7FFF)), odd);
  if constexpr (!kNaN) return rounded;
  const auto nan = hn::Set(du, uint32_t{kNaN16} << 16);
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), nan, rounded);
}

// Stores even and odd columns as bfloat16, rounded as 16-bit halves: to nearest even adds 1 to the
// upper half where lower + 0x7FFF + (upper & 1) overflows, which is the top bit of an average.
template <bool kNaN>
HWY_INLINE void StoreBFloat16s(DF d, VF even, VF odd, uint16_t* p) {
  const DU du;
  const DU16 du16;
#if HWY_TARGET == HWY_SVE || HWY_TARGET == HWY_SVE_256  // Highway's average has no carry there
  const auto even_words = hn::ShiftRight<16>(BFloat16Words<kNaN>(even));
  const auto odd_words = BFloat16Words<kNaN>(odd);
  hn::StoreU(hn::OddEven(hn::BitCast(du16, odd_words), hn::BitCast(du16, even_words)), du16, p);
#else
  even = CanonicalNaN<kNaN>(d, even, uint32_t{kNaN16} << 16);
  odd = CanonicalNaN<kNaN>(d, odd, uint32_t{kNaN16} << 16);
  const auto even_bits = hn::BitCast(du, even), odd_bits = hn::BitCast(du, odd);
  const auto upper =
      hn::OddEven(hn::BitCast(du16, odd_bits), hn::BitCast(du16, hn::ShiftRight<16>(even_bits)));
  const auto lower =
      hn::OddEven(hn::BitCast(du16, hn::ShiftLeft<16>(odd_bits)), hn::BitCast(du16, even_bits));
  const auto half = hn::OrAnd(hn::Set(du16, 0x7FFE), upper, hn::Set(du16, 1));
  hn::StoreU(hn::Add(upper, hn::ShiftRight<15>(hn::AverageRound(lower, half))), du16, p);
#endif
}

// Stores a pair that has the order for TX as 2 Lanes(d) elements. kNaN: it may hold a NaN.
template <bool kNaN, class TX, class T>
HWY_INLINE void StorePair(DF d, VF v0, VF v1, T* p) {
  static_assert(std::is_same_v<T, TX> || std::is_same_v<T, float>);
  if constexpr (std::is_same_v<T, BFloat16>) {
    StoreBFloat16s<kNaN>(d, v0, v1, reinterpret_cast<uint16_t*>(p));
    return;
  }
  v0 = CanonicalNaN<kNaN>(d, v0);
  v1 = CanonicalNaN<kNaN>(d, v1);
  if constexpr (std::is_same_v<T, Float16>) {
    // As one vector: what is read back as one doesn't wait for two stores.
    const auto lo = hn::BitCast(D16(), hn::DemoteTo(DHalf(), v0));
    const auto hi = hn::BitCast(D16(), hn::DemoteTo(DHalf(), v1));
    hn::StoreU(hn::Combine(DU16(), hi, lo), DU16(), reinterpret_cast<uint16_t*>(p));
  } else if constexpr (kEvenOdd<TX>) {
    hn::StoreInterleaved2(v0, v1, d, reinterpret_cast<float*>(p));
  } else {
    hn::StoreU(v0, d, reinterpret_cast<float*>(p));
    hn::StoreU(v1, d, reinterpret_cast<float*>(p) + hn::Lanes(d));
  }
}

// v as it would be read back from an element of type T.
template <bool kNaN, class T>
HWY_INLINE VF Rounded(DF d, VF v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return hn::BitCast(d, hn::And(BFloat16Words<kNaN>(v), hn::Set(DU(), 0xFFFF0000)));
  } else if constexpr (std::is_same_v<T, Float16>) {
    return hn::PromoteTo(d, hn::DemoteTo(DHalf(), v));
  } else {
    return v;
  }
}

// Copies count < kLanes elements, of any address. A call of memcpy, or what a compiler makes of one
// whose size it doesn't know, takes longer than the rest of what is done with a few columns.
template <size_t kSize = kLanes / 2, class T>
HWY_INLINE void CopyFew(const T* from, size_t count, T* to) {
  const size_t copied = count & kSize;
  if (copied != 0) {
    std::memcpy(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from),
                kSize * sizeof(T));
  }
  if constexpr (kSize > 1) CopyFew<kSize / 2>(from + copied, count, to + copied);
}

// The last columns of a row, past its full steps of 64, padded with zeros, so that no vector reads
// past the row.
template <class T>
struct Tail {
  HWY_ALIGN T data[kLanes];

  HWY_INLINE Tail(const T* from, size_t count) {
    std::memset(static_cast<void*>(data), 0, sizeof(data));
    CopyFew(from, count, data);
  }
};

// Asks for the cache line of every 64th byte of `count` elements, of any address.
template <class T>
HWY_INLINE void PrefetchLines(const T* p, size_t count) {
  for (size_t byte = 0; byte < count * sizeof(T); byte += 64) {
    hwy::Prefetch(reinterpret_cast<const char*>(p) + byte);
  }
}

// Columns that are written to a cache before they are copied past it.
inline constexpr size_t kPiece = 128;

// Copies bytes from a cache to memory past the caches. hwy::FlushStream() makes them visible.
HWY_INLINE void StreamBytes(const void* from, void* to, size_t bytes) {
  const hn::CappedTag<uint8_t, 64> d;
  const size_t N = hn::Lanes(d);
  const uint8_t* source = static_cast<const uint8_t*>(from);
  uint8_t* target = static_cast<uint8_t*>(to);
  const size_t head = HWY_MIN(bytes, -reinterpret_cast<uintptr_t>(target) % N);
  if (head > 0) CopyFew(source, head, target);
  size_t i = head;
  for (; i + N <= bytes; i += N) hn::Stream(hn::LoadU(d, source + i), d, target + i);
  if (i < bytes) CopyFew(source + i, bytes - i, target + i);
}

#endif  // HWY_NATIVE_FMA

}  // namespace HWY_NAMESPACE
}  // namespace rmsnorm::cpu
HWY_AFTER_NAMESPACE();

#endif  // RMSNORM_CPU_ELEMENTS_INL_H_
