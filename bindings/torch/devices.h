// How the C interface is called on each kind of device: where outputs lie, what does the work.
#ifndef RMSNORM_BINDINGS_TORCH_DEVICES_H_
#define RMSNORM_BINDINGS_TORCH_DEVICES_H_

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>

#include "rmsnorm/rmsnorm.h"

namespace rmsnorm::torch_binding {

class Cpu {
 public:
  explicit Cpu(const at::Tensor& x);

  // Past the dispatcher, which has no more to say inside a kernel. From 4 MB on Linux is asked for
  // huge pages: touching fresh memory 4 KB at a time takes longer than the operator.
  at::Tensor Fresh(at::IntArrayRef sizes, at::ScalarType type) const;

  rmsnorm_status Forward(const rmsnorm_forward_args& args) const {
    return rmsnorm_forward(&args, &runner_);
  }
  rmsnorm_status Backward(const rmsnorm_backward_args& args) const {
    return rmsnorm_backward(&args, &runner_);
  }
  size_t Workspace(int64_t rows, int64_t n, rmsnorm_dtype) const {
    return rmsnorm_backward_workspace(rows, n, &runner_);
  }

 private:
  // PyTorch's intra-op threads, or the calling thread alone inside a parallel region of theirs.
  const rmsnorm_runner runner_;
};

// x's GPU, the current one as long as this lives, and PyTorch's current stream of it.
class Cuda {
 public:
  explicit Cuda(const at::Tensor& x);

  at::Tensor Fresh(at::IntArrayRef sizes, at::ScalarType type) const;

  rmsnorm_status Forward(const rmsnorm_forward_args& args) const {
    return rmsnorm_cuda_forward(&args, stream_);
  }
  rmsnorm_status Backward(const rmsnorm_backward_args& args) const {
    return rmsnorm_cuda_backward(&args, stream_);
  }
  size_t Workspace(int64_t rows, int64_t n, rmsnorm_dtype x) const {
    return rmsnorm_cuda_backward_workspace(rows, n, x);
  }

 private:
  const at::TensorOptions options_;
  const c10::DeviceGuard guard_;
  void* const stream_;
};

}  // namespace rmsnorm::torch_binding

#endif  // RMSNORM_BINDINGS_TORCH_DEVICES_H_
