// Backward kernels: rows on their way through a block's memory, read once; rows too long for it,
// read again; and the tree over the partial sums of dgamma.
#include <cuda_pipeline_primitives.h>

#include "cuda/launch.h"
#include "cuda/queue.cuh"
#include "cuda/row.cuh"

namespace rmsnorm::cuda {
namespace {

using Args = rmsnorm_backward_args;

template <class Real>
__device__ Real RstdOf(const Args& args, int64_t row) {
  return LoadOne(static_cast<const Real*>(args.rstd) + row, AccessOf<Real>(args.rstd, 0));
}

// What one thread keeps in its block's memory: the scales of its columns, then a ring of rows. Only
// this thread reads and writes it, so no barrier guards it; the chunks of neighbouring threads are
// neighbours, so no two meet in a bank.
template <class TX, class TDY, int kSteps>
struct Own {
  static constexpr int kCount = kWidth<TX>;
  using PX = Pack<TX, kCount>;
  using PDY = Pack<TDY, kCount>;
  using Scales = Pack<float, kCount>;
  static constexpr int kChunk = sizeof(uint4);
  static constexpr int kScaleChunks = kSteps * sizeof(Scales) / kChunk;
  static constexpr int kXChunks = kSteps * sizeof(PX) / kChunk;
  static constexpr int kStageChunks = kXChunks + kSteps * sizeof(PDY) / kChunk;
  static constexpr int Bytes(int stages) { return kChunk * (kScaleChunks + kStageChunks * stages); }

  __device__ static uint4* Chunk(int chunk) {
    return reinterpret_cast<uint4*>(shared_memory + sizeof(Exchange)) + chunk * blockDim.x +
           threadIdx.x;
  }

  template <class P>
  __device__ static P Get(int first) {
    Chunks<P> chunks;
#pragma unroll
    for (int i = 0; i < Chunks<P>::kCount; ++i) chunks.of[i] = *Chunk(first + i);
    return std::bit_cast<P>(chunks);
  }
  template <class P>
  __device__ static void Put(const P& pack, int first) {
    const auto chunks = std::bit_cast<Chunks<P>>(pack);
#pragma unroll
    for (int i = 0; i < Chunks<P>::kCount; ++i) *Chunk(first + i) = chunks.of[i];
  }

  __device__ static Scales GetScales(int step) {
    return Get<Scales>(step * Chunks<Scales>::kCount);
  }
  __device__ static PX GetX(int stage, int step) {
    return Get<PX>(kScaleChunks + stage * kStageChunks + step * Chunks<PX>::kCount);
  }
  __device__ static PDY GetDy(int stage, int step) {
    return Get<PDY>(kScaleChunks + stage * kStageChunks + kXChunks + step * Chunks<PDY>::kCount);
  }

  // Asks for `count` elements from `from` on, in steps of 64. They are there once a later
  // __pipeline_wait_prior says so.
  template <class P, class T>
  __device__ static void Ask(const T* from, int count, Access access, int first) {
    using C = Chunks<P>;
    const bool vectors =
        access == Access::kVectors && (count >= kSteps * kLanes || count % kCount == 0);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const T* step = from + kLanes * s;
      if (!vectors) {
        Put(LoadSome<P>(step, count - int{kLanes} * s, access), first + s * C::kCount);
      } else if (kLanes * s < count) {
#pragma unroll
        for (int i = 0; i < C::kCount; ++i) {
          __pipeline_memcpy_async(Chunk(first + s * C::kCount + i),
                                  reinterpret_cast<const uint4*>(step) + i, sizeof(uint4));
        }
      }
    }
  }
  __device__ static void AskForRow(const Matrix<TX>& x, const Matrix<TDY>& dy, int64_t row,
                                   int64_t column, int rest, int stage) {
    const int first = kScaleChunks + stage * kStageChunks;
    Ask<PX>(x.At(row) + column, rest, x.access, first);
    Ask<PDY>(dy.At(row) + column, rest, dy.access, first + kXChunks);
  }
};

// This thread's share of dot(w, xhat). kRagged: the row may end within a pack, where an infinite
// rstd would make NaN of what is past the end.
template <bool kRagged, class O, int kSteps>
__device__ float SumOfTerms(int stage, int rest, float rstd) {
  float lanes[O::kCount] = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int count = rest - int{kLanes} * s;
    if (count <= 0) continue;
    const auto x = O::GetX(stage, s);
    const auto dy = O::GetDy(stage, s);
    const auto scales = O::GetScales(s);
#pragma unroll
    for (int l = 0; l < O::kCount; ++l) {
      if (kRagged && l >= count) continue;
      lanes[l] = Fma(Widen(dy.of[l]) * scales.of[l], Widen(x.of[l]) * rstd, lanes[l]);
    }
  }
  return FoldLanes(lanes);
}

// The tree over the teams of a block, of the sums of each column that sums[step][lane] holds; the
// piece's partial sum of this block's part of the row.
template <class TX, int kSteps>
__device__ void FoldTeams(const Team& team, const Plan& plan, int64_t n,
                          const float (&sums)[kSteps][kWidth<TX>], float* partial) {
  const int part = static_cast<int>(team.PartLeaves<TX>()) * kSteps * int{kLanes};
  float* columns = reinterpret_cast<float*>(shared_memory + sizeof(Exchange));  // [teams, part]
  __syncthreads();  // no thread reads its rows or scales there any longer
  float* own =
      columns + team.index() * part + team.rank() / kLeafThreads<TX> * int{kLeaf} + team.Lane<TX>();
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int l = 0; l < kWidth<TX>; ++l) own[kLanes * s + l] = sums[s][l];
  }
  __syncthreads();
  const int64_t first = team.FirstLeaf<TX>() * kLeaf;
  const int count = n - first < part ? static_cast<int>(n - first) : part;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    for (int step = 1; step < plan.teams; step *= 2) {
      for (int t = 0; t + step < plan.teams; t += 2 * step) {
        columns[t * part + i] += columns[(t + step) * part + i];
      }
    }
    partial[first + i] = columns[i];
  }
}

// Of a block: each has the registers for the sums of its columns in two leaves.
template <class TX>
constexpr int kGradientThreads = 32 * kLeafThreads<TX>;

// Rows that pass through a block's memory, `stages` of them at a time.
template <class TX, class TDY, int kSteps>
__global__ void __launch_bounds__(kGradientThreads<TX>, 1)
    HeldGradients(const __grid_constant__ Args args, const GradientPlan plan, int stages,
                  float* partials) {
  constexpr int kCount = kWidth<TX>;
  using O = Own<TX, TDY, kSteps>;
  Team team(plan.rows);
  const Matrix<TX> x(args.x);
  const Matrix<TDY> dy(args.dy);
  const Matrix<TX> dx(args.dx);
  const Access gamma_access = AccessOf(args.gamma);
  const float n = static_cast<float>(args.n);
  const int64_t column = team.Column<TX>();
  const int rest = Rest(args.n, column);
  const bool ragged = args.n % kCount != 0;
  const int64_t piece = team.cluster();
  VisitGamma<float>(args.gamma, [&](auto g) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      typename O::Scales scales;
      LoadScales<decltype(g)>(args.gamma, gamma_access, static_cast<float>(args.gamma_offset),
                              column + kLanes * s, rest - int{kLanes} * s, scales.of);
      O::Put(scales, s * Chunks<typename O::Scales>::kCount);
    }
  });
  const int64_t team_rows = int64_t{kLeafRows} * plan.leaves;
  const int64_t begin = (piece * plan.rows.teams + team.index()) * team_rows;
  const auto ask_for = [&](int64_t r) {
    if (r < team_rows && begin + r < args.rows) {
      O::AskForRow(x, dy, begin + r, column, rest, static_cast<int>(r % stages));
    }
    __pipeline_commit();
  };
  for (int r = 0; r < stages; ++r) ask_for(r);
  const auto rstd_of = [&](int64_t row) {
    return row < args.rows ? RstdOf<float>(args, row) : 0.0f;
  };
  float next_rstd = rstd_of(begin);
  float waiting[kSteps][kCount] = {};  // the first leaf's sums
  float sums[kSteps][kCount] = {};
  for (int r = 0; r < team_rows; ++r) {
    const int64_t row = begin + r;
    const int stage = r % stages;
    const float rstd = next_rstd;
    next_rstd = rstd_of(row + 1);
    __pipeline_wait_prior(stages - 1);
    const float terms = ragged ? SumOfTerms<true, O, kSteps>(stage, rest, rstd)
                               : SumOfTerms<false, O, kSteps>(stage, rest, rstd);
    const float c = Quotient(team.Fold(terms) + 0.0f, n);
    if (r == kLeafRows) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int l = 0; l < kCount; ++l) {
          waiting[s][l] = sums[s][l];
          sums[s][l] = 0;
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int count = rest - int{kLanes} * s;
      if (count <= 0 || row >= args.rows) continue;
      const auto x_pack = O::GetX(stage, s);
      const auto dy_pack = O::GetDy(stage, s);
      const auto scales = O::GetScales(s);
      float gradients[kCount];
#pragma unroll
      for (int l = 0; l < kCount; ++l) {
        const float xhat = Widen(x_pack.of[l]) * rstd;
        const float dy_value = Widen(dy_pack.of[l]);
        sums[s][l] = Fma(dy_value, xhat, sums[s][l]);
        gradients[l] = Fma(-xhat, c, dy_value * scales.of[l]) * rstd;
      }
      if (dx.data != nullptr) {
        Store(Narrow<TX>(gradients), dx.At(row) + column + kLanes * s, count, dx.access);
      }
    }
    ask_for(r + stages);
  }
  if (partials == nullptr) return;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int l = 0; l < kCount; ++l) sums[s][l] += waiting[s][l];
  }
  FoldTeams<TX, kSteps>(team, plan.rows, args.n, sums, partials + piece * args.n);
}

// w and xhat of a row, as the factors of c.
template <class TX, class TDY, class TG>
struct Terms {
  const Args& args;
  Matrix<TX> x;
  Matrix<TDY> dy;
  Access gamma_access;
  int64_t row;

  template <class Real, int kCount>
  __device__ void operator()(int64_t column, int count, Real (&w)[kCount],
                             Real (&xhat)[kCount]) const {
    Pack<TX, kCount> x_pack[1];
    Pack<TDY, kCount> dy_pack[1];
    LoadSteps<Reuse::kOften>(x.At(row) + column, count, x.access, x_pack);
    LoadSteps<Reuse::kOften>(dy.At(row) + column, count, dy.access, dy_pack);
    LoadScales<TG>(args.gamma, gamma_access, static_cast<Real>(args.gamma_offset), column, count,
                   w);
    const Real rstd = RstdOf<Real>(args, row);
#pragma unroll
    for (int l = 0; l < kCount; ++l) {
      w[l] = Widen(dy_pack[0].of[l]) * w[l];
      xhat[l] = Widen(x_pack[0].of[l]) * rstd;
    }
  }
};

// dx of rows of any length, read twice.
template <class TX, class TDY>
__global__ void __launch_bounds__(kMaxThreads)
    LongGradients(const __grid_constant__ Args args, const Plan plan) {
  using Real = decltype(Widen(TX{}));
  constexpr int kCount = kWidth<TX>;
  Team team(plan);
  const Matrix<TX> dx(args.dx);
  const int64_t row = blockIdx.x;
  VisitGamma<Real>(args.gamma, [&](auto g) {
    const Terms<TX, TDY, decltype(g)> terms = {args, Matrix<TX>(args.x), Matrix<TDY>(args.dy),
                                               AccessOf(args.gamma), row};
    const Real c =
        Quotient(DotFromMemory<Real, TX>(team, args.n, terms), static_cast<Real>(args.n));
    const int64_t step = int64_t{blockDim.x} * kCount;
    for (int64_t i = int64_t{threadIdx.x} * kCount; i < args.n; i += step) {
      const int count = Rest(args.n, i);
      Real w[kCount], xhat[kCount];
      terms(i, count, w, xhat);
#pragma unroll
      for (int l = 0; l < kCount; ++l) w[l] = Fma(-xhat[l], c, w[l]) * RstdOf<Real>(args, row);
      Store(Narrow<TX>(w), dx.At(row) + i, count, dx.access);
    }
  });
}

// The chains of each column down one leaf of rows each, a thread to a chain.
template <class TX, class TDY>
__global__ void __launch_bounds__(kMaxThreads)
    LongColumns(const __grid_constant__ Args args, decltype(Widen(TX{}))* partials) {
  using Real = decltype(Widen(TX{}));
  const Matrix<TX> x(args.x);
  const Matrix<TDY> dy(args.dy);
  const int64_t leaves = CeilDiv(args.rows, kLeafRows);
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= leaves * args.n) return;
  const int64_t leaf = i / args.n, column = i % args.n;
  Real sum = 0;
  for (int64_t row = leaf * kLeafRows; row < (leaf + 1) * kLeafRows && row < args.rows; ++row) {
    const Real xhat = Widen(LoadOne(x.At(row) + column, x.access)) * RstdOf<Real>(args, row);
    sum = Fma(Widen(LoadOne(dy.At(row) + column, dy.access)), xhat, sum);
  }
  partials[i] = sum;
}

constexpr int kFoldColumns = 32;  // of a block
constexpr int kFoldThreads = 8;   // of a column
constexpr int kFoldTrees = 4;     // of a thread, of 8 partial sums each

// The tree over each run of kFoldedTogether of `count` partial sums of n columns. kLast: there is
// one run, and the tree is dgamma.
template <bool kLast, class Real>
__global__ void FoldColumns(const Real* from, int64_t count, int64_t n, Real* to) {
  Real* sums = reinterpret_cast<Real*>(shared_memory);  // [kFoldThreads, kFoldColumns]
  const int x = static_cast<int>(threadIdx.x) % kFoldColumns;
  const int y = static_cast<int>(threadIdx.x) / kFoldColumns;
  const int64_t column_blocks = CeilDiv(n, kFoldColumns);
  const int64_t run = blockIdx.x / column_blocks;
  const int64_t column = blockIdx.x % column_blocks * kFoldColumns + x;
  const int64_t first = run * kFoldedTogether + y * (kFoldTrees * 8);
  Real trees[kFoldTrees];
#pragma unroll
  for (int t = 0; t < kFoldTrees; ++t) {
    Real values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int64_t index = first + 8 * t + i;
      values[i] = index < count && column < n ? from[index * n + column] : Real{0};
    }
    trees[t] = FoldLanes(values);
  }
  sums[y * kFoldColumns + x] = FoldLanes(trees);
  __syncthreads();
  if (y > 0 || column >= n) return;
  Real values[kFoldThreads];
#pragma unroll
  for (int i = 0; i < kFoldThreads; ++i) values[i] = sums[i * kFoldColumns + x];
  const Real sum = FoldLanes(values);
  if constexpr (kLast) {
    StoreOne(FromReal<Real>(sum + Real{0}), to + column, AccessOf<Real>(to, 0));
  } else {
    to[run * n + column] = sum;
  }
}

// dgamma from `pieces` partial sums at the workspace's beginning; those of higher levels lie
// behind.
template <class Real>
void LaunchFold(const Args& args, int64_t pieces, Queue& queue) {
  Real* from = static_cast<Real*>(args.workspace);
  const int64_t column_blocks = CeilDiv(args.n, kFoldColumns);
  const auto grid = [&](int64_t runs) {
    return Grid{runs * column_blocks, kFoldColumns * kFoldThreads, 1,
                sizeof(Real) * kFoldColumns * kFoldThreads};
  };
  while (pieces > kFoldedTogether) {
    Real* to = from + pieces * args.n;
    const int64_t runs = CeilDiv(pieces, kFoldedTogether);
    queue.Launch(FoldColumns<false, Real>, grid(runs), from, pieces, args.n, to);
    from = to;
    pieces = runs;
  }
  queue.Launch(FoldColumns<true, Real>, grid(1), from, pieces, args.n,
               static_cast<Real*>(args.dgamma));
}

template <class TX, class TDY>
void LaunchLong(const Args& args, Queue& queue) {
  using Real = decltype(Widen(TX{}));
  const Plan plan = {int{kLeafSteps}, kMaxThreads, 1, 0};
  if (args.dx.data != nullptr) {
    queue.Launch(LongGradients<TX, TDY>, {args.rows, kMaxThreads, 1, sizeof(Exchange)}, args, plan);
  }
  if (args.dgamma == nullptr) return;
  const int64_t leaves = CeilDiv(args.rows, kLeafRows);
  const int64_t blocks = CeilDiv(leaves * args.n, kMaxThreads);
  queue.Launch(LongColumns<TX, TDY>, {blocks, kMaxThreads}, args,
               static_cast<Real*>(args.workspace));
  LaunchFold<Real>(args, leaves, queue);
}

template <class TX, class TDY, int kSteps>
void LaunchHeld(const Args& args, const GradientPlan& plan, int64_t shared_bytes, Queue& queue) {
  using O = Own<TX, TDY, kSteps>;
  const int threads = plan.rows.threads * plan.rows.teams;
  const auto bytes = [&](int stages) {
    return static_cast<int64_t>(sizeof(Exchange)) + int64_t{threads} * O::Bytes(stages);
  };
  // As many stages as 8 steps' worth of two rows need.
  int stages = 2 * int{kLeafSteps} / kSteps;
  while (stages > 1 && bytes(stages) > shared_bytes) stages /= 2;
  const Grid grid = {plan.pieces * plan.rows.blocks, threads, plan.rows.blocks, bytes(stages)};
  queue.Launch(HeldGradients<TX, TDY, kSteps>, grid, args, plan, stages,
               args.dgamma != nullptr ? static_cast<float*>(args.workspace) : nullptr);
  if (args.dgamma != nullptr) LaunchFold<float>(args, plan.pieces, queue);
}

template <class TX, class TDY>
void LaunchBackward(const Args& args, Queue& queue) {
  const int64_t shared_bytes = queue.SharedBytes();
  const int64_t fitting = (shared_bytes - static_cast<int64_t>(sizeof(Exchange))) /
                          Own<TX, TDY, int{kLeafSteps}>::Bytes(/*stages=*/1);
  const int max_threads = static_cast<int>(std::min<int64_t>(fitting, kGradientThreads<TX>));
  const GradientPlan plan =
      PlanGradient(args.rows, args.n, kLeafThreads<TX>, max_threads, queue.MaxCluster());
  if (plan.rows.blocks == 0) return LaunchLong<TX, TDY>(args, queue);
  switch (plan.rows.steps) {
    case 1:
      return LaunchHeld<TX, TDY, 1>(args, plan, shared_bytes, queue);
    case 2:
      return LaunchHeld<TX, TDY, 2>(args, plan, shared_bytes, queue);
    case 4:
      return LaunchHeld<TX, TDY, 4>(args, plan, shared_bytes, queue);
    default:
      return LaunchHeld<TX, TDY, 8>(args, plan, shared_bytes, queue);
  }
}

}  // namespace

Refusal Backward(const rmsnorm_backward_args& args, void* stream) {
  Queue queue(stream);
  if (args.dx.data == nullptr && args.dgamma == nullptr) return queue.refusal();
  if (args.x.dtype == RMSNORM_FLOAT64) {
    LaunchLong<double, double>(args, queue);
    return queue.refusal();
  }
  VisitDtype(args.x.dtype, [&](auto x) {
    using TX = decltype(x);
    if (args.dy.dtype == RMSNORM_FLOAT32) {
      LaunchBackward<TX, float>(args, queue);
    } else {
      LaunchBackward<TX, TX>(args, queue);
    }
  });
  return queue.refusal();
}

}  // namespace rmsnorm::cuda
