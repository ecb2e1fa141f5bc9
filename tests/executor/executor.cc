#include "executor.h"

#include <algorithm>
#include <array>
#include <boost/context/fiber.hpp>
#include <boost/context/pooled_fixedsize_stack.hpp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

dim3 threadIdx, blockIdx, blockDim;

namespace rmsnorm::cuda {
alignas(16) std::byte shared_memory[256 << 10];  // of the block that runs
}  // namespace rmsnorm::cuda

namespace executor {
namespace {

namespace context = boost::context;
constexpr int kWarp = 32;

// Lets a fixed number of threads go on when all have arrived.
struct Barrier {
  unsigned expected = 0, arrived = 0;
  uint64_t turn = 0;

  void Arrive() {
    if (++arrived < expected) return;
    arrived = 0;
    ++turn;
  }
};

struct Warp {
  Barrier barrier;
  int64_t sleeps = 0;  // passes that it sits out, so that other warps get ahead of it
  std::array<uint64_t, kWarp> values[2] = {};  // of this turn and the last
};

struct AsyncCopy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Block {
  Index index;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<std::byte> memory;  // while another block of the cluster runs
};

struct Thread {
  Block* block;
  unsigned rank;
  context::fiber fiber;
  context::fiber* scheduler = nullptr;
  const Barrier* awaited = nullptr;
  uint64_t turn = 0;  // in which `awaited` holds it back
  uint64_t cluster_turn = 0;
  std::vector<std::vector<AsyncCopy>> copies{1};  // those of each group; the last one is open

  bool CanRun() const { return fiber && (awaited == nullptr || awaited->turn != turn); }
};

struct Cluster {
  Barrier barrier;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<Thread> threads;
};

Cluster* cluster = nullptr;
Thread* thread = nullptr;
Block* resident = nullptr;  // whose memory is in shared_memory
size_t shared_bytes = 0;

void Suspend() {
  Thread* self = thread;
  *self->scheduler = std::move(*self->scheduler).resume();
}

void Await(const Barrier& barrier, uint64_t turn) {
  if (barrier.turn != turn) return;
  thread->awaited = &barrier;
  thread->turn = turn;
  Suspend();
}

void Meet(Barrier& barrier) {
  const uint64_t turn = barrier.turn;
  barrier.Arrive();
  Await(barrier, turn);
}

Warp& WarpOfThread() { return thread->block->warps[thread->rank / kWarp]; }

void MakeResident(Block* block) {
  if (resident == block) return;
  if (resident != nullptr) {
    std::copy_n(rmsnorm::cuda::shared_memory, shared_bytes, resident->memory.begin());
  }
  std::copy_n(block->memory.begin(), shared_bytes, rmsnorm::cuda::shared_memory);
  resident = block;
}

void Resume(Thread& next) {
  MakeResident(next.block);
  thread = &next;
  threadIdx = {next.rank, 0, 0};
  blockIdx = next.block->index;
  next.awaited = nullptr;
  next.fiber = std::move(next.fiber).resume();
}

constexpr std::byte kPoison{0xFF};  // NaN in every type

// What every thread of the warp gives in this turn.
const std::array<uint64_t, kWarp>& Give(uint64_t bits) {
  Warp& warp = WarpOfThread();
  std::array<uint64_t, kWarp>& values = warp.values[warp.barrier.turn % 2];
  values[thread->rank % kWarp] = bits;
  Meet(warp.barrier);
  return values;
}

using Stacks = context::pooled_fixedsize_stack;

void RunCluster(const Launch& launch, unsigned first, const std::function<void()>& kernel,
                Stacks& stacks, std::mt19937_64& random) {
  Cluster running;
  cluster = &running;
  resident = nullptr;
  const unsigned threads = launch.block.x;
  running.barrier.expected = threads * launch.cluster;
  running.threads.reserve(threads * launch.cluster);
  for (unsigned b = 0; b < launch.cluster; ++b) {
    auto block = std::make_unique<Block>();
    block->index = {first + b, 0, 0};
    block->barrier.expected = threads;
    block->warps.resize((threads + kWarp - 1) / kWarp);
    for (size_t w = 0; w < block->warps.size(); ++w) {
      block->warps[w].barrier.expected = std::min<unsigned>(kWarp, threads - w * kWarp);
    }
    block->memory.assign(shared_bytes, kPoison);
    for (unsigned rank = 0; rank < threads; ++rank) {
      Thread& made = running.threads.emplace_back();
      made.block = block.get();
      made.rank = rank;
      made.fiber = context::fiber(std::allocator_arg, stacks, [&](context::fiber&& scheduler) {
        thread->scheduler = &scheduler;
        kernel();
        return std::move(scheduler);
      });
    }
    running.blocks.push_back(std::move(block));
  }
  std::vector<unsigned> order(running.threads.size());
  std::iota(order.begin(), order.end(), 0);
  bool moved = true;
  for (bool unfinished = true; unfinished;) {
    bool asleep = false;
    for (const std::unique_ptr<Block>& block : running.blocks) {
      for (Warp& warp : block->warps) {
        if (!moved) {
          warp.sleeps = 0;
        } else if (warp.sleeps > 0) {
          --warp.sleeps;
        } else if (random() % 64 == 0) {
          warp.sleeps = static_cast<int64_t>(random() % 64);
        }
        asleep |= warp.sleeps > 0;
      }
    }
    // Block by block, so that their memories don't change places at every step.
    std::shuffle(order.begin(), order.end(), random);
    if (launch.cluster > 1) {
      std::stable_sort(order.begin(), order.end(), [&](unsigned a, unsigned b) {
        return running.threads[a].block < running.threads[b].block;
      });
    }
    unfinished = moved = false;
    for (const unsigned i : order) {
      Thread& next = running.threads[i];
      if (next.CanRun() && next.block->warps[next.rank / kWarp].sleeps == 0) {
        Resume(next);
        moved = true;
      }
      unfinished |= static_cast<bool>(next.fiber);
    }
    if (unfinished && !moved && !asleep) {
      Fail("threads wait at a barrier that others never reach");
    }
  }
  MakeResident(running.blocks[0].get());
}

}  // namespace

Device* executor_device() {
  static Device device;
  return &device;
}

void Fail(const char* what) {
  std::fprintf(stderr, "executor: %s; block %u, thread %u\n", what, blockIdx.x, threadIdx.x);
  std::abort();
}

void Run(const Launch& launch, const std::function<void()>& kernel) {
  using rmsnorm::cuda::shared_memory;
  Device& device = *executor_device();
  std::mt19937_64 random(device.seed + static_cast<uint64_t>(device.launches++));
  blockDim = launch.block;
  shared_bytes = launch.shared_bytes;
  std::fill(shared_memory + shared_bytes, std::end(shared_memory), kPoison);
  Stacks stacks(64 << 10);
  std::vector<unsigned> order(launch.grid.x / launch.cluster);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (const unsigned i : order) {
    RunCluster(launch, i * launch.cluster, kernel, stacks, random);
  }
  const bool outside = std::any_of(shared_memory + shared_bytes, std::end(shared_memory),
                                   [](std::byte byte) { return byte != kPoison; });
  if (outside) Fail("a block wrote past the memory that it asked for");
}

size_t& SharedBytesOf(void* kernel) {
  static std::map<void*, size_t> bytes;
  return bytes.try_emplace(kernel, 48 << 10).first->second;
}

void MeetBlock() { Meet(thread->block->barrier); }

void ArriveAtCluster() {
  thread->cluster_turn = cluster->barrier.turn;
  cluster->barrier.Arrive();
}
void MeetCluster() { Await(cluster->barrier, thread->cluster_turn); }

int LaneOfWarp() { return static_cast<int>(thread->rank % kWarp); }

uint64_t Exchange(uint64_t bits, int source) { return Give(bits)[source]; }
bool Any(bool mine) {
  const std::array<uint64_t, kWarp>& given = Give(mine);
  return std::find(given.begin(), given.end(), 1) != given.end();
}

void* OfBlock(const void* shared, unsigned block) {
  const ptrdiff_t offset = static_cast<const std::byte*>(shared) - rmsnorm::cuda::shared_memory;
  if (block >= cluster->blocks.size()) Fail("a block that the cluster doesn't have");
  if (cluster->barrier.turn == 0) Fail("another block's memory, before that block has started");
  Block* other = cluster->blocks[block].get();
  return offset + (other == resident ? rmsnorm::cuda::shared_memory : other->memory.data());
}

// A copy may land at any time until it is awaited: here at the last moment.
void Copy(void* to, const void* from, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 ||
      reinterpret_cast<uintptr_t>(from) % bytes != 0) {
    Fail("an asynchronous copy at an address that isn't aligned");
  }
  std::memset(to, static_cast<int>(kPoison), bytes);
  thread->copies.back().push_back({to, from, bytes});
}
void Commit() { thread->copies.emplace_back(); }
void Await(size_t groups_left) {
  auto& groups = thread->copies;
  while (groups.size() - 1 > groups_left) {
    for (const AsyncCopy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin());
  }
}

}  // namespace executor
