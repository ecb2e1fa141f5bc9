// The operators as C++ calls through PyTorch's dispatcher, for autograd and for rmsnorm.call.
#ifndef RMSNORM_BINDINGS_TORCH_OPS_H_
#define RMSNORM_BINDINGS_TORCH_OPS_H_

#include <ATen/ATen.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace rmsnorm::torch_binding {

using at::Tensor;
using MaybeTensor = std::optional<at::Tensor>;

// Visible to the library of rmsnorm.call.
[[gnu::visibility("default")]] std::tuple<Tensor, Tensor> RmsNorm(
    const Tensor& x, const MaybeTensor& gamma, double epsilon, double gamma_offset,
    std::string_view rounding, std::optional<at::ScalarType> out_dtype);

void RmsNormOut(const Tensor& x, const MaybeTensor& gamma, double epsilon, double gamma_offset,
                std::string_view rounding, Tensor& out);

// wanted: dx, dgamma; what isn't wanted comes back empty, of shape [0].
std::tuple<Tensor, Tensor> RmsNormBackward(const Tensor& dy, const Tensor& x,
                                           const MaybeTensor& gamma, const Tensor& rstd,
                                           double gamma_offset, std::array<bool, 2> wanted);

}  // namespace rmsnorm::torch_binding

#endif  // RMSNORM_BINDINGS_TORCH_OPS_H_
