// Every target computes as the contract says, and a canary that cannot fail would be none.
#include "cpu/arithmetic.h"

#include <cfenv>

#include "testing.h"

namespace rmsnorm {
namespace {

class Arithmetic : public testing::OnEveryTarget {};
RMSNORM_ON_EVERY_TARGET(Arithmetic);

TEST_P(Arithmetic, KeepsEveryRule) {
  EXPECT_STREQ(cpu::BrokenRule(), nullptr);
  EXPECT_EQ(rmsnorm_check_arithmetic(), RMSNORM_OK) << rmsnorm_last_error();
}

TEST_P(Arithmetic, IsSeenToBreakWhereRoundingIsUpward) {
  std::fesetround(FE_UPWARD);
  const char* broken = cpu::BrokenRule();
  std::fesetround(FE_TONEAREST);
  EXPECT_NE(broken, nullptr);
  EXPECT_EQ(rmsnorm_check_arithmetic(), RMSNORM_OK) << "a call sets its own modes";
}

TEST(Build, SaysTheFlagsThatDecideBits) {
  const std::string build = rmsnorm_build();
  for (const char* part :
       {"\"version\": \"" RMSNORM_VERSION, "\"compiler\": \"", "-ffp-contract=off"}) {
    EXPECT_NE(build.find(part), std::string::npos) << build;
  }
}

}  // namespace
}  // namespace rmsnorm
