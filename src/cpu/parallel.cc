// Pieces of work for a runner or OpenMP.
#include "cpu/parallel.h"

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "core/canonical.h"
#include "cpu/float_mode.h"
#include "cpu/team.h"

namespace rmsnorm::cpu {
namespace {

// To wake a thread costs some microseconds, about as long as one core takes for this many bytes
// that lie in its cache.
constexpr int64_t kBytesWorthAThread = 256 << 10;

// The work as `pieces` runs of whole units.
struct Pieces {
  int64_t count;
  int64_t piece;  // indices of one run
  rmsnorm_task task;
  const void* data;

  void Run(int64_t begin, int64_t end) const {
    const FloatMode mode;
    task(const_cast<void*>(data), begin * piece, std::min(end * piece, count));
  }
};

void RunPieces(void* data, int64_t begin, int64_t end) {
  static_cast<const Pieces*>(data)->Run(begin, end);
}

}  // namespace

int64_t Threads(const rmsnorm_runner* runner) {
  if (LostItsThreads()) return 1;
  if (runner != nullptr) return runner->threads;
  return omp_in_parallel() ? 1 : omp_get_max_threads();
}

void RunRanges(const rmsnorm_runner* runner, int64_t count, int64_t unit, int64_t bytes_each,
               rmsnorm_task task, const void* data) {
  if (count <= 0) return;
  const int64_t worth = count / CeilDiv(kBytesWorthAThread, bytes_each) + 1;
  const int64_t units = CeilDiv(count, unit);
  const int64_t wanted = std::min({Threads(runner), worth, units});
  Pieces work = {count, CeilDiv(units, wanted) * unit, task, data};
  const int64_t pieces = CeilDiv(count, work.piece);
  if (pieces == 1) {
    work.Run(0, 1);
  } else if (runner != nullptr) {
    runner->run(runner->context, pieces, RunPieces, &work);
  } else {
    // The whole team, for fewer pieces too: GNU's OpenMP ends threads that a team leaves out, and
    // starts others for the next one.
    const int team = Team(omp_get_max_threads());
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t i = 0; i < pieces; ++i) work.Run(i, i + 1);
  }
}

}  // namespace rmsnorm::cpu
