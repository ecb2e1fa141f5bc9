// Threads that a fork took away, and threads that don't start.
#include "cpu/team.h"

#include <pthread.h>

#include <mutex>

#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#endif

namespace rmsnorm::cpu {
namespace {

// Held while a team grows, so that two don't count on the same last threads, and through a fork, so
// that no child finds it taken.
std::mutex growth;
bool had_threads = false;  // this process, at its last fork
thread_local bool lost_its_threads = false;

bool HasThreads() {
#if __has_include(<sys/single_threaded.h>)
  return !__libc_single_threaded;
#else
  return true;
#endif
}

void BeforeFork() {
  growth.lock();
  had_threads = HasThreads();
}

void AfterForkInParent() { growth.unlock(); }

void AfterForkInChild() {
  lost_its_threads |= had_threads;
  growth.unlock();
}

// As the library is loaded: a pool may be lost that was never used for a call of ours.
[[maybe_unused]] const int watches_forks =
    pthread_atfork(BeforeFork, AfterForkInParent, AfterForkInChild);

int HowManyStart(int count);

struct Link {
  int count;
  int started;
};

void* RunLink(void* data) {
  Link* link = static_cast<Link*>(data);
  link->started = HowManyStart(link->count);
  return nullptr;
}

// How many of `count` threads start while those before them run: each starts the next one.
int HowManyStart(int count) {
  if (count == 0) return 0;
  Link next = {count - 1, 0};
  pthread_t thread;
  if (pthread_create(&thread, nullptr, RunLink, &next) != 0) return 0;
  pthread_join(thread, nullptr);
  return 1 + next.started;
}

}  // namespace

bool LostItsThreads() { return lost_its_threads; }

int Team(int wanted) {
  thread_local int team = 1;
  if (wanted <= team) return team = wanted;
  const std::lock_guard lock(growth);
  team += HowManyStart(wanted - team);
#pragma omp parallel num_threads(team)
  asm volatile("" ::: "memory");  // for a compiler that drops an empty region
  return team;
}

}  // namespace rmsnorm::cpu
