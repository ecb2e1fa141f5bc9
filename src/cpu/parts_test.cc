// Rows that are spread over several calls: the bits of one call.
#include "parts.h"

#include "core/reference.h"

namespace rmsnorm {
namespace {

using testing::Case;
using testing::Operands;

class PartsOnEveryTarget : public testing::OnEveryTarget {};
RMSNORM_ON_EVERY_TARGET(PartsOnEveryTarget);

// Operands with the rstd of the forward call, dx and dgamma.
Operands Whole(const Case& c) {
  Operands call(c);
  testing::RunReference(call);
  return call;
}

std::vector<float> SumsByReference(Operands& call) {
  std::vector<float> sums(call.c.rows);
  BackwardReference(testing::ForSums(call.Backward(), sums.data()));
  return sums;
}

// By the target in use; behind the rows' sums nothing is written.
std::vector<float> Sums(const rmsnorm_backward_args& args, const rmsnorm_runner* runner = nullptr) {
  std::vector<float> sums(args.rows + 16, -1);
  const rmsnorm_backward_args for_sums = testing::ForSums(args, sums.data());
  EXPECT_EQ(rmsnorm_backward(&for_sums, runner), RMSNORM_OK) << rmsnorm_last_error();
  EXPECT_EQ(std::count(sums.end() - 16, sums.end(), -1.0f), 16);
  sums.resize(args.rows);
  return sums;
}

TEST_P(PartsOnEveryTarget, SumsOfRowsHaveTheBitsOfTheReference) {
  for (const int64_t n : testing::kLengths) {
    for (Case c : testing::EveryType(/*rows=*/n <= 1024 ? 18 : 3, n)) {
      c.hard_rows = n % 2 == 0;
      Operands call = Whole(c);
      EXPECT_TRUE(testing::SameBits(Sums(call.Backward()), SumsByReference(call))) << c;
    }
  }
}

TEST_P(PartsOnEveryTarget, TheSplitOfRowsOverThreadsChangesNoSum) {
  Operands call = Whole({.rows = 1000, .n = 513});
  const std::vector<float> expected = SumsByReference(call);
  for (const int64_t threads : {1, 2, 7}) {
    const testing::Backwards runner(threads);
    EXPECT_TRUE(testing::SameBits(Sums(call.Backward(), runner.get()), expected));
  }
}

TEST_P(PartsOnEveryTarget, SumsOfPartsAddUpToTheBitsOfWholeRows) {
  for (const int64_t n : testing::LengthsInLeaves()) {
    for (const Case& c : testing::EveryType(/*rows=*/3, n)) {
      Operands call = Whole(c);
      const rmsnorm_backward_args args = call.Backward();
      const std::vector<float> expected = SumsByReference(call);
      for (const int64_t parts : {2, 3, 4}) {
        const auto sums_of = [&](int64_t begin, int64_t count) {
          return Sums(testing::ColumnsOf(args, begin, count));
        };
        const auto sums = testing::AddParts<float>(testing::Cuts(n, parts), 0, n, sums_of);
        EXPECT_TRUE(testing::SameBits(sums, expected)) << parts << " parts; " << c;
      }
    }
  }
}

TEST_P(PartsOnEveryTarget, GradientsOfPartsFromTheWholeRowsSumsHaveTheBitsOfOneCall) {
  for (const int64_t n : {600, 2660}) {
    for (Case c : testing::EveryType(/*rows=*/18, n)) {
      c.hard_rows = n == 600;
      const Operands expected = Whole(c);
      Operands call = expected;
      std::fill(call.dgamma.begin(), call.dgamma.end(), -1);
      call.dx = Operands(c).dx;
      rmsnorm_backward_args args = call.Backward();
      const std::vector<float> sums = SumsByReference(call);
      args.whole_sums = sums.data();
      args.whole_n = n;
      const std::vector<int64_t> cuts = testing::Cuts(n, 2);
      for (size_t part = 0; part + 1 < cuts.size(); ++part) {
        const rmsnorm_backward_args of_part =
            testing::ColumnsOf(args, cuts[part], cuts[part + 1] - cuts[part]);
        ASSERT_EQ(rmsnorm_backward(&of_part, nullptr), RMSNORM_OK) << rmsnorm_last_error();
      }
      EXPECT_TRUE(testing::SameBits(call.dx.bytes, expected.dx.bytes)) << "dx; " << c;
      EXPECT_TRUE(testing::SameBits(call.dgamma, expected.dgamma)) << "dgamma; " << c;
    }
  }
}

TEST_P(PartsOnEveryTarget, WholeSumsThatAreWrongStillGiveTheBitsOfTheReference) {
  const float wrong[] = {0.0f, -0.0f, HUGE_VALF, -HUGE_VALF, std::nanf(""), -1.0f, 1e-45f, 3e38f};
  for (Case c : testing::EveryType(/*rows=*/72, /*n=*/577)) {
    c.hard_rows = true;  // of 9 kinds
    Operands expected = Whole(c), actual = expected;
    std::vector<float> sums(c.rows);
    for (int64_t row = 0; row < c.rows; ++row) sums[row] = wrong[row / 9];
    for (Operands* call : {&expected, &actual}) {
      rmsnorm_backward_args args = call->Backward();
      args.whole_sums = sums.data();
      args.whole_n = 1000;
      if (call == &expected) {
        BackwardReference(args);
      } else {
        ASSERT_EQ(rmsnorm_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
      }
    }
    EXPECT_TRUE(testing::SameBits(actual.dx.bytes, expected.dx.bytes)) << "dx; " << c;
    EXPECT_TRUE(testing::SameBits(actual.dgamma, expected.dgamma)) << "dgamma; " << c;
  }
}

TEST(Parts, Float64SumsOfPartsAddUpToTheSumOfTheDefinition) {
  testing::Random random(1);
  for (const int64_t n : testing::LengthsInLeaves()) {
    std::vector<double> x(n), ones(1, 1);
    for (double& value : x) value = random.Value() * (1 + 1e-12);
    rmsnorm_backward_args args = {};
    args.size = sizeof(args);
    args.rows = 1;
    args.x = args.dy = {x.data(), n, RMSNORM_FLOAT64};
    args.rstd = ones.data();
    const auto sums_of = [&](int64_t begin, int64_t count) {
      std::vector<double> sums(1);
      const rmsnorm_backward_args of_part =
          testing::ForSums(testing::ColumnsOf(args, begin, count), sums.data());
      EXPECT_EQ(rmsnorm_backward(&of_part, nullptr), RMSNORM_OK) << rmsnorm_last_error();
      return sums;
    };
    const std::vector<double> expected = {testing::DotByLevels(x, x)};
    for (const int64_t parts : {1, 2, 3, 4}) {
      const auto sums = testing::AddParts<double>(testing::Cuts(n, parts), 0, n, sums_of);
      EXPECT_TRUE(testing::SameBits(sums, expected)) << parts << " parts; n = " << n;
    }
  }
}

// So that one operator gives the sums of both directions.
TEST_P(PartsOnEveryTarget, WithoutScaleAndWithRstdOneTheSumIsThatOfTheSquaresOfX) {
  for (const Case& c : testing::EveryType(/*rows=*/3, /*n=*/1100)) {
    if (c.gamma != testing::kAbsent || c.y != c.x) continue;
    Operands call(c);
    call.dy = call.x;
    std::fill(call.rstd.begin(), call.rstd.end(), 1.0f);
    const std::vector<float> sums = Sums(call.Backward());
    testing::RunReference(call);
    for (int64_t row = 0; row < c.rows; ++row) {
      EXPECT_EQ(1 / std::sqrt(sums[row] / 1100.0f + 1e-6f), call.rstd[row]) << c;
    }
  }
}

TEST(Parts, NoRowsHaveNoSums) {
  Operands call({.rows = 0, .n = 100});
  Sums(call.Backward());
}

}  // namespace
}  // namespace rmsnorm
