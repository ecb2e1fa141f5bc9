// oneDNN as PyPI ships it: its threads are TBB's, and a call goes through a SYCL queue, which costs
// tens of microseconds.
#include "onednn.h"

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/task_arena.h>

#include <dnnl.hpp>
#include <map>
#include <string>
#include <utility>

#include "check.h"

namespace rmsnorm::bench {

namespace {

using dnnl::memory;
using dnnl::normalization_flags;
using oneapi::tbb::global_control;
using Arguments = std::unordered_map<int, memory>;

struct Device {
  dnnl::engine engine;
  dnnl::stream stream;

  Device() : engine(MakeEngine()), stream(engine) {}

  static dnnl::engine MakeEngine() {
    setenv("OCL_ICD_FILENAMES", RMSNORM_ONEDNN_OPENCL, /*overwrite=*/0);  // SYCL's CPU
    return dnnl::engine(dnnl::engine::kind::cpu, 0);
  }
};

Device& TheDevice() {
  static Device device;
  return device;
}

memory::data_type DataType(rmsnorm_dtype dtype) {
  if (dtype == RMSNORM_FLOAT32) return memory::data_type::f32;
  return dtype == RMSNORM_FLOAT16 ? memory::data_type::f16 : memory::data_type::bf16;
}

struct Descriptions {
  memory::desc x, y, rstd, gamma, dgamma;  // gamma in float32: oneDNN's fast kernels want it

  explicit Descriptions(const Call& call)
      : x({call.shape.rows, call.shape.n}, DataType(call.dtype),
          memory::dims{call.shape.row_stride, 1}),
        y({call.shape.rows, call.shape.n}, DataType(call.dtype), memory::dims{call.shape.n, 1}),
        rstd({call.shape.rows}, memory::data_type::f32, memory::dims{1}),
        gamma({call.shape.n}, memory::data_type::f32, memory::dims{1}),
        dgamma({call.shape.n}, memory::data_type::f32, memory::dims{1}) {}
};

const auto kFlags = normalization_flags::rms_norm | normalization_flags::use_scale;

dnnl::layer_normalization_forward::primitive_desc ForwardOf(const Descriptions& of) {
  return {TheDevice().engine,
          dnnl::prop_kind::forward_training,
          of.x,
          of.y,
          of.rstd,
          memory::data_type::f32,
          kEpsilon,
          kFlags};
}

// In memory of its own.
memory Gamma(const Call& call, const Descriptions& of) {
  memory gamma(of.gamma, TheDevice().engine);
  float* values = gamma.map_data<float>();
  for (int64_t i = 0; i < call.shape.n; ++i) {
    values[i] = static_cast<float>(Element(call.operands->gamma, call.dtype, i));
  }
  gamma.unmap_data(values);
  return gamma;
}

// Runs make() and what it returns with the call's number of threads.
template <class Make>
std::function<void()> WithThreads(const Call& call, const Make& make) {
  auto arena = std::make_shared<oneapi::tbb::task_arena>(call.threads);
  std::function<void()> execute;
  try {
    arena->execute([&] { execute = make(); });
  } catch (const dnnl::error& error) {
    if (error.status != dnnl_unimplemented) throw;
    return nullptr;
  }
  const auto limit =
      std::make_shared<global_control>(global_control::max_allowed_parallelism, call.threads);
  return [=] {
    static_cast<void>(limit);  // for as long as this lives
    arena->execute(execute);
  };
}

template <class Primitive>
std::function<void()> Execution(Primitive primitive, Arguments arguments) {
  return [primitive = std::move(primitive), arguments = std::move(arguments)] {
    primitive.execute(TheDevice().stream, arguments);
    TheDevice().stream.wait();
  };
}

}  // namespace

std::function<void()> OneDnnForward(const Call& call) {
  return WithThreads(call, [&] {
    const Descriptions of(call);
    const Operands& in = *call.operands;
    const auto& engine = TheDevice().engine;
    return Execution(dnnl::layer_normalization_forward(ForwardOf(of)),
                     {{DNNL_ARG_SRC, memory(of.x, engine, in.x.get())},
                      {DNNL_ARG_SCALE, Gamma(call, of)},
                      {DNNL_ARG_DST, memory(of.y, engine, in.y.get())},
                      {DNNL_ARG_VARIANCE, memory(of.rstd, engine, in.rstd.get())}});
  });
}

std::function<void()> OneDnnBackward(const Call& call) {
  return WithThreads(call, [&] {
    const Descriptions of(call);
    const Operands& in = *call.operands;
    const auto& engine = TheDevice().engine;
    const dnnl::layer_normalization_backward::primitive_desc backward(
        engine, dnnl::prop_kind::backward, of.y, of.y, of.x, of.rstd, memory::data_type::f32,
        memory::data_type::f32, kEpsilon, kFlags, ForwardOf(of));
    return Execution(dnnl::layer_normalization_backward(backward),
                     {{DNNL_ARG_SRC, memory(of.x, engine, in.x.get())},
                      {DNNL_ARG_DIFF_DST, memory(of.y, engine, in.dy.get())},
                      {DNNL_ARG_SCALE, Gamma(call, of)},
                      {DNNL_ARG_VARIANCE, memory(of.rstd, engine, in.rstd.get())},
                      {DNNL_ARG_DIFF_SRC, memory(of.y, engine, in.y.get())},
                      {DNNL_ARG_DIFF_SCALE, memory(of.dgamma, engine, in.dgamma.get())}});
  });
}

std::string OneDnnVersion() {
  const dnnl_version_t* version = dnnl_version();
  return std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
         std::to_string(version->patch);
}

}  // namespace rmsnorm::bench
