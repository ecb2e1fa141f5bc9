// Elements on a GPU: the contract's operations, each rounded once; conversions; loads and stores of
// the elements that one thread holds.
#ifndef RMSNORM_CUDA_ELEMENTS_CUH_
#define RMSNORM_CUDA_ELEMENTS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cstdint>
#include <type_traits>

#include "core/canonical.h"
#include "core/dtype.h"

namespace rmsnorm::cuda {

__device__ inline float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double Fma(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ inline float Quotient(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline double Quotient(double a, double b) { return __ddiv_rn(a, b); }
__device__ inline float Root(float a) { return __fsqrt_rn(a); }
__device__ inline double Root(double a) { return __dsqrt_rn(a); }

// kCount neighbouring elements of a row: 16 bytes of x, and as many elements of other operands.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  T of[kCount];
};

// The chunks in which a pack moves.
template <class P>
struct Chunks {
  using Chunk = std::conditional_t<sizeof(P) % 16 == 0, uint4, uint2>;
  static constexpr int kCount = sizeof(P) / sizeof(Chunk);
  Chunk of[kCount];
};

__device__ inline float Widen(float v) { return v; }
__device__ inline double Widen(double v) { return v; }
__device__ inline float Widen(BFloat16 v) { return ToFloat(v); }
__device__ inline float Widen(Float16 v) { return __half2float(__half_raw{v.bits}); }

template <class T>
__device__ void NarrowPair(float a, float b, T* to) {
  if constexpr (std::is_same_v<T, Float16>) {
    const __half2_raw pair = __floats2half2_rn(a, b);
    to[0] = {pair.x};
    to[1] = {pair.y};
  } else {
    const __nv_bfloat162_raw pair = __floats2bfloat162_rn(a, b);
    to[0] = {pair.x};
    to[1] = {pair.y};
  }
}

// FromReal of each value. A GPU's conversions to 16 bits round to nearest even, keep subnormals and
// give one NaN, 0x7FFF.
template <class T, class Real, int kCount>
__device__ Pack<T, kCount> Narrow(const Real (&values)[kCount]) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (sizeof(T) > 2) {
      pack.of[i] = FromReal<T>(values[i]);
    } else if (i % 2 == 0) {
      NarrowPair(values[i], values[i + 1], pack.of + i);
    }
  }
  return pack;
}

// How elements of a matrix or vector may be read and written.
enum class Access {
  kVectors,   // every row starts at a multiple of 16 bytes
  kElements,  // … of an element's size
  kBytes
};

template <class T>
__device__ Access AccessOf(const void* data, int64_t row_stride) {
  const uint64_t bits =
      reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(row_stride) * sizeof(T);
  if (bits % 16 == 0) return Access::kVectors;
  return bits % sizeof(T) == 0 ? Access::kElements : Access::kBytes;
}

template <class T>
__device__ T LoadOne(const T* from, Access access) {
  if (access != Access::kBytes) return *from;
  T element;
  memcpy(&element, static_cast<const void*>(from), sizeof(T));
  return element;
}
template <class T>
__device__ void StoreOne(T element, T* to, Access access) {
  if (access != Access::kBytes) {
    *to = element;
  } else {
    memcpy(static_cast<void*>(to), &element, sizeof(T));
  }
}

// A matrix as a kernel sees it.
template <class T>
struct Matrix {
  T* data;
  int64_t row_stride;
  Access access;

  __device__ explicit Matrix(const rmsnorm_matrix& m)
      : data(static_cast<T*>(m.data)),
        row_stride(m.row_stride),
        access(AccessOf<T>(m.data, m.row_stride)) {}
  __device__ T* At(int64_t row) const { return data + row * row_stride; }
};

// A pack at an aligned address. What is read once leaves the caches to what is read often.
enum class Reuse { kOnce, kOften };
template <class P, Reuse reuse>
__device__ P LoadVector(const void* from) {
  using C = Chunks<P>;
  C chunks;
#pragma unroll
  for (int i = 0; i < C::kCount; ++i) {
    const auto* chunk = static_cast<const typename C::Chunk*>(from) + i;
    chunks.of[i] = reuse == Reuse::kOnce ? __ldcs(chunk) : *chunk;
  }
  return std::bit_cast<P>(chunks);
}

// The first `count` elements, then zeros.
template <class P, class T>
__device__ P LoadSome(const T* from, int count, Access access) {
  constexpr int kCount = sizeof(P) / sizeof(T);
  P pack = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) pack.of[i] = LoadOne(from + i, access);
  }
  return pack;
}

// `count` elements of a row from `from` on, in steps of 64: a pack of each step, zeros past them.
template <Reuse reuse, int kSteps, class P, class T>
__device__ void LoadSteps(const T* from, int count, Access access, P (&packs)[kSteps]) {
  constexpr int kCount = sizeof(P) / sizeof(T);
  if (access == Access::kVectors && (count >= kSteps * kLanes || count % kCount == 0)) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      packs[s] = kLanes * s < count ? LoadVector<P, reuse>(from + kLanes * s) : P{};
    }
  } else {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      packs[s] = LoadSome<P>(from + kLanes * s, count - int{kLanes} * s, access);
    }
  }
}

// Writes the first `count` elements of pack.
template <class T, int kCount>
__device__ void Store(const Pack<T, kCount>& pack, T* to, int count, Access access) {
  if (access == Access::kVectors && count >= kCount) {
    using C = Chunks<Pack<T, kCount>>;
    const C chunks = std::bit_cast<C>(pack);
#pragma unroll
    for (int i = 0; i < C::kCount; ++i) {
      __stcs(reinterpret_cast<typename C::Chunk*>(to) + i, chunks.of[i]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) StoreOne(pack.of[i], to + i, access);
  }
}

}  // namespace rmsnorm::cuda

#endif  // RMSNORM_CUDA_ELEMENTS_CUH_
