// Conversions against what IEEE-754 says of each code, in double.
#include "core/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>

#include "testing.h"

namespace rmsnorm {
namespace {

template <class T>
struct Format;
template <>
struct Format<Float16> {
  static constexpr int kFractionBits = 10, kBias = 15;
  static constexpr uint32_t kInfinity = 0x7C00;
};
template <>
struct Format<BFloat16> {
  static constexpr int kFractionBits = 7, kBias = 127;
  static constexpr uint32_t kInfinity = 0x7F80;
};

// What IEEE-754 says a code >= 0 is worth; at infinity's place, the power of two after the largest
// number, which decides where overflow begins.
template <class T>
double Value(uint32_t code) {
  constexpr int kBits = Format<T>::kFractionBits;
  const int exponent = static_cast<int>(code >> kBits);
  const double fraction = code & ((1u << kBits) - 1);
  if (exponent == 0) return std::ldexp(fraction, 1 - Format<T>::kBias - kBits);
  return std::ldexp((1 << kBits) + fraction, exponent - Format<T>::kBias - kBits);
}

// The float halfway between two neighbouring codes, which is exact.
template <class T>
uint32_t TieAbove(uint32_t code) {
  return std::bit_cast<uint32_t>(static_cast<float>((Value<T>(code) + Value<T>(code + 1)) / 2));
}

// Of the floats whose nearest code is this one >= 0, ties going to even, and of their negatives:
// how many FromFloat rounds elsewhere. Looks at the ends and at every `step`th float between them.
template <class T>
int64_t CountWrong(uint32_t code, uint32_t step) {
  const uint32_t odd = code % 2;
  const uint32_t first = code == 0 ? 0 : TieAbove<T>(code - 1) + odd;
  const uint32_t last = code == Format<T>::kInfinity ? 0x7F800000 : TieAbove<T>(code) - odd;
  int64_t wrong = 0;
  const auto look = [&](uint32_t bits) {
    wrong += FromFloat<T>(std::bit_cast<float>(bits)).bits != code;
    wrong += FromFloat<T>(std::bit_cast<float>(bits | 0x80000000)).bits != (code | 0x8000);
  };
  for (uint64_t bits = first; bits <= last; bits += step) look(static_cast<uint32_t>(bits));
  look(last);
  return wrong;
}

template <class T>
int64_t CountWrongNaNs(uint32_t step) {
  int64_t wrong = 0;
  for (uint64_t bits = 0x7F800001; bits <= 0x7FFFFFFF; bits += step) {
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const float nan = std::bit_cast<float>(static_cast<uint32_t>(bits) | sign);
      wrong += FromFloat<T>(nan).bits != 0x7FFF;
    }
  }
  return wrong;
}

template <class T>
void ExpectNearestEven(uint32_t step) {
  int64_t wrong = 0;
#pragma omp parallel for reduction(+ : wrong)
  for (uint32_t code = 0; code <= Format<T>::kInfinity; ++code) wrong += CountWrong<T>(code, step);
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(CountWrongNaNs<T>(step), 0);
}

template <class T>
class SixteenBits : public ::testing::Test {};
using Types = ::testing::Types<Float16, BFloat16>;
TYPED_TEST_SUITE(SixteenBits, Types);

TYPED_TEST(SixteenBits, EveryCodeComesBackFromFloat) {
  for (uint32_t code = 0; code <= 0xFFFF; ++code) {
    const TypeParam element = {static_cast<uint16_t>(code)};
    const float value = ToFloat(element);
    const uint16_t expected = std::isnan(value) ? 0x7FFF : element.bits;
    EXPECT_EQ(FromFloat<TypeParam>(value).bits, expected);
  }
}

TYPED_TEST(SixteenBits, EveryCodeHasItsValue) {
  for (uint32_t code = 0; code < Format<TypeParam>::kInfinity; ++code) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      const float value = ToFloat(TypeParam{static_cast<uint16_t>(code | sign)});
      EXPECT_EQ(std::fabs(value), Value<TypeParam>(code)) << code;
      EXPECT_EQ(std::signbit(value), sign != 0) << code;
    }
  }
}

TYPED_TEST(SixteenBits, SampledFloatsAndThoseAroundEveryTieRoundToNearestEven) {
  ExpectNearestEven<TypeParam>(/*step=*/4093);
}

TYPED_TEST(SixteenBits, DISABLED_EveryFloatRoundsToNearestEven) {
  ExpectNearestEven<TypeParam>(/*step=*/1);
}

TEST(Float32, EveryNaNIsWrittenWithOnePattern) {
  for (const uint32_t bits : {0x7F800001u, 0xFFC00000u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    EXPECT_EQ(std::bit_cast<uint32_t>(FromFloat<float>(std::bit_cast<float>(bits))), 0x7FFFFFFFu);
  }
  EXPECT_EQ(std::bit_cast<uint32_t>(FromFloat<float>(-0.0f)), 0x80000000u);
}

}  // namespace
}  // namespace rmsnorm
