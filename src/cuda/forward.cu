// Forward kernels: a row is held in the registers of its team, or read twice where it is too long.
#include "cuda/launch.h"
#include "cuda/queue.cuh"
#include "cuda/row.cuh"

namespace rmsnorm::cuda {
namespace {

// Where t leaves this range the sum of squares has overflowed, or may have lost bits to underflow.
__device__ bool InRange(float t) { return !(t < 0x1p-90f || t == HUGE_VALF); }

// The factors of dot(x, x), in binary32 or binary64.
template <class TX>
struct Squares {
  const TX* x;
  Access access;

  template <class Real, int kCount>
  __device__ void operator()(int64_t column, int count, Real (&a)[kCount],
                             Real (&b)[kCount]) const {
    Pack<TX, kCount> pack[1];
    LoadSteps<Reuse::kOften>(x + column, count, access, pack);
#pragma unroll
    for (int l = 0; l < kCount; ++l) a[l] = b[l] = Widen(pack[0].of[l]);
  }
};

template <class TX>
__device__ double RstdInDouble(Team& team, const Squares<TX>& row, int64_t n, double epsilon) {
  const double sum = DotFromMemory<double, TX>(team, n, row);
  return Quotient(1.0, Root(Quotient(sum, static_cast<double>(n)) + epsilon));
}

template <class Real>
__device__ void StoreRstd(const rmsnorm_forward_args& args, int64_t row, Real rstd) {
  StoreOne(FromReal<Real>(rstd), static_cast<Real*>(args.rstd) + row, AccessOf<Real>(args.rstd, 0));
}

// y of one pack of x.
template <class TY, class TX, class Real, int kCount>
__device__ Pack<TY, kCount> Scaled(const Pack<TX, kCount>& x, Real rstd, bool before_gamma,
                                   const Real (&scales)[kCount]) {
  Real y[kCount];
#pragma unroll
  for (int l = 0; l < kCount; ++l) y[l] = Widen(x.of[l]) * rstd;
  if constexpr (sizeof(TX) == 2) {
    if (before_gamma) {
      const Pack<TX, kCount> xhat = Narrow<TX>(y);
#pragma unroll
      for (int l = 0; l < kCount; ++l) y[l] = Widen(xhat.of[l]);
    }
  }
#pragma unroll
  for (int l = 0; l < kCount; ++l) y[l] *= scales[l];
  return Narrow<TY>(y);
}

// Rows that registers hold. Where a thread needs fewer than 8 packs of a row, it takes as many more
// rows at a time.
template <class TX, class TY, int kSteps>
__global__ void __launch_bounds__(kSteps < kLeafSteps ? kSmallBlock : kMaxThreads, 1)
    HeldRows(const __grid_constant__ rmsnorm_forward_args args, const Plan plan) {
  constexpr int kCount = kWidth<TX>;
  constexpr int kRows = int{kLeafSteps} / kSteps;
  Team team(plan);
  const Matrix<TX> x(args.x);
  const Matrix<TY> y(args.y);
  const Access gamma_access = AccessOf(args.gamma);
  const bool before_gamma = args.rounding == RMSNORM_ROUND_BEFORE_GAMMA;
  const int64_t column = team.Column<TX>();
  const int rest = Rest(args.n, column);
  const float n = static_cast<float>(args.n);
  const float epsilon = static_cast<float>(args.epsilon);
  const float gamma_offset = static_cast<float>(args.gamma_offset);
  const int64_t first = team.cluster() * plan.teams * kRows + team.index();
  const auto row_at = [&](int r) { return first + r * plan.teams; };
  Pack<TX, kCount> held[kRows][kSteps];
  const auto load = [&] {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = row_at(r);
      LoadSteps<Reuse::kOnce>(x.At(row) + column, row < args.rows ? rest : 0, x.access, held[r]);
    }
  };
  load();
  float rstds[kRows];
  unsigned out_of_range = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float lanes[kCount] = {};
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int l = 0; l < kCount; ++l) {
        const float v = Widen(held[r][s].of[l]);
        lanes[l] = Fma(v, v, lanes[l]);
      }
    }
    const float t = Quotient(team.Fold(FoldLanes(lanes)) + 0.0f, n) + epsilon;
    if (!InRange(t) && row_at(r) < args.rows) out_of_range |= 1u << r;
    rstds[r] = Quotient(1.0f, Root(t));
  }
  if (__any_sync(kWholeWarp, out_of_range != 0)) {
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = row_at(r) < args.rows ? row_at(r) : args.rows - 1;
      const double rstd = RstdInDouble<TX>(team, {x.At(row), x.access}, args.n, epsilon);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (i == r && (out_of_range >> r & 1)) rstds[i] = static_cast<float>(rstd);
      }
    }
    load();  // again, so that nothing is held meanwhile
  }
  VisitGamma<float>(args.gamma, [&](auto g) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int count = rest - int{kLanes} * s;
      float scales[kCount];
      LoadScales<decltype(g)>(args.gamma, gamma_access, gamma_offset, column + kLanes * s, count,
                              scales);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int64_t row = row_at(r);
        if (row >= args.rows) continue;
        Store(Scaled<TY>(held[r][s], rstds[r], before_gamma, scales),
              y.At(row) + column + kLanes * s, count, y.access);
      }
    }
  });
  if (args.rstd == nullptr || column != 0) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = row_at(r);
    if (row < args.rows) StoreRstd(args, row, rstds[r]);
  }
}

// Rows of any length, read twice: the second time, it is hoped, from the second-level cache.
template <class TX, class TY>
__global__ void __launch_bounds__(kMaxThreads)
    LongRows(const __grid_constant__ rmsnorm_forward_args args, const Plan plan) {
  using Real = decltype(Widen(TX{}));
  constexpr int kCount = kWidth<TX>;
  Team team(plan);
  const Matrix<TX> x(args.x);
  const Matrix<TY> y(args.y);
  const Access gamma_access = AccessOf(args.gamma);
  const bool before_gamma = args.rounding == RMSNORM_ROUND_BEFORE_GAMMA;
  const Real epsilon = static_cast<Real>(args.epsilon);
  const Real gamma_offset = static_cast<Real>(args.gamma_offset);
  const int64_t row = blockIdx.x;
  const Squares<TX> squares = {x.At(row), x.access};
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
      Pack<TX, kCount> pack[1];
      LoadSteps<Reuse::kOnce>(x.At(row) + i, count, x.access, pack);
      Real scales[kCount];
      LoadScales<decltype(g)>(args.gamma, gamma_access, gamma_offset, i, count, scales);
      Store(Scaled<TY>(pack[0], rstd, before_gamma, scales), y.At(row) + i, count, y.access);
    }
  });
  if (args.rstd != nullptr && threadIdx.x == 0) StoreRstd(args, row, rstd);
}

template <class TX, class TY>
void LaunchForward(const rmsnorm_forward_args& args, Queue& queue) {
  const Plan plan = PlanRows(args.n, kLeafThreads<TX>, kMaxThreads, queue.MaxCluster());
  const int64_t shared_bytes = sizeof(Exchange);
  if (plan.blocks == 0) {
    queue.Launch(LongRows<TX, TY>, {args.rows, plan.threads, 1, shared_bytes}, args, plan);
    return;
  }
  const int64_t block_rows = int64_t{plan.teams} * (kLeafSteps / plan.steps);
  const Grid grid = {CeilDiv(args.rows, block_rows) * plan.blocks, plan.threads * plan.teams,
                     plan.blocks, shared_bytes};
  switch (plan.steps) {
    case 1:
      return queue.Launch(HeldRows<TX, TY, 1>, grid, args, plan);
    case 2:
      return queue.Launch(HeldRows<TX, TY, 2>, grid, args, plan);
    case 4:
      return queue.Launch(HeldRows<TX, TY, 4>, grid, args, plan);
    default:
      return queue.Launch(HeldRows<TX, TY, 8>, grid, args, plan);
  }
}

}  // namespace

Refusal Forward(const rmsnorm_forward_args& args, void* stream) {
  Queue queue(stream);
  if (args.x.dtype == RMSNORM_FLOAT64) {
    const Plan plan = {int{kLeafSteps}, kMaxThreads, 1, 0};
    queue.Launch(LongRows<double, double>, {args.rows, kMaxThreads, 1, sizeof(Exchange)}, args,
                 plan);
    return queue.refusal();
  }
  VisitDtype(args.x.dtype, [&](auto x) {
    using TX = decltype(x);
    if (args.y.dtype == RMSNORM_FLOAT32) {
      LaunchForward<TX, float>(args, queue);
    } else {
      LaunchForward<TX, TX>(args, queue);
    }
  });
  return queue.refusal();
}

}  // namespace rmsnorm::cuda
