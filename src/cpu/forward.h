// RMSNorm forward on the CPU: threads and instruction sets.
#ifndef RMSNORM_CPU_FORWARD_H_
#define RMSNORM_CPU_FORWARD_H_

#include "rmsnorm/rmsnorm.h"

namespace rmsnorm::cpu {

// args and runner have passed validation.
void Forward(const rmsnorm_forward_args& args, const rmsnorm_runner* runner);

}  // namespace rmsnorm::cpu

#endif  // RMSNORM_CPU_FORWARD_H_
