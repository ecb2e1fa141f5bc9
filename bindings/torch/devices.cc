#include "devices.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <sys/mman.h>

namespace rmsnorm::torch_binding {
namespace {

void RunInParallel(void*, int64_t count, rmsnorm_task task, void* data) {
  at::parallel_for(0, count, /*grain_size=*/1,
                   [&](int64_t begin, int64_t end) { task(data, begin, end); });
}

// PyTorch's stable C function for the current stream, looked up by name: a library that links to
// libtorch_cuda would not load in a PyTorch without CUDA.
// Source: torch/csrc/inductor/aoti_torch/c/shim.h.
void* CurrentStream(c10::DeviceIndex device) {
  using Get = int32_t (*)(int32_t device, void** stream);
  static const auto get = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return torch_cuda == nullptr
               ? nullptr
               : reinterpret_cast<Get>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  TORCH_CHECK(get != nullptr && get(device, &stream) == 0,
              "x: device cuda; this PyTorch doesn't say which stream is current");
  return stream;
}

}  // namespace

Cpu::Cpu(const at::Tensor&)
    : runner_{sizeof(rmsnorm_runner), at::in_parallel_region() ? 1 : at::get_num_threads(), nullptr,
              RunInParallel} {}

at::Tensor Cpu::Fresh(at::IntArrayRef sizes, at::ScalarType type) const {
  at::Tensor tensor = at::detail::empty_cpu(sizes, type);
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHugePage = 2 << 20;
  if (tensor.nbytes() >= 2 * kHugePage) {  // so that a whole one lies inside
    const uintptr_t data = reinterpret_cast<uintptr_t>(tensor.data_ptr());
    const uintptr_t begin = (data + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t end = (data + tensor.nbytes()) / kHugePage * kHugePage;
    // Advice only: where it is refused, the memory is what it was.
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

Cuda::Cuda(const at::Tensor& x)
    : options_(x.options()), guard_(x.device()), stream_(CurrentStream(x.device().index())) {}

at::Tensor Cuda::Fresh(at::IntArrayRef sizes, at::ScalarType type) const {
  return at::empty(sizes, options_.dtype(type));
}

}  // namespace rmsnorm::torch_binding
