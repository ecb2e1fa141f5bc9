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
  return LoadOne(static_cast<const Real*>(args.rstd) + row);
}

// c of a row, from the sum of its terms where it is whole.
template <class Real>
__device__ Real MeanOf(const Args& args, int64_t row, Real sum) {
  if (args.whole_sums == nullptr) return Quotient(sum, static_cast<Real>(args.n));
  return Quotient(LoadOne(static_cast<const Real*>(args.whole_sums) + row),
                  static_cast<Real>(args.whole_n));
}

template <class Real>
__device__ void StoreSum(const Args& args, int64_t row, Real sum) {
  StoreOne(FromReal<Real>(sum), static_cast<Real*>(args.sums) + row);
}

// What one thread keeps in its block's memory: the scales of its columns, then a ring of rows on
// their way. Only this thread reads and writes it, so no barrier guards it. The chunks of a warp's
// threads are neighbours, so that no two meet in a bank.
template <bool kVectors, class TX, class TDY, int kSteps>
class Ring {
 public:
  static constexpr int kCount = kWidth<TX>;
  using X = Pack<TX, kCount>;
  using Dy = Pack<TDY, kCount>;
  using Scale = Pack<float, kCount>;
  static constexpr int kScaleChunks = kSteps * Chunks<Scale>::kCount;
  static constexpr int kXChunks = kSteps * Chunks<X>::kCount;
  static constexpr int kStageChunks = kXChunks + kSteps * Chunks<Dy>::kCount;
  static constexpr int Bytes(int stages) {
    return int{sizeof(uint4)} * (kScaleChunks + kStageChunks * stages);
  }

  // stages: a power of two.
  __device__ explicit Ring(int stages) : stages_(stages) {
    const int thread = static_cast<int>(threadIdx.x);
    first_ = reinterpret_cast<uint4*>(shared_memory + sizeof(Exchange)) +
             thread / kWarp * (kScaleChunks + kStageChunks * stages) * kWarp + thread % kWarp;
  }

  __device__ void PutScale(int step, const Scale& scale) const { Put(scale, first_, step); }

  // Asks for `rest` elements of a row's x and dy.
  __device__ void Ask(int64_t turn, const TX* x, const TDY* dy, int rest) const {
    uint4* stage = Stage(turn);
    AskFor<X>(x, rest, stage);
    AskFor<Dy>(dy, rest, stage + kXChunks * kWarp);
  }
  // The stage of the row that was asked for in this turn, where no later one but `stages - 1` was.
  __device__ uint4* Await(int64_t turn) const {
    __pipeline_wait_prior(stages_ - 1);
    asm volatile("" ::: "memory");  // no load of what was awaited moves up
    return Stage(turn);
  }

  // One step of a row that has arrived.
  struct Operands {
    X x;
    Dy dy;
    Scale scale;
  };
  __device__ Operands At(const uint4* stage, int step) const {
    return {Get<X>(stage, step), Get<Dy>(stage + kXChunks * kWarp, step), Get<Scale>(first_, step)};
  }

 private:
  __device__ uint4* Stage(int64_t turn) const {
    const int stage = static_cast<int>(turn) & (stages_ - 1);
    return first_ + (kScaleChunks + kStageChunks * stage) * kWarp;
  }

  template <class P>
  __device__ static P Get(const uint4* from, int step) {
    Chunks<P> chunks;
#pragma unroll
    for (int i = 0; i < Chunks<P>::kCount; ++i) {
      chunks.of[i] = from[(step * Chunks<P>::kCount + i) * kWarp];
    }
    return std::bit_cast<P>(chunks);
  }
  template <class P>
  __device__ static void Put(const P& pack, uint4* to, int step) {
    const auto chunks = std::bit_cast<Chunks<P>>(pack);
#pragma unroll
    for (int i = 0; i < Chunks<P>::kCount; ++i) {
      to[(step * Chunks<P>::kCount + i) * kWarp] = chunks.of[i];
    }
  }

  template <class P, class T>
  __device__ static void AskFor(const T* from, int rest, uint4* to) {
    constexpr int kChunks = Chunks<P>::kCount;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const T* step = from + kLanes * s;
      const int count = rest - int{kLanes} * s;
      if constexpr (!kVectors) {
        Put(Load<false, Reuse::kOnce, kCount>(step, count), to, s);
      } else if (count > 0) {
#pragma unroll
        for (int i = 0; i < kChunks; ++i) {
          __pipeline_memcpy_async(to + (s * kChunks + i) * kWarp,
                                  reinterpret_cast<const uint4*>(step) + i, sizeof(uint4));
        }
      }
    }
  }

  uint4* first_;
  const int stages_;
};

// This thread's share of dot(w, xhat). Where rows don't fit vectors, one may end within a pack, and
// an infinite rstd would make NaN of what is past its end.
template <bool kVectors, class R, int kSteps>
__device__ float SumOfTerms(const R& ring, const uint4* stage, int rest, float rstd) {
  float lanes[R::kCount] = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int count = rest - int{kLanes} * s;
    if (count <= 0) continue;
    const auto [x, dy, scale] = ring.At(stage, s);
#pragma unroll
    for (int l = 0; l < R::kCount; ++l) {
      if (!kVectors && l >= count) continue;
      lanes[l] = Fma(dy.At(l) * scale.At(l), x.At(l) * rstd, lanes[l]);
    }
  }
  return FoldLanes(lanes);
}

// The sums of dy * xhat of this thread's columns.
template <class TX, int kSteps>
struct ColumnSums {
  float of[kSteps][kWidth<TX>] = {};

  __device__ void Add(const ColumnSums& other) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int l = 0; l < kWidth<TX>; ++l) of[s][l] += other.of[s][l];
    }
  }
};

// dx of a row, and its terms of the columns' sums.
template <bool kVectors, class R, class TX, int kSteps>
__device__ void GradientsOfRow(const R& ring, const uint4* stage, int rest, float rstd, float c,
                               TX* dx, ColumnSums<TX, kSteps>& sums) {
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int count = rest - int{kLanes} * s;
    if (count <= 0) continue;
    const auto [x, dy, scale] = ring.At(stage, s);
    float gradients[R::kCount];
#pragma unroll
    for (int l = 0; l < R::kCount; ++l) {
      const float xhat = x.At(l) * rstd;
      sums.of[s][l] = Fma(dy.At(l), xhat, sums.of[s][l]);
      gradients[l] = Fma(-xhat, c, dy.At(l) * scale.At(l)) * rstd;
    }
    if (dx != nullptr) Store<kVectors>(Narrow<TX>(gradients), dx + kLanes * s, count);
  }
}

// The tree over the teams of a block, of each column's sums: the piece's partial sums of this
// block's part of the row.
template <class TX, int kSteps>
__device__ void FoldTeams(const Team& team, const Plan& plan, int64_t n,
                          const ColumnSums<TX, kSteps>& sums, float* partial) {
  const int part = static_cast<int>(team.PartLeaves<TX>()) * kSteps * int{kLanes};
  float* columns = reinterpret_cast<float*>(shared_memory + sizeof(Exchange));  // [teams, part]
  // No copy is on its way into the ring, and now no thread reads its rows or scales there.
  __syncthreads();
  float* own =
      columns + team.index() * part + team.rank() / kLeafThreads<TX> * int{kLeaf} + team.Lane<TX>();
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int l = 0; l < kWidth<TX>; ++l) own[kLanes * s + l] = sums.of[s][l];
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
template <bool kVectors, class TX>
constexpr int kGradientThreads = kVectors && std::is_same_v<TX, float> ? 384 : 256;

// Rows that pass through a block's memory, `stages` of them at a time.
template <bool kVectors, class TX, class TDY, int kSteps>
__global__ void __launch_bounds__(kSteps < kLeafSteps ? kSmallBlock
                                                      : kGradientThreads<kVectors, TX>,
                                  1)
    HeldGradients(const __grid_constant__ Args args, const GradientPlan plan, int stages,
                  float* partials) {
  using R = Ring<kVectors, TX, TDY, kSteps>;
  Team team(plan.rows);
  const R ring(stages);
  const Matrix<TX> x(args.x), dx(args.dx);
  const Matrix<TDY> dy(args.dy);
  const int64_t column = team.Column<TX>();
  const int rest = Rest(args.n, column);
  VisitGamma<float>(args.gamma, [&](auto g) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const auto scales = Scales<decltype(g), R::kCount>::template Load<kVectors>(
          args.gamma, column + kLanes * s, rest - int{kLanes} * s);
      float values[R::kCount];
#pragma unroll
      for (int l = 0; l < R::kCount; ++l) {
        values[l] = scales.At(l, static_cast<float>(args.gamma_offset));
      }
      ring.PutScale(s, Narrow<float>(values));
    }
  });
  const int64_t piece = team.cluster();
  const int64_t begin = (piece * plan.rows.teams + team.index()) * kLeafRows * plan.leaves;
  const int64_t end = begin + kLeafRows * plan.leaves;
  const auto ask_for = [&](int64_t row) {
    if (row < end && row < args.rows) ring.Ask(row, x.At(row) + column, dy.At(row) + column, rest);
    __pipeline_commit();
  };
  for (int64_t row = begin; row < begin + stages; ++row) ask_for(row);
  const auto rstd_of = [&](int64_t row) {
    return row < args.rows ? RstdOf<float>(args, row) : 0.0f;
  };
  float next_rstd = rstd_of(begin);
  ColumnSums<TX, kSteps> sums, before;
  for (int64_t leaf = begin; leaf < end; leaf += kLeafRows) {
    before = sums;
    sums = {};
    for (int64_t row = leaf; row < leaf + kLeafRows; ++row) {
      const float rstd = next_rstd;
      next_rstd = rstd_of(row + 1);
      const uint4* stage = ring.Await(row);
      const float terms = SumOfTerms<kVectors, R, kSteps>(ring, stage, rest, rstd);
      const float sum = team.Fold(terms) + 0.0f;
      if (row < args.rows && args.sums == nullptr) {
        const float c = MeanOf(args, row, sum);
        TX* to = dx.data != nullptr ? dx.At(row) + column : nullptr;
        GradientsOfRow<kVectors>(ring, stage, rest, rstd, c, to, sums);
      } else if (row < args.rows && column == 0) {
        StoreSum(args, row, sum);
      }
      ask_for(row + stages);
    }
  }
  if (partials == nullptr) return;
  before.Add(sums);
  FoldTeams(team, plan.rows, args.n, before, partials + piece * args.n);
}

// w and xhat of a row, as the factors of c.
template <bool kVectors, class TX, class TDY, class TG>
struct Terms {
  const Args& args;
  int64_t row;

  template <class Real, int kCount>
  __device__ void operator()(int64_t column, int count, Real (&w)[kCount],
                             Real (&xhat)[kCount]) const {
    const TX* x = Matrix<TX>(args.x).At(row) + column;
    const TDY* dy = Matrix<TDY>(args.dy).At(row) + column;
    const auto x_pack = Load<kVectors, Reuse::kOften, kCount>(x, count);
    const auto dy_pack = Load<kVectors, Reuse::kOften, kCount>(dy, count);
    const auto scales = Scales<TG, kCount>::template Load<kVectors>(args.gamma, column, count);
    const Real rstd = RstdOf<Real>(args, row);
#pragma unroll
    for (int l = 0; l < kCount; ++l) {
      w[l] = dy_pack.At(l) * scales.At(l, static_cast<Real>(args.gamma_offset));
      xhat[l] = x_pack.At(l) * rstd;
    }
  }
};

// dx or sums of rows of any length, read twice.
template <bool kVectors, class TX, class TDY>
__global__ void __launch_bounds__(kMaxThreads, 1)
    LongGradients(const __grid_constant__ Args args, const Plan plan) {
  using Real = RealOfElement<TX>;
  constexpr int kCount = kWidth<TX>;
  Team team(plan);
  const int64_t row = blockIdx.x;
  const Real rstd = RstdOf<Real>(args, row);
  VisitGamma<Real>(args.gamma, [&](auto g) {
    const Terms<kVectors, TX, TDY, decltype(g)> terms = {args, row};
    const Real sum = DotFromMemory<Real, TX>(team, args.n, terms);
    if (args.sums != nullptr) {
      if (threadIdx.x == 0) StoreSum(args, row, sum);
      return;
    }
    TX* dx = Matrix<TX>(args.dx).At(row);
    const Real c = MeanOf(args, row, sum);
    const int64_t step = int64_t{blockDim.x} * kCount;
    for (int64_t i = int64_t{threadIdx.x} * kCount; i < args.n; i += step) {
      const int count = Rest(args.n, i);
      Real w[kCount], xhat[kCount];
      terms(i, count, w, xhat);
#pragma unroll
      for (int l = 0; l < kCount; ++l) w[l] = Fma(-xhat[l], c, w[l]) * rstd;
      Store<kVectors>(Narrow<TX>(w), dx + i, count);
    }
  });
}

// The chains of each column down one leaf of rows each, a thread to a chain.
template <class TX, class TDY>
__global__ void __launch_bounds__(kMaxThreads, 1)
    LongColumns(const __grid_constant__ Args args, RealOfElement<TX>* partials) {
  using Real = RealOfElement<TX>;
  const Matrix<TX> x(args.x);
  const Matrix<TDY> dy(args.dy);
  const int64_t leaves = CeilDiv(args.rows, kLeafRows);
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= leaves * args.n) return;
  const int64_t leaf = i / args.n, column = i % args.n;
  Real sum = 0;
  for (int64_t row = leaf * kLeafRows; row < (leaf + 1) * kLeafRows && row < args.rows; ++row) {
    const auto x_pack = Load<false, Reuse::kOften, 2>(x.At(row) + column, 1);
    const auto dy_pack = Load<false, Reuse::kOften, 2>(dy.At(row) + column, 1);
    sum = Fma(dy_pack.At(0), x_pack.At(0) * RstdOf<Real>(args, row), sum);
  }
  partials[i] = sum;
}

constexpr int kFoldColumns = 32;                          // of a block
constexpr int kFoldThreads = 8;                           // of a column
constexpr int kFoldRun = kFoldedTogether / kFoldThreads;  // of a thread

// The tree over each run of kFoldedTogether of `count` partial sums of n columns. kLast: there is
// one run, and the tree is dgamma.
template <bool kLast, class Real>
__global__ void __launch_bounds__(kFoldColumns* kFoldThreads)
    FoldColumns(const Real* from, int64_t count, int64_t n, Real* to) {
  Real* sums = reinterpret_cast<Real*>(shared_memory);  // [kFoldThreads, kFoldColumns]
  const int x = static_cast<int>(threadIdx.x) % kFoldColumns;
  const int y = static_cast<int>(threadIdx.x) / kFoldColumns;
  const int64_t column_blocks = CeilDiv(n, kFoldColumns);
  const int64_t run = blockIdx.x / column_blocks;
  const int64_t column = blockIdx.x % column_blocks * kFoldColumns + x;
  const int64_t first = run * kFoldedTogether + y * kFoldRun;
  Real values[kFoldRun];
#pragma unroll
  for (int i = 0; i < kFoldRun; ++i) {
    const int64_t index = first + i;
    values[i] = index < count && column < n ? from[index * n + column] : Real{0};
  }
  sums[y * kFoldColumns + x] = FoldLanes(values);
  __syncthreads();
  if (y > 0 || column >= n) return;
  Real of_threads[kFoldThreads];
#pragma unroll
  for (int i = 0; i < kFoldThreads; ++i) of_threads[i] = sums[i * kFoldColumns + x];
  const Real sum = FoldLanes(of_threads);
  if constexpr (kLast) {
    StoreOne(FromReal<Real>(sum + Real{0}), to + column);
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

template <bool kVectors, class TX, class TDY>
void LaunchLong(const Args& args, Queue& queue) {
  using Real = RealOfElement<TX>;
  if (args.dx.data != nullptr || args.sums != nullptr) {
    queue.Launch(LongGradients<kVectors, TX, TDY>,
                 {args.rows, kReadTwice.threads, 1, sizeof(Exchange)}, args, kReadTwice);
  }
  if (args.dgamma == nullptr) return;
  const int64_t leaves = CeilDiv(args.rows, kLeafRows);
  queue.Launch(LongColumns<TX, TDY>, {CeilDiv(leaves * args.n, kMaxThreads), kMaxThreads}, args,
               static_cast<Real*>(args.workspace));
  LaunchFold<Real>(args, leaves, queue);
}

// False, and nothing is launched: the GPU has no room for such a cluster.
template <bool kVectors, class TX, class TDY, int kSteps>
bool LaunchHeld(const Args& args, const GradientPlan& plan, int64_t shared_bytes, Queue& queue) {
  using R = Ring<kVectors, TX, TDY, kSteps>;
  const int threads = plan.rows.threads * plan.rows.teams;
  const auto bytes = [&](int stages) {
    return static_cast<int64_t>(sizeof(Exchange)) + int64_t{threads} * R::Bytes(stages);
  };
  // As many rows on their way as make two of 8 steps; CUDA's wait for all but some counts to 8.
  int stages = std::min(2 * int{kLeafSteps} / kSteps, 8);
  while (stages > 1 && bytes(stages) > shared_bytes) stages /= 2;
  const Grid grid = {plan.pieces * plan.rows.blocks, threads, plan.rows.blocks, bytes(stages)};
  const auto kernel = HeldGradients<kVectors, TX, TDY, kSteps>;
  if (!queue.HasRoomFor(kernel, grid)) return false;
  queue.Launch(kernel, grid, args, plan, stages,
               args.dgamma != nullptr ? static_cast<float*>(args.workspace) : nullptr);
  if (args.dgamma != nullptr) LaunchFold<float>(args, plan.pieces, queue);
  return true;
}

template <bool kVectors, class TX, class TDY>
void LaunchOn(const Args& args, Queue& queue) {
  if constexpr (!std::is_same_v<TX, double>) {
    const int64_t shared_bytes = queue.SharedBytes();
    const int64_t fitting = (shared_bytes - static_cast<int64_t>(sizeof(Exchange))) /
                            Ring<kVectors, TX, TDY, int{kLeafSteps}>::Bytes(/*stages=*/1);
    const int max_threads =
        static_cast<int>(std::min<int64_t>(fitting, kGradientThreads<kVectors, TX>));
    const GradientPlan plan =
        PlanGradient(args.rows, args.n, kLeafThreads<TX>, max_threads, queue.MaxCluster());
    const auto launch = [&]<int kSteps>(std::integral_constant<int, kSteps>) {
      return LaunchHeld<kVectors, TX, TDY, kSteps>(args, plan, shared_bytes, queue);
    };
    if (plan.rows.held && VisitSteps(plan.rows.steps, launch)) return;
  }
  LaunchLong<kVectors, TX, TDY>(args, queue);
}

template <class TX, class TDY>
void Launch(const Args& args, Queue& queue) {
  const bool vectors = args.n % kWidth<TX> == 0 && FitsVectors(args.x, args.rows) &&
                       FitsVectors(args.dy, args.rows) && FitsVectors(args.dx, args.rows) &&
                       FitsVectors(args.gamma);
  vectors ? LaunchOn<true, TX, TDY>(args, queue) : LaunchOn<false, TX, TDY>(args, queue);
}

}  // namespace

Refusal Backward(const rmsnorm_backward_args& args, void* stream) {
  Queue queue(stream);
  if (args.dx.data == nullptr && args.dgamma == nullptr && args.sums == nullptr) {
    return queue.refusal();
  }
  VisitTypes(args.x.dtype, args.dy.dtype,
             [&](auto x, auto dy) { Launch<decltype(x), decltype(dy)>(args, queue); });
  return queue.refusal();
}

}  // namespace rmsnorm::cuda
