// Elements on a GPU: the contract's operations, each rounded once; conversions; loads and stores of
// the elements that one thread holds.
#ifndef RMSNORM_CUDA_ELEMENTS_CUH_
#define RMSNORM_CUDA_ELEMENTS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cstdint>
#include <cstring>
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

// The number type in which a row of T is computed.
template <class T>
using RealOfElement = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The unsigned integer of T's size.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 2, uint16_t,
                                std::conditional_t<sizeof(T) == 4, uint32_t, unsigned long long>>;

// kCount neighbouring elements of a row: 16 bytes of x, and as many elements of other operands. In
// words, two 16-bit elements to a word: as an array of elements, each would take a register.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  static constexpr int kWords = kCount * int{sizeof(T)} / 4;
  uint32_t words[kWords];

  __device__ RealOfElement<T> At(int i) const {
    if constexpr (std::is_same_v<T, BFloat16>) {
      const uint32_t word = words[i / 2];
      return std::bit_cast<float>(i % 2 == 0 ? word << 16 : word & 0xFFFF0000);
    } else if constexpr (std::is_same_v<T, Float16>) {
      return __half2float(__half_raw{static_cast<uint16_t>(words[i / 2] >> i % 2 * 16)});
    } else {
      return std::bit_cast<T>(BitsAt(i));
    }
  }
  __device__ Bits<T> BitsAt(int i) const {
    if constexpr (sizeof(T) == 2) return static_cast<uint16_t>(words[i / 2] >> i % 2 * 16);
    if constexpr (sizeof(T) == 4) return words[i];
    if constexpr (sizeof(T) == 8) return words[2 * i] | Bits<T>{words[2 * i + 1]} << 32;
  }
  // Element i was 0.
  __device__ void SetBits(int i, Bits<T> bits) {
    if constexpr (sizeof(T) == 2) words[i / 2] |= uint32_t{bits} << i % 2 * 16;
    if constexpr (sizeof(T) == 4) words[i] = bits;
    if constexpr (sizeof(T) == 8) {
      words[2 * i] = static_cast<uint32_t>(bits);
      words[2 * i + 1] = static_cast<uint32_t>(bits >> 32);
    }
  }
};

// FromReal of each value. A GPU's conversions to 16 bits round to nearest even, keep subnormals and
// give one NaN, 0x7FFF.
template <class T, class Real, int kCount>
__device__ Pack<T, kCount> Narrow(const Real (&values)[kCount]) {
  Pack<T, kCount> pack = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<T, Float16>) {
      const __half2_raw pair = __floats2half2_rn(values[i], values[i | 1]);
      if (i % 2 == 0) pack.words[i / 2] = std::bit_cast<uint32_t>(pair);
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      const __nv_bfloat162_raw pair = __floats2bfloat162_rn(values[i], values[i | 1]);
      if (i % 2 == 0) pack.words[i / 2] = std::bit_cast<uint32_t>(pair);
    } else {
      pack.SetBits(i, std::bit_cast<Bits<T>>(FromReal<T>(values[i])));
    }
  }
  return pack;
}

// A matrix as a kernel sees it.
template <class T>
struct Matrix {
  T* data;
  int64_t row_stride;

  __device__ explicit Matrix(const rmsnorm_matrix& m)
      : data(static_cast<T*>(m.data)), row_stride(m.row_stride) {}
  __device__ T* At(int64_t row) const { return data + row * row_stride; }
};

// One element at any address. __ldca says that it is aligned: of two plain branches the compiler
// would make one load, byte by byte.
template <class T>
__device__ T LoadOne(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) == 0) {
    return std::bit_cast<T>(__ldca(reinterpret_cast<const Bits<T>*>(from)));
  }
  T element;
  memcpy(&element, static_cast<const void*>(from), sizeof(T));
  return element;
}
template <class T>
__device__ void StoreOne(T element, T* to) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(T) == 0) {
    *to = element;
  } else {
    memcpy(static_cast<void*>(to), &element, sizeof(T));
  }
}

// The vectors in which a pack moves.
template <class P>
struct Chunks {
  using Chunk = std::conditional_t<sizeof(P) % 16 == 0, uint4, uint2>;
  static constexpr int kCount = sizeof(P) / sizeof(Chunk);
  Chunk of[kCount];
};

// What is read once leaves the caches to the rest; what no kernel writes meanwhile may be kept
// apart.
enum class Reuse { kOnce, kOften, kConstant };

// A pack at an aligned address.
template <class P, Reuse reuse>
__device__ P LoadVector(const void* from) {
  using C = Chunks<P>;
  C chunks;
#pragma unroll
  for (int i = 0; i < C::kCount; ++i) {
    const auto* chunk = static_cast<const typename C::Chunk*>(from) + i;
    chunks.of[i] = reuse == Reuse::kOnce       ? __ldcs(chunk)
                   : reuse == Reuse::kConstant ? __ldg(chunk)
                                               : *chunk;
  }
  return std::bit_cast<P>(chunks);
}
template <class P>
__device__ void StoreVector(const P& pack, void* to) {
  using C = Chunks<P>;
  const C chunks = std::bit_cast<C>(pack);
#pragma unroll
  for (int i = 0; i < C::kCount; ++i) {
    __stcs(static_cast<typename C::Chunk*>(to) + i, chunks.of[i]);
  }
}

// The first `count` elements, then zeros. kVectors, here and below: the address is a multiple of 16
// bytes, and count, where it is less than a pack, is not positive. A kernel is made for such rows
// and for all others: branches in one would cost it registers, and loads that wait for each other.
template <bool kVectors, Reuse reuse, int kCount, class T>
__device__ Pack<T, kCount> Load(const T* from, int count) {
  using P = Pack<T, kCount>;
  if constexpr (kVectors) return count > 0 ? LoadVector<P, reuse>(from) : P{};
  P pack = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) pack.SetBits(i, std::bit_cast<Bits<T>>(LoadOne(from + i)));
  }
  return pack;
}

// Writes the first `count` elements of pack. Not inlined: it would be most of a kernel.
template <class T, int kCount>
[[gnu::noinline]] __device__ void StoreSome(Pack<T, kCount> pack, T* to, int count) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < count) StoreOne(std::bit_cast<T>(pack.BitsAt(i)), to + i);
  }
}
template <bool kVectors, class T, int kCount>
__device__ void Store(const Pack<T, kCount>& pack, T* to, int count) {
  if (count <= 0) return;
  if constexpr (kVectors) {
    StoreVector(pack, to);
  } else {
    StoreSome(pack, to, count);
  }
}

}  // namespace rmsnorm::cuda

#endif  // RMSNORM_CUDA_ELEMENTS_CUH_
