// RMSNorm backward on the CPU: threads, instruction sets, and the blocks of dgamma.
#ifndef RMSNORM_CPU_BACKWARD_H_
#define RMSNORM_CPU_BACKWARD_H_

#include <cstdint>

#include "rmsnorm/rmsnorm.h"

namespace rmsnorm::cpu {

// As rmsnorm_backward_workspace.
int64_t BackwardWorkspace(int64_t rows, int64_t n, const rmsnorm_runner* runner);

// Bytes without which Backward can't compute dgamma.
int64_t LeastBackwardWorkspace(const rmsnorm_backward_args& args);

// args and runner have passed validation.
void Backward(const rmsnorm_backward_args& args, const rmsnorm_runner* runner);

}  // namespace rmsnorm::cpu

#endif  // RMSNORM_CPU_BACKWARD_H_
