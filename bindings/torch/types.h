// Types of PyTorch's signatures that versions name differently.
#ifndef RMSNORM_BINDINGS_TORCH_TYPES_H_
#define RMSNORM_BINDINGS_TORCH_TYPES_H_

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>

#include <utility>

namespace rmsnorm::torch_binding {

using at::Tensor;

// c10's own at first, std's in newer versions; a kernel with the other one doesn't compile.
template <class T>
using Optional = decltype(std::declval<at::IValue&>().template toOptional<T>());
using StringView = decltype(std::declval<const at::IValue&>().toStringView());

using MaybeTensor = Optional<Tensor>;

}  // namespace rmsnorm::torch_binding

#endif  // RMSNORM_BINDINGS_TORCH_TYPES_H_
