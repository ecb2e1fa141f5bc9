// Conversions against an oracle in double.
#include "core/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>

#include "testing.h"

namespace rmsnorm {
namespace {

// Independent of the code under test: what IEEE-754 says of a binary format with p bits of
// precision and this least exponent, in double, which holds every step exactly.
double RoundToFormat(double value, int precision, int min_exponent, double max_finite) {
  if (value == 0 || std::isinf(value)) return value;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  const double unit = std::ldexp(1.0, exponent - (precision - 1));
  const double rounded = std::nearbyint(value / unit) * unit;
  return std::fabs(rounded) > max_finite ? std::copysign(HUGE_VAL, value) : rounded;
}

template <class T>
double Oracle(float value);
template <>
double Oracle<Float16>(float value) {
  return RoundToFormat(value, 11, -14, 65504.0);
}
template <>
double Oracle<BFloat16>(float value) {
  return RoundToFormat(value, 8, -126, 0x1.FEp127);
}

template <class T>
void ExpectRoundsAsOracle(uint32_t bits) {
  const float value = std::bit_cast<float>(bits);
  const T rounded = FromFloat<T>(value);
  if (std::isnan(value)) {
    EXPECT_EQ(rounded.bits, kNaN16);
    return;
  }
  const double expected = Oracle<T>(value);
  EXPECT_EQ(static_cast<double>(ToFloat(rounded)), expected) << std::hex << bits;
  EXPECT_EQ(std::signbit(ToFloat(rounded)), std::signbit(value)) << std::hex << bits;
}

template <class T>
class SixteenBits : public ::testing::Test {};
using Types = ::testing::Types<Float16, BFloat16>;
TYPED_TEST_SUITE(SixteenBits, Types);

TYPED_TEST(SixteenBits, EveryCodeComesBackFromFloat) {
  for (uint32_t code = 0; code <= 0xFFFF; ++code) {
    const TypeParam element = {static_cast<uint16_t>(code)};
    const float value = ToFloat(element);
    const uint16_t expected = std::isnan(value) ? kNaN16 : element.bits;
    EXPECT_EQ(FromFloat<TypeParam>(value).bits, expected);
  }
}

TYPED_TEST(SixteenBits, RoundingIsToNearestEvenForSampledFloats) {
  for (uint64_t bits = 0; bits <= 0xFFFFFFFF; bits += 65521) {
    ExpectRoundsAsOracle<TypeParam>(static_cast<uint32_t>(bits));
  }
}

TYPED_TEST(SixteenBits, RoundingIsToNearestEvenAroundEveryTie) {
  for (uint32_t code = 0; code < 0xFFFF; ++code) {
    const float low = ToFloat(TypeParam{static_cast<uint16_t>(code)});
    const float high = ToFloat(TypeParam{static_cast<uint16_t>(code + 1)});
    if (!std::isfinite(low) || !std::isfinite(high)) continue;
    const uint32_t tie = std::bit_cast<uint32_t>(static_cast<float>(0.5 * (double{low} + high)));
    for (const uint32_t bits : {tie - 1, tie, tie + 1}) ExpectRoundsAsOracle<TypeParam>(bits);
  }
}

TEST(Float32, EveryNaNIsWrittenWithOnePattern) {
  for (const uint32_t bits : {0x7F800001u, 0xFFC00000u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    EXPECT_EQ(std::bit_cast<uint32_t>(FromFloat<float>(std::bit_cast<float>(bits))), kNaN32);
  }
  EXPECT_EQ(std::bit_cast<uint32_t>(FromFloat<float>(-0.0f)), 0x80000000u);
}

}  // namespace
}  // namespace rmsnorm
