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

[[nodiscard]] rmsnorm_status Validate(const rmsnorm_forward_args* args, Message& message);
[[nodiscard]] rmsnorm_status Validate(const rmsnorm_backward_args* args, Message& message);
[[nodiscard]] rmsnorm_status Validate(const rmsnorm_runner* runner, Message& message);

// As rmsnorm_rows_of.
[[nodiscard]] rmsnorm_status RowsOf(const int64_t* x_shape, int64_t x_dims,
                                    const int64_t* gamma_shape, int64_t gamma_dims, int64_t* rows,
                                    int64_t* n, Message& message);

}  // namespace rmsnorm

#endif  // RMSNORM_CORE_VALIDATE_H_
