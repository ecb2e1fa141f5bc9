// The C interface: check, choose, call.
#include <cstdio>
#include <new>

#include "core/ops.h"
#include "core/validate.h"
#include "cpu/arithmetic.h"
#include "cpu/backward.h"
#include "cpu/float_mode.h"
#include "cpu/forward.h"
#include "cpu/targets.h"
#include "cuda/load.h"
#include "cuda/plan.h"
#include "rmsnorm/rmsnorm.h"

namespace {

thread_local rmsnorm::Message last_error;

// Forgets the last call's message; the checks of this call write theirs.
rmsnorm::Message& NewMessage() {
  last_error.text[0] = '\0';
  return last_error;
}

rmsnorm_status StatusOf(const rmsnorm::cuda::Refusal& refusal, rmsnorm::Message& message) {
  if (refusal.text == nullptr) return RMSNORM_OK;
  std::snprintf(message.text, sizeof(message.text), "cuda: %s", refusal.text);
  return refusal.no_device ? RMSNORM_NO_DEVICE : RMSNORM_DEVICE_ERROR;
}

int64_t LeastCudaWorkspace(const rmsnorm_backward_args& args) {
  return rmsnorm::cuda::BackwardWorkspace(args.rows, args.n, args.x.dtype);
}

}  // namespace

rmsnorm_status rmsnorm_forward(const rmsnorm_forward_args* args, const rmsnorm_runner* runner) {
  rmsnorm::Message& message = NewMessage();
  const rmsnorm::cpu::FloatMode mode;
  if (!Validate(args, message) || !Validate(runner, message)) return RMSNORM_INVALID_ARGUMENT;
  rmsnorm::cpu::Forward(*args, runner);
  return RMSNORM_OK;
}

rmsnorm_status rmsnorm_backward(const rmsnorm_backward_args* args, const rmsnorm_runner* runner) {
  rmsnorm::Message& message = NewMessage();
  const rmsnorm::cpu::FloatMode mode;
  if (!Validate(args, rmsnorm::cpu::LeastBackwardWorkspace, message) ||
      !Validate(runner, message)) {
    return RMSNORM_INVALID_ARGUMENT;
  }
  rmsnorm::cpu::Backward(*args, runner);
  return RMSNORM_OK;
}

size_t rmsnorm_backward_workspace(int64_t rows, int64_t n, const rmsnorm_runner* runner) {
  rmsnorm::Message ignored;  // the call that the workspace is for will say what is wrong
  if (!rmsnorm::ValidateCounts(rows, n, ignored) || !Validate(runner, ignored)) return 0;
  return static_cast<size_t>(rmsnorm::cpu::BackwardWorkspace(rows, n, runner));
}

rmsnorm_status rmsnorm_cuda_forward(const rmsnorm_forward_args* args, void* stream) {
  rmsnorm::Message& message = NewMessage();
  if (!Validate(args, message)) return RMSNORM_INVALID_ARGUMENT;
  const rmsnorm::cuda::Launches* launches = rmsnorm::cuda::Load(message);
  if (launches == nullptr) return RMSNORM_NO_DEVICE;
  return StatusOf(launches->forward(*args, stream), message);
}

rmsnorm_status rmsnorm_cuda_backward(const rmsnorm_backward_args* args, void* stream) {
  rmsnorm::Message& message = NewMessage();
  if (!Validate(args, LeastCudaWorkspace, message)) return RMSNORM_INVALID_ARGUMENT;
  const rmsnorm::cuda::Launches* launches = rmsnorm::cuda::Load(message);
  if (launches == nullptr) return RMSNORM_NO_DEVICE;
  return StatusOf(launches->backward(*args, stream), message);
}

size_t rmsnorm_cuda_backward_workspace(int64_t rows, int64_t n, rmsnorm_dtype x) {
  rmsnorm::Message ignored;  // the call that the workspace is for will say what is wrong
  if (!rmsnorm::ValidateCounts(rows, n, ignored) || !rmsnorm::IsDtype(x)) return 0;
  return static_cast<size_t>(rmsnorm::cuda::BackwardWorkspace(rows, n, x));
}

rmsnorm_status rmsnorm_split_shape(const int64_t* x_shape, int64_t x_dims,
                                   const int64_t* gamma_shape, int64_t gamma_dims, int64_t* rows,
                                   int64_t* n) {
  const bool fits =
      rmsnorm::SplitShape(x_shape, x_dims, gamma_shape, gamma_dims, rows, n, NewMessage());
  return fits ? RMSNORM_OK : RMSNORM_INVALID_ARGUMENT;
}

const char* rmsnorm_last_error(void) { return last_error.text; }

const char* rmsnorm_operators(void) {
  rmsnorm::Message& message = NewMessage();
  try {
    return rmsnorm::OpsAsJson().c_str();
  } catch (const std::bad_alloc&) {
    std::snprintf(message.text, sizeof(message.text), "operators: out of memory");
    return nullptr;
  }
}

const char* rmsnorm_cpu_targets(void) { return rmsnorm::cpu::TargetNames(); }

rmsnorm_status rmsnorm_use_cpu_target(const char* name) {
  rmsnorm::Message& message = NewMessage();
  if (rmsnorm::cpu::UseTarget(name != nullptr ? name : "")) return RMSNORM_OK;
  std::snprintf(message.text, sizeof(message.text), "name: %s; expected one of %s", name,
                rmsnorm::cpu::TargetNames());
  return RMSNORM_INVALID_ARGUMENT;
}

rmsnorm_status rmsnorm_check_arithmetic(void) {
  rmsnorm::Message& message = NewMessage();
  const rmsnorm::cpu::FloatMode mode;
  const char* broken = rmsnorm::cpu::BrokenRule();
  if (broken == nullptr) return RMSNORM_OK;
  std::snprintf(message.text, sizeof(message.text),
                "arithmetic: the compiled code breaks the rule that %s; build it with "
                "-ffp-contract=off and without -ffast-math",
                broken);
  return RMSNORM_BROKEN_ARITHMETIC;
}

const char* rmsnorm_build(void) {
  return "{\"version\": \"" RMSNORM_VERSION "\", \"compiler\": \"" RMSNORM_COMPILER
         "\", \"flags\": \"" RMSNORM_FLAGS "\"}";
}
