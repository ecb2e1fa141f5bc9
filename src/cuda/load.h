// librmsnorm_cuda, which lies beside this library, loaded when a GPU is first asked for.
#ifndef RMSNORM_CUDA_LOAD_H_
#define RMSNORM_CUDA_LOAD_H_

#include "core/validate.h"
#include "cuda/launch.h"

namespace rmsnorm::cuda {

// Null where it isn't there or can't be loaded; message says why. Any thread may call it.
const Launches* Load(Message& message);

}  // namespace rmsnorm::cuda

#endif  // RMSNORM_CUDA_LOAD_H_
