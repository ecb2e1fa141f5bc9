// Infinities, NaN, zeros and overflow beside normal rows: every bit that is written for them.
#include <cfloat>
#include <cmath>

#include "hard_row.h"

namespace rmsnorm {
namespace {

using testing::BitsAt;
using testing::Case;
using testing::kHardRow;
using testing::NaNBits;
using testing::Operands;
using testing::RunHard;

class SpecialValues : public testing::OnEveryTarget {};
RMSNORM_ON_EVERY_TARGET(SpecialValues);

uint32_t InfinityBits(rmsnorm_dtype dtype) {
  if (dtype == RMSNORM_FLOAT32) return 0x7F800000;
  return dtype == RMSNORM_FLOAT16 ? 0x7C00 : 0x7F80;
}

uint32_t SignBits(rmsnorm_dtype dtype, bool negative) {
  if (!negative) return 0;
  return dtype == RMSNORM_FLOAT32 ? 0x80000000 : 0x8000;
}

uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

std::vector<Case> EveryType(double epsilon) {
  return testing::HardCases({RMSNORM_FLOAT32, RMSNORM_FLOAT16, RMSNORM_BFLOAT16}, epsilon);
}

// Calls test(c, at) for every type, with the first, a middle and the last column.
template <class Test>
void ForColumnsOfEveryType(const Test& test) {
  for (const Case& c : EveryType(1e-6)) {
    for (const int64_t at : {int64_t{0}, c.n / 2, c.n - 1}) test(c, at);
  }
}

// The index of column i of the hard row.
int64_t Hard(const Case& c, int64_t i) { return kHardRow * c.n + i; }

TEST_P(SpecialValues, AnInfinityMakesRstdZeroItselfNaNAndTheOthersSignedZeros) {
  ForColumnsOfEveryType([](const Case& c, int64_t at) {
    for (const float infinity : {HUGE_VALF, -HUGE_VALF}) {
      const Operands call = RunHard(c, [&](Operands& in) { in.x.Set(Hard(c, at), infinity); });
      EXPECT_EQ(Bits(call.rstd[kHardRow]), 0u);
      for (int64_t i = 0; i < c.n; ++i) {
        const bool minus = std::signbit(call.x.Get(Hard(c, i))) != std::signbit(call.gamma.Get(i));
        EXPECT_EQ(BitsAt(call.y, Hard(c, i)), i == at ? NaNBits(c.y) : SignBits(c.y, minus));
        EXPECT_EQ(BitsAt(call.dx, Hard(c, i)), NaNBits(c.x)) << c << ", i " << i;
      }
    }
  });
}

TEST_P(SpecialValues, AnInfinityOfXReachesNoOtherColumnOfDgamma) {
  ForColumnsOfEveryType([](const Case& c, int64_t at) {
    const Operands call = RunHard(c, [&](Operands& in) { in.x.Set(Hard(c, at), HUGE_VALF); });
    Operands alone = testing::WithoutHardRow(call);
    testing::Run(alone);
    for (int64_t i = 0; i < c.n; ++i) {
      EXPECT_EQ(Bits(call.dgamma[i]), i == at ? NaNBits(RMSNORM_FLOAT32) : Bits(alone.dgamma[i]))
          << c << ", i " << i;
    }
  });
}

// xhat of the infinite dy's column has the sign that makes its dx inf - inf.
TEST_P(SpecialValues, AnInfinityOfDyMakesItsDxNaNAndTheOthersInfinite) {
  ForColumnsOfEveryType([](const Case& c, int64_t at) {
    const Operands call = RunHard(c, [&](Operands& in) {
      for (int64_t i = 0; i < c.n; ++i) in.x.Set(Hard(c, i), i % 2 ? 1.0f : -1.0f);
      in.dy.Set(Hard(c, at), HUGE_VALF);
    });
    EXPECT_EQ(Bits(call.dgamma[at]), Bits(at % 2 ? HUGE_VALF : -HUGE_VALF));
    for (int64_t i = 0; i < c.n; ++i) {
      const bool minus = (i % 2 == at % 2) != std::signbit(call.gamma.Get(at));
      const uint32_t expected = i == at ? NaNBits(c.x) : InfinityBits(c.x) | SignBits(c.x, minus);
      EXPECT_EQ(BitsAt(call.dx, Hard(c, i)), expected) << c << ", i " << i;
    }
  });
}

// Quiet and signalling ones of both signs, with small and large payloads.
std::vector<uint32_t> NaNsOf(rmsnorm_dtype dtype) {
  const uint32_t infinity = InfinityBits(dtype), quiet = infinity | (infinity & -infinity) >> 1;
  const uint32_t minus = SignBits(dtype, true);
  return {infinity | 1,         quiet,         NaNBits(dtype),
          infinity | 1 | minus, quiet | minus, NaNBits(dtype) | minus};
}

void ExpectNaNRow(const testing::Elements& elements, int64_t row, const Case& c) {
  for (int64_t i = 0; i < c.n; ++i) {
    EXPECT_EQ(BitsAt(elements, row * c.n + i), NaNBits(elements.dtype)) << c << ", i " << i;
  }
}

TEST_P(SpecialValues, ANaNOfXMakesItsRowAndDgammaTheOneNaN) {
  ForColumnsOfEveryType([](const Case& c, int64_t at) {
    for (const uint32_t nan : NaNsOf(c.x)) {
      const Operands call = RunHard(c, [&](Operands& in) { SetBits(in.x, Hard(c, at), nan); });
      EXPECT_EQ(Bits(call.rstd[kHardRow]), NaNBits(RMSNORM_FLOAT32));
      ExpectNaNRow(call.y, kHardRow, c);
      ExpectNaNRow(call.dx, kHardRow, c);
      EXPECT_TRUE(
          testing::SameBits(call.dgamma, std::vector<uint32_t>(c.n, NaNBits(RMSNORM_FLOAT32))))
          << c;
    }
  });
}

TEST_P(SpecialValues, ANaNOfDyMakesItsRowOfDxAndItsColumnOfDgammaTheOneNaN) {
  ForColumnsOfEveryType([](const Case& c, int64_t at) {
    for (const uint32_t nan : NaNsOf(c.y)) {
      const Operands call = RunHard(c, [&](Operands& in) { SetBits(in.dy, Hard(c, at), nan); });
      ExpectNaNRow(call.dx, kHardRow, c);
      for (int64_t i = 0; i < c.n; ++i) {
        EXPECT_TRUE(i == at ? Bits(call.dgamma[i]) == NaNBits(RMSNORM_FLOAT32)
                            : std::isfinite(call.dgamma[i]))
            << c;
      }
    }
  });
}

TEST_P(SpecialValues, ANaNOfGammaMakesItsColumnOfYAndAllOfDxTheOneNaN) {
  ForColumnsOfEveryType([](const Case& c, int64_t at) {
    for (const uint32_t nan : NaNsOf(c.gamma)) {
      const Operands call = RunHard(c, [&](Operands& in) { SetBits(in.gamma, at, nan); });
      for (int64_t row = 0; row < c.rows; ++row) {
        ExpectNaNRow(call.dx, row, c);
        for (int64_t i = 0; i < c.n; ++i) {
          const int64_t k = row * c.n + i;
          EXPECT_TRUE(i == at ? BitsAt(call.y, k) == NaNBits(c.y) : std::isfinite(call.y.Get(k)));
        }
      }
    }
  });
}

Operands RunZeros(const Case& c) {
  return RunHard(c, [&](Operands& in) {
    for (int64_t i = 0; i < c.n; ++i) in.x.Set(Hard(c, i), i % 3 ? 0.0f : -0.0f);
  });
}

TEST_P(SpecialValues, ZerosWithEpsilonZeroMakeRstdInfiniteAndTheRowNaN) {
  for (const Case& c : EveryType(0)) {
    const Operands call = RunZeros(c);
    EXPECT_EQ(Bits(call.rstd[kHardRow]), 0x7F800000u);
    ExpectNaNRow(call.y, kHardRow, c);
    ExpectNaNRow(call.dx, kHardRow, c);
    EXPECT_TRUE(
        testing::SameBits(call.dgamma, std::vector<uint32_t>(c.n, NaNBits(RMSNORM_FLOAT32))))
        << c;
  }
}

TEST_P(SpecialValues, ZerosWithAnEpsilonKeepTheirSignsAndPassDyOn) {
  for (const Case& c : EveryType(1e-6)) {
    const Operands call = RunZeros(c);
    EXPECT_NEAR(call.rstd[kHardRow], 1000, 1e-4);  // a unit is 2^-14
    for (int64_t i = 0; i < c.n; ++i) {
      const bool minus = (i % 3 == 0) != std::signbit(call.gamma.Get(i));
      EXPECT_EQ(BitsAt(call.y, Hard(c, i)), SignBits(c.y, minus)) << c << ", i " << i;
      testing::Elements dx(c.x, 1, 1);
      dx.Set(0, call.dy.Get(Hard(c, i)) * call.gamma.Get(i) * call.rstd[kHardRow]);
      EXPECT_EQ(BitsAt(call.dx, Hard(c, i)), BitsAt(dx, 0)) << c << ", i " << i;
    }
  }
}

// c is +0, so that dx has the sign of -xhat * (+0) + w: minus only where both terms are.
TEST_P(SpecialValues, NegativeZerosOfDyGiveTheSignsOfTheFormula) {
  for (const Case& c : EveryType(1e-6)) {
    const Operands call = RunHard(c, [&](Operands& in) {
      for (int64_t i = 0; i < c.n; ++i) {
        in.gamma.Set(i, 1.5f);
        in.x.Set(Hard(c, i), i % 2 ? 2.0f : -2.0f);
        in.dy.Set(Hard(c, i), i % 3 ? -0.0f : 0.0f);
      }
    });
    for (int64_t i = 0; i < c.n; ++i) {
      EXPECT_EQ(BitsAt(call.dx, Hard(c, i)), SignBits(c.x, i % 2 == 1 && i % 3 != 0)) << c;
    }
  }
}

TEST_P(SpecialValues, ProductsThatUnderflowKeepTheirSigns) {
  ForColumnsOfEveryType([](const Case& c, int64_t at) {
    if (c.n < 64) return;
    const Operands call = RunHard(c, [&](Operands& in) {
      for (int64_t i = 0; i < c.n; ++i) {
        in.gamma.Set(i, 0x1p-149f);
        in.x.Set(Hard(c, i), i % 2 ? 1.0f : -1.0f);
      }
      in.x.Set(Hard(c, at), 2000.0f);  // makes |xhat| of the others less than 1/2
    });
    for (int64_t i = 0; i < c.n; ++i) {
      if (i == at) continue;
      EXPECT_EQ(BitsAt(call.y, Hard(c, i)), SignBits(c.y, i % 2 == 0)) << c;
    }
  });
}

struct Rounding {
  rmsnorm_dtype dtype;
  float value;
  uint32_t bits;
};

constexpr Rounding kNearTheLargest[] = {
    {RMSNORM_FLOAT16, 65504.0f, 0x7BFF},         {RMSNORM_FLOAT16, 0x1.FFDFFEp15f, 0x7BFF},
    {RMSNORM_FLOAT16, 65520.0f, 0x7C00},         {RMSNORM_FLOAT16, 65536.0f, 0x7C00},
    {RMSNORM_FLOAT16, FLT_MAX, 0x7C00},          {RMSNORM_BFLOAT16, 0x1.FEp127f, 0x7F7F},
    {RMSNORM_BFLOAT16, 0x1.FEFFFEp127f, 0x7F7F}, {RMSNORM_BFLOAT16, 0x1.FFp127f, 0x7F80},
    {RMSNORM_BFLOAT16, FLT_MAX, 0x7F80},
};

// rstd is exactly 1 and c exactly 0, so that y and dx are gamma with a sign, rounded.
TEST_P(SpecialValues, OverflowOf16BitsIsRoundedToNearestAndGivesInfinity) {
  for (const Rounding& near : kNearTheLargest) {
    for (const int64_t n : {4, 64}) {
      for (const rmsnorm_rounding rounding : {RMSNORM_ROUND_ONCE, RMSNORM_ROUND_BEFORE_GAMMA}) {
        const Case c{.x = near.dtype, .y = near.dtype, .rounding = rounding, .n = n, .epsilon = 0};
        const Operands call = RunHard(c, [&](Operands& in) {
          for (int64_t i = 0; i < n; ++i) {
            in.gamma.Set(i, near.value);
            in.x.Set(Hard(c, i), i % 2 ? -1.0f : 1.0f);
            in.dy.Set(Hard(c, i), i % 4 / 2 ? -1.0f : 1.0f);
          }
        });
        for (int64_t i = 0; i < n; ++i) {
          EXPECT_EQ(BitsAt(call.y, Hard(c, i)), near.bits | SignBits(c.y, i % 2)) << near.value;
          EXPECT_EQ(BitsAt(call.dx, Hard(c, i)), near.bits | SignBits(c.x, i % 4 / 2))
              << near.value;
        }
      }
    }
  }
}

}  // namespace
}  // namespace rmsnorm
