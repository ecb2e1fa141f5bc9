// torch.ops.rmsnorm: schemas from core/ops.h, and the kernels of each device through the C
// interface.
#include "ops.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/api/include/torch/version.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "core/ops.h"
#include "devices.h"
#include "tensors.h"

namespace rmsnorm::torch_binding {
namespace {

std::string SchemaOf(const AttributeSpec& attribute) {
  const std::string name(attribute.name);
  const std::string value(attribute.default_value);
  switch (attribute.type) {
    case AttributeType::kFloat:
      return "float " + name + "=" + value;
    case AttributeType::kInt:
      return "int " + name;
    case AttributeType::kRounding:
      return "str " + name + "=\"" + value + "\"";
    case AttributeType::kDtype:
      return "ScalarType? " + name + "=" + value;
    case AttributeType::kWanted:
      return "bool[2] " + name + "=" + value;
  }
  return "";
}

// "name(Tensor x, Tensor? gamma, float epsilon=1e-6, …) -> (Tensor y, Tensor rstd)"
std::string SchemaOf(const OpSpec& op) {
  std::string inputs, outputs;
  for (const TensorSpec& input : op.inputs) {
    inputs += (inputs.empty() ? "" : ", ") + std::string(input.optional ? "Tensor? " : "Tensor ") +
              std::string(input.name);
  }
  for (const AttributeSpec& attribute : op.attributes) inputs += ", " + SchemaOf(attribute);
  for (const TensorSpec& output : op.outputs) {
    outputs += (outputs.empty() ? "Tensor " : ", Tensor ") + std::string(output.name);
  }
  return std::string(op.name) + "(" + inputs + ") -> (" + outputs + ")";
}

// rms_norm without rstd, into the caller's tensor.
std::string OutSchema() {
  std::string inputs = "Tensor x, Tensor? gamma";
  for (const AttributeSpec& attribute : kRmsNorm.attributes) {
    if (attribute.type != AttributeType::kDtype) inputs += ", " + SchemaOf(attribute);
  }
  return "rms_norm_out(" + inputs + ", *, Tensor(a!) out) -> ()";
}

rmsnorm_rounding RoundingOf(StringView name) {
  if (name == "once") return RMSNORM_ROUND_ONCE;
  TORCH_CHECK_VALUE(name == "before_gamma", "rounding: ", name, "; expected ", kRounding.accepted);
  return RMSNORM_ROUND_BEFORE_GAMMA;
}

// Everything of a forward call but its outputs. The tensors that `rows` and `column` hold must
// outlive the use of args.
rmsnorm_forward_args ForwardArgs(const Shape& shape, const Rows& x, const Column& gamma,
                                 double epsilon, double gamma_offset, StringView rounding) {
  rmsnorm_forward_args args = {};
  args.size = sizeof(args);
  args.rows = shape.rows;
  args.n = shape.n;
  args.x = x.matrix;
  args.gamma = gamma.vector;
  args.epsilon = epsilon;
  args.gamma_offset = gamma_offset;
  args.rounding = RoundingOf(rounding);
  return args;
}

template <class Device>
std::tuple<Tensor, Tensor> RmsNormOn(const Tensor& x, const MaybeTensor& gamma, double epsilon,
                                     double gamma_offset, StringView rounding,
                                     Optional<at::ScalarType> out_dtype) {
  CheckDevice("gamma", gamma, x);
  const Device device(x);
  const Shape shape = ShapeOf(x, gamma);
  const Rows rows = RowsOf("x", x, shape);
  const Column column = ColumnOf(gamma);
  const at::ScalarType y_type = out_dtype.value_or(x.scalar_type());
  rmsnorm_forward_args args = ForwardArgs(shape, rows, column, epsilon, gamma_offset, rounding);
  const bool accepted = y_type == x.scalar_type() || y_type == RealType(x);
  TORCH_CHECK_VALUE(accepted, "out_dtype: ", y_type, "; expected ", kOutDtype.accepted);
  args.y = {nullptr, shape.n, DtypeOf("out_dtype", y_type)};
  Tensor y = device.Fresh(x.sizes(), y_type);
  Tensor rstd = device.Fresh(RstdSizes(x, shape.axes), RealType(x));
  args.y.data = y.data_ptr();
  args.rstd = rstd.data_ptr();
  RaiseUnlessOk(device.Forward(args));
  return {y, rstd};
}

template <class Device>
void RmsNormOutOn(const Tensor& x, const MaybeTensor& gamma, double epsilon, double gamma_offset,
                  StringView rounding, Tensor& out) {
  CheckDevice("gamma", gamma, x);
  CheckDevice("out", out, x);
  const Device device(x);
  TORCH_CHECK_VALUE(out.sizes() == x.sizes(), "out: shape ", out.sizes(), "; expected x's ",
                    x.sizes());
  const Shape shape = ShapeOf(x, gamma);
  const Rows rows = RowsOf("x", x, shape);
  const Column column = ColumnOf(gamma);
  out.mutable_data_ptr();  // a lazy copy becomes a real one
  const Rows y = RowsOf("out", out, shape);
  rmsnorm_forward_args args = ForwardArgs(shape, rows, column, epsilon, gamma_offset, rounding);
  args.y = y.matrix;
  // The C interface can't see what is under a copy.
  const bool copied = !y.held.is_same(out) || !rows.held.is_same(x);
  TORCH_CHECK_VALUE(!copied || SameElements(out, x) || !MayOverlap(out, x),
                    "out: overlaps x; expected x itself or memory apart from it");
  TORCH_CHECK_VALUE(
      !gamma || (y.held.is_same(out) && column.held.is_same(*gamma)) || !MayOverlap(out, *gamma),
      "out: overlaps gamma; expected memory of its own");
  RaiseUnlessOk(device.Forward(args), /*y_is=*/"out");
  if (!y.held.is_same(out)) out.copy_(y.held);
}

// For negated views, of which PyTorch's fallback needs an operator to return its output.
void RmsNormOutNegative(const Tensor& x, const MaybeTensor& gamma, double epsilon,
                        double gamma_offset, StringView rounding, Tensor& out) {
  Tensor y = out.is_neg() ? at::_neg_view(out) : out;  // the memory as it is
  const MaybeTensor plain_gamma = gamma ? MaybeTensor(gamma->resolve_neg()) : MaybeTensor();
  RmsNormOut(x.resolve_neg(), plain_gamma, epsilon, gamma_offset, rounding, y);
  if (out.is_neg()) y.neg_();
}

// The inputs of a backward call; args points to what the others hold.
struct BackwardInputs {
  Shape shape;
  Rows dy, x;
  Column gamma;
  Tensor rstd;
  rmsnorm_backward_args args;
};

// rstd or sums, packed.
Tensor PerRow(const char* name, const Tensor& tensor, const Tensor& x, const Shape& shape) {
  CheckDevice(name, tensor, x);
  TORCH_CHECK_VALUE(tensor.numel() == shape.rows && tensor.scalar_type() == RealType(x), name,
                    ": shape ", tensor.sizes(), ", dtype ", tensor.scalar_type(), "; expected ",
                    RstdSizes(x, shape.axes), ", ", RealType(x));
  return tensor.contiguous();
}

BackwardInputs InputsOf(const Tensor& dy, const Tensor& x, const MaybeTensor& gamma,
                        const Tensor& rstd, double gamma_offset) {
  CheckDevice("dy", dy, x);
  CheckDevice("gamma", gamma, x);
  const Shape shape = ShapeOf(x, gamma);
  TORCH_CHECK_VALUE(dy.sizes() == x.sizes(), "dy: shape ", dy.sizes(), "; expected x's ",
                    x.sizes());
  BackwardInputs inputs = {shape,           RowsOf("dy", dy, shape),        RowsOf("x", x, shape),
                           ColumnOf(gamma), PerRow("rstd", rstd, x, shape), {}};
  rmsnorm_backward_args& args = inputs.args;
  args.size = sizeof(args);
  args.rows = shape.rows;
  args.n = shape.n;
  args.dy = inputs.dy.matrix;
  args.x = inputs.x.matrix;
  args.gamma = inputs.gamma.vector;
  args.rstd = inputs.rstd.const_data_ptr();
  args.gamma_offset = gamma_offset;
  return inputs;
}

// wanted: dx, dgamma.
template <class Device>
std::tuple<Tensor, Tensor> GradientsOn(const Tensor& x, const BackwardInputs& inputs,
                                       std::array<bool, 2> wanted) {
  const Device device(x);
  const Shape& shape = inputs.shape;
  rmsnorm_backward_args args = inputs.args;
  constexpr std::array<int64_t, 1> none = {0};
  Tensor dx = device.Fresh(wanted[0] ? x.sizes() : at::IntArrayRef(none), x.scalar_type());
  Tensor dgamma = device.Fresh(
      wanted[1] ? x.sizes().slice(x.dim() - shape.axes) : at::IntArrayRef(none), RealType(x));
  Tensor workspace;
  if (wanted[0]) args.dx = {dx.data_ptr(), shape.n, args.x.dtype};
  if (wanted[1]) {
    args.dgamma = dgamma.data_ptr();
    args.workspace_size = device.Workspace(shape.rows, shape.n, args.x.dtype);
    workspace = device.Fresh({static_cast<int64_t>(args.workspace_size)}, at::kByte);
    args.workspace = workspace.data_ptr();
  }
  RaiseUnlessOk(device.Backward(args));
  return {dx, dgamma};
}

template <class Device>
std::tuple<Tensor, Tensor> RmsNormBackwardOn(const Tensor& dy, const Tensor& x,
                                             const MaybeTensor& gamma, const Tensor& rstd,
                                             double gamma_offset, std::array<bool, 2> wanted) {
  return GradientsOn<Device>(x, InputsOf(dy, x, gamma, rstd, gamma_offset), wanted);
}

template <class Device>
Tensor RowSumsOn(const Tensor& dy, const Tensor& x, const MaybeTensor& gamma, const Tensor& rstd,
                 double gamma_offset) {
  BackwardInputs inputs = InputsOf(dy, x, gamma, rstd, gamma_offset);
  const Device device(x);
  Tensor sums = device.Fresh(RstdSizes(x, inputs.shape.axes), RealType(x));
  inputs.args.sums = sums.data_ptr();
  RaiseUnlessOk(device.Backward(inputs.args));
  return sums;
}

template <class Device>
std::tuple<Tensor, Tensor> BackwardFromSumsOn(const Tensor& dy, const Tensor& x,
                                              const MaybeTensor& gamma, const Tensor& rstd,
                                              const Tensor& sums, int64_t n, double gamma_offset,
                                              std::array<bool, 2> wanted) {
  BackwardInputs inputs = InputsOf(dy, x, gamma, rstd, gamma_offset);
  TORCH_CHECK_VALUE(n >= inputs.shape.n, "n: ", n, "; expected ", inputs.shape.n,
                    " or more, the elements of a whole row");
  const Tensor packed_sums = PerRow("sums", sums, x, inputs.shape);
  inputs.args.whole_sums = packed_sums.const_data_ptr();
  inputs.args.whole_n = n;
  return GradientsOn<Device>(x, inputs, wanted);
}

template <class Signature>
c10::TypedOperatorHandle<Signature> Find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

std::tuple<Tensor, Tensor> RmsNorm(const Tensor& x, const MaybeTensor& gamma, double epsilon,
                                   double gamma_offset, StringView rounding,
                                   Optional<at::ScalarType> out_dtype) {
  static const auto op = Find<decltype(RmsNorm)>("rmsnorm::rms_norm");
  return op.call(x, gamma, epsilon, gamma_offset, rounding, out_dtype);
}

void RmsNormOut(const Tensor& x, const MaybeTensor& gamma, double epsilon, double gamma_offset,
                StringView rounding, Tensor& out) {
  static const auto op = Find<decltype(RmsNormOut)>("rmsnorm::rms_norm_out");
  op.call(x, gamma, epsilon, gamma_offset, rounding, out);
}

std::tuple<Tensor, Tensor> RmsNormBackward(const Tensor& dy, const Tensor& x,
                                           const MaybeTensor& gamma, const Tensor& rstd,
                                           double gamma_offset, std::array<bool, 2> wanted) {
  static const auto op = Find<decltype(RmsNormBackward)>("rmsnorm::rms_norm_backward");
  return op.call(dy, x, gamma, rstd, gamma_offset, wanted);
}

TORCH_LIBRARY(rmsnorm, m) {
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 2
  const std::vector<at::Tag> tags;
#else
  m.impl_abstract_pystub("rmsnorm.fake");  // the first name of set_python_module
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
#endif
  for (const OpSpec* op : kOps) m.def(SchemaOf(*op).c_str(), tags);
  m.def(OutSchema().c_str(), tags);
}

template <class Device>
void Implement(torch::Library& m) {
  m.impl("rms_norm", RmsNormOn<Device>);
  m.impl("rms_norm_out", RmsNormOutOn<Device>);
  m.impl("rms_norm_backward", RmsNormBackwardOn<Device>);
  m.impl("rms_norm_row_sums", RowSumsOn<Device>);
  m.impl("rms_norm_backward_from_sums", BackwardFromSumsOn<Device>);
}

TORCH_LIBRARY_IMPL(rmsnorm, CPU, m) { Implement<Cpu>(m); }
TORCH_LIBRARY_IMPL(rmsnorm, CUDA, m) { Implement<Cuda>(m); }

TORCH_LIBRARY_IMPL(rmsnorm, Negative, m) { m.impl("rms_norm_out", RmsNormOutNegative); }

}  // namespace rmsnorm::torch_binding
