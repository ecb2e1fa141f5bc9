// Ranges of rows over threads: the caller's runner, or OpenMP.
#ifndef RMSNORM_CPU_PARALLEL_H_
#define RMSNORM_CPU_PARALLEL_H_

#include <cstdint>

#include "rmsnorm/rmsnorm.h"

namespace rmsnorm::cpu {

// How many threads ParallelFor may use.
int64_t Threads(const rmsnorm_runner* runner);

// As ParallelFor below, with task(data, begin, end).
void RunRanges(const rmsnorm_runner* runner, int64_t count, int64_t unit, int64_t bytes_each,
               rmsnorm_task task, const void* data);

// Calls task(begin, end) on disjoint ranges that cover [0, count) and begin at multiples of unit,
// with the floating-point modes of the contract on every thread. Work of few bytes runs on the
// calling thread alone.
template <class Task>
void ParallelFor(const rmsnorm_runner* runner, int64_t count, int64_t unit, int64_t bytes_each,
                 const Task& task) {
  RunRanges(
      runner, count, unit, bytes_each,
      [](void* data, int64_t begin, int64_t end) { (*static_cast<const Task*>(data))(begin, end); },
      &task);
}

}  // namespace rmsnorm::cpu

#endif  // RMSNORM_CPU_PARALLEL_H_
