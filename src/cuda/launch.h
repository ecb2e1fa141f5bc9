// What librmsnorm_cuda, the library with the code for GPUs, gives to librmsnorm: launches of calls
// whose arguments have been checked. No type of CUDA's, so that either is built without the other.
#ifndef RMSNORM_CUDA_LAUNCH_H_
#define RMSNORM_CUDA_LAUNCH_H_

#include "rmsnorm/rmsnorm.h"

namespace rmsnorm::cuda {

// What CUDA says of a launch that it refused; nothing where it didn't.
struct Refusal {
  bool no_device = false;      // there is no GPU, no driver for it, or no code for it in this build
  const char* text = nullptr;  // CUDA's own words
};

// Both return at once; the work is queued on stream, of the calling thread's current device.
Refusal Forward(const rmsnorm_forward_args& args, void* stream);
Refusal Backward(const rmsnorm_backward_args& args, void* stream);

struct Launches {
  Refusal (*forward)(const rmsnorm_forward_args& args, void* stream);
  Refusal (*backward)(const rmsnorm_backward_args& args, void* stream);
};

}  // namespace rmsnorm::cuda

// The one name that librmsnorm_cuda exports.
extern "C" RMSNORM_API const rmsnorm::cuda::Launches rmsnorm_cuda_launches;

#endif  // RMSNORM_CUDA_LAUNCH_H_
