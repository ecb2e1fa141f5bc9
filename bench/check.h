// Whether a way's results are right, against the formula in binary64.
#ifndef RMSNORM_BENCH_CHECK_H_
#define RMSNORM_BENCH_CHECK_H_

#include <string>

#include "shapes.h"

namespace rmsnorm::bench {

inline constexpr float kEpsilon = 1e-6f;

// What is wrong with the results that lie in the call's operands, as "dx is off by 7e-03 of its
// norm"; "" where nothing is. Of y and dx, 64 rows are compared; of dgamma everything.
std::string WrongInForward(const Call& call);
std::string WrongInBackward(const Call& call);

}  // namespace rmsnorm::bench

#endif  // RMSNORM_BENCH_CHECK_H_
