// How many threads a call can have: fewer where they don't start, one after a fork.
#ifndef RMSNORM_CPU_TEAM_H_
#define RMSNORM_CPU_TEAM_H_

namespace rmsnorm::cpu {

// Whether the calling thread is the one that came out of a fork() of a process that had threads.
// Its pools name threads that the child doesn't have, and GNU's OpenMP would wait for them forever.
bool LostItsThreads();

// The size of OpenMP's team for the calling thread, itself included: `wanted`, or less where that
// many threads don't start, which would end the process inside OpenMP. Threads of the trial have
// pthreads' default stack: where OpenMP's is larger (OMP_STACKSIZE, LLVM's runtime), lack of memory
// for stacks can still end the process. Cost: a team that grows is started twice, once.
int Team(int wanted);

}  // namespace rmsnorm::cpu

#endif  // RMSNORM_CPU_TEAM_H_
