// Finite rows whose squares leave float32: they get the reference's bits and the formula's values.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "hard_row.h"

namespace rmsnorm {
namespace {

using testing::Case;
using testing::kHardRow;
using testing::Operands;

class HardInputs : public testing::OnEveryTarget {};
RMSNORM_ON_EVERY_TARGET(HardInputs);

struct Format {
  int precision;
  int min_exponent;
  long double max;
};

Format FormatOf(rmsnorm_dtype dtype) {
  if (dtype == RMSNORM_FLOAT16) return {11, -14, 65504.0L};
  if (dtype == RMSNORM_BFLOAT16) return {8, -126, 0x1.FEp127L};
  return {24, -126, FLT_MAX};
}

// From this value to the next larger one of its type.
long double Unit(rmsnorm_dtype dtype, long double value) {
  const Format format = FormatOf(dtype);
  const int exponent = value == 0 ? format.min_exponent : std::ilogb(value);
  return std::ldexp(1.0L, std::max(exponent, format.min_exponent) - (format.precision - 1));
}

// Within the tolerance, or the infinity of a value that the type may not hold.
bool IsNear(rmsnorm_dtype dtype, float actual, long double exact, long double tolerance) {
  if (std::isinf(actual)) {
    return std::fabs(exact) + tolerance > FormatOf(dtype).max && (actual > 0) == (exact > 0);
  }
  return std::fabs(actual - exact) <= tolerance;
}

// One row's x, w, dy and xhat, exact but for the rstd that was computed.
struct ExactRow {
  const Operands& call;
  int64_t row;

  int64_t At(int64_t i) const { return row * call.c.n + i; }
  long double X(int64_t i) const { return call.x.Get(At(i)); }
  long double Dy(int64_t i) const { return call.dy.Get(At(i)); }
  long double Xhat(int64_t i) const { return X(i) * call.rstd[row]; }
  long double W(int64_t i) const { return Dy(i) * call.gamma.Get(i); }
};

// As in Reference.RstdIsWithinTheBoundOfTheOrder.
void ExpectRstdOfTheFormula(const ExactRow& row) {
  const Case& c = row.call.c;
  const double levels = std::ceil(std::log2(std::max<double>(c.n, 512) / 512));
  long double sum = 0;
  for (int64_t i = 0; i < c.n; ++i) sum += row.X(i) * row.X(i);
  const long double exact = 1 / std::sqrt(sum / c.n + static_cast<float>(c.epsilon));
  const float rstd = row.call.rstd[row.row];
  EXPECT_LE(std::fabs(rstd - exact), (8 + 6 + levels + 5) / 2 * Unit(RMSNORM_FLOAT32, exact)) << c;
}

// xhat, its product and y's own rounding lose half a unit each, of values that may round up to
// where a unit is twice as large.
void ExpectYOfTheFormula(const ExactRow& row) {
  const Case& c = row.call.c;
  for (int64_t i = 0; i < c.n; ++i) {
    const long double gamma = row.call.gamma.Get(i), exact = row.Xhat(i) * gamma;
    const long double tolerance = Unit(RMSNORM_FLOAT32, row.Xhat(i)) * std::fabs(gamma) +
                                  Unit(RMSNORM_FLOAT32, exact) + Unit(c.y, exact);
    EXPECT_PRED4(IsNear, c.y, row.call.y.Get(row.At(i)), exact, tolerance) << c << ", i " << i;
  }
}

// What underflows on the way to c and w loses less than this.
constexpr long double kUnderflow = 0x1p-140L;

// dx = (w - xhat c) rstd loses the error of a dot product and a few roundings, then its own.
void ExpectDxOfTheFormula(const ExactRow& row) {
  const Case& c = row.call.c;
  const long double rstd = row.call.rstd[row.row];
  long double mean = 0, magnitude = 0;
  for (int64_t i = 0; i < c.n; ++i) {
    mean += row.W(i) * row.Xhat(i) / c.n;
    magnitude += std::fabs(row.W(i) * row.Xhat(i)) / c.n;
  }
  for (int64_t i = 0; i < c.n; ++i) {
    const long double exact = (row.W(i) - row.Xhat(i) * mean) * rstd;
    const long double terms = std::fabs(row.W(i)) + std::fabs(row.Xhat(i)) * magnitude;
    const long double tolerance =
        (32 * 0x1p-24L * terms + kUnderflow * (1 + magnitude)) * rstd + Unit(c.x, exact);
    EXPECT_PRED4(IsNear, c.x, row.call.dx.Get(row.At(i)), exact, tolerance) << c << ", i " << i;
  }
}

void ExpectDgammaOfTheFormula(const Operands& call) {
  for (int64_t i = 0; i < call.c.n; ++i) {
    long double exact = 0, magnitude = 0;
    for (int64_t r = 0; r < call.c.rows; ++r) {
      const ExactRow row{call, r};
      exact += row.Dy(i) * row.Xhat(i);
      magnitude += std::fabs(row.Dy(i) * row.Xhat(i));
    }
    EXPECT_LE(std::fabs(call.dgamma[i] - exact), 8 * 0x1p-24L * magnitude + kUnderflow)
        << call.c << ", i " << i;
  }
}

// The hard row holds value(i). What float32 and 16 bits can't hold may be infinite; nothing is NaN.
void ExpectFormula(const Case& c, const std::function<float(int64_t)>& value) {
  const Operands call = testing::RunHard(c, [&](Operands& inputs) {
    for (int64_t i = 0; i < c.n; ++i) inputs.x.Set(kHardRow * c.n + i, value(i));
  });
  const ExactRow row{call, kHardRow};
  ExpectRstdOfTheFormula(row);
  ExpectYOfTheFormula(row);
  ExpectDxOfTheFormula(row);
  ExpectDgammaOfTheFormula(call);
}

constexpr rmsnorm_dtype kF32 = RMSNORM_FLOAT32, kF16 = RMSNORM_FLOAT16, kBF16 = RMSNORM_BFLOAT16;

TEST_P(HardInputs, ARowOf1e20IsNormalized) {
  for (const Case& c : testing::HardCases({kF32, kBF16}, 1e-6)) {
    ExpectFormula(c, [](int64_t i) { return i % 3 ? 1e20f : -1e20f; });
  }
}

TEST_P(HardInputs, OneElementOf1e20AmongOnesIsNormalizedWithThem) {
  for (const Case& c : testing::HardCases({kF32, kBF16}, 1e-6)) {
    ExpectFormula(c, [&](int64_t i) { return i == c.n / 2 ? 1e20f : 1.0f; });
  }
}

TEST_P(HardInputs, ARowOfTheLargestNumbersIsNormalized) {
  for (const Case& c : testing::HardCases({kF32, kF16, kBF16}, 1e-6)) {
    const float max = static_cast<float>(FormatOf(c.x).max);
    ExpectFormula(c, [max](int64_t i) { return i % 2 ? max : -max; });
  }
}

TEST_P(HardInputs, ARowOf1eMinus30WithEpsilonZeroIsNormalized) {
  for (const Case& c : testing::HardCases({kF32, kBF16}, 0)) {
    ExpectFormula(c, [](int64_t i) { return i % 3 ? 1e-30f : -2e-30f; });
  }
}

// Every subnormal of float16, and those of the others whose root mean square is at least 2^-127.
TEST_P(HardInputs, ARowOfSubnormalsWithEpsilonZeroIsNormalized) {
  for (const Case& c : testing::HardCases({kF32, kF16, kBF16}, 0)) {
    const float unit = static_cast<float>(Unit(c.x, 0));
    const float most = static_cast<float>(std::ldexp(1.0L, FormatOf(c.x).min_exponent)) - unit;
    ExpectFormula(c, [=](int64_t i) { return i % 2 ? most - unit * (i % 30) : -most; });
  }
  for (const Case& c : testing::HardCases({kF16}, 0)) {
    ExpectFormula(c, [](int64_t i) { return static_cast<float>(1 + i % 1023) * 0x1p-24f; });
  }
}

TEST_P(HardInputs, SubnormalsWithAnEpsilonAreScaledByItsRoot) {
  for (const Case& c : testing::HardCases({kF32, kF16, kBF16}, 1e-6)) {
    const float unit = static_cast<float>(Unit(c.x, 0));
    ExpectFormula(c, [unit](int64_t i) { return static_cast<float>(i % 100 - 50) * unit; });
  }
}

// 1 / rms is 2^129 there, which float32 does not hold.
TEST_P(HardInputs, ARowBelow2ToTheMinus128WithEpsilonZeroIsInfiniteWithItsSigns) {
  for (const Case& c : testing::HardCases({kF32, kBF16}, 0)) {
    const Operands call = testing::RunHard(c, [&](Operands& inputs) {
      for (int64_t i = 0; i < c.n; ++i) {
        inputs.x.Set(kHardRow * c.n + i, i % 2 ? 0x1p-129f : -0x1p-129f);
      }
    });
    EXPECT_EQ(call.rstd[kHardRow], HUGE_VALF);
    for (int64_t i = 0; i < c.n; ++i) {
      const bool negative = (i % 2 == 0) != std::signbit(call.gamma.Get(i));
      EXPECT_EQ(call.y.Get(kHardRow * c.n + i), negative ? -HUGE_VALF : HUGE_VALF) << c;
    }
  }
}

// A call with a row for each finite code of a 16-bit type: n times that code.
Operands EveryCode(rmsnorm_dtype dtype, int64_t n, double epsilon) {
  Operands call({.x = dtype,
                 .gamma = testing::kAbsent,
                 .y = dtype,
                 .rows = 1 << 16,
                 .n = n,
                 .epsilon = epsilon});
  for (int64_t i = 0; i < call.c.rows * n; ++i) {
    testing::SetBits(call.x, i, static_cast<uint32_t>(i / n));
  }
  return call;
}

// The bits of the reference; and exactly 1 or -1 in the rows of a finite code of at least this
// magnitude, since 16 bits round away the 2^-23 that float32 loses.
void ExpectOnes(rmsnorm_dtype dtype, double epsilon, float least) {
  for (const int64_t n : {1, 7}) {
    Operands call = EveryCode(dtype, n, epsilon), expected = call;
    testing::Run(call);
    testing::RunReference(expected);
    testing::ExpectSameResults(call, expected);
    int64_t ones = 0;
    for (int64_t i = 0; i < call.c.rows * n; ++i) {
      const float x = call.x.Get(i);
      if (!std::isfinite(x) || std::fabs(x) < least) continue;
      ASSERT_EQ(call.y.Get(i), x > 0 ? 1.0f : -1.0f) << "code " << i / n;
      ++ones;
    }
    EXPECT_GE(ones, call.c.rows / 4 * n);
  }
}

// The square of a quarter of them overflows in float32, that of another quarter underflows.
TEST_P(HardInputs, EveryBFloat16CodeAsARowIsNormalizedToOne) {
  ExpectOnes(kBF16, /*epsilon=*/1e-6, /*least=*/0x1p64f);
  ExpectOnes(kBF16, /*epsilon=*/0, /*least=*/0x1.08p-128f);
}

TEST_P(HardInputs, EveryFloat16CodeAsARowIsNormalizedToOne) {
  ExpectOnes(kF16, /*epsilon=*/0, /*least=*/0x1p-24f);
}

}  // namespace
}  // namespace rmsnorm
