// The element types: exact conversion to the numbers of a row, correct rounding from them.
#ifndef RMSNORM_CORE_DTYPE_H_
#define RMSNORM_CORE_DTYPE_H_

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "rmsnorm/rmsnorm.h"

namespace rmsnorm {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The one NaN that is ever written, in each width.
inline constexpr uint32_t kNaN32 = 0x7FFFFFFF;
inline constexpr uint16_t kNaN16 = 0x7FFF;
inline constexpr uint64_t kNaN64 = 0x7FFFFFFFFFFFFFFF;

constexpr bool IsNaN(float v) { return v != v; }

constexpr float ToFloat(float v) { return v; }

constexpr float ToFloat(BFloat16 v) { return std::bit_cast<float>(uint32_t{v.bits} << 16); }

constexpr float ToFloat(Float16 v) {
  const uint32_t sign = uint32_t{v.bits} >> 15 << 31;
  const uint32_t exponent = v.bits >> 10 & 31;
  const uint32_t fraction = v.bits & 1023;
  if (exponent == 0) {  // zero or subnormal: fraction units of 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  const uint32_t wide_exponent = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | wide_exponent << 23 | fraction << 13);
}

// To nearest even; overflow gives infinity, every NaN the canonical one.
template <class T>
constexpr T FromFloat(float v);

template <>
constexpr float FromFloat<float>(float v) {
  return IsNaN(v) ? std::bit_cast<float>(kNaN32) : v;
}

template <>
constexpr BFloat16 FromFloat<BFloat16>(float v) {
  if (IsNaN(v)) return {kNaN16};
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

template <>
constexpr Float16 FromFloat<Float16>(float v) {
  if (IsNaN(v)) return {kNaN16};
  const uint32_t sign = std::bit_cast<uint32_t>(v) >> 16 & 0x8000;
  const uint32_t magnitude = std::bit_cast<uint32_t>(v) & 0x7FFFFFFF;
  uint32_t bits;
  if (magnitude >= std::bit_cast<uint32_t>(65520.0f)) {  // halfway past the largest float16
    bits = 0x7C00;
  } else if (magnitude < std::bit_cast<uint32_t>(0x1p-14f)) {
    // Adding 0.5, whose last place is 2^-24, rounds to a float16 subnormal.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    bits = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f);
  } else {
    bits = (magnitude + 0xFFF + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  }
  return {static_cast<uint16_t>(sign | bits)};
}

// A row is computed in float, or in double where its elements are.
template <class T>
constexpr auto ToReal(T element) {
  if constexpr (std::is_same_v<T, double>) {
    return element;
  } else {
    return ToFloat(element);
  }
}
template <class T, class Real>
constexpr T FromReal(Real value) {
  if constexpr (std::is_same_v<T, double>) {
    return value == value ? value : std::bit_cast<double>(kNaN64);
  } else {
    return FromFloat<T>(value);
  }
}

// Calls f with a value of the C++ type that stands for dtype, which has passed validation and isn't
// float64.
template <class F>
decltype(auto) VisitDtype(rmsnorm_dtype dtype, F&& f) {
  switch (dtype) {
    case RMSNORM_FLOAT16:
      return f(Float16{});
    case RMSNORM_BFLOAT16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

constexpr bool IsDtype(rmsnorm_dtype dtype) {
  return dtype >= RMSNORM_FLOAT32 && dtype <= RMSNORM_FLOAT64;
}

constexpr int64_t SizeOf(rmsnorm_dtype dtype) {
  switch (dtype) {
    case RMSNORM_FLOAT64:
      return 8;
    case RMSNORM_FLOAT32:
      return 4;
    default:
      return 2;
  }
}

// The dtype of rstd, sums and dgamma.
constexpr rmsnorm_dtype RealOf(rmsnorm_dtype x) {
  return x == RMSNORM_FLOAT64 ? RMSNORM_FLOAT64 : RMSNORM_FLOAT32;
}

// Element i of an array at any address.
template <class T>
T LoadElement(const void* data, int64_t i) {
  T element;
  std::memcpy(&element, static_cast<const char*>(data) + i * int64_t{sizeof(T)}, sizeof(T));
  return element;
}
template <class T>
void StoreElement(void* data, int64_t i, T element) {
  std::memcpy(static_cast<char*>(data) + i * int64_t{sizeof(T)}, &element, sizeof(T));
}

template <class T>
T* RowOf(const rmsnorm_matrix& m, int64_t row) {
  return static_cast<T*>(m.data) + row * m.row_stride;
}

}  // namespace rmsnorm

#endif  // RMSNORM_CORE_DTYPE_H_
