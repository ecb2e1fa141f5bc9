// The limits: plain streams of the bytes that a pass has to move, with cached stores and with
// stores past the cache. Each thread has its contiguous part of the rows.
#ifndef RMSNORM_BENCH_STREAMS_H_
#define RMSNORM_BENCH_STREAMS_H_

#include "shapes.h"

namespace rmsnorm::bench {

void CopyByMemcpy(const Call& call);      // x -> y
void CopyPastCache(const Call& call);     // x -> y
void ReadTwoWriteOne(const Call& call);   // x, dy -> y
void ReadTwoPastCache(const Call& call);  // x, dy -> y

}  // namespace rmsnorm::bench

#endif  // RMSNORM_BENCH_STREAMS_H_
