// Derivatives: the backward operator is that of rms_norm; tangents, and derivatives of the backward
// operator, come from formulas.
#include <ATen/FuncTorchTLS.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "formula.h"
#include "ops.h"

namespace rmsnorm::torch_binding {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

bool NeedsGrad(const MaybeTensor& tensor) { return tensor && tensor->requires_grad(); }

bool HasTangent(const MaybeTensor& tensor) {
  return tensor && tensor->_fw_grad(/*level=*/0).defined();
}

void CheckNoTangent(const char* name, const MaybeTensor& tensor, const char* why) {
  TORCH_CHECK_NOT_IMPLEMENTED(!HasTangent(tensor), name, ": has a tangent; ", why);
}

Tensor Primal(const Tensor& x) { return HasTangent(x) ? x._fw_primal(/*level=*/0) : x; }

MaybeTensor Primal(const MaybeTensor& gamma) {
  return gamma ? MaybeTensor(Primal(*gamma)) : MaybeTensor();
}

// Gives result the tangent that the same result by PyTorch's operators has.
void SetTangent(const Tensor& result, const Tensor& dual) {
  const Tensor tangent = dual._fw_grad(/*level=*/0);
  if (!tangent.defined()) return;
  result._set_fw_grad(tangent.to(result.scalar_type()), /*level=*/0, /*is_inplace_op=*/false);
}

Tensor OrUndefined(const MaybeTensor& tensor) { return tensor.value_or(Tensor()); }

MaybeTensor OrAbsent(const Tensor& tensor) {
  return tensor.defined() ? MaybeTensor(tensor) : MaybeTensor();
}

// Function::apply refuses to run within torch.func, where most Functions would be wrong: theirs
// compute on tensors of one level alone. Ours call the operator, which every level below sees too,
// as PyTorch's own kernels do. So apply doesn't get to see the levels, and forward does.
class HiddenLevels {
 public:
  HiddenLevels() : levels_(std::move(at::functorch::functorchTLSAccessor())) {}
  ~HiddenLevels() { Show(); }
  HiddenLevels(const HiddenLevels&) = delete;
  HiddenLevels& operator=(const HiddenLevels&) = delete;

  void Show() {
    if (levels_) at::functorch::functorchTLSAccessor() = std::move(levels_);
  }

 private:
  std::unique_ptr<at::functorch::FuncTorchTLSBase> levels_;
};

// What every forward starts with: the operators that it calls are those below autograd, and levels
// of torch.func below this one record them.
class BelowAutograd {
 public:
  explicit BelowAutograd(HiddenLevels& levels) { levels.Show(); }

 private:
  const at::AutoGradMode record_{true};
  const at::AutoDispatchBelowADInplaceOrView below_;
};

// The operands as they came, to save: with their tangents, which apply would refuse.
struct ForwardCall {
  const Tensor& x;
  const MaybeTensor& gamma;
  double epsilon;
  double gamma_offset;
  StringView rounding;
  Optional<at::ScalarType> out_dtype;
  Tensor rstd = {};  // has no gradient; as an output it would be refused by compiled autograd
  HiddenLevels levels = {};
};

struct RmsNormFunction : Function<RmsNormFunction> {
  static constexpr bool is_traceable = true;  // compiled autograd may trace backward

  static Tensor forward(AutogradContext* context, const Tensor& x, const MaybeTensor& gamma,
                        ForwardCall* call) {
    const BelowAutograd below(call->levels);
    Tensor y;
    std::tie(y, call->rstd) =
        RmsNorm(x, gamma, call->epsilon, call->gamma_offset, call->rounding, call->out_dtype);
    context->save_for_backward({call->x, OrUndefined(call->gamma), call->rstd});
    context->saved_data["gamma_offset"] = call->gamma_offset;
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const MaybeTensor gamma = OrAbsent(saved[1]);
    const std::array<bool, 2> wanted = {context->needs_input_grad(0),
                                        gamma && context->needs_input_grad(1)};
    auto [dx, dgamma] = RmsNormBackward(gradients[0], saved[0], gamma, saved[2],
                                        context->saved_data["gamma_offset"].toDouble(), wanted);
    variable_list result(3);  // x, gamma; the call has none
    if (wanted[0]) result[0] = dx;
    if (wanted[1]) result[1] = dgamma.to(gamma->scalar_type());
    return result;
  }
};

struct BackwardCall {
  const Tensor& dy;
  const Tensor& x;
  const MaybeTensor& gamma;
  const Tensor& rstd;
  double gamma_offset;
  std::array<bool, 2> wanted;
  HiddenLevels levels = {};
};

struct RmsNormBackwardFunction : Function<RmsNormBackwardFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& dy, const Tensor& x,
                               const MaybeTensor& gamma, BackwardCall* call) {
    const BelowAutograd below(call->levels);
    auto [dx, dgamma] = RmsNormBackward(dy, x, gamma, call->rstd, call->gamma_offset, call->wanted);
    context->save_for_backward({call->dy, call->x, OrUndefined(call->gamma), call->rstd});
    context->saved_data["gamma_offset"] = call->gamma_offset;
    context->saved_data["wanted"] = std::vector<bool>{call->wanted[0], call->wanted[1]};
    context->set_materialize_grads(false);
    return {dx, dgamma};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const auto wanted = context->saved_data["wanted"].toBoolList();
    const Formula formula(saved[1], OrAbsent(saved[2]), saved[3],
                          context->saved_data["gamma_offset"].toDouble());
    const auto [of_dy, of_x, of_gamma] = formula.BackwardOfBackward(
        wanted.get(0) ? gradients[0] : Tensor(), wanted.get(1) ? gradients[1] : Tensor(), saved[0]);
    variable_list result = {of_dy.to(saved[0].scalar_type()), of_x.to(saved[1].scalar_type()),
                            Tensor(), Tensor()};
    if (saved[2].defined()) result[2] = of_gamma.to(saved[2].scalar_type());
    return result;
  }
};

std::tuple<Tensor, Tensor> RmsNormAutograd(const Tensor& x, const MaybeTensor& gamma,
                                           double epsilon, double gamma_offset, StringView rounding,
                                           Optional<at::ScalarType> out_dtype) {
  const bool dual = HasTangent(x) || HasTangent(gamma);
  Tensor y, rstd;
  if (at::GradMode::is_enabled() && (x.requires_grad() || NeedsGrad(gamma))) {
    const Tensor primal_x = Primal(x);  // before the levels are hidden
    const MaybeTensor primal_gamma = Primal(gamma);
    ForwardCall call = {x, gamma, epsilon, gamma_offset, rounding, out_dtype};
    y = RmsNormFunction::apply(primal_x, primal_gamma, &call);
    rstd = std::move(call.rstd);
  } else {
    const at::AutoDispatchBelowADInplaceOrView below;
    std::tie(y, rstd) = RmsNorm(x, gamma, epsilon, gamma_offset, rounding, out_dtype);
  }
  if (dual) SetTangent(y, Formula(x, gamma, rstd, gamma_offset).Y());
  return {y, rstd};
}

void RmsNormOutAutograd(const Tensor& x, const MaybeTensor& gamma, double epsilon,
                        double gamma_offset, StringView rounding, Tensor& out) {
  constexpr char kWhy[] = "rms_norm with out= has no derivative; call it without out=";
  CheckNoTangent("x", x, kWhy);
  CheckNoTangent("gamma", gamma, kWhy);
  CheckNoTangent("out", out, kWhy);
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
  constexpr char kWhy[] = "it is a function of x, and has no derivative of its own; detach it";
  CheckNoTangent("rstd", rstd, kWhy);
  const bool dual = HasTangent(dy) || HasTangent(x) || HasTangent(gamma);
  Tensor dx, dgamma;
  if (at::GradMode::is_enabled() &&
      (dy.requires_grad() || x.requires_grad() || NeedsGrad(gamma) || rstd.requires_grad())) {
    TORCH_CHECK(!rstd.requires_grad(), "rstd: requires a gradient; ", kWhy);
    const Tensor primal_dy = Primal(dy), primal_x = Primal(x);
    const MaybeTensor primal_gamma = Primal(gamma);
    BackwardCall call = {dy, x, gamma, rstd, gamma_offset, wanted};
    const variable_list outputs =
        RmsNormBackwardFunction::apply(primal_dy, primal_x, primal_gamma, &call);
    dx = outputs[0];
    dgamma = outputs[1];
  } else {
    const at::AutoDispatchBelowADInplaceOrView below;
    std::tie(dx, dgamma) = RmsNormBackward(dy, x, gamma, rstd, gamma_offset, wanted);
  }
  if (dual) {
    const Formula formula(x, gamma, rstd, gamma_offset);
    if (wanted[0]) SetTangent(dx, formula.Dx(dy));
    if (wanted[1]) SetTangent(dgamma, formula.Dgamma(dy));
  }
  return {dx, dgamma};
}

}  // namespace

TORCH_LIBRARY_IMPL(rmsnorm, Autograd, m) {
  m.impl("rms_norm", RmsNormAutograd);
  m.impl("rms_norm_out", RmsNormOutAutograd);
  m.impl("rms_norm_backward", RmsNormBackwardAutograd);
  // Whoever puts them together gives the whole a gradient; a backward through one of them raises.
  m.impl("rms_norm_row_sums", torch::autograd::autogradNotImplementedFallback());
  m.impl("rms_norm_backward_from_sums", torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(rmsnorm, ADInplaceOrView, m) { m.impl("rms_norm_out", RmsNormOutInplace); }

}  // namespace rmsnorm::torch_binding
