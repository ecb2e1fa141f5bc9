// The C and C++ interfaces, as a program uses them.
#include <string>
#include <vector>

#include "rmsnorm/rmsnorm.h"
#include "rmsnorm/rmsnorm.hpp"
#include "testing.h"

namespace rmsnorm {
namespace {

TEST(CApi, AGoodCallClearsTheLastError) {
  EXPECT_EQ(rmsnorm_forward(nullptr, nullptr), RMSNORM_INVALID_ARGUMENT);
  EXPECT_STREQ(rmsnorm_last_error(), "args: null; expected a pointer");
  testing::Operands call({.rows = 1, .n = 4});
  const rmsnorm_forward_args args = call.Forward();
  EXPECT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_OK);
  EXPECT_STREQ(rmsnorm_last_error(), "");
}

TEST(CApi, TargetsEndWithTheReferenceAndUnknownOnesAreRefused) {
  EXPECT_EQ(testing::Targets().back(), "reference");
  EXPECT_EQ(rmsnorm_use_cpu_target("Z80"), RMSNORM_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(rmsnorm_last_error()),
            "name: Z80; expected one of " + std::string(rmsnorm_cpu_targets()));
}

TEST(CApi, AShorterErrorLeavesNothingOfALongerOne) {
  EXPECT_EQ(rmsnorm_use_cpu_target(std::string(300, 'Z').c_str()), RMSNORM_INVALID_ARGUMENT);
  EXPECT_EQ(rmsnorm_use_cpu_target("Z"), RMSNORM_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(rmsnorm_last_error()),
            "name: Z; expected one of " + std::string(rmsnorm_cpu_targets()));
}

TEST(CApi, WorkspaceOfACallThatWouldBeRefusedIsZero) {
  EXPECT_EQ(rmsnorm_backward_workspace(-5, -3, nullptr), 0u);
  EXPECT_EQ(rmsnorm_backward_workspace(1, INT64_MAX, nullptr), 0u);
  EXPECT_GT(rmsnorm_backward_workspace(1, 1, nullptr), 0u);
}

TEST(CApi, NoRowsAreNoError) {
  testing::Operands call({.rows = 0, .n = 4});
  const rmsnorm_forward_args args = call.Forward();
  EXPECT_EQ(rmsnorm_forward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
}

// Beside this program lies no librmsnorm_cuda.
TEST(CApi, ACallForAGpuSaysThatThereIsNoCodeForIt) {
  testing::Operands call({.rows = 1, .n = 4});
  const rmsnorm_forward_args forward = call.Forward();
  EXPECT_EQ(rmsnorm_cuda_forward(&forward, nullptr), RMSNORM_NO_DEVICE);
  const std::string message = rmsnorm_last_error();
  EXPECT_EQ(message.find("cuda: no code for GPUs: "), 0u) << message;
  EXPECT_NE(message.find("librmsnorm_cuda.so"), std::string::npos) << message;
  const rmsnorm_backward_args backward = call.Backward();
  EXPECT_EQ(rmsnorm_cuda_backward(&backward, nullptr), RMSNORM_NO_DEVICE);
  EXPECT_EQ(message, rmsnorm_last_error());
}

TEST(CApi, ACallForAGpuIsCheckedAsAnyOther) {
  EXPECT_EQ(rmsnorm_cuda_forward(nullptr, nullptr), RMSNORM_INVALID_ARGUMENT);
  EXPECT_STREQ(rmsnorm_last_error(), "args: null; expected a pointer");
  testing::Operands call({.rows = 100, .n = 4});
  rmsnorm_backward_args backward = call.Backward();
  backward.workspace_size = rmsnorm_cuda_backward_workspace(100, 4, RMSNORM_FLOAT32) - 1;
  EXPECT_EQ(rmsnorm_cuda_backward(&backward, nullptr), RMSNORM_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(rmsnorm_last_error()).find("workspace_size: "), 0u) << rmsnorm_last_error();
}

TEST(CppApi, NormalizesAndGivesGradients) {
  const std::vector<float> x = {3, 4, 6, 8}, gamma = {1, 2}, dy = {1, 0, 0, 1};
  std::vector<float> y(4), rstd(2), dx(4), dgamma(2);
  Forward<float>(x, 2, gamma, y, rstd, {.epsilon = 0});
  EXPECT_FLOAT_EQ(y[0], 3 / std::sqrt(12.5f));
  EXPECT_FLOAT_EQ(y[3], 2 * 8 / std::sqrt(50.0f));
  Backward<float>(dy, x, 2, gamma, rstd, dx, dgamma);
  EXPECT_FLOAT_EQ(dgamma[0], 3 / std::sqrt(12.5f));
  EXPECT_FLOAT_EQ(dx[0], rstd[0] * (1 - 9 * rstd[0] * rstd[0] / 2));
}

TEST(CppApi, TakesTwoByteElementsWithTheirDtype) {
  const std::vector<uint16_t> x = {0x3C00, 0x3C00};  // float16 ones
  std::vector<uint16_t> y(2);
  Forward<uint16_t>(x, 2, {}, y, {}, {.epsilon = 0}, RMSNORM_FLOAT16);
  EXPECT_EQ(y[0], 0x3C00);
}

TEST(CppApi, ThrowsWhatIsWrong) {
  const std::vector<float> x = {3, 4, 6, 8}, gamma = {1, 2, 3};
  std::vector<float> y(4);
  try {
    Forward<float>(x, 2, gamma, y);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "gamma: 3 elements; expected 2");
  }
  EXPECT_THROW(Forward<float>(x, 3, {}, y), Error);
  EXPECT_THROW(Forward<float>(x, 2, {}, y, {}, {.epsilon = -1}), Error);
}

}  // namespace
}  // namespace rmsnorm
