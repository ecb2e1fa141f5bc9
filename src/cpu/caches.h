// Whether outputs go into the caches or past them. Either way gives the same bits.
#ifndef RMSNORM_CPU_CACHES_H_
#define RMSNORM_CPU_CACHES_H_

#include <unistd.h>

#include <cstdint>

#include "core/canonical.h"

namespace rmsnorm::cpu {

enum class Stores { kInCaches, kPastCaches };

// For a call that reads and writes row_bytes for each row, on so many threads. What is stored into
// a cache is read from memory first, for nothing if the cache can't hold it until it is used. The
// last level is shared with other programs and, in a virtual machine, other machines: 8 MiB for a
// thread fits what was measured (docs/speed.md). What is larger than all of it doesn't stay either.
inline Stores StoresFor([[maybe_unused]] int64_t rows, [[maybe_unused]] int64_t row_bytes,
                        [[maybe_unused]] int64_t threads) {
#if defined(__x86_64__) && defined(_SC_LEVEL3_CACHE_SIZE)
  constexpr int64_t kShare = 8 << 20;
  static const int64_t last_level = sysconf(_SC_LEVEL3_CACHE_SIZE);  // not positive: unknown
  const bool fits = CeilDiv(rows, threads) <= kShare / row_bytes &&
                    (last_level <= 0 || rows <= last_level / row_bytes);
  return fits ? Stores::kInCaches : Stores::kPastCaches;
#else
  return Stores::kInCaches;  // elsewhere nothing has been measured
#endif
}

}  // namespace rmsnorm::cpu

#endif  // RMSNORM_CPU_CACHES_H_
