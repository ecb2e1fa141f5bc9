#include "tensors.h"

#include <optional>
#include <string>

#include "core/ops.h"

namespace rmsnorm::torch_binding {
namespace {

// The stride of the rows, or nothing where leading axes don't step evenly or a row isn't packed.
std::optional<int64_t> RowStride(const at::Tensor& tensor, const Shape& shape) {
  const int64_t leading = tensor.dim() - shape.axes;
  int64_t packed = 1;
  for (int64_t axis = tensor.dim() - 1; axis >= leading; --axis) {
    if (tensor.size(axis) != 1 && tensor.stride(axis) != packed) return std::nullopt;
    packed *= tensor.size(axis);
  }
  std::optional<int64_t> row_stride;
  int64_t next = 0;  // the stride that continues the axes seen so far
  for (int64_t axis = leading - 1; axis >= 0; --axis) {
    if (tensor.size(axis) == 1) continue;
    if (row_stride && tensor.stride(axis) != next) return std::nullopt;
    if (!row_stride) row_stride = tensor.stride(axis);
    next = tensor.stride(axis) * tensor.size(axis);
  }
  return row_stride.value_or(shape.n);
}

}  // namespace

void RaiseUnlessOk(rmsnorm_status status, const char* y_is) {
  if (status == RMSNORM_OK) return;
  std::string message = rmsnorm_last_error();
  if (message.starts_with("y:")) message.replace(0, 1, y_is);
  if (message.starts_with("whole_n:")) message.replace(0, 7, "n");
  TORCH_CHECK_VALUE(status != RMSNORM_INVALID_ARGUMENT, message);
  TORCH_CHECK(false, message);
}

void CheckDevice(const char* name, const MaybeTensor& tensor, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.defined(), "x: None; expected a tensor");
  TORCH_CHECK_VALUE(!tensor || tensor->defined(), name, ": None; expected a tensor");
  TORCH_CHECK_VALUE(!tensor || tensor->device() == x.device(), name, ": device ", tensor->device(),
                    "; expected x's, ", x.device());
}

rmsnorm_dtype DtypeOf(const char* name, at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return RMSNORM_FLOAT32;
    case at::kHalf:
      return RMSNORM_FLOAT16;
    case at::kBFloat16:
      return RMSNORM_BFLOAT16;
    case at::kDouble:
      return RMSNORM_FLOAT64;
    default:
      TORCH_CHECK_VALUE(false, name, ": dtype ", type, "; expected ", Accepted(Dtypes::kAny));
  }
}

Shape ShapeOf(const at::Tensor& x, const MaybeTensor& gamma) {
  Shape shape = {0, 0, gamma ? gamma->dim() : 1};
  RaiseUnlessOk(rmsnorm_split_shape(x.sizes().data(), x.dim(),
                                    gamma ? gamma->sizes().data() : nullptr, shape.axes,
                                    &shape.rows, &shape.n));
  return shape;
}

at::ScalarType RealType(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::DimVector RstdSizes(const at::Tensor& x, int64_t axes) {
  at::DimVector sizes(x.sizes().begin(), x.sizes().end());
  std::fill(sizes.end() - axes, sizes.end(), 1);
  return sizes;
}

Rows RowsOf(const char* name, const at::Tensor& tensor, const Shape& shape) {
  const rmsnorm_dtype dtype = DtypeOf(name, tensor.scalar_type());
  if (const std::optional<int64_t> stride = RowStride(tensor, shape)) {
    return {tensor, {const_cast<void*>(tensor.const_data_ptr()), *stride, dtype}};
  }
  const at::Tensor packed = tensor.contiguous();
  return {packed, {const_cast<void*>(packed.const_data_ptr()), shape.n, dtype}};
}

bool SameElements(const at::Tensor& a, const at::Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && a.dtype() == b.dtype() &&
         a.sizes() == b.sizes() && a.strides() == b.strides();
}

bool MayOverlap(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto first = [](const at::Tensor& tensor) {
    return static_cast<const char*>(tensor.const_data_ptr());
  };
  const auto end = [&](const at::Tensor& tensor) {
    int64_t last = 0;
    for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
      last += (tensor.size(axis) - 1) * tensor.stride(axis);
    }
    return first(tensor) + (last + 1) * tensor.itemsize();
  };
  return first(a) < end(b) && first(b) < end(a);
}

Column ColumnOf(const MaybeTensor& gamma) {
  if (!gamma) return {{}, {nullptr, 0}};
  const rmsnorm_dtype dtype = DtypeOf("gamma", gamma->scalar_type());
  const at::Tensor packed = gamma->contiguous();
  return {packed, {packed.const_data_ptr(), dtype}};
}

}  // namespace rmsnorm::torch_binding
