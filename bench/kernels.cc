// The kernels alone on one thread, beside memcpy: outputs touched, no PyTorch.
//   OMP_NUM_THREADS=1 rmsnorm_bench --benchmark_repetitions=7
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "rmsnorm/rmsnorm.h"

namespace {

struct FreeDelete {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, FreeDelete>;

Memory Touched(size_t bytes) {
  Memory memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  std::memset(memory.get(), 0, bytes);
  return memory;
}

// x, dy, y and gamma of one dtype; zeros, whose speed is that of other values.
struct Call {
  int64_t rows, n;
  rmsnorm_dtype dtype;
  size_t bytes;
  Memory x, dy, y, gamma, rstd, dgamma, workspace;

  explicit Call(const benchmark::State& state)
      : rows(state.range(0)),
        n(state.range(1)),
        dtype(static_cast<rmsnorm_dtype>(state.range(2))),
        bytes(rows * n * (dtype == RMSNORM_FLOAT32 ? 4 : 2)),
        x(Touched(bytes)),
        dy(Touched(bytes)),
        y(Touched(bytes)),
        gamma(Touched(4 * n)),
        rstd(Touched(4 * rows)),
        dgamma(Touched(4 * n)),
        workspace(Touched(rmsnorm_backward_workspace(rows, n, nullptr))) {}

  rmsnorm_matrix Matrix(const Memory& memory) const { return {memory.get(), n, dtype}; }
};

void Copy(benchmark::State& state) {
  const Call call(state);
  for (auto _ : state) {
    std::memcpy(call.y.get(), call.x.get(), call.bytes);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * 2 * call.bytes);
}

void RunForward(benchmark::State& state, const Call& call) {
  rmsnorm_forward_args args = {};
  args.size = sizeof(args);
  args.rows = call.rows;
  args.n = call.n;
  args.x = call.Matrix(call.x);
  args.gamma = {call.gamma.get(), call.dtype};
  args.y = call.Matrix(call.y);
  args.rstd = static_cast<float*>(call.rstd.get());
  args.epsilon = 1e-6;
  args.rounding = RMSNORM_ROUND_ONCE;
  for (auto _ : state) {
    if (rmsnorm_forward(&args, nullptr)) state.SkipWithError(rmsnorm_last_error());
  }
  state.SetBytesProcessed(state.iterations() * 2 * call.bytes);
}

void Forward(benchmark::State& state) { RunForward(state, Call(state)); }

// Rows of 2^exponent in float32: 0 is normal; -140 makes x and y subnormal; 100 has squares beyond
// float32, so that the sum is taken again in binary64.
void ForwardOfPowers(benchmark::State& state) {
  const Call call(state);
  const float value = std::ldexp(1.0f, static_cast<int>(state.range(3)));
  std::fill_n(static_cast<float*>(call.x.get()), call.rows * call.n, value);
  RunForward(state, call);
}

void Backward(benchmark::State& state) {
  const Call call(state);
  rmsnorm_backward_args args = {};
  args.size = sizeof(args);
  args.rows = call.rows;
  args.n = call.n;
  args.dy = call.Matrix(call.dy);
  args.x = call.Matrix(call.x);
  args.gamma = {call.gamma.get(), call.dtype};
  args.rstd = static_cast<float*>(call.rstd.get());
  args.dx = call.Matrix(call.y);
  args.dgamma = static_cast<float*>(call.dgamma.get());
  args.workspace = call.workspace.get();
  args.workspace_size = rmsnorm_backward_workspace(call.rows, call.n, nullptr);
  for (auto _ : state) {
    if (rmsnorm_backward(&args, nullptr)) state.SkipWithError(rmsnorm_last_error());
  }
  state.SetBytesProcessed(state.iterations() * 3 * call.bytes);
}

void Shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"rows", "n", "dtype"})->UseRealTime();
  for (const int64_t dtype : {RMSNORM_FLOAT32, RMSNORM_FLOAT16, RMSNORM_BFLOAT16}) {
    for (const auto& [rows, n] : {std::pair<int64_t, int64_t>{1, 4096},
                                  {8, 4096},
                                  {512, 4096},
                                  {4096, 4096},
                                  {1024, 12288},
                                  {65536, 128}}) {
      bench->Args({rows, n, dtype});
    }
  }
}

BENCHMARK(Copy)->Apply(Shapes);
BENCHMARK(Forward)->Apply(Shapes);
BENCHMARK(ForwardOfPowers)
    ->ArgNames({"rows", "n", "dtype", "exponent"})
    ->ArgsProduct({{512}, {4096}, {RMSNORM_FLOAT32}, {0, -140, 100}})
    ->UseRealTime();
BENCHMARK(Backward)->Apply(Shapes);

}  // namespace
