// The reference against the formulas, in long double.
#include "core/reference.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "testing.h"

namespace rmsnorm {
namespace {

using testing::Case;
using testing::Operands;

float UnitInLastPlace(float value) {
  return std::nextafter(std::fabs(value), HUGE_VALF) - std::fabs(value);
}

// One row of these values, no gamma.
Operands RowOf(const std::vector<float>& values, double epsilon) {
  Operands row({.gamma = testing::kAbsent,
                .rows = 1,
                .n = static_cast<int64_t>(values.size()),
                .epsilon = epsilon});
  for (size_t i = 0; i < values.size(); ++i) row.x.Set(i, values[i]);
  ForwardReference(row.Forward(), 0, 1);
  return row;
}

TEST(Reference, NormalizesThreeFour) {
  const Operands row = RowOf({3, 4}, /*epsilon=*/0);
  EXPECT_FLOAT_EQ(row.rstd[0], std::sqrt(2.0f) / 5);
  EXPECT_FLOAT_EQ(row.y.Get(0), 3 * std::sqrt(2.0f) / 5);
  EXPECT_FLOAT_EQ(row.y.Get(1), 4 * std::sqrt(2.0f) / 5);
}

TEST(Reference, BeforeGammaRoundsTwiceAndOnceRoundsOnce) {
  Case c{.x = RMSNORM_BFLOAT16, .gamma = RMSNORM_BFLOAT16, .y = RMSNORM_BFLOAT16, .n = 512};
  Operands once(c);
  c.rounding = RMSNORM_ROUND_BEFORE_GAMMA;
  Operands before(c);
  ForwardReference(once.Forward(), 0, c.rows);
  ForwardReference(before.Forward(), 0, c.rows);
  EXPECT_FALSE(testing::SameBits(once.y.bytes, before.y.bytes));
  const float xhat = once.x.Get(0) * once.rstd[0];
  const float gamma = once.gamma.Get(0);
  EXPECT_EQ(once.y.Get(0), ToFloat(FromFloat<BFloat16>(xhat * gamma)));
  const float rounded = ToFloat(FromFloat<BFloat16>(xhat));
  EXPECT_EQ(before.y.Get(0), ToFloat(FromFloat<BFloat16>(rounded * gamma)));
}

float RoundedTo(rmsnorm_dtype dtype, float value) {
  testing::Elements element(dtype, 1, 1);
  element.Set(0, value);
  return element.Get(0);
}

std::vector<float> Row(const testing::Elements& matrix, int64_t row, int64_t n) {
  std::vector<float> values;
  for (int64_t i = 0; i < n; ++i) values.push_back(matrix.Get(row * matrix.row_stride + i));
  return values;
}

// As docs/numerics.md says it, in plain text.
float RstdByTheText(const std::vector<float>& x, float epsilon) {
  const float t = testing::DotByLevels(x, x) / static_cast<float>(x.size()) + epsilon;
  if (t >= 0x1p-90f && t < HUGE_VALF) return 1 / std::sqrt(t);
  const std::vector<double> wide(x.begin(), x.end());
  const double s = testing::DotByLevels(wide, wide);
  return static_cast<float>(1 / std::sqrt(s / static_cast<double>(x.size()) + epsilon));
}

Operands ByTheText(const Case& c) {
  Operands call(c);
  std::vector<std::vector<float>> terms(c.n);  // of dgamma's columns
  for (int64_t row = 0; row < c.rows; ++row) {
    const std::vector<float> x = Row(call.x, row, c.n), dy = Row(call.dy, row, c.n);
    std::vector<float> scale, xhat, w;
    const float rstd = call.rstd[row] = RstdByTheText(x, static_cast<float>(c.epsilon));
    for (int64_t i = 0; i < c.n; ++i) {
      scale.push_back(static_cast<float>(c.gamma_offset) + call.gamma.Get(i));
      xhat.push_back(x[i] * rstd);
      w.push_back(dy[i] * scale[i]);
    }
    const float c_of_row = testing::DotByLevels(w, xhat) / static_cast<float>(c.n);
    for (int64_t i = 0; i < c.n; ++i) {
      const bool before = c.rounding == RMSNORM_ROUND_BEFORE_GAMMA;
      call.y.Set(row * c.n + i, (before ? RoundedTo(c.x, xhat[i]) : xhat[i]) * scale[i]);
      call.dx.Set(row * c.n + i, std::fma(-xhat[i], c_of_row, w[i]) * rstd);
    }
    for (int64_t i = 0; i < c.n; ++i) {  // leaves of 16 rows
      if (row % 16 == 0) terms[i].push_back(0);
      terms[i].back() = std::fma(dy[i], xhat[i], terms[i].back());
    }
  }
  for (int64_t i = 0; i < c.n; ++i) call.dgamma[i] = testing::TreeByLevels(terms[i]) + 0;
  return call;
}

TEST(Reference, HasTheBitsOfTheTextOfNumerics) {
  const Case types[] = {{.gamma_offset = 0.1},
                        {.x = RMSNORM_BFLOAT16, .rounding = RMSNORM_ROUND_BEFORE_GAMMA},
                        {.x = RMSNORM_FLOAT16, .y = RMSNORM_FLOAT16}};
  for (Case c : types) {
    for (const int64_t n : {1, 5, 64, 100, 513, 2100}) {
      c.rows = 85;
      c.n = n;
      const Operands expected = ByTheText(c);
      Operands call(c);
      ForwardReference(call.Forward(), 0, c.rows);
      EXPECT_TRUE(testing::SameBits(call.rstd, expected.rstd)) << "rstd; " << c;
      BackwardReference(call.Backward());
      EXPECT_TRUE(testing::SameBits(call.y.bytes, expected.y.bytes)) << "y; " << c;
      EXPECT_TRUE(testing::SameBits(call.dx.bytes, expected.dx.bytes)) << "dx; " << c;
      EXPECT_TRUE(testing::SameBits(call.dgamma, expected.dgamma)) << "dgamma; " << c;
    }
  }
}

// Where float32 holds the sum and where double must: on both sides of 2^-90 and of overflow.
TEST(Reference, RstdHasTheBitsOfTheTextAtEveryMagnitude) {
  testing::Random random(1);
  for (int exponent = -149; exponent < 128; ++exponent) {
    for (int i = 0; i < 20; ++i) {
      const std::vector<float> x = {std::ldexp(random.Value(), exponent - 1), 0};
      const float epsilon = i % 2 ? 0.0f : 1e-27f;
      EXPECT_EQ(RowOf(x, epsilon).rstd[0], RstdByTheText(x, epsilon)) << "x[0] = " << x[0];
    }
  }
}

// A chain rounds 8 times, the trees of lanes and leaves 6 and log2(n / 512) times; then there are
// s / n, + epsilon, the root, the quotient and the last addition of 0, of which a power of -1/2
// halves all that comes before it.
TEST(Reference, RstdIsWithinTheBoundOfTheOrder) {
  for (const int64_t n : testing::kLengths) {
    Operands row({.rows = 4, .n = n});
    ForwardReference(row.Forward(), 0, 4);
    const double levels = std::ceil(std::log2(std::max<double>(n, 512) / 512));
    const double bound = (8 + 6 + levels + 5) / 2;
    for (int64_t r = 0; r < 4; ++r) {
      long double sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        const long double x = row.x.Get(r * n + i);
        sum += x * x;
      }
      const float epsilon = 1e-6f;
      const double exact = static_cast<double>(1 / std::sqrt(sum / n + epsilon));
      EXPECT_LE(std::fabs(row.rstd[r] - exact), bound * UnitInLastPlace(row.rstd[r]))
          << "n = " << n << ", row " << r;
    }
  }
}

TEST(Reference, FiniteRowsGiveFiniteAnswersWhereFloatSumsOverflow) {
  std::vector<float> ones(100, 1.0f);
  ones[50] = 1e20f;
  const Operands row = RowOf(ones, 1e-6);
  EXPECT_NEAR(row.y.Get(50), 10.0, 1e-5);
  EXPECT_NEAR(row.y.Get(0), 1e-19, 1e-25);

  const float max = std::numeric_limits<float>::max();
  EXPECT_NEAR(RowOf({max, -max}, 1e-6).y.Get(0), 1.0, 1e-5);
}

TEST(Reference, FiniteRowsGiveFiniteAnswersWhereFloatSumsUnderflow) {
  const Operands row = RowOf(std::vector<float>(700, 1e-30f), /*epsilon=*/0);
  EXPECT_NEAR(row.y.Get(0), 1.0, 1e-6);
}

TEST(Reference, AnInfinityMakesRstdZero) {
  const Operands row = RowOf({1, HUGE_VALF, -2}, 1e-6);
  EXPECT_EQ(row.rstd[0], 0);
  EXPECT_EQ(row.y.Get(0), 0);
  EXPECT_EQ(std::bit_cast<uint32_t>(row.y.Get(1)), kNaN32);
  EXPECT_TRUE(std::signbit(row.y.Get(2)));
}

TEST(Reference, ZerosWithEpsilonZeroGiveInfiniteRstdAndNaN) {
  const Operands row = RowOf({0, -0.0f}, /*epsilon=*/0);
  EXPECT_EQ(row.rstd[0], HUGE_VALF);
  EXPECT_EQ(std::bit_cast<uint32_t>(row.y.Get(0)), kNaN32);
}

// Norm-wise, against the same formulas in long double: dx = (w - xhat c) rstd loses at most the
// error of c, a dot product, and a few roundings of each factor.
TEST(Reference, GradientsAreThoseOfTheFormula) {
  for (const int64_t n : {1, 7, 64, 513, 4096}) {
    Operands call({.gamma_offset = 1, .rows = 35, .n = n});
    const int64_t rows = call.c.rows;
    ForwardReference(call.Forward(), 0, rows);
    BackwardReference(call.Backward());
    std::vector<long double> dgamma(n, 0), magnitude(n, 0);
    for (int64_t r = 0; r < rows; ++r) {
      const long double rstd = call.rstd[r];
      const auto xhat = [&](int64_t i) { return call.x.Get(r * n + i) * rstd; };
      const auto w = [&](int64_t i) { return call.dy.Get(r * n + i) * (1.0L + call.gamma.Get(i)); };
      long double c = 0, error = 0, norm = 0;
      for (int64_t i = 0; i < n; ++i) c += w(i) * xhat(i) / n;
      for (int64_t i = 0; i < n; ++i) {
        const long double dx = (w(i) - xhat(i) * c) * rstd;
        error += std::pow(call.dx.Get(r * n + i) - dx, 2.0L);
        norm += std::pow(w(i) * rstd, 2.0L);
        const long double term = call.dy.Get(r * n + i) * xhat(i);
        dgamma[i] += term;
        magnitude[i] += std::fabs(term);
      }
      EXPECT_LE(std::sqrt(error), 32 * 0x1p-24L * std::sqrt(norm)) << "n = " << n;
    }
    for (int64_t i = 0; i < n; ++i) {  // a chain of 16, a tree of 3 leaves, xhat and the end
      EXPECT_LE(std::fabs(call.dgamma[i] - dgamma[i]), 24 * 0x1p-24L * magnitude[i]);
    }
  }
}

// Every array holds doubles; the workspace isn't needed.
TEST(Reference, Float64IsComputedInDouble) {
  const int64_t rows = 18, n = 600;
  testing::Random random(1);
  std::vector<double> x(rows * n), dy(rows * n), gamma(n), y(rows * n), dx(rows * n);
  std::vector<double> rstd(rows), dgamma(n), exact_dgamma(n, 0.0);
  for (auto* values : {&x, &dy, &gamma}) {
    for (double& value : *values) value = random.Value() * (1 + 1e-12);
  }
  rmsnorm_forward_args forward = Operands({.rows = rows, .n = n}).Forward();
  forward.x = {x.data(), n, RMSNORM_FLOAT64};
  forward.gamma = {gamma.data(), RMSNORM_FLOAT64};
  forward.y = {y.data(), n, RMSNORM_FLOAT64};
  forward.rstd = rstd.data();
  ASSERT_EQ(rmsnorm_forward(&forward, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  Operands call({.rows = rows, .n = n});
  rmsnorm_backward_args backward = call.Backward();
  backward.dy = {dy.data(), n, RMSNORM_FLOAT64};
  backward.x = forward.x;
  backward.gamma = forward.gamma;
  backward.rstd = rstd.data();
  backward.dx = {dx.data(), n, RMSNORM_FLOAT64};
  backward.dgamma = dgamma.data();
  ASSERT_EQ(rmsnorm_backward(&backward, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  for (int64_t r = 0; r < rows; ++r) {
    long double sum = 0, c = 0;
    for (int64_t i = r * n; i < (r + 1) * n; ++i) sum += static_cast<long double>(x[i]) * x[i];
    const long double scale = 1 / std::sqrt(sum / n + static_cast<long double>(1e-6));
    for (int64_t i = 0; i < n; ++i) c += dy[r * n + i] * gamma[i] * x[r * n + i] * scale / n;
    for (int64_t i = 0; i < n; ++i) {
      const long double xhat = x[r * n + i] * scale;
      EXPECT_NEAR(y[r * n + i], xhat * gamma[i], 1e-14);
      EXPECT_NEAR(dx[r * n + i], (dy[r * n + i] * gamma[i] - xhat * c) * scale, 1e-14);
      exact_dgamma[i] += dy[r * n + i] * xhat;
    }
  }
  for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(dgamma[i], exact_dgamma[i], 1e-13);
}

}  // namespace
}  // namespace rmsnorm
