// Which instruction set the kernels use.
#ifndef RMSNORM_CPU_TARGETS_H_
#define RMSNORM_CPU_TARGETS_H_

#include <string_view>

namespace rmsnorm::cpu {

// As rmsnorm_cpu_targets.
const char* TargetNames();

// As rmsnorm_use_cpu_target; an empty name means the best. False: no such target here.
bool UseTarget(std::string_view name);

// Whether the scalar reference was asked for by name.
bool UsesReference();

}  // namespace rmsnorm::cpu

#endif  // RMSNORM_CPU_TARGETS_H_
