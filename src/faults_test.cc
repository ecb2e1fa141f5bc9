// Faults of the process around a call. Each test runs in a process of its own, where no call of the
// library came before.
#include <dlfcn.h>
#include <omp.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <latch>
#include <memory>
#include <thread>

#include "core/reference.h"
#include "cpu/parallel.h"
#include "testing.h"

#if defined(__has_feature)
#define RMSNORM_HAS_FEATURE(name) __has_feature(name)
#else
#define RMSNORM_HAS_FEATURE(name) 0
#endif
// Sanitizers bring a malloc and a pthread_create of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    RMSNORM_HAS_FEATURE(address_sanitizer) || RMSNORM_HAS_FEATURE(thread_sanitizer)
#define RMSNORM_SANITIZED 1
#else
#define RMSNORM_SANITIZED 0
#endif

#if !RMSNORM_SANITIZED
#pragma GCC visibility push(default)  // so that shared libraries call these too

// While true, no memory is to be had, and each attempt is counted.
static std::atomic<bool> out_of_memory = false;
static std::atomic<int> attempts = 0;

static bool Refuses() { return out_of_memory && ++attempts > 0; }

extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* data, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) noexcept { return Refuses() ? nullptr : __libc_malloc(size); }
void* calloc(size_t count, size_t size) noexcept {
  return Refuses() ? nullptr : __libc_calloc(count, size);
}
void* realloc(void* data, size_t size) noexcept {
  return Refuses() ? nullptr : __libc_realloc(data, size);
}
void* memalign(size_t alignment, size_t size) noexcept {
  return Refuses() ? nullptr : __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) noexcept { return memalign(alignment, size); }
int posix_memalign(void** data, size_t alignment, size_t size) noexcept {
  return (*data = memalign(alignment, size)) != nullptr ? 0 : ENOMEM;
}
}

// How many more threads start; one that ends makes room for another.
static std::atomic<int> startable = INT_MAX;

struct Start {
  void* (*run)(void*);
  void* data;
};

static void* RunAndMakeRoom(void* data) {
  const std::unique_ptr<Start> start(static_cast<Start*>(data));
  void* result = start->run(start->data);
  ++startable;
  return result;
}

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*run)(void*), void* data) noexcept {
  static const auto create =
      reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  if (--startable < 0) {
    ++startable;
    return EAGAIN;
  }
  return create(thread, attributes, RunAndMakeRoom, new Start{run, data});
}

#pragma GCC visibility pop
#endif  // !RMSNORM_SANITIZED

namespace rmsnorm {
namespace {

using testing::Case;
using testing::Operands;

#define EXPECT_IN_A_NEW_PROCESS(condition)                          \
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";           \
  EXPECT_EXIT(std::exit((condition) ? EXIT_SUCCESS : EXIT_FAILURE), \
              ::testing::ExitedWithCode(EXIT_SUCCESS), "")

// Says on stderr, which a test that fails shows, what doesn't hold.
bool Holds(bool condition, const char* claim) {
  if (!condition) std::fprintf(stderr, "not so: %s\n", claim);
  return condition;
}

// A call made twice: by the reference, and then through the C interface.
class Call {
 public:
  explicit Call(const Case& c = {.rows = 1000, .n = 513}, const rmsnorm_runner* runner = nullptr)
      : expected_(c), actual_(c), runner_(runner) {
    ForwardReference(expected_.Forward(), 0, c.rows);
    BackwardReference(expected_.Backward());
    forward_ = actual_.Forward();
    backward_ = actual_.Backward(runner);
  }

  bool Succeeds() const {
    return rmsnorm_forward(&forward_, runner_) == RMSNORM_OK &&
           rmsnorm_backward(&backward_, runner_) == RMSNORM_OK;
  }
  bool WasRight() const {
    return Holds(testing::SameBits(actual_.y.bytes, expected_.y.bytes), "y is right") &&
           Holds(testing::SameBits(actual_.rstd, expected_.rstd), "rstd is right") &&
           Holds(testing::SameBits(actual_.dx.bytes, expected_.dx.bytes), "dx is right") &&
           Holds(testing::SameBits(actual_.dgamma, expected_.dgamma), "dgamma is right");
  }
  bool IsRight() const { return Holds(Succeeds(), "the call succeeds") && WasRight(); }

 private:
  Operands expected_, actual_;
  const rmsnorm_runner* runner_;
  rmsnorm_forward_args forward_;
  rmsnorm_backward_args backward_;
};

// Runs the same function on 8 threads that begin together; whether all return true.
bool On8Threads(bool (*run)(const Call&)) {
  std::atomic<int> right = 0;
  std::latch begin(8);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      const Call call;
      begin.arrive_and_wait();
      right += run(call);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return right == 8;
}

bool IsTheFirstCall(const Call& call) {
  omp_set_num_threads(3);
  return call.IsRight() && rmsnorm_operators()[0] == '[' &&
         std::string(rmsnorm_cpu_targets()).ends_with("reference");
}

TEST(FirstCalls, From8ThreadsAtOnceAreRight) {
  EXPECT_IN_A_NEW_PROCESS(On8Threads(IsTheFirstCall));
}

// Whether claim() holds in a child made by fork(), which is killed if it takes 20 seconds.
bool HoldsInAChild(bool (*claim)()) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(claim() ? EXIT_SUCCESS : EXIT_FAILURE);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return Holds(!WIFSIGNALED(status), "the child ends by itself") && WEXITSTATUS(status) == 0;
}

bool UseFourThreads() {
  omp_set_num_threads(4);
  return Call().IsRight();
}

bool ACallIsRight() { return Call().IsRight(); }

bool NoRunnerIsUsed() {
  const rmsnorm_runner runner = {sizeof(runner), 4, nullptr,
                                 [](void*, int64_t, rmsnorm_task, void*) { std::abort(); }};
  return Call({.rows = 1000, .n = 513}, &runner).IsRight();
}

TEST(Fork, AfterThreadsWereUsedLeavesAChildThatIsRight) {
  EXPECT_IN_A_NEW_PROCESS(UseFourThreads() && HoldsInAChild(ACallIsRight) && ACallIsRight());
}

TEST(Fork, OfAForkThatLostItsThreadsIsRight) {
  EXPECT_IN_A_NEW_PROCESS(UseFourThreads() &&
                          HoldsInAChild([] { return HoldsInAChild(ACallIsRight); }));
}

TEST(Fork, AfterThreadsWereUsedLeavesNoPoolToARunner) {
  EXPECT_IN_A_NEW_PROCESS(UseFourThreads() && HoldsInAChild(NoRunnerIsUsed));
}

#if !RMSNORM_SANITIZED

bool UsesFourThreads() {
  omp_set_num_threads(4);
  return Holds(cpu::Threads(nullptr) == 4, "4 threads are used") && ACallIsRight();
}

TEST(Fork, OfAProcessWithoutThreadsKeepsThemAll) {
  EXPECT_IN_A_NEW_PROCESS((omp_set_num_threads(4), HoldsInAChild(UsesFourThreads)));
}

bool ANewThreadUsesFourThreads() {
  bool right = false;
  std::thread([&right] {
    omp_set_num_threads(4);
    right = UsesFourThreads();
  }).join();
  return right;
}

TEST(Fork, AfterThreadsWereUsedLeavesNewThreadsAllOfTheirs) {
  EXPECT_IN_A_NEW_PROCESS(UseFourThreads() && HoldsInAChild(ANewThreadUsesFourThreads));
}

// 8 threads are wanted, of which `others` start beside the calling one, and later all.
bool GetsByWith(int others) {
  omp_set_num_threads(8);
  startable = others;
  if (!ACallIsRight() || !Holds(startable == 0, "all threads that start are used")) return false;
  startable = 100;
  return ACallIsRight() && Holds(startable == 100 - (7 - others), "the team grows later");
}

TEST(ThreadsThatDoNotStart, LeaveTheSameBitsToThoseThatDo) {
  EXPECT_IN_A_NEW_PROCESS(GetsByWith(0));
  EXPECT_IN_A_NEW_PROCESS(GetsByWith(1));
  EXPECT_IN_A_NEW_PROCESS(GetsByWith(5));
}

TEST(ThreadsThatDoNotStart, AreNotCountedOnBySeveralCallersAtOnce) {
  EXPECT_IN_A_NEW_PROCESS((startable = 8 + 10, On8Threads([](const Call& call) {
                             omp_set_num_threads(8);
                             return call.IsRight();
                           })));
}

#ifndef __clang__  // LLVM's OpenMP gives threads a little more stack than pthreads, so a trial
                   // misses

// Room for some stacks of threads, and no more.
bool LimitsItsAddressSpace() {
  size_t pages = 0;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> statm(std::fopen("/proc/self/statm", "r"),
                                                        std::fclose);
  if (statm == nullptr || std::fscanf(statm.get(), "%zu", &pages) != 1) return false;
  const rlim_t limit = pages * sysconf(_SC_PAGESIZE) + (40 << 20);
  const rlimit space = {limit, limit};
  return setrlimit(RLIMIT_AS, &space) == 0;
}

TEST(ThreadsThatDoNotStart, ForLackOfMemoryForTheirStacksDoNotEndTheProcess) {
  EXPECT_IN_A_NEW_PROCESS([] {
    const Call call;
    omp_set_num_threads(64);
    return LimitsItsAddressSpace() && call.IsRight();
  }());
}

#endif  // __clang__

// Whether f() holds and allocates nothing.
template <class F>
bool WithoutMemory(const F& f) {
  attempts = 0;
  out_of_memory = true;
  const bool holds = f();
  out_of_memory = false;
  return Holds(holds, "it holds without memory") && Holds(attempts == 0, "it allocates nothing");
}

bool AllocatesNothing() {
  const testing::Backwards runner(4);
  const Call first({.rows = 1000, .n = 513}, runner.get());
  if (!WithoutMemory([&] { return first.Succeeds(); }) || !first.WasRight()) return false;
  for (const std::string& target : testing::Targets()) {
    for (const Case& c : testing::EveryType(/*rows=*/40, /*n=*/1025)) {
      const Call call(c, runner.get());
      const auto run = [&] {
        return rmsnorm_use_cpu_target(target.c_str()) == RMSNORM_OK && call.Succeeds();
      };
      if (!WithoutMemory(run) || !call.WasRight()) return false;
    }
  }
  return true;
}

TEST(LackOfMemory, DoesNotMatterToTheOperatorsFromTheirFirstCallOn) {
  EXPECT_IN_A_NEW_PROCESS(AllocatesNothing());
}

TEST(LackOfMemory, DoesNotMatterToTheNamesOfTargets) {
  EXPECT_IN_A_NEW_PROCESS(WithoutMemory([] { return rmsnorm_cpu_targets()[0] != '\0'; }));
  EXPECT_IN_A_NEW_PROCESS(
      WithoutMemory([] { return rmsnorm_use_cpu_target("Z80") == RMSNORM_INVALID_ARGUMENT; }));
}

bool TheTableIsNullAndThereLater() {
  out_of_memory = true;
  const char* table = rmsnorm_operators();
  const bool says_so = rmsnorm_last_error() == std::string_view("operators: out of memory");
  out_of_memory = false;
  return Holds(table == nullptr, "there is no table") && Holds(says_so, "an error says so") &&
         rmsnorm_operators()[0] == '[' && rmsnorm_last_error()[0] == '\0';
}

TEST(LackOfMemory, LeavesNoTableOfOperatorsAndSaysSo) {
  EXPECT_IN_A_NEW_PROCESS(TheTableIsNullAndThereLater());
}

#endif  // !RMSNORM_SANITIZED

}  // namespace
}  // namespace rmsnorm
