// Argument checks: a bad call is refused before anything is written, with a text for people.
#ifndef RMSNORM_CORE_VALIDATE_H_
#define RMSNORM_CORE_VALIDATE_H_

#include <cstdint>

#include "rmsnorm/rmsnorm.h"

namespace rmsnorm {

// Names the argument, what came and what is accepted: "epsilon: -1; expected a finite number >= 0".
struct Message {
  char text[512] = "";
};

// Whether a call may run; if not, message says why.
[[nodiscard]] bool Validate(const rmsnorm_forward_args* args, Message& message);
// least_workspace: the bytes that a call for dgamma needs, given rows, n and dtypes that were
// checked.
using LeastWorkspace = int64_t (*)(const rmsnorm_backward_args& args);
[[nodiscard]] bool Validate(const rmsnorm_backward_args* args, LeastWorkspace least_workspace,
                            Message& message);
[[nodiscard]] bool Validate(const rmsnorm_runner* runner, Message& message);

// rows >= 0, n >= 1, and both within what 64-bit sizes can hold.
[[nodiscard]] bool ValidateCounts(int64_t rows, int64_t n, Message& message);

// As rmsnorm_split_shape.
[[nodiscard]] bool SplitShape(const int64_t* x_shape, int64_t x_dims, const int64_t* gamma_shape,
                              int64_t gamma_dims, int64_t* rows, int64_t* n, Message& message);

}  // namespace rmsnorm

#endif  // RMSNORM_CORE_VALIDATE_H_
