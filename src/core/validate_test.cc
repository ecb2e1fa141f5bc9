// A table of bad calls: each is refused by name, and nothing is written.
#include "core/validate.h"

#include <functional>
#include <limits>

#include "testing.h"

namespace rmsnorm {
namespace {

using testing::Case;
using testing::Operands;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class Args>
struct BadCall {
  const char* name;
  const char* message;  // how it begins
  std::function<void(Args&)> break_it;
};

using F = rmsnorm_forward_args;
using B = rmsnorm_backward_args;

const BadCall<F> kBadForward[] = {
    {"OldSize", "args: size 8; expected", [](F& a) { a.size = 8; }},
    {"NegativeRows", "rows: -1; expected 0 to", [](F& a) { a.rows = -1; }},
    {"HugeRows", "rows: 9223372036854775807; expected 0 to", [](F& a) { a.rows = INT64_MAX; }},
    {"NoColumns", "n: 0; expected 1 to", [](F& a) { a.n = 0; }},
    {"NegativeColumns", "n: -5; expected 1 to", [](F& a) { a.n = -5; }},
    {"HugeColumns", "n: 9223372036854775807; expected 1 to", [](F& a) { a.n = INT64_MAX; }},
    {"SizeOverflow", "x: 281474976710656 rows of 64 elements, row_stride 1048576, is too large",
     [](F& a) {
       a.rows = int64_t{1} << 48;
       a.x.row_stride = 1 << 20;
     }},
    {"StrideOverflow", "x: 4 rows of 64 elements, row_stride 4611686018427387904, is too large",
     [](F& a) { a.x.row_stride = int64_t{1} << 62; }},
    {"NullX", "x: null; expected a pointer", [](F& a) { a.x.data = nullptr; }},
    {"UnknownXDtype", "x: dtype 7 is unknown", [](F& a) { a.x.dtype = 7; }},
    {"NoXDtype", "x: dtype 0 is unknown", [](F& a) { a.x.dtype = 0; }},
    {"NegativeXStride", "x: row_stride -64; expected >= 0", [](F& a) { a.x.row_stride = -64; }},
    {"UnknownGammaDtype", "gamma: dtype 9 is unknown; expected float32, float16 or bfloat16",
     [](F& a) { a.gamma.dtype = 9; }},
    {"Float64GammaAlone", "gamma: dtype float64; expected float32, float16 or bfloat16",
     [](F& a) { a.gamma.dtype = RMSNORM_FLOAT64; }},
    {"Float64YAlone", "y: dtype float64; expected x's or float32",
     [](F& a) { a.y.dtype = RMSNORM_FLOAT64; }},
    {"Float64XAlone", "gamma: dtype float32; expected float32, float16 or bfloat16 (or float64, ",
     [](F& a) { a.x.dtype = RMSNORM_FLOAT64; }},
    {"NullY", "y: null; expected a pointer", [](F& a) { a.y.data = nullptr; }},
    {"YOfAnotherDtype", "y: dtype float16; expected x's or float32, and x is float32",
     [](F& a) { a.y.dtype = RMSNORM_FLOAT16; }},
    {"OverlappingYRows", "y: row_stride 63; expected >= 64, so that its rows don't overlap",
     [](F& a) { a.y.row_stride = 63; }},
    {"YInsideX", "y: overlaps x; expected x itself or memory apart from it",
     [](F& a) { a.y.data = static_cast<float*>(a.x.data) + 1; }},
    {"YOnXWithAnotherStride", "y: overlaps x; expected x itself",
     [](F& a) { a.y = {a.x.data, a.x.row_stride + 1, a.x.dtype}; }},
    {"YOnGamma", "y: overlaps gamma", [](F& a) { a.gamma.data = a.y.data; }},
    {"RstdOnX", "rstd: overlaps x", [](F& a) { a.rstd = static_cast<float*>(a.x.data) + 3; }},
    {"RstdOnY", "y: overlaps rstd", [](F& a) { a.rstd = static_cast<float*>(a.y.data); }},
    {"RstdOnGamma", "rstd: overlaps gamma",
     [](F& a) { a.rstd = static_cast<float*>(const_cast<void*>(a.gamma.data)); }},
    {"NegativeEpsilon", "epsilon: -1; expected a finite number >= 0", [](F& a) { a.epsilon = -1; }},
    {"NaNEpsilon", "epsilon: nan; expected a finite number >= 0", [](F& a) { a.epsilon = kNaN; }},
    {"InfiniteEpsilon", "epsilon: inf; expected", [](F& a) { a.epsilon = kInfinity; }},
    {"EpsilonBeyondFloat", "epsilon: 1e+39; expected", [](F& a) { a.epsilon = 1e39; }},
    {"NaNOffset", "gamma_offset: nan; expected a finite number",
     [](F& a) { a.gamma_offset = kNaN; }},
    {"InfiniteOffset", "gamma_offset: -inf; expected", [](F& a) { a.gamma_offset = -kInfinity; }},
    {"OffsetWithoutGamma", "gamma_offset: 1 without gamma; expected 0",
     [](F& a) {
       a.gamma.data = nullptr;
       a.gamma_offset = 1;
     }},
    {"NoRounding", "rounding: 0; expected RMSNORM_ROUND_ONCE", [](F& a) { a.rounding = 0; }},
    {"UnknownRounding", "rounding: 3; expected RMSNORM_ROUND_ONCE", [](F& a) { a.rounding = 3; }},
};

void WantSums(B& args, void* sums) {
  args.dx.data = nullptr;
  args.dgamma = nullptr;
  args.sums = sums;
}

const BadCall<B> kBadBackward[] = {
    {"OldSize", "args: size 0; expected", [](B& a) { a.size = 0; }},
    {"NegativeRows", "rows: -1; expected 0 to", [](B& a) { a.rows = -1; }},
    {"NoColumns", "n: 0; expected 1 to", [](B& a) { a.n = 0; }},
    {"NullX", "x: null; expected", [](B& a) { a.x.data = nullptr; }},
    {"NullDy", "dy: null; expected", [](B& a) { a.dy.data = nullptr; }},
    {"NullRstd", "rstd: null; expected [rows]", [](B& a) { a.rstd = nullptr; }},
    {"DyOfAnotherDtype", "dy: dtype bfloat16; expected x's or float32",
     [](B& a) { a.dy.dtype = RMSNORM_BFLOAT16; }},
    {"DxOfAnotherDtype", "dx: dtype float16; expected x's, and x is float32",
     [](B& a) { a.dx.dtype = RMSNORM_FLOAT16; }},
    {"OverlappingDxRows", "dx: row_stride 0; expected >= 64", [](B& a) { a.dx.row_stride = 0; }},
    {"DxOnX", "dx: overlaps x", [](B& a) { a.dx.data = a.x.data; }},
    {"DxOnDy", "dx: overlaps dy", [](B& a) { a.dx.data = a.dy.data; }},
    {"DgammaOnGamma", "dgamma: overlaps gamma",
     [](B& a) { a.dgamma = static_cast<float*>(const_cast<void*>(a.gamma.data)); }},
    {"DgammaOnRstd", "dgamma: overlaps rstd", [](B& a) { a.rstd = a.dgamma; }},
    {"DgammaOnDx", "dx: overlaps dgamma", [](B& a) { a.dgamma = static_cast<float*>(a.dx.data); }},
    {"NoWorkspace", "workspace: null; expected a pointer", [](B& a) { a.workspace = nullptr; }},
    {"SmallWorkspace", "workspace_size: 255; expected >= 256",
     [](B& a) { a.workspace_size = 255; }},
    {"UnalignedWorkspace", "workspace: 0x",
     [](B& a) { a.workspace = static_cast<char*>(a.workspace) + 4; }},
    {"WorkspaceOnX", "workspace: overlaps x",
     [](B& a) {
       a.rows = 1;
       a.x.data = a.workspace;
     }},
    {"OffsetWithoutGamma", "gamma_offset: 2 without gamma",
     [](B& a) {
       a.gamma.data = nullptr;
       a.gamma_offset = 2;
     }},
    {"NaNOffset", "gamma_offset: nan", [](B& a) { a.gamma_offset = kNaN; }},
    {"SumsWithDx", "sums: given with dx; expected sums alone", [](B& a) { a.sums = a.dgamma; }},
    {"SumsWithDgamma", "sums: given with dgamma; expected sums alone",
     [](B& a) {
       a.sums = a.dx.data;
       a.dx.data = nullptr;
     }},
    {"SumsWithWholeSums", "sums: given with whole_sums; expected sums alone",
     [](B& a) {
       WantSums(a, a.dgamma);
       a.whole_sums = a.rstd;
     }},
    {"SumsOnX", "sums: overlaps x", [](B& a) { WantSums(a, a.x.data); }},
    {"SumsOnDy", "sums: overlaps dy", [](B& a) { WantSums(a, a.dy.data); }},
    {"SumsOnRstd", "sums: overlaps rstd", [](B& a) { WantSums(a, const_cast<void*>(a.rstd)); }},
    {"SumsWithoutRstd", "rstd: null; expected [rows]",
     [](B& a) {
       WantSums(a, a.dgamma);
       a.rstd = nullptr;
     }},
    {"NoWholeN", "whole_n: 0; expected 64 to 2^48", [](B& a) { a.whole_sums = a.rstd; }},
    {"WholeNBelowN", "whole_n: 63; expected 64 to 2^48",
     [](B& a) {
       a.whole_sums = a.rstd;
       a.whole_n = 63;
     }},
    {"HugeWholeN", "whole_n: 9223372036854775807; expected 64 to 2^48",
     [](B& a) {
       a.whole_sums = a.rstd;
       a.whole_n = INT64_MAX;
     }},
    {"DgammaOnWholeSums", "dgamma: overlaps whole_sums",
     [](B& a) {
       a.whole_sums = a.dgamma;
       a.whole_n = 64;
     }},
};

constexpr Case kGood = {.rows = 4, .n = 64};

void ExpectNothingWritten(const Operands& after) {
  const Operands fresh(after.c);
  EXPECT_TRUE(testing::SameBits(after.x.bytes, fresh.x.bytes));
  EXPECT_TRUE(testing::SameBits(after.y.bytes, fresh.y.bytes));
  EXPECT_TRUE(testing::SameBits(after.dx.bytes, fresh.dx.bytes));
  EXPECT_TRUE(testing::SameBits(after.rstd, fresh.rstd));
  EXPECT_TRUE(testing::SameBits(after.dgamma, fresh.dgamma));
}

class BadForward : public ::testing::TestWithParam<BadCall<F>> {};

TEST_P(BadForward, IsRefusedByNameAndWritesNothing) {
  Operands call(kGood);
  F args = call.Forward();
  GetParam().break_it(args);
  EXPECT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(rmsnorm_last_error()).rfind(GetParam().message, 0), 0u)
      << rmsnorm_last_error();
  ExpectNothingWritten(call);
}

INSTANTIATE_TEST_SUITE_P(Table, BadForward, ::testing::ValuesIn(kBadForward),
                         [](const auto& info) { return info.param.name; });

class BadBackward : public ::testing::TestWithParam<BadCall<B>> {};

TEST_P(BadBackward, IsRefusedByNameAndWritesNothing) {
  Operands call(kGood);
  B args = call.Backward();
  GetParam().break_it(args);
  EXPECT_EQ(rmsnorm_backward(&args, nullptr), RMSNORM_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(rmsnorm_last_error()).rfind(GetParam().message, 0), 0u)
      << rmsnorm_last_error();
  ExpectNothingWritten(call);
}

INSTANTIATE_TEST_SUITE_P(Table, BadBackward, ::testing::ValuesIn(kBadBackward),
                         [](const auto& info) { return info.param.name; });

TEST(Validate, TheUnbrokenCallsPass) {
  Operands call(kGood);
  const F forward = call.Forward();
  EXPECT_EQ(rmsnorm_forward(&forward, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  const B backward = call.Backward();
  EXPECT_EQ(rmsnorm_backward(&backward, nullptr), RMSNORM_OK) << rmsnorm_last_error();
}

TEST(Validate, RowsSideBySideInOneMatrixDoNotOverlap) {
  std::vector<float> wide(8 * 192, 1.0f);
  F args = Operands(kGood).Forward();
  args.rows = 8;
  args.gamma.data = nullptr;
  args.rstd = nullptr;
  args.x = {wide.data(), 192, RMSNORM_FLOAT32};
  args.y = {wide.data() + 64, 192, RMSNORM_FLOAT32};
  EXPECT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  args.y.data = wide.data() + 63;
  EXPECT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_INVALID_ARGUMENT);
  args.y.data = wide.data() + 129;  // its row runs into x's next one
  EXPECT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_INVALID_ARGUMENT);
}

TEST(Validate, MemoryBetweenRowsIsApart) {
  std::vector<float> wide(8 * 128, 1.0f);
  F args = Operands(kGood).Forward();
  args.rstd = nullptr;
  args.x = {wide.data(), 128, RMSNORM_FLOAT32};
  args.y = {wide.data() + 512, 128, RMSNORM_FLOAT32};
  args.gamma.data = wide.data() + 512 + 64;  // behind y's first row
  EXPECT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  for (const int into : {-1, 1}) {
    args.gamma.data = wide.data() + 512 + 64 + into;
    EXPECT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_INVALID_ARGUMENT);
  }
  args.gamma.data = nullptr;
  args.rows = 2;
  args.n = 8;
  args.x = {wide.data(), 32, RMSNORM_FLOAT32};
  args.y = {wide.data() + 8, 16, RMSNORM_FLOAT32};  // rows at 8 and 24, x's at 0 and 32
  EXPECT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  args.y.row_stride = 17;  // rows at 8 and 25, and x's second at 32
  EXPECT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_INVALID_ARGUMENT);
}

TEST(Validate, RunnersAreChecked) {
  Operands call(kGood);
  const F args = call.Forward();
  const testing::Backwards good(2);
  rmsnorm_runner runner = *good.get();
  runner.size = 1;
  EXPECT_EQ(rmsnorm_forward(&args, &runner), RMSNORM_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(rmsnorm_last_error()).rfind("runner: size 1", 0), 0u);
  runner = *good.get();
  runner.run = nullptr;
  EXPECT_EQ(rmsnorm_forward(&args, &runner), RMSNORM_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(rmsnorm_last_error()).rfind("runner.run: null", 0), 0u);
  runner = *good.get();
  runner.threads = 0;
  EXPECT_EQ(rmsnorm_forward(&args, &runner), RMSNORM_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(rmsnorm_last_error()).rfind("runner.threads: 0", 0), 0u);
}

struct BadShape {
  std::vector<int64_t> x, gamma;
  const char* message;
};

TEST(Validate, ShapesThatDoNotFitAreShown) {
  const BadShape table[] = {
      {{8, 5120}, {4096}, "gamma: shape [4096] is not the tail of x's [8, 5120]"},
      {{8, 64}, {8}, "gamma: shape [8] is not the tail of x's [8, 64]"},
      {{8, 64}, {1}, "gamma: shape [1] is not the tail of x's [8, 64]"},
      {{64}, {8, 64}, "gamma: shape [8, 64] is not the tail of x's [64]"},
      {{2, 3, 4}, {4, 3}, "gamma: shape [4, 3] is not the tail of x's [2, 3, 4]"},
      {{}, {4}, "x: 0 dimensions; expected 1 or more"},
      {{4}, {}, "gamma: 0 dimensions; expected 1 to x's 1"},
      {{3, 0}, {0}, "x: shape [3, 0] has no element to normalize over"},
      {{-1, 4}, {4}, "x: shape [-1, 4] is negative or too large"},
      {{INT64_MAX, 4, 4}, {4}, "x: shape [9223372036854775807, 4, 4] is negative or too large"},
  };
  for (const BadShape& bad : table) {
    int64_t rows = -1, n = -1;
    EXPECT_EQ(
        rmsnorm_split_shape(bad.x.data(), bad.x.size(), bad.gamma.data() ? bad.gamma.data() : &n,
                            bad.gamma.size(), &rows, &n),
        RMSNORM_INVALID_ARGUMENT);
    EXPECT_STREQ(rmsnorm_last_error(), bad.message);
  }
}

TEST(Validate, FewerAxesThanAreNormalizedAreShown) {
  const int64_t x[] = {8, 64};
  int64_t rows, n;
  EXPECT_EQ(rmsnorm_split_shape(x, 2, nullptr, 3, &rows, &n), RMSNORM_INVALID_ARGUMENT);
  EXPECT_STREQ(rmsnorm_last_error(),
               "x: shape [8, 64] has fewer axes than the 3 to normalize over");
}

TEST(Validate, AShapeTooLongToShowIsCutShort) {
  const std::vector<int64_t> x(64, INT64_MAX);
  int64_t rows, n;
  EXPECT_EQ(rmsnorm_split_shape(x.data(), 64, nullptr, 1, &rows, &n), RMSNORM_INVALID_ARGUMENT);
  std::string shown = "9223372036854775807";
  for (int axis = 1; axis < 7; ++axis) shown += ", 9223372036854775807";
  EXPECT_EQ(rmsnorm_last_error(), "x: shape [" + shown + "…] is negative or too large");
}

TEST(Validate, ShapesThatFitAreSplit) {
  const int64_t x[] = {2, 3, 4, 5}, gamma[] = {4, 5};
  int64_t rows = 0, n = 0;
  EXPECT_EQ(rmsnorm_split_shape(x, 4, gamma, 2, &rows, &n), RMSNORM_OK);
  EXPECT_EQ(rows, 6);
  EXPECT_EQ(n, 20);
  EXPECT_EQ(rmsnorm_split_shape(x, 4, nullptr, 4, &rows, &n), RMSNORM_OK);
  EXPECT_EQ(rows, 1);
  EXPECT_EQ(n, 120);
}

}  // namespace
}  // namespace rmsnorm
