// torch.ops.rmsnorm_test.in_parallel, with which tests/test_faults.py calls the operators inside a
// parallel region of PyTorch's.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "types.h"

namespace {

using at::Tensor;
using rmsnorm::torch_binding::MaybeTensor;
using rmsnorm::torch_binding::Optional;
using rmsnorm::torch_binding::StringView;
using RmsNorm = std::tuple<Tensor, Tensor>(const Tensor&, const MaybeTensor&, double, double,
                                           StringView, Optional<at::ScalarType>);

// y of each x, one call of the operator for each, on PyTorch's threads.
std::vector<Tensor> InParallel(const std::vector<Tensor>& xs, const Tensor& gamma) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("rmsnorm::rms_norm", "").typed<RmsNorm>();
  std::vector<Tensor> ys(xs.size());
  at::parallel_for(0, static_cast<int64_t>(xs.size()), /*grain_size=*/1,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       TORCH_CHECK(at::in_parallel_region());
                       ys[i] = std::get<0>(op.call(xs[i], gamma, 1e-6, 0, "once", {}));
                     }
                   });
  return ys;
}

TORCH_LIBRARY(rmsnorm_test, m) {
  m.def("in_parallel(Tensor[] xs, Tensor gamma) -> Tensor[]", InParallel);
}

}  // namespace
