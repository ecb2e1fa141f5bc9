#include "formula.h"

#include <numeric>

namespace rmsnorm::torch_binding {

// rstd is a function of x: with the epsilon, a constant, that gives the saved value.
Formula::Formula(const Tensor& x, const MaybeTensor& gamma, const Tensor& rstd,
                 double gamma_offset) {
  const int64_t axes = gamma ? gamma->dim() : 1;
  inner_.resize(axes);
  outer_.resize(x.dim() - axes);
  std::iota(inner_.begin(), inner_.end(), x.dim() - axes);
  std::iota(outer_.begin(), outer_.end(), 0);
  if (gamma) scale_ = gamma->to(at::kDouble) + gamma_offset;
  const Tensor wide_x = x.to(at::kDouble);
  const Tensor mean_square = Mean(wide_x.square());
  const Tensor epsilon = (rstd.to(at::kDouble).pow(-2) - mean_square).detach();
  rstd_ = (mean_square + epsilon).rsqrt();
  xhat_ = wide_x * rstd_;
}

Tensor Formula::Mean(const Tensor& tensor) const { return tensor.mean(inner_, /*keepdim=*/true); }

Tensor Formula::SumOfRows(const Tensor& tensor) const {
  return outer_.empty() ? tensor : tensor.sum(outer_);
}

Tensor Formula::Project(const Tensor& tensor) const {
  return (tensor - xhat_ * Mean(tensor * xhat_)) * rstd_;
}

// With J = Project and w = Scaled(dy), the results are dx = J w and dgamma = sum of dy xhat. J
// depends on x by xhat, whose derivative is J, and by rstd, whose derivative is -rstd^2 xhat / n.
std::tuple<Tensor, Tensor, Tensor> Formula::BackwardOfBackward(const Tensor& u, const Tensor& v,
                                                               const Tensor& dy) const {
  const Tensor zero = at::zeros({}, xhat_.options());
  const Tensor wide_u = u.defined() ? u.to(at::kDouble) : zero;
  const Tensor wide_v = v.defined() ? v.to(at::kDouble) : zero;
  const Tensor wide_dy = dy.to(at::kDouble);
  const Tensor w = Scaled(wide_dy);
  const Tensor projected_u = Project(wide_u);
  const Tensor mean_u = Mean(wide_u * xhat_), mean_w = Mean(w * xhat_);
  const Tensor by_rstd = xhat_ * rstd_.square() * (Mean(wide_u * w) - mean_u * mean_w);
  const Tensor by_xhat = (mean_w * projected_u + mean_u * Project(w)) * rstd_;
  return {Scaled(projected_u) + wide_v * xhat_, Project(wide_dy * wide_v) - by_rstd - by_xhat,
          SumOfRows(projected_u * wide_dy)};
}

}  // namespace rmsnorm::torch_binding
