// Forward kernels: a row is held in the registers of its team, or read twice where it is too long.
#include "core/reference.h"
#include "cuda/launch.h"
#include "cuda/queue.cuh"
#include "cuda/row.cuh"

namespace rmsnorm::cuda {
namespace {

// Where t leaves this range the sum of squares has overflowed, or may have lost bits to underflow.
__device__ bool InRange(float t) { return !(t < kLeastInRange || t == HUGE_VALF); }

// The factors of dot(x, x), in binary32 or binary64.
template <bool kVectors, class TX>
struct Squares {
  const TX* x;

  template <class Real, int kCount>
  __device__ void operator()(int64_t column, int count, Real (&a)[kCount],
                             Real (&b)[kCount]) const {
    const auto pack = Load<kVectors, Reuse::kOften, kCount>(x + column, count);
#pragma unroll
    for (int l = 0; l < kCount; ++l) a[l] = b[l] = pack.At(l);
  }
};

template <bool kVectors, class TX>
__device__ double RstdInDouble(Team& team, const Squares<kVectors, TX>& row, int64_t n,
                               double epsilon) {
  const double sum = DotFromMemory<double, TX>(team, n, row);
  return Quotient(1.0, Root(Quotient(sum, static_cast<double>(n)) + epsilon));
}

template <class Real>
__device__ void StoreRstd(const rmsnorm_forward_args& args, int64_t row, Real rstd) {
  StoreOne(FromReal<Real>(rstd), static_cast<Real*>(args.rstd) + row);
}

// y of one pack of x.
template <class TY, class TX, class TG, class Real, int kCount>
__device__ Pack<TY, kCount> Scaled(const Pack<TX, kCount>& x, Real rstd, bool before_gamma,
                                   const Scales<TG, kCount>& scales, Real gamma_offset) {
  Real y[kCount];
#pragma unroll
  for (int l = 0; l < kCount; ++l) y[l] = x.At(l) * rstd;
  if constexpr (sizeof(TX) == 2) {
    if (before_gamma) {
      const Pack<TX, kCount> xhat = Narrow<TX>(y);
#pragma unroll
      for (int l = 0; l < kCount; ++l) y[l] = xhat.At(l);
    }
  }
#pragma unroll
  for (int l = 0; l < kCount; ++l) y[l] *= scales.At(l, gamma_offset);
  return Narrow<TY>(y);
}

template <class TX, int kCount, int kSteps>
__device__ float SumOfSquares(const Pack<TX, kCount> (&packs)[kSteps]) {
  float lanes[kCount] = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int l = 0; l < kCount; ++l) {
      const float v = packs[s].At(l);
      lanes[l] = Fma(v, v, lanes[l]);
    }
  }
  return FoldLanes(lanes);
}

// y and rstd of the rows that a thread holds its columns of: `rest` of them from `column` on.
template <bool kVectors, class TY, class TG, class TX, class RowAt, int kRows, int kSteps,
          int kCount>
__device__ void WriteRows(const rmsnorm_forward_args& args, int64_t column, int rest,
                          const RowAt& row_at, const Pack<TX, kCount> (&held)[kRows][kSteps],
                          const float (&rstds)[kRows]) {
  const Matrix<TY> y(args.y);
  const float gamma_offset = static_cast<float>(args.gamma_offset);
  const bool before_gamma = args.rounding == RMSNORM_ROUND_BEFORE_GAMMA;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int count = rest - int{kLanes} * s;
    const auto scales =
        Scales<TG, kCount>::template Load<kVectors>(args.gamma, column + kLanes * s, count);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = row_at(r);
      if (row >= args.rows) continue;
      Store<kVectors>(Scaled<TY>(held[r][s], rstds[r], before_gamma, scales, gamma_offset),
                      y.At(row) + column + kLanes * s, count);
    }
  }
  if (args.rstd == nullptr || column != 0) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (row_at(r) < args.rows) StoreRstd(args, row_at(r), rstds[r]);
  }
}

// Rows that registers hold. Where a thread needs fewer than 8 packs of a row, it takes as many more
// rows at a time.
template <bool kVectors, class TX, class TY, int kSteps>
__global__ void __launch_bounds__(kSteps < kLeafSteps ? kSmallBlock : kMaxThreads, 1)
    HeldRows(const __grid_constant__ rmsnorm_forward_args args, const Plan plan) {
  constexpr int kCount = kWidth<TX>;
  constexpr int kRows = int{kLeafSteps} / kSteps;
  Team team(plan);
  const Matrix<TX> x(args.x);
  const int64_t column = team.Column<TX>();
  const int rest = Rest(args.n, column);
  const float epsilon = static_cast<float>(args.epsilon);
  const int64_t first = team.cluster() * plan.teams * kRows + team.index();
  const auto row_at = [&](int r) { return first + r * plan.teams; };
  Pack<TX, kCount> held[kRows][kSteps];
  const auto load = [&] {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = row_at(r);
      const int count = row < args.rows ? rest : 0;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        held[r][s] = Load<kVectors, Reuse::kOnce, kCount>(x.At(row) + column + kLanes * s,
                                                          count - int{kLanes} * s);
      }
    }
  };
  load();
  float rstds[kRows];
  unsigned out_of_range = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float sum = SumOfSquares(held[r]);
    const float dot =
        kSteps < kLeafSteps ? Team::FoldWithin<kLeafThreads<TX>>(sum) : team.Fold(sum);
    const float t = Quotient(dot + 0.0f, static_cast<float>(args.n)) + epsilon;
    if (!InRange(t) && row_at(r) < args.rows) out_of_range |= 1u << r;
    rstds[r] = Quotient(1.0f, Root(t));
  }
  if (__any_sync(kWholeWarp, out_of_range != 0)) {
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = row_at(r) < args.rows ? row_at(r) : args.rows - 1;
      const double rstd = RstdInDouble<kVectors, TX>(team, {x.At(row)}, args.n, epsilon);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (i == r && (out_of_range >> r & 1)) rstds[i] = static_cast<float>(rstd);
      }
    }
    load();  // again, so that no register is held meanwhile: __ldcs is not merged with the first
  }
  VisitGamma<float>(args.gamma, [&](auto g) {
    WriteRows<kVectors, TY, decltype(g)>(args, column, rest, row_at, held, rstds);
  });
}

// Rows of any length, read twice: the second time, it is hoped, from the second-level cache.
template <bool kVectors, class TX, class TY>
__global__ void __launch_bounds__(kMaxThreads, 1)
    LongRows(const __grid_constant__ rmsnorm_forward_args args, const Plan plan) {
  using Real = RealOfElement<TX>;
  constexpr int kCount = kWidth<TX>;
  Team team(plan);
  const Matrix<TX> x(args.x);
  const Matrix<TY> y(args.y);
  const bool before_gamma = args.rounding == RMSNORM_ROUND_BEFORE_GAMMA;
  const Real epsilon = static_cast<Real>(args.epsilon);
  const Real gamma_offset = static_cast<Real>(args.gamma_offset);
  const int64_t row = blockIdx.x;
  const Squares<kVectors, TX> squares = {x.At(row)};
  Real rstd;
  if constexpr (std::is_same_v<Real, double>) {
    rstd = RstdInDouble(team, squares, args.n, epsilon);
  } else {
    const float sum = DotFromMemory<float, TX>(team, args.n, squares);
    const float t = Quotient(sum, static_cast<float>(args.n)) + epsilon;
    rstd = InRange(t) ? Quotient(1.0f, Root(t))
                      : static_cast<float>(RstdInDouble(team, squares, args.n, epsilon));
  }
  VisitGamma<Real>(args.gamma, [&](auto g) {
    const int64_t step = int64_t{blockDim.x} * kCount;
    for (int64_t i = int64_t{threadIdx.x} * kCount; i < args.n; i += step) {
      const int count = Rest(args.n, i);
      const auto pack = Load<kVectors, Reuse::kOnce, kCount>(x.At(row) + i, count);
      const auto scales =
          Scales<decltype(g), kCount>::template Load<kVectors>(args.gamma, i, count);
      Store<kVectors>(Scaled<TY>(pack, rstd, before_gamma, scales, gamma_offset), y.At(row) + i,
                      count);
    }
  });
  if (args.rstd != nullptr && threadIdx.x == 0) StoreRstd(args, row, rstd);
}

template <bool kVectors, class TX, class TY>
void LaunchOn(const rmsnorm_forward_args& args, Queue& queue) {
  if constexpr (!std::is_same_v<TX, double>) {
    // The smaller the blocks, the more of them share a multiprocessor, some loading, some storing.
    const int max_cluster = queue.MaxCluster();
    Plan plan = PlanRows(args.n, kLeafThreads<TX>, kMaxThreads / 2, max_cluster);
    if (!plan.held) plan = PlanRows(args.n, kLeafThreads<TX>, kMaxThreads, max_cluster);
    const int64_t block_rows = int64_t{plan.teams} * (kLeafSteps / plan.steps);
    const Grid grid = {CeilDiv(args.rows, block_rows) * plan.blocks, plan.threads * plan.teams,
                       plan.blocks, sizeof(Exchange)};
    const auto launch = [&]<int kSteps>(std::integral_constant<int, kSteps>) {
      const auto kernel = HeldRows<kVectors, TX, TY, kSteps>;
      if (!queue.HasRoomFor(kernel, grid)) return false;
      queue.Launch(kernel, grid, args, plan);
      return true;
    };
    if (plan.held && VisitSteps(plan.steps, launch)) return;
  }
  queue.Launch(LongRows<kVectors, TX, TY>, {args.rows, kReadTwice.threads, 1, sizeof(Exchange)},
               args, kReadTwice);
}

template <class TX, class TY>
void Launch(const rmsnorm_forward_args& args, Queue& queue) {
  const bool vectors = args.n % kWidth<TX> == 0 && FitsVectors(args.x, args.rows) &&
                       FitsVectors(args.y, args.rows) && FitsVectors(args.gamma);
  vectors ? LaunchOn<true, TX, TY>(args, queue) : LaunchOn<false, TX, TY>(args, queue);
}

}  // namespace

Refusal Forward(const rmsnorm_forward_args& args, void* stream) {
  Queue queue(stream);
  VisitTypes(args.x.dtype, args.y.dtype,
             [&](auto x, auto y) { Launch<decltype(x), decltype(y)>(args, queue); });
  return queue.refusal();
}

}  // namespace rmsnorm::cuda
