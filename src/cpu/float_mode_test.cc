// The modes of the caller's and the workers' floating-point unit change nothing and are put back.
#include "cpu/float_mode.h"

#include <omp.h>

#include <thread>
#include <tuple>

#include "testing.h"

namespace rmsnorm {
namespace {

using testing::Operands;

struct Mode {
  const char* name;
  uint32_t change;  // bits of the control register that differ from its default

  friend std::ostream& operator<<(std::ostream& out, const Mode& mode) { return out << mode.name; }
};

#if defined(__x86_64__)
constexpr uint32_t kDefault = 0x1F80;
constexpr uint32_t kFlags = 0x3F;  // what arithmetic records there; not a mode
uint32_t GetControl() { return _mm_getcsr(); }
void SetControl(uint32_t value) { _mm_setcsr(value); }
constexpr Mode kModes[] = {
    {"FlushToZero", 0x8000},
    {"DenormalsAreZero", 0x0040},
    {"RoundDown", 0x2000},
    {"RoundUp", 0x4000},
    {"RoundToZero", 0x6000},
    {"TrapEveryException", 0x1F80},
    {"AllOfThemAtOnce", 0x8040 | 0x6000 | 0x1F80},
};
#elif defined(__aarch64__)
constexpr uint32_t kDefault = 0;
constexpr uint32_t kFlags = 0;
uint32_t GetControl() {
  uint64_t value;
  asm volatile("mrs %0, fpcr" : "=r"(value));
  return static_cast<uint32_t>(value);
}
void SetControl(uint32_t value) { asm volatile("msr fpcr, %0" : : "r"(uint64_t{value})); }
// A processor without traps or without flush-inputs-to-zero ignores those bits.
constexpr Mode kModes[] = {
    {"FlushToZero", 1u << 24},
    {"FlushInputsToZero", 1u << 0},
    {"FlushHalvesToZero", 1u << 19},
    {"AlternativeHalfPrecision", 1u << 26},
    {"DefaultNaN", 1u << 25},
    {"RoundUp", 1u << 22},
    {"RoundDown", 2u << 22},
    {"RoundToZero", 3u << 22},
    {"TrapEveryException", 0x9F00},
    {"AllOfThemAtOnce", 1u << 0 | 0x9F00 | 1u << 19 | 3u << 22 | 1u << 24 | 1u << 25 | 1u << 26},
};
#endif

// Puts this thread into a mode, and back. No arithmetic of the test's own while it lasts: it traps.
class InMode {
 public:
  explicit InMode(const Mode& mode) : before_(GetControl()) {
    SetControl(kDefault ^ mode.change);
    held_ = GetControl();
  }
  ~InMode() { SetControl(before_); }

  bool Holds() const { return ((GetControl() ^ held_) & ~kFlags) == 0; }

 private:
  uint32_t before_, held_;
};

// Subnormal inputs and results, which other modes would flush or round away, an offset that float
// rounds, a division by zero, and enough rows for several threads.
Operands Sensitive(rmsnorm_dtype dtype) {
  Operands call({.x = dtype,
                 .y = dtype,
                 .gamma_offset = 0.1,
                 .rows = 200,
                 .n = 600,
                 .epsilon = 0,
                 .hard_rows = true});
  for (int64_t i = 0; i < call.c.rows * call.c.n; ++i) {
    const bool in_normal_row = i / call.c.n % 9 == 0;
    if (in_normal_row) call.dy.Set(i, call.dy.Get(i) * 1e-38f);
  }
  return call;
}

class ModesOfThreads : public ::testing::TestWithParam<std::tuple<std::string, Mode>> {
 protected:
  const Mode& mode() const { return std::get<1>(GetParam()); }

  // Expects of run(call), for each type, the bits that it has in the default mode.
  template <class RunInMode>
  void ExpectNoBitChanges(const RunInMode& run) const {
    for (const rmsnorm_dtype dtype : testing::kDtypes) {
      Operands expected = Sensitive(dtype), call = Sensitive(dtype);
      testing::Run(expected);
      run(call);
      testing::ExpectSameResults(call, expected);
    }
  }

 private:
  const testing::WithTarget target_{std::get<0>(GetParam())};
};

INSTANTIATE_TEST_SUITE_P(Targets, ModesOfThreads,
                         ::testing::Combine(::testing::ValuesIn(testing::Targets()),
                                            ::testing::ValuesIn(kModes)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + std::get<1>(info.param).name;
                         });

TEST_P(ModesOfThreads, OfTheCallerChangeNoBitAndArePutBack) {
  ExpectNoBitChanges([&](Operands& call) {
    bool holds;
    {
      const InMode in_mode(mode());
      testing::Run(call);
      holds = in_mode.Holds();
    }
    EXPECT_TRUE(holds);
  });
}

TEST_P(ModesOfThreads, OfOpenMPsWorkersChangeNoBitAndArePutBack) {
  constexpr int kThreads = 2;
  const int threads = omp_get_max_threads();
  omp_set_num_threads(kThreads);
  ExpectNoBitChanges([&](Operands& call) {
    uint32_t before[kThreads], after[kThreads];
    {
      const InMode in_mode(mode());  // LLVM's runtime gives workers the caller's modes
#pragma omp parallel
      {
        SetControl(kDefault ^ mode().change);
        before[omp_get_thread_num()] = GetControl();
      }
      testing::Run(call);
#pragma omp parallel
      {
        after[omp_get_thread_num()] = GetControl();
        SetControl(kDefault);
      }
    }
    for (int i = 0; i < kThreads; ++i) EXPECT_EQ(before[i] & ~kFlags, after[i] & ~kFlags);
  });
  omp_set_num_threads(threads);
}

// Runs each piece on a thread of its own, which is in a mode.
class ThreadsInMode {
 public:
  explicit ThreadsInMode(const Mode& mode) : mode_(mode) {}

  rmsnorm_runner runner() { return {sizeof(rmsnorm_runner), /*threads=*/3, this, Run}; }
  int64_t pieces() const { return pieces_; }
  bool all_hold() const { return all_hold_; }

 private:
  static void Run(void* context, int64_t count, rmsnorm_task task, void* data) {
    ThreadsInMode& self = *static_cast<ThreadsInMode*>(context);
    for (int64_t i = 0; i < count; ++i) {
      std::thread([&] {
        const InMode in_mode(self.mode_);
        task(data, i, i + 1);
        self.all_hold_ &= in_mode.Holds();
        ++self.pieces_;
      }).join();
    }
  }

  const Mode& mode_;
  int64_t pieces_ = 0;
  bool all_hold_ = true;
};

TEST_P(ModesOfThreads, OfACallersRunnerChangeNoBitAndArePutBack) {
  ExpectNoBitChanges([&](Operands& call) {
    ThreadsInMode threads(mode());
    const rmsnorm_runner runner = threads.runner();
    testing::Run(call, &runner);
    EXPECT_TRUE(threads.all_hold());
    EXPECT_GE(threads.pieces(), 4);
  });
}

}  // namespace
}  // namespace rmsnorm
