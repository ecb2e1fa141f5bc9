// The C++ kernels beside plain streams of the same bytes and oneDNN, into memory that was touched.
//   rmsnorm_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=7
#include <benchmark/benchmark.h>
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "shapes.h"
#include "streams.h"
#ifdef RMSNORM_ONEDNN_OPENCL
#include "onednn.h"
#endif

namespace rmsnorm::bench {
namespace {

void MustSucceed(rmsnorm_status status) {
  if (status != RMSNORM_OK) throw std::runtime_error(rmsnorm_last_error());
}

std::function<void()> Forward(const Call& call) {
  const auto& [shape, dtype, threads, operands] = call;
  rmsnorm_forward_args args = {};
  args.size = sizeof(args);
  args.rows = shape.rows;
  args.n = shape.n;
  args.x = {operands->x.get(), shape.row_stride, dtype};
  args.gamma = {operands->gamma.get(), dtype};
  args.y = {operands->y.get(), shape.n, dtype};
  args.rstd = operands->rstd.get();
  args.epsilon = kEpsilon;
  args.rounding = RMSNORM_ROUND_ONCE;
  return [args] { MustSucceed(rmsnorm_forward(&args, nullptr)); };
}

std::function<void()> Backward(const Call& call) {
  const auto& [shape, dtype, threads, operands] = call;
  rmsnorm_backward_args args = {};
  args.size = sizeof(args);
  args.rows = shape.rows;
  args.n = shape.n;
  args.dy = {operands->dy.get(), shape.n, dtype};
  args.x = {operands->x.get(), shape.row_stride, dtype};
  args.gamma = {operands->gamma.get(), dtype};
  args.rstd = operands->rstd.get();
  args.dx = {operands->y.get(), shape.n, dtype};
  args.dgamma = operands->dgamma.get();
  args.workspace = operands->workspace.get();
  args.workspace_size = rmsnorm_backward_workspace(shape.rows, shape.n, nullptr);
  return [args] { MustSucceed(rmsnorm_backward(&args, nullptr)); };
}

template <void (*stream)(const Call&)>
std::function<void()> Limit(const Call& call) {
  return [call] { stream(call); };
}

using Make = std::function<void()> (*)(const Call&);

// A way to do a pass; `forward` writes what its backward pass reads. Streams compute nothing.
struct Way {
  const char* pass;
  const char* name;
  Make make;
  Make forward = nullptr;
  std::string (*wrong)(const Call&) = nullptr;
};

constexpr Way kWays[] = {
    {"forward", "memcpy", &Limit<&CopyByMemcpy>},
    {"forward", "copy past cache", &Limit<&CopyPastCache>},
    {"forward", "rmsnorm", &Forward, &Forward, &WrongInForward},
    {"backward", "read two, write one", &Limit<&ReadTwoWriteOne>},
    {"backward", "read two, write one past cache", &Limit<&ReadTwoPastCache>},
    {"backward", "rmsnorm", &Backward, &Forward, &WrongInBackward},
#ifdef RMSNORM_ONEDNN_OPENCL
    {"forward", "oneDNN", &OneDnnForward, &OneDnnForward, &WrongInForward},
    {"backward", "oneDNN", &OneDnnBackward, &OneDnnForward, &WrongInBackward},
#endif
};

// What is wrong with one run of it, "" if nothing.
std::string Wrong(const Way& way, const Call& call, const std::function<void()>& run) {
  if (way.wrong == nullptr) return "";
  const auto forget = [&call] {  // what another way wrote: NaN
    std::memset(call.operands->y.get(), 0xFF, call.Bytes());
    std::memset(call.operands->dgamma.get(), 0xFF, sizeof(float) * call.shape.n);
  };
  forget();
  std::memset(call.operands->rstd.get(), 0xFF, sizeof(float) * call.shape.rows);
  way.forward(call)();
  forget();
  run();
  return way.wrong(call);
}

void ShowProgress(const std::string& name) {
  static int count = 0;
  if (isatty(STDERR_FILENO)) std::fprintf(stderr, "\r\x1b[K%5d  %s", ++count, name.c_str());
}

void Measure(benchmark::State& state, const Way& way, const Call& call, std::string name) {
  static std::map<std::string, std::string> verdicts;  // over repetitions
  omp_set_num_threads(call.threads);
  const std::function<void()> run = way.make(call);
  if (!run) return state.SkipWithError("refused");
  if (!verdicts.contains(name)) verdicts[name] = Wrong(way, call, run);
  state.SetLabel(verdicts[name]);
  ShowProgress(name);
  run();  // starts its threads
  for (auto _ : state) {
    run();
    benchmark::ClobberMemory();
  }
  const int64_t streams = way.pass == std::string("forward") ? 2 : 3;
  state.SetBytesProcessed(state.iterations() * streams * call.Bytes());
}

// Rows of 2^exponent in float32: 0 is normal; -140 makes x and y subnormal; 100 has squares beyond
// float32, so that the sum is taken again in binary64.
void ForwardOfPowers(benchmark::State& state) {
  const Shape shape{512, 4096, 4096};
  const Operands operands({shape});
  const float value = std::ldexp(1.0f, static_cast<int>(state.range(0)));
  std::fill_n(static_cast<float*>(operands.x.get()), shape.rows * shape.n, value);
  omp_set_num_threads(1);
  const auto run = Forward({shape, RMSNORM_FLOAT32, 1, &operands});
  for (auto _ : state) run();
}

void Register(const std::vector<Shape>& shapes, const Operands& operands) {
  const std::pair<rmsnorm_dtype, const char*> dtypes[] = {
      {RMSNORM_FLOAT32, "float32"}, {RMSNORM_BFLOAT16, "bfloat16"}, {RMSNORM_FLOAT16, "float16"}};
  for (const Shape& shape : shapes) {
    for (const auto& [dtype, dtype_name] : dtypes) {
      for (const int threads : std::set{1, omp_get_num_procs()}) {
        for (const Way& way : kWays) {
          const std::string name = std::string(way.pass) + "/" + way.name + "/" + dtype_name + "/" +
                                   shape.Name() + "/" + std::to_string(threads);
          const Call call{shape, dtype, threads, &operands};
          benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
            Measure(state, way, call, name);
          })->UseRealTime();
        }
      }
    }
  }
  benchmark::RegisterBenchmark("ForwardOfPowers", &ForwardOfPowers)
      ->ArgName("exponent")
      ->Arg(0)
      ->Arg(-140)
      ->Arg(100)
      ->UseRealTime();
}

}  // namespace
}  // namespace rmsnorm::bench

int main(int argc, char** argv) {
  using namespace rmsnorm::bench;
  const std::vector<Shape> shapes = ReadShapes(RMSNORM_BENCH_SHAPES);
  const Operands operands(shapes);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("cpu_targets", rmsnorm_cpu_targets());
#ifdef RMSNORM_ONEDNN_OPENCL
  benchmark::AddCustomContext("onednn", OneDnnVersion());
#endif
  Register(shapes, operands);
  benchmark::RunSpecifiedBenchmarks();
  if (isatty(STDERR_FILENO)) std::fputs("\r\x1b[K", stderr);
}
