// Autocast: on each device what PyTorch of this version does to torch.rms_norm.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "ops.h"

namespace rmsnorm::torch_binding {
namespace {

// Whether this PyTorch has torch.rms_norm compute in float32 under autocast of a device.
bool PyTorchWidens(c10::DispatchKey autocast) {
  const auto op = c10::Dispatcher::singleton().findSchema({"aten::rms_norm", ""});
  return op && op->hasKernelForDispatchKey(autocast);
}

// y is float32. x stays as it is: the kernels compute in float32 anyway, and with one rounding the
// result is that of x cast to float32; "before_gamma" still rounds to x's type. out_dtype, where it
// is given, goes first, as for PyTorch's operators that have an argument dtype.
template <c10::DispatchKey kAutocast>
std::tuple<Tensor, Tensor> RmsNormAutocast(const Tensor& x, const MaybeTensor& gamma,
                                           double epsilon, double gamma_offset, StringView rounding,
                                           Optional<at::ScalarType> out_dtype) {
  const c10::impl::ExcludeDispatchKeyGuard below(kAutocast);
  const bool narrow = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  if (!out_dtype && narrow) out_dtype = at::kFloat;
  return RmsNorm(x, gamma, epsilon, gamma_offset, rounding, out_dtype);
}

template <c10::DispatchKey kAutocast>
void Implement(torch::Library& m) {
  if (PyTorchWidens(kAutocast)) m.impl("rms_norm", RmsNormAutocast<kAutocast>);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmsnorm, AutocastCPU, m) { Implement<c10::DispatchKey::AutocastCPU>(m); }
TORCH_LIBRARY_IMPL(rmsnorm, AutocastCUDA, m) { Implement<c10::DispatchKey::AutocastCUDA>(m); }

}  // namespace rmsnorm::torch_binding
