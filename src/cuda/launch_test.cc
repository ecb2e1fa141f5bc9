// What a launch that CUDA refuses becomes; on the executor, which can be told to refuse.
#include "cuda/on_gpu.h"

namespace rmsnorm {
namespace {

class Refused {
 public:
  explicit Refused(cudaError_t error) { executor::executor_device()->refusal = error; }
  ~Refused() { executor::executor_device()->refusal = cudaSuccess; }
};

TEST(Launch, WhatCudaRefusesIsAnErrorWithItsWords) {
  testing::Operands call({.rows = 2, .n = 100});
  const Refused refused(cudaErrorInvalidValue);
  const rmsnorm_forward_args forward = call.Forward();
  EXPECT_EQ(rmsnorm_cuda_forward(&forward, nullptr), RMSNORM_DEVICE_ERROR);
  EXPECT_STREQ(rmsnorm_last_error(), "cuda: invalid argument");
  rmsnorm_backward_args backward = call.Backward();
  backward.dgamma = nullptr;
  EXPECT_EQ(rmsnorm_cuda_backward(&backward, nullptr), RMSNORM_DEVICE_ERROR);
}

TEST(Launch, AGpuWithoutCodeForItIsNoDeviceEvenForACallWithoutRows) {
  const Refused refused(cudaErrorNoKernelImageForDevice);
  for (const int64_t rows : {0, 2}) {
    testing::Operands call({.rows = rows, .n = 100});
    const rmsnorm_forward_args forward = call.Forward();
    EXPECT_EQ(rmsnorm_cuda_forward(&forward, nullptr), RMSNORM_NO_DEVICE);
    EXPECT_STREQ(rmsnorm_last_error(), "cuda: no kernel image");
  }
}

TEST(Launch, MoreBlocksThanAGridHoldsAreRefused) {
  testing::Operands call({.rows = 1, .n = 4000});
  rmsnorm_forward_args args = call.Forward();
  args.rows = int64_t{1} << 40;
  args.x.row_stride = 0;
  args.y.data = reinterpret_cast<void*>(uintptr_t{1} << 50);  // apart from x; it is never written
  args.y.row_stride = 4000;
  args.rstd = nullptr;
  EXPECT_EQ(rmsnorm_cuda_forward(&args, nullptr), RMSNORM_DEVICE_ERROR);
  EXPECT_STREQ(rmsnorm_last_error(), "cuda: more blocks than a grid holds");
}

}  // namespace
}  // namespace rmsnorm
