// One body for every instruction set, and the split over threads.
#include "streams.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "streams.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace rmsnorm::bench {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// `bytes` of to become those of from, xor those of more where that is given. `to` is aligned to a
// vector.
template <bool kPastCache, bool kTwo>
void Stream(const uint8_t* from, const uint8_t* more, uint8_t* HWY_RESTRICT to, size_t bytes) {
  const hn::ScalableTag<uint8_t> d;
  const size_t step = hn::Lanes(d);
  size_t i = 0;
  for (; i + step <= bytes; i += step) {
    auto v = hn::LoadU(d, from + i);
    if constexpr (kTwo) v = hn::Xor(v, hn::LoadU(d, more + i));
    if constexpr (kPastCache) {
      hn::Stream(v, d, to + i);
    } else {
      hn::Store(v, d, to + i);
    }
  }
  for (; i < bytes; ++i) to[i] = kTwo ? from[i] ^ more[i] : from[i];
}

void CopyPastCacheOf(const uint8_t* from, const uint8_t*, uint8_t* to, size_t bytes) {
  Stream<true, false>(from, nullptr, to, bytes);
}

void ReadTwoOf(const uint8_t* from, const uint8_t* more, uint8_t* to, size_t bytes) {
  Stream<false, true>(from, more, to, bytes);
}

void ReadTwoPastCacheOf(const uint8_t* from, const uint8_t* more, uint8_t* to, size_t bytes) {
  Stream<true, true>(from, more, to, bytes);
}

}  // namespace HWY_NAMESPACE
}  // namespace rmsnorm::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace rmsnorm::bench {

HWY_EXPORT(CopyPastCacheOf);
HWY_EXPORT(ReadTwoOf);
HWY_EXPORT(ReadTwoPastCacheOf);

namespace {

void Memcpy(const uint8_t* from, const uint8_t*, uint8_t* to, size_t bytes) {
  std::memcpy(to, from, bytes);
}

using Part = void (*)(const uint8_t* x, const uint8_t* dy, uint8_t* y, size_t bytes);

// Contiguous rows are one long row.
void Run(const Call& call, Part part, bool past_cache) {
  const auto* x = static_cast<const uint8_t*>(call.operands->x.get());
  const auto* dy = static_cast<const uint8_t*>(call.operands->dy.get());
  auto* y = static_cast<uint8_t*>(call.operands->y.get());
  const bool strided = call.shape.row_stride != call.shape.n;
  const int64_t bytes = call.Bytes();
  const int64_t row = strided ? call.RowBytes() : bytes;
  const int64_t stride = strided ? call.shape.row_stride * call.ElementBytes() : bytes;
  const auto run = [=](int64_t begin, int64_t end) {
    const uint8_t* from = x + begin / row * stride;
    for (int64_t offset = begin % row; begin < end; offset = 0, from += stride) {
      const int64_t count = std::min(end - begin, row - offset);
      part(from + offset, dy + begin, y + begin, count);
      begin += count;
    }
    if (past_cache) hwy::FlushStream();
  };
  if (call.threads == 1) return run(0, bytes);
#pragma omp parallel for num_threads(call.threads)
  for (int thread = 0; thread < call.threads; ++thread) {
    const int64_t share = (bytes / call.threads + 63) / 64 * 64;
    run(std::min(bytes, thread * share), std::min(bytes, (thread + 1) * share));
  }
}

}  // namespace

void CopyByMemcpy(const Call& call) { Run(call, &Memcpy, /*past_cache=*/false); }

void CopyPastCache(const Call& call) {
  Run(call, &HWY_DYNAMIC_DISPATCH(CopyPastCacheOf), /*past_cache=*/true);
}

void ReadTwoWriteOne(const Call& call) {
  Run(call, &HWY_DYNAMIC_DISPATCH(ReadTwoOf), /*past_cache=*/false);
}

void ReadTwoPastCache(const Call& call) {
  Run(call, &HWY_DYNAMIC_DISPATCH(ReadTwoPastCacheOf), /*past_cache=*/true);
}

}  // namespace rmsnorm::bench

#endif  // HWY_ONCE
