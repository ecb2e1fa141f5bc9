// The operators as C++ calls through PyTorch's dispatcher, for autograd and for rmsnorm.call.
#ifndef RMSNORM_BINDINGS_TORCH_OPS_H_
#define RMSNORM_BINDINGS_TORCH_OPS_H_

#include <array>
#include <tuple>

#include "types.h"

namespace rmsnorm::torch_binding {

// Visible to the library of rmsnorm.call.
[[gnu::visibility("default")]] std::tuple<Tensor, Tensor> RmsNorm(
    const Tensor& x, const MaybeTensor& gamma, double epsilon, double gamma_offset,
    StringView rounding, Optional<at::ScalarType> out_dtype);

void RmsNormOut(const Tensor& x, const MaybeTensor& gamma, double epsilon, double gamma_offset,
                StringView rounding, Tensor& out);

// wanted: dx, dgamma; what isn't wanted comes back empty, of shape [0].
std::tuple<Tensor, Tensor> RmsNormBackward(const Tensor& dy, const Tensor& x,
                                           const MaybeTensor& gamma, const Tensor& rstd,
                                           double gamma_offset, std::array<bool, 2> wanted);

}  // namespace rmsnorm::torch_binding

#endif  // RMSNORM_BINDINGS_TORCH_OPS_H_
