// Queues kernels on a stream of the calling thread's device.
#ifndef RMSNORM_CUDA_QUEUE_CUH_
#define RMSNORM_CUDA_QUEUE_CUH_

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/plan.h"
#include "cuda/row.cuh"

namespace rmsnorm::cuda {

// Whether every row starts at a multiple of 16 bytes.
inline bool FitsVectors(const rmsnorm_matrix& m, int64_t rows) {
  if (m.data == nullptr) return true;
  const int64_t step = rows > 1 ? m.row_stride * SizeOf(m.dtype) : 0;
  return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && step % 16 == 0;
}
inline bool FitsVectors(const rmsnorm_vector& v) {
  return reinterpret_cast<uintptr_t>(v.data) % 16 == 0;
}

// Calls f with values of the C++ types of x and of y or dy, which have passed validation.
template <class F>
void VisitTypes(rmsnorm_dtype x, rmsnorm_dtype other, const F& f) {
  if (x == RMSNORM_FLOAT64) return f(double{}, double{});
  VisitDtype(x, [&](auto element) {
    if (other == RMSNORM_FLOAT32) {
      f(element, float{});
    } else {
      f(element, element);
    }
  });
}

// Calls f with the constant that a plan's steps are.
template <class F>
bool VisitSteps(int steps, const F& f) {
  if (steps == 1) return f(std::integral_constant<int, 1>{});
  if (steps == 2) return f(std::integral_constant<int, 2>{});
  if (steps == 4) return f(std::integral_constant<int, 4>{});
  return f(std::integral_constant<int, 8>{});
}

// The blocks and threads of a kernel; those of one cluster stand side by side.
struct Grid {
  int64_t blocks;
  int threads;
  int cluster = 1;
  int64_t shared_bytes = 0;  // of a block
};

class Queue {
 public:
  explicit Queue(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {
    Check(cudaGetDevice(&device_));
  }

  // Blocks of a cluster that a kernel may have: 1 where the GPU has none.
  int MaxCluster() { return Attribute(cudaDevAttrComputeCapabilityMajor) >= 9 ? kMaxBlocks : 1; }
  int64_t SharedBytes() { return Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

  // Whether the GPU, or the part of it that this process has, can run a cluster of the grid's
  // blocks.
  template <class... Params>
  bool HasRoomFor(void (*kernel)(Params...), const Grid& grid) {
    if (grid.cluster == 1 || grid.blocks == 0) return true;
    cudaFuncAttributes attributes = {};
    Check(cudaFuncGetAttributes(&attributes, kernel));
    if (attributes.ptxVersion < 90) return false;  // made for GPUs without clusters, by the driver
    int clusters = 0;
    cudaLaunchAttribute cluster;
    const cudaLaunchConfig_t config = Prepare(kernel, grid, cluster);
    Check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
    return clusters > 0 || refusal_.text != nullptr;
  }

  // Nothing is queued after a refusal.
  template <class... Params, class... Args>
  void Launch(void (*kernel)(Params...), const Grid& grid, const Args&... args) {
    if (refusal_.text != nullptr) return;
    if (grid.blocks == 0) {
      cudaFuncAttributes attributes;
      return Check(
          cudaFuncGetAttributes(&attributes, kernel));  // a call without rows asks for this
    }
    if (grid.blocks > std::numeric_limits<int32_t>::max()) {
      refusal_.text = "more blocks than a grid holds";
      return;
    }
    cudaLaunchAttribute cluster;
    const cudaLaunchConfig_t config = Prepare(kernel, grid, cluster);
    if (refusal_.text == nullptr) Check(cudaLaunchKernelEx(&config, kernel, args...));
  }

  Refusal refusal() const { return refusal_; }

 private:
  int Attribute(cudaDeviceAttr attribute) {
    int value = 0;
    Check(cudaDeviceGetAttribute(&value, attribute, device_));
    return value;
  }

  // cluster: outlives the use of what is returned.
  template <class... Params>
  cudaLaunchConfig_t Prepare(void (*kernel)(Params...), const Grid& grid,
                             cudaLaunchAttribute& cluster) {
    constexpr int64_t kUsualBytes = 48 << 10;
    if (grid.shared_bytes > kUsualBytes) {
      Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(grid.shared_bytes)));
    }
    cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
    config.blockDim = dim3(static_cast<unsigned>(grid.threads));
    config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
    config.stream = stream_;
    config.attrs = &cluster;
    config.numAttrs = grid.cluster > 1 ? 1 : 0;
    return config;
  }

  void Check(cudaError_t error) {
    if (error == cudaSuccess || refusal_.text != nullptr) return;
    refusal_ = {error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ||
                    error == cudaErrorNoKernelImageForDevice ||
                    error == cudaErrorInvalidDeviceFunction,
                cudaGetErrorString(error)};
    int driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) {
      refusal_.text = "no driver for NVIDIA's GPUs is installed";
    }
    cudaGetLastError();  // told here, and not again by a later call
  }

  cudaStream_t stream_;
  int device_ = 0;
  Refusal refusal_;
};

}  // namespace rmsnorm::cuda

#endif  // RMSNORM_CUDA_QUEUE_CUH_
