// Calls whose operands lie in a GPU's memory, through the C interface: a real GPU's, or the host's
// where the executor (tests/executor) plays GPUs.
#ifndef RMSNORM_CUDA_ON_GPU_H_
#define RMSNORM_CUDA_ON_GPU_H_

#include <cuda_runtime.h>

#include "testing.h"

namespace rmsnorm::testing {

struct Gpu {
  std::string name;
  int major = 0;  // of its compute capability
  int shared_kilobytes = 0;

  friend std::ostream& operator<<(std::ostream& out, const Gpu& gpu) { return out << gpu.name; }
};

#ifdef RMSNORM_EXECUTOR
// What decides how rows are spread: clusters or none, and how much memory a block has.
inline std::vector<Gpu> Gpus() {
  return {{"sm_80", 8, 163}, {"sm_90", 9, 227}, {"sm_120", 12, 99}};
}

inline void Play(const Gpu& gpu, uint64_t seed, int most_clusters = 1) {
  executor::Device& device = *executor::executor_device();
  device.most_clusters = most_clusters;
  device.major = gpu.major;
  device.shared_bytes = gpu.shared_kilobytes << 10;
  device.seed = seed;
}
#else
inline std::vector<Gpu> Gpus() { return {{"here"}}; }
inline void Play(const Gpu&, uint64_t, int = 1) {}
#endif

// A copy of bytes in the GPU's memory, `offset` bytes past an aligned address.
class OnGpu {
 public:
  template <class T>
  explicit OnGpu(std::vector<T>& elements, size_t offset = 0)
      : host_(elements.data()), bytes_(elements.size() * sizeof(T)), offset_(offset) {
    EXPECT_EQ(cudaMalloc(&memory_, bytes_ + offset_ + 1), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data(), host_, bytes_, cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~OnGpu() { EXPECT_EQ(cudaFree(memory_), cudaSuccess); }
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;

  void* data() const { return static_cast<char*>(memory_) + offset_; }
  // Waits for all work, and for its errors.
  void Fetch() {
    EXPECT_EQ(cudaMemcpy(host_, data(), bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
  }

 private:
  void* host_;
  void* memory_ = nullptr;
  size_t bytes_, offset_;
};

struct OnGpuOptions {
  size_t offset = 0;  // of every operand, in bytes
  bool in_place = false;
  bool dx = true, dgamma = true, rstd = true;  // wanted
};

// Calls expect(c, options) with operands at every kind of address, and rows of every kind of
// stride.
template <class Expect>
void ForEveryAddressAndStride(const Expect& expect) {
  for (const size_t offset : {1, 2, 4, 8}) {
    for (const int64_t n : {5, 128, 136, 1100}) {
      for (const Case& c : EveryType(/*rows=*/5, n)) expect(c, {.offset = offset});
    }
  }
  for (int64_t gap = 1; gap <= 16; ++gap) {
    expect({.rows = 3, .n = 1024, .gap = gap}, {});
    expect({.x = RMSNORM_FLOAT16, .y = RMSNORM_FLOAT16, .rows = 3, .n = 1023, .gap = gap}, {});
  }
}

// Calls expect(c) so that each kind of kernel runs once, for compute-sanitizer, which takes
// hundreds of times as long.
template <class Expect>
void ForEveryKindOfKernel(const Expect& expect) {
  for (const rmsnorm_dtype dtype : kDtypes) {
    for (const int64_t n : {64, 100, 128, 256, 1000, 4096, 20480}) {
      expect({.x = dtype, .y = dtype, .rows = 35, .n = n});
    }
  }
}

// y and rstd.
inline void RunForwardOnGpu(Operands& call, const OnGpuOptions& options = {}) {
  OnGpu x(call.x.bytes, options.offset), gamma(call.gamma.bytes, options.offset),
      y(call.y.bytes, options.offset), rstd(call.rstd, options.offset);
  rmsnorm_forward_args args = call.Forward();
  args.x.data = x.data();
  if (args.gamma.data != nullptr) args.gamma.data = gamma.data();
  args.y.data = options.in_place ? x.data() : y.data();
  args.rstd = options.rstd ? rstd.data() : nullptr;
  ASSERT_EQ(rmsnorm_cuda_forward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  x.Fetch();
  y.Fetch();
  rstd.Fetch();
}

// dx and dgamma, from the rstd that is there.
inline void RunBackwardOnGpu(Operands& call, const OnGpuOptions& options = {}) {
  OnGpu x(call.x.bytes, options.offset), gamma(call.gamma.bytes, options.offset),
      dy(call.dy.bytes, options.offset), rstd(call.rstd, options.offset),
      dx(call.dx.bytes, options.offset), dgamma(call.dgamma, options.offset);
  rmsnorm_backward_args args = call.Backward();
  args.workspace_size = rmsnorm_cuda_backward_workspace(call.c.rows, call.c.n, call.c.x);
  std::vector<float> nans(args.workspace_size / sizeof(float), std::nanf(""));
  OnGpu workspace(nans);
  args.x.data = x.data();
  if (args.gamma.data != nullptr) args.gamma.data = gamma.data();
  args.dy.data = dy.data();
  args.rstd = rstd.data();
  args.dx.data = options.dx ? dx.data() : nullptr;
  args.dgamma = options.dgamma ? dgamma.data() : nullptr;
  args.workspace = workspace.data();
  ASSERT_EQ(rmsnorm_cuda_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  dx.Fetch();
  dgamma.Fetch();
}

// A test that runs on every GPU there is, by the index of one.
class OnEveryGpu : public ::testing::TestWithParam<Gpu> {
 protected:
  void SetUp() override { Play(GetParam(), /*seed=*/0); }
};

}  // namespace rmsnorm::testing

// Makes the tests of a suite derived from OnEveryGpu.
#define RMSNORM_ON_EVERY_GPU(Suite)                                                      \
  INSTANTIATE_TEST_SUITE_P(Gpus, Suite, ::testing::ValuesIn(::rmsnorm::testing::Gpus()), \
                           [](const auto& info) { return info.param.name; })

#endif  // RMSNORM_CUDA_ON_GPU_H_
