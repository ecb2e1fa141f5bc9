// Gradients: the backward operator for rms_norm, and a composite formula for the backward operator.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <numeric>

#include "ops.h"

namespace rmsnorm::torch_binding {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

bool NeedsGrad(const MaybeTensor& tensor) { return tensor && tensor->requires_grad(); }

// A tangent of forward-mode differentiation would be lost without a word.
void CheckNoTangent(const char* name, const MaybeTensor& tensor) {
  TORCH_CHECK_NOT_IMPLEMENTED(!tensor || !tensor->_fw_grad(/*level=*/0).defined(), name,
                              ": rmsnorm has no forward-mode derivative; use reverse mode");
}

Tensor OrUndefined(const MaybeTensor& tensor) { return tensor.value_or(Tensor()); }

MaybeTensor OrAbsent(const Tensor& tensor) {
  return tensor.defined() ? MaybeTensor(tensor) : MaybeTensor();
}

struct RmsNormFunction : Function<RmsNormFunction> {
  static constexpr bool is_traceable = true;  // compiled autograd may trace backward

  // rstd has no gradient; as an output it would be refused by compiled autograd.
  static Tensor forward(AutogradContext* context, const Tensor& x, const MaybeTensor& gamma,
                        double epsilon, double gamma_offset, StringView rounding,
                        Optional<at::ScalarType> out_dtype, Tensor* rstd) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor y;
    std::tie(y, *rstd) = RmsNorm(x, gamma, epsilon, gamma_offset, rounding, out_dtype);
    context->save_for_backward({x, OrUndefined(gamma), *rstd});
    context->saved_data["gamma_offset"] = gamma_offset;
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const MaybeTensor gamma = OrAbsent(saved[1]);
    const std::array<bool, 2> wanted = {context->needs_input_grad(0),
                                        gamma && context->needs_input_grad(1)};
    auto [dx, dgamma] = RmsNormBackward(gradients[0], saved[0], gamma, saved[2],
                                        context->saved_data["gamma_offset"].toDouble(), wanted);
    variable_list result(7);  // an argument of forward each; all but x and gamma have none
    if (wanted[0]) result[0] = dx;
    if (wanted[1]) result[1] = dgamma.to(gamma->scalar_type());
    return result;
  }
};

// dx and dgamma in float64, of operators that PyTorch can differentiate any number of times. rstd
// is recomputed as a function of x, with the epsilon that gives the saved value.
std::tuple<Tensor, Tensor> Composite(const Tensor& dy, const Tensor& x, const MaybeTensor& gamma,
                                     const Tensor& rstd, double gamma_offset) {
  const int64_t axes = gamma ? gamma->dim() : 1;
  at::DimVector inner(axes), outer(x.dim() - axes);
  std::iota(inner.begin(), inner.end(), x.dim() - axes);
  std::iota(outer.begin(), outer.end(), 0);
  const Tensor wide_x = x.to(at::kDouble);
  const Tensor wide_dy = dy.to(at::kDouble);
  const Tensor mean_square = wide_x.square().mean(inner, /*keepdim=*/true);
  const Tensor epsilon = (rstd.to(at::kDouble).pow(-2) - mean_square).detach();
  const Tensor wide_rstd = (mean_square + epsilon).rsqrt();
  const Tensor xhat = wide_x * wide_rstd;
  const Tensor w = gamma ? wide_dy * (gamma->to(at::kDouble) + gamma_offset) : wide_dy;
  const Tensor dx = (w - xhat * (w * xhat).mean(inner, /*keepdim=*/true)) * wide_rstd;
  const Tensor products = wide_dy * xhat;
  const Tensor dgamma = outer.empty() ? products : products.sum(outer);
  return {dx.to(x.scalar_type()), dgamma.to(rstd.scalar_type())};
}

struct RmsNormBackwardFunction : Function<RmsNormBackwardFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& dy, const Tensor& x,
                               const MaybeTensor& gamma, const Tensor& rstd, double gamma_offset,
                               std::array<bool, 2> wanted) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [dx, dgamma] = RmsNormBackward(dy, x, gamma, rstd, gamma_offset, wanted);
    context->save_for_backward({dy, x, OrUndefined(gamma), rstd});
    context->saved_data["gamma_offset"] = gamma_offset;
    context->saved_data["wanted"] = std::vector<bool>{wanted[0], wanted[1]};
    return {dx, dgamma};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const bool create_graph = at::GradMode::is_enabled();
    const at::AutoGradMode record(true);
    variable_list saved = context->get_saved_variables();
    // Views end the search for gradients here: dy may itself be a function of x and gamma.
    for (int i = 0; i < 3; ++i) {
      if (saved[i].defined()) saved[i] = saved[i].view_as(saved[i]);
    }
    const auto [dx, dgamma] = Composite(saved[0], saved[1], OrAbsent(saved[2]), saved[3],
                                        context->saved_data["gamma_offset"].toDouble());
    const auto wanted = context->saved_data["wanted"].toBoolList();
    variable_list outputs, output_gradients;
    if (wanted.get(0) && dx.requires_grad()) {
      outputs.push_back(dx);
      output_gradients.push_back(gradients[0]);
    }
    if (wanted.get(1) && dgamma.requires_grad()) {
      outputs.push_back(dgamma);
      output_gradients.push_back(gradients[1]);
    }
    variable_list inputs;
    for (int i = 0; i < 3; ++i) {
      if (saved[i].defined() && saved[i].requires_grad()) inputs.push_back(saved[i]);
    }
    const variable_list found =
        torch::autograd::grad(outputs, inputs, output_gradients, /*retain_graph=*/{}, create_graph,
                              /*allow_unused=*/true);
    variable_list result(6);  // dy, x, gamma; rstd, gamma_offset and wanted have none
    for (int i = 0, next = 0; i < 3; ++i) {
      if (saved[i].defined() && saved[i].requires_grad()) result[i] = found[next++];
    }
    return result;
  }
};

std::tuple<Tensor, Tensor> RmsNormAutograd(const Tensor& x, const MaybeTensor& gamma,
                                           double epsilon, double gamma_offset, StringView rounding,
                                           Optional<at::ScalarType> out_dtype) {
  CheckNoTangent("x", x);
  CheckNoTangent("gamma", gamma);
  if (at::GradMode::is_enabled() && (x.requires_grad() || NeedsGrad(gamma))) {
    Tensor rstd;
    const Tensor y =
        RmsNormFunction::apply(x, gamma, epsilon, gamma_offset, rounding, out_dtype, &rstd);
    return {y, rstd};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return RmsNorm(x, gamma, epsilon, gamma_offset, rounding, out_dtype);
}

void RmsNormOutAutograd(const Tensor& x, const MaybeTensor& gamma, double epsilon,
                        double gamma_offset, StringView rounding, Tensor& out) {
  CheckNoTangent("x", x);
  CheckNoTangent("gamma", gamma);
  CheckNoTangent("out", out);
  TORCH_CHECK(!at::GradMode::is_enabled() ||
                  !(x.requires_grad() || NeedsGrad(gamma) || out.requires_grad()),
              "out: rms_norm with out= has no gradient, and an argument requires one; call it "
              "without out=, or under torch.no_grad()");
  const at::AutoDispatchBelowAutograd below;
  RmsNormOut(x, gamma, epsilon, gamma_offset, rounding, out);
}

// Runs in inference mode too, where the kernel above doesn't.
void RmsNormOutInplace(const Tensor& x, const MaybeTensor& gamma, double epsilon,
                       double gamma_offset, StringView rounding, Tensor& out) {
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    RmsNormOut(x, gamma, epsilon, gamma_offset, rounding, out);
  }
  torch::autograd::impl::bump_version(out);
}

std::tuple<Tensor, Tensor> RmsNormBackwardAutograd(const Tensor& dy, const Tensor& x,
                                                   const MaybeTensor& gamma, const Tensor& rstd,
                                                   double gamma_offset,
                                                   std::array<bool, 2> wanted) {
  CheckNoTangent("dy", dy);
  CheckNoTangent("x", x);
  CheckNoTangent("gamma", gamma);
  if (at::GradMode::is_enabled() && (dy.requires_grad() || x.requires_grad() || NeedsGrad(gamma))) {
    const variable_list outputs =
        RmsNormBackwardFunction::apply(dy, x, gamma, rstd, gamma_offset, wanted);
    return {outputs[0], outputs[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return RmsNormBackward(dy, x, gamma, rstd, gamma_offset, wanted);
}

}  // namespace

TORCH_LIBRARY_IMPL(rmsnorm, Autograd, m) {
  m.impl("rms_norm", RmsNormAutograd);
  m.impl("rms_norm_out", RmsNormOutAutograd);
  m.impl("rms_norm_backward", RmsNormBackwardAutograd);
}

TORCH_LIBRARY_IMPL(rmsnorm, ADInplaceOrView, m) { m.impl("rms_norm_out", RmsNormOutInplace); }

}  // namespace rmsnorm::torch_binding
