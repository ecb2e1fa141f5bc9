// The norm in float64 by PyTorch's operators, which it can differentiate any number of times: what
// tangents and derivatives of derivatives come from.
#ifndef RMSNORM_BINDINGS_TORCH_FORMULA_H_
#define RMSNORM_BINDINGS_TORCH_FORMULA_H_

#include <tuple>

#include "ops.h"

namespace rmsnorm::torch_binding {

// One call's x, gamma and saved rstd. All results are float64.
class Formula {
 public:
  Formula(const Tensor& x, const MaybeTensor& gamma, const Tensor& rstd, double gamma_offset);

  Tensor Y() const { return Scaled(xhat_); }
  Tensor Dx(const Tensor& dy) const { return Project(Scaled(dy.to(at::kDouble))); }
  Tensor Dgamma(const Tensor& dy) const { return SumOfRows(dy.to(at::kDouble) * xhat_); }

  // The gradients of dy, x and gamma from those of Dx(dy) and Dgamma(dy), u and v; an undefined one
  // stands for zeros.
  std::tuple<Tensor, Tensor, Tensor> BackwardOfBackward(const Tensor& u, const Tensor& v,
                                                        const Tensor& dy) const;

 private:
  Tensor Scaled(const Tensor& tensor) const { return scale_.defined() ? tensor * scale_ : tensor; }
  Tensor Mean(const Tensor& tensor) const;
  Tensor SumOfRows(const Tensor& tensor) const;
  // The derivative of xhat by x, times a tensor; it is symmetric.
  Tensor Project(const Tensor& tensor) const;

  at::DimVector inner_, outer_;  // axes: of a row, of the rows
  Tensor scale_;                 // gamma + gamma_offset; undefined without gamma
  Tensor rstd_, xhat_;
};

}  // namespace rmsnorm::torch_binding

#endif  // RMSNORM_BINDINGS_TORCH_FORMULA_H_
