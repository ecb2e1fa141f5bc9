// The caller's floating-point modes change nothing and are put back.
#include "cpu/float_mode.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cfenv>
#include <vector>

#include "core/reference.h"
#include "testing.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rmsnorm {
namespace {

using testing::Operands;

// Puts a thread's modes back, whatever a test does to them.
class Restored {
 public:
  Restored() { std::fegetenv(&environment_); }
  ~Restored() { std::fesetenv(&environment_); }

 private:
  std::fenv_t environment_;
};

// Subnormal inputs and results, which other modes would flush or round away, an offset that float
// rounds, and enough rows for several threads.
testing::Case Sensitive() {
  return {.gamma_offset = 0.1, .rows = 900, .n = 600, .epsilon = 0, .hard_rows = true};
}

void ExpectReferenceBits(const std::string& mode, const Operands& forward,
                         const Operands& expected) {
  EXPECT_TRUE(testing::SameBits(forward.y.bytes, expected.y.bytes)) << mode;
  EXPECT_TRUE(testing::SameBits(forward.rstd, expected.rstd)) << mode;
  EXPECT_TRUE(testing::SameBits(forward.dx.bytes, expected.dx.bytes)) << mode;
  EXPECT_TRUE(testing::SameBits(forward.dgamma, expected.dgamma)) << mode;
}

void RunAll(Operands& call) {
  const rmsnorm_forward_args forward = call.Forward();
  EXPECT_EQ(rmsnorm_forward(&forward, nullptr), RMSNORM_OK);
  const rmsnorm_backward_args backward = call.Backward();
  EXPECT_EQ(rmsnorm_backward(&backward, nullptr), RMSNORM_OK);
}

class CallersModes : public ::testing::TestWithParam<std::string> {
 protected:
  const testing::WithTarget target_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Targets, CallersModes, ::testing::ValuesIn(testing::Targets()),
                         [](const auto& info) { return info.param; });

TEST_P(CallersModes, RoundingDirectionChangesNoBitAndIsPutBack) {
  Operands expected(Sensitive());
  RunAll(expected);
  const Restored restored;
  for (const int direction : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    Operands call(Sensitive());
    std::fesetround(direction);
    RunAll(call);
    EXPECT_EQ(std::fegetround(), direction);
    std::fesetround(FE_TONEAREST);
    ExpectReferenceBits("direction " + std::to_string(direction), call, expected);
  }
}

TEST_P(CallersModes, ModesOfTheWorkersChangeNoBit) {
  Operands expected(Sensitive());
  RunAll(expected);
  const auto set_everywhere = [](int direction) {
#pragma omp parallel num_threads(2)
    std::fesetround(direction);
  };
  Operands call(Sensitive());
  const int threads = omp_get_max_threads();
  omp_set_num_threads(2);
  set_everywhere(FE_UPWARD);
  RunAll(call);
  set_everywhere(FE_TONEAREST);
  omp_set_num_threads(threads);
  ExpectReferenceBits("workers", call, expected);
}

#if defined(__x86_64__)
TEST_P(CallersModes, FlushToZeroChangesNoBitAndIsPutBack) {
  Operands expected(Sensitive());
  RunAll(expected);
  const Restored restored;
  Operands call(Sensitive());
  const unsigned flush = 0x8040 | _mm_getcsr();  // flush-to-zero, denormals-are-zero
  _mm_setcsr(flush);
  RunAll(call);
  EXPECT_EQ(_mm_getcsr() & 0x8040, 0x8040u);
  _mm_setcsr(flush & ~0x8040u);
  ExpectReferenceBits("flush", call, expected);
}

TEST_P(CallersModes, UnmaskedExceptionsDoNotTrap) {
  const Restored restored;
  Operands call(Sensitive());
  _mm_setcsr(_mm_getcsr() & ~0x1F80u);  // every exception would trap
  RunAll(call);
  _mm_setcsr(_mm_getcsr() | 0x1F80u);
  EXPECT_EQ(call.rstd[6], HUGE_VALF);  // a row of zeros: a division by zero was computed
}
#endif

}  // namespace
}  // namespace rmsnorm
