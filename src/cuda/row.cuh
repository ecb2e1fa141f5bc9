// How a team of threads shares a row: the columns of each, the tree over their sums.
#ifndef RMSNORM_CUDA_ROW_CUH_
#define RMSNORM_CUDA_ROW_CUH_

#include <cstddef>

#include "cuda/elements.cuh"
#include "cuda/plan.h"

namespace rmsnorm::cuda {

// The lanes of one thread, and the threads of a leaf.
template <class TX>
inline constexpr int kWidth = 16 / int{sizeof(TX)};
template <class TX>
inline constexpr int kLeafThreads = int{kLanes} / kWidth<TX>;

inline constexpr unsigned kWholeWarp = 0xFFFFFFFF;

// The tree over a thread's lanes.
template <class Real, int kCount>
__device__ Real FoldLanes(Real (&lanes)[kCount]) {
#pragma unroll
  for (int step = 1; step < kCount; step *= 2) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2 * step) lanes[i] += lanes[i + step];
  }
  return lanes[0];
}

// A block's own memory begins with it: sums on their way between warps and between blocks. Of two
// turns, so that one barrier parts a turn from the next.
struct Exchange {
  double of_warp[2][kMaxThreads / kWarp];
  double of_block[2][kMaxBlocks];
};

alignas(16) extern __shared__ std::byte shared_memory[];

// The threads that share a row, as one of them sees them. All threads of a block call its functions
// together, and all blocks of a cluster.
class Team {
 public:
  __device__ explicit Team(const Plan& plan)
      : threads_(plan.threads),
        blocks_(plan.blocks),
        rank_(static_cast<int>(threadIdx.x) % plan.threads),
        index_(static_cast<int>(threadIdx.x) / plan.threads),
        block_(static_cast<int>(blockIdx.x) % blocks_) {
    if (blocks_ > 1) ArriveFirst();
  }

  // This thread's place among the team's of its block; the team's among those of its block; its
  // block's, or cluster's, in the grid.
  __device__ int rank() const { return rank_; }
  __device__ int index() const { return index_; }
  __device__ int64_t cluster() const { return blockIdx.x / static_cast<unsigned>(blocks_); }

  // The first leaf of this block's part of a row, and the leaves of a part and of all.
  template <class TX>
  __device__ int64_t PartLeaves() const {
    return threads_ / kLeafThreads<TX>;
  }
  template <class TX>
  __device__ int64_t FirstLeaf() const {
    return PartLeaves<TX>() * block_;
  }
  template <class TX>
  __device__ int64_t Leaves() const {
    return PartLeaves<TX>() * blocks_;
  }

  // The first of this thread's columns in the part's first leaves.
  template <class TX>
  __device__ int64_t Column() const {
    return (FirstLeaf<TX>() + rank_ / kLeafThreads<TX>)*kLeaf + Lane<TX>();
  }
  template <class TX>
  __device__ int Lane() const {
    return rank_ % kLeafThreads<TX> * kWidth<TX>;
  }

  // The tree over the values of the team's threads, in order of rank. FoldWithin: of a team of
  // kThreads within a warp.
  template <int kThreads, class Real>
  __device__ static Real FoldWithin(Real value) {
#pragma unroll
    for (int step = 1; step < kThreads; step *= 2) {
      value += __shfl_xor_sync(kWholeWarp, value, step);
    }
    return value;
  }
  template <class Real>
  __device__ Real Fold(Real value) {
    for (int step = 1; step < kWarp && step < threads_; step *= 2) {
      value += __shfl_xor_sync(kWholeWarp, value, step);
    }
    if (threads_ > kWarp) value = FoldWarps(value);
    if (blocks_ > 1) value = FoldBlocks(value);
    turn_ ^= 1;
    return value;
  }

 private:
  __device__ Exchange& exchange() const { return *reinterpret_cast<Exchange*>(shared_memory); }

  template <class Real>
  __device__ Real FoldWarps(Real value) const {
    Real* sums = reinterpret_cast<Real*>(exchange().of_warp[turn_]);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int first = index_ * (threads_ / kWarp);
    if (lane == 0) sums[first + rank_ / kWarp] = value;
    __syncthreads();
    return FoldWithin<kWarp>(lane < threads_ / kWarp ? sums[first + lane] : Real{0});
  }

  template <class Real>
  __device__ Real FoldBlocks(Real value) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (!met_) __cluster_barrier_wait();
    met_ = true;
    Real* sums = reinterpret_cast<Real*>(exchange().of_block[turn_]);
    if (rank_ < blocks_) {
      static_cast<Real*>(__cluster_map_shared_rank(sums, rank_))[block_] = value;
    }
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
    Real tree[kMaxBlocks];
#pragma unroll
    for (int i = 0; i < kMaxBlocks; ++i) tree[i] = i < blocks_ ? sums[i] : Real{0};
    value = FoldLanes(tree);
#endif
    return value;
  }

  // No block may write into another's memory before that block runs.
  __device__ static void ArriveFirst() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    __cluster_barrier_arrive_relaxed();
#endif
  }

  const int threads_;
  const int blocks_;
  const int rank_;
  const int index_;
  const int block_;
  int turn_ = 0;
  bool met_ = false;  // the other blocks have started
};

// The columns left from one on, for a thread that takes at most a leaf.
__device__ inline int Rest(int64_t n, int64_t column) {
  const int64_t rest = n - column;
  return rest < 0 ? 0 : rest < kLeaf ? static_cast<int>(rest) : int{kLeaf};
}

// dot of a row of n by its definition, leaf by leaf from memory. terms(column, count, a, b) gives
// the kWidth<TX> factors of each side from a column on, `count` of which are in the row.
template <class Real, class TX, class Terms>
__device__ Real DotFromMemory(Team& team, int64_t n, const Terms& terms) {
  constexpr int kCount = kWidth<TX>;
  const int64_t passes = CeilDiv(CeilDiv(n, kLeaf), team.Leaves<TX>());
  const int lane_of_warp = static_cast<int>(threadIdx.x) % kWarp;
  // Lane k of each warp holds the tree of 2^k passes that waits for its neighbour.
  Real waiting = 0;
  Real sum = 0;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t column = team.Column<TX>() + pass * team.Leaves<TX>() * kLeaf;
    const int rest = Rest(n, column);
    Real lanes[kCount] = {};
    for (int s = 0; s < kLeafSteps; ++s) {
      const int count = rest - int{kLanes} * s;
      if (count <= 0) break;
      Real a[kCount], b[kCount];
      terms(column + kLanes * s, count, a, b);
#pragma unroll
      for (int l = 0; l < kCount; ++l) {
        if (l < count) lanes[l] = Fma(a[l], b[l], lanes[l]);
      }
    }
    sum = team.Fold(FoldLanes(lanes));
    if (passes == 1) return sum + Real{0};
    int level = 0;
    for (; pass >> level & 1; ++level) sum = __shfl_sync(kWholeWarp, waiting, level) + sum;
    if (lane_of_warp == level) waiting = sum;
  }
  bool found = false;
  for (int level = 0; passes >> level != 0; ++level) {
    if ((passes >> level & 1) == 0) continue;
    const Real left = __shfl_sync(kWholeWarp, waiting, level);
    sum = found ? left + sum : left;
    found = true;
  }
  return sum + Real{0};
}

// Calls f with a value of gamma's type; with Absent where there is none.
struct Absent {};
template <class Real, class F>
__device__ void VisitGamma(const rmsnorm_vector& gamma, F&& f) {
  if (gamma.data == nullptr) {
    f(Absent{});
  } else if constexpr (std::is_same_v<Real, double>) {
    f(double{});
  } else if (gamma.dtype == RMSNORM_FLOAT16) {
    f(Float16{});
  } else if (gamma.dtype == RMSNORM_BFLOAT16) {
    f(BFloat16{});
  } else {
    f(float{});
  }
}

// gamma of kCount columns as it lies in memory; gamma_offset + gamma, 1 where it is absent.
template <class TG, int kCount>
struct Scales {
  Pack<TG, kCount> gamma;

  // Of the columns from one on, `count` of which are in the row.
  template <bool kVectors>
  __device__ static Scales Load(const rmsnorm_vector& gamma, int64_t column, int count) {
    const TG* from = static_cast<const TG*>(gamma.data) + column;
    return {cuda::Load<kVectors, Reuse::kConstant, kCount>(from, count)};
  }
  template <class Real>
  __device__ Real At(int i, Real gamma_offset) const {
    return gamma_offset + gamma.At(i);
  }
};
template <int kCount>
struct Scales<Absent, kCount> {
  template <bool kVectors>
  __device__ static Scales Load(const rmsnorm_vector&, int64_t, int) {
    return {};
  }
  template <class Real>
  __device__ Real At(int, Real) const {
    return 1;
  }
};

}  // namespace rmsnorm::cuda

#endif  // RMSNORM_CUDA_ROW_CUH_
