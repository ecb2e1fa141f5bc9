// What the kernels of src/cuda use of CUDA, on the host: every thread of a block is a fiber, and
// the test says in which order blocks and threads take their turns.
#ifndef RMSNORM_TESTS_EXECUTOR_EXECUTOR_H_
#define RMSNORM_TESTS_EXECUTOR_EXECUTOR_H_

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "core/dtype.h"

namespace executor {

// The GPU that is played, and the order in which it works.
struct Device {
  int major = 9;                 // of the compute capability
  int shared_bytes = 227 << 10;  // that a block may ask for
  uint64_t seed = 0;             // of the order of blocks, and of threads between two barriers
  int64_t launches = 0;          // so far
  int most_clusters = 1;         // at a time; 0: a cluster never fits
  int refusal = 0;               // the cudaError_t that a launch gets
};
extern "C" [[gnu::visibility("default")]] Device* executor_device();

struct Index {
  constexpr Index(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};

struct Launch {
  Index grid, block;
  unsigned cluster = 1;
  size_t shared_bytes = 0;
};
// Runs the kernel on every thread and returns when all have returned. Ends the program with a
// message where the threads of a kernel wait for one another in vain.
void Run(const Launch& launch, const std::function<void()>& kernel);

// Ends the program: a kernel has done what a GPU would refuse or leave undefined.
[[noreturn]] void Fail(const char* what);

void MeetBlock();
void ArriveAtCluster();
void MeetCluster();

// Gives `bits` to the other threads of the warp and returns those that thread `source` gave.
uint64_t Exchange(uint64_t bits, int source);

template <class T>
T Shuffle(T value, int source) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = Exchange(bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
int LaneOfWarp();
bool Any(bool mine);  // of the warp's threads

// The memory that a block of the kernel may ask for: 48 KB until it is set.
size_t& SharedBytesOf(void* kernel);

void* OfBlock(const void* shared, unsigned block);

void Copy(void* to, const void* from, size_t bytes);
void Commit();
void Await(size_t groups_left);

template <class T>
const T* Aligned(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0)
    Fail("a vector at an address that isn't aligned");
  return p;
}

}  // namespace executor

// Names of CUDA's own.
using dim3 = executor::Index;
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

#define __global__
#define __device__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)

extern dim3 threadIdx, blockIdx, blockDim;

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }

struct __half_raw {
  unsigned short x;
};
struct __half2_raw {
  unsigned short x, y;
};
struct __nv_bfloat162_raw {
  unsigned short x, y;
};
inline float __half2float(__half_raw h) { return rmsnorm::ToFloat(rmsnorm::Float16{h.x}); }
inline __half2_raw __floats2half2_rn(float a, float b) {
  return {rmsnorm::FromFloat<rmsnorm::Float16>(a).bits,
          rmsnorm::FromFloat<rmsnorm::Float16>(b).bits};
}
inline __nv_bfloat162_raw __floats2bfloat162_rn(float a, float b) {
  return {rmsnorm::FromFloat<rmsnorm::BFloat16>(a).bits,
          rmsnorm::FromFloat<rmsnorm::BFloat16>(b).bits};
}

template <class T>
T __ldcs(const T* from) {
  return *executor::Aligned(from);
}
template <class T>
T __ldca(const T* from) {
  return *executor::Aligned(from);
}
template <class T>
T __ldg(const T* from) {
  return *executor::Aligned(from);
}
template <class T>
void __stcs(T* to, T value) {
  *const_cast<T*>(executor::Aligned(to)) = value;
}

inline void __syncthreads() { executor::MeetBlock(); }
template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return executor::Shuffle(value, source);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  return executor::Shuffle(value, executor::LaneOfWarp() ^ distance);
}
inline bool __any_sync(unsigned, bool mine) { return executor::Any(mine); }

inline void* __cluster_map_shared_rank(const void* shared, unsigned block) {
  return executor::OfBlock(shared, block);
}
inline void __cluster_barrier_arrive() { executor::ArriveAtCluster(); }
inline void __cluster_barrier_arrive_relaxed() { executor::ArriveAtCluster(); }
inline void __cluster_barrier_wait() { executor::MeetCluster(); }

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  executor::Copy(to, from, bytes);
}
inline void __pipeline_commit() { executor::Commit(); }
inline void __pipeline_wait_prior(size_t groups_left) { executor::Await(groups_left); }

using cudaStream_t = struct CUstream_st*;
enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorMemoryAllocation,
  cudaErrorNoDevice,
  cudaErrorInsufficientDriver,
  cudaErrorNoKernelImageForDevice,
  cudaErrorInvalidDeviceFunction
};
struct cudaFuncAttributes {
  int ptxVersion;
};
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return posix_memalign(memory, 256, bytes) == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const executor::Device& device = *executor::executor_device();
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? device.major : device.shared_bytes;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int shared_bytes) {
  if (shared_bytes > executor::executor_device()->shared_bytes) return cudaErrorInvalidValue;
  executor::SharedBytesOf(reinterpret_cast<void*>(kernel)) = shared_bytes;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  attributes->ptxVersion = 10 * executor::executor_device()->major;
  return static_cast<cudaError_t>(executor::executor_device()->refusal);
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                       ? "no error"
         : error == cudaErrorNoKernelImageForDevice ? "no kernel image"
                                                    : "invalid argument";
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel, const cudaLaunchConfig_t*) {
  *clusters = executor::executor_device()->most_clusters;
  return cudaSuccess;
}

// The kernel's parameters are copied, as a GPU copies them.
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args... args) {
  const executor::Device& device = *executor::executor_device();
  const unsigned cluster = config->numAttrs > 0 ? config->attrs->val.clusterDim.x : 1;
  const bool fits =
      config->gridDim.x > 0 && config->gridDim.x % cluster == 0 && cluster <= 8 &&
      (cluster == 1 || device.major >= 9) && config->blockDim.x <= 1024 &&
      config->dynamicSmemBytes <= static_cast<size_t>(device.shared_bytes) &&
      config->dynamicSmemBytes <= executor::SharedBytesOf(reinterpret_cast<void*>(kernel)) &&
      (cluster == 1 || device.most_clusters > 0);
  if (!fits) return cudaErrorInvalidValue;
  if (device.refusal != 0) return static_cast<cudaError_t>(device.refusal);
  executor::Run({config->gridDim, config->blockDim, cluster, config->dynamicSmemBytes},
                [&] { kernel(args...); });
  return cudaSuccess;
}

#endif  // RMSNORM_TESTS_EXECUTOR_EXECUTOR_H_
