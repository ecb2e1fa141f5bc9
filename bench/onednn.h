// oneDNN's rms_norm, the strongest peer on a CPU; made only where it was found.
#ifndef RMSNORM_BENCH_ONEDNN_H_
#define RMSNORM_BENCH_ONEDNN_H_

#include <functional>

#include "shapes.h"

namespace rmsnorm::bench {

// A pass on the call's operands and number of threads, by a primitive that was made before.
// Empty where oneDNN refuses the call.
std::function<void()> OneDnnForward(const Call& call);
std::function<void()> OneDnnBackward(const Call& call);

// "3.13.2"
std::string OneDnnVersion();

}  // namespace rmsnorm::bench

#endif  // RMSNORM_BENCH_ONEDNN_H_
