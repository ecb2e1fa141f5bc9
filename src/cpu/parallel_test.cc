// How many threads there are, whose they are and what they take first changes no bit.
#include "cpu/parallel.h"

#include <omp.h>

#include <atomic>
#include <thread>
#include <vector>

#include "core/reference.h"
#include "testing.h"

namespace rmsnorm {
namespace {

using testing::Operands;

// Enough bytes for 64 pieces.
const testing::Case kWork = {.rows = 2100, .n = 513};

const Operands& Expected() {
  static const Operands expected = [] {
    Operands call(kWork);
    ForwardReference(call.Forward(), 0, kWork.rows);
    BackwardReference(call.Backward());
    return call;
  }();
  return expected;
}

// Whether a forward and a backward call have the bits of the reference.
bool BothCallsAreRight(const rmsnorm_runner* runner) {
  Operands call(kWork);
  const rmsnorm_forward_args forward = call.Forward();
  if (rmsnorm_forward(&forward, runner) != RMSNORM_OK) return false;
  const rmsnorm_backward_args backward = call.Backward(runner);
  if (rmsnorm_backward(&backward, runner) != RMSNORM_OK) return false;
  return testing::SameBits(call.y.bytes, Expected().y.bytes) &&
         testing::SameBits(call.rstd, Expected().rstd) &&
         testing::SameBits(call.dx.bytes, Expected().dx.bytes) &&
         testing::SameBits(call.dgamma, Expected().dgamma);
}

// Sets the number of OpenMP's threads for the calling thread until the end of a test.
class WithThreads {
 public:
  explicit WithThreads(int threads) { omp_set_num_threads(threads); }
  ~WithThreads() { omp_set_num_threads(before_); }

 private:
  const int before_ = omp_get_max_threads();
};

TEST(NumberOfThreads, From1To64ChangesNoBit) {
  for (int threads = 1; threads <= 64; ++threads) {
    const WithThreads with(threads);
    EXPECT_TRUE(BothCallsAreRight(nullptr)) << threads << " threads";
  }
}

TEST(NumberOfThreads, ChangedOnSeveralThreadsAtOnceChangesNoBit) {
  std::atomic<int> right = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&right, caller] {
      for (const int threads : {1 + caller, 64 >> caller, 2, 7 * caller + 1}) {
        omp_set_num_threads(threads);
        right += BothCallsAreRight(nullptr);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(right, 4 * 4);
}

TEST(ParallelRegionOfTheCaller, GetsTheSameBitsAndNoThreadsOnTopOfItsOwn) {
  const WithThreads with(4);
  const int levels = omp_get_max_active_levels();
  omp_set_max_active_levels(2);  // or OpenMP itself would give an inner region one thread
  std::atomic<int> right = 0, alone = 0;
#pragma omp parallel num_threads(4)
  {
    alone += cpu::Threads(nullptr) == 1;
    right += BothCallsAreRight(nullptr);
  }
  omp_set_max_active_levels(levels);
  EXPECT_EQ(right, 4);
  EXPECT_EQ(alone, 4);
  EXPECT_EQ(cpu::Threads(nullptr), 4) << "after the region";
}

// Ways in which a host program's threads may take the pieces of a call.
struct Way {
  const char* name;
  void (*run)(void* context, int64_t count, rmsnorm_task task, void* data);
};

void AtOnce(void*, int64_t count, rmsnorm_task task, void* data) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back(task, data, i, i + 1);
  for (std::thread& thread : threads) thread.join();
}

void OneAfterTheOther(void*, int64_t count, rmsnorm_task task, void* data) {
  for (int64_t i = 0; i < count; ++i) std::thread(task, data, i, i + 1).join();
}

void InRangesOfThree(void*, int64_t count, rmsnorm_task task, void* data) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; i += 3) {
    threads.emplace_back(task, data, i, std::min(i + 3, count));
  }
  for (std::thread& thread : threads) thread.join();
}

// Each thread takes what is left, from the last piece to the first.
void AsTheyCome(void*, int64_t count, rmsnorm_task task, void* data) {
  std::atomic<int64_t> left = count;
  const auto take = [&] {
    for (int64_t i; (i = --left) >= 0;) task(data, i, i + 1);
  };
  std::thread first(take), second(take);
  take();
  first.join();
  second.join();
}

void AllInOneRange(void*, int64_t count, rmsnorm_task task, void* data) { task(data, 0, count); }

constexpr Way kWays[] = {{"at once", AtOnce},
                         {"one after the other", OneAfterTheOther},
                         {"in ranges of three", InRangesOfThree},
                         {"as they come", AsTheyCome},
                         {"all in one range", AllInOneRange}};

class RunnerOnEveryTarget : public testing::OnEveryTarget {};
RMSNORM_ON_EVERY_TARGET(RunnerOnEveryTarget);

TEST_P(RunnerOnEveryTarget, TakesPiecesInAnyWayWithTheSameBits) {
  for (const Way& way : kWays) {
    for (const int64_t threads : {2, 7}) {
      const rmsnorm_runner runner = {sizeof(runner), threads, nullptr, way.run};
      EXPECT_TRUE(BothCallsAreRight(&runner)) << way.name << ", " << threads << " threads";
    }
  }
}

}  // namespace
}  // namespace rmsnorm
