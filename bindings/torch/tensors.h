// PyTorch's tensors as the C interface's rows.
#ifndef RMSNORM_BINDINGS_TORCH_TENSORS_H_
#define RMSNORM_BINDINGS_TORCH_TENSORS_H_

#include <cstdint>

#include "rmsnorm/rmsnorm.h"
#include "types.h"

namespace rmsnorm::torch_binding {

// Raises the C interface's message unless status is RMSNORM_OK: ValueError for a bad argument,
// RuntimeError for a device that can't do it. y_is: what the caller knows as y.
void RaiseUnlessOk(rmsnorm_status status, const char* y_is = "y");

// Raises ValueError unless x is a tensor and `tensor`, where it is given, one on x's device.
void CheckDevice(const char* name, const MaybeTensor& tensor, const at::Tensor& x);

rmsnorm_dtype DtypeOf(const char* name, at::ScalarType type);

// x's shape as rows of n elements, the last `axes` of x's dimensions.
struct Shape {
  int64_t rows;
  int64_t n;
  int64_t axes;
};

// Absent gamma: the last axis.
Shape ShapeOf(const at::Tensor& x, const MaybeTensor& gamma);

// The type of rstd, sums and dgamma: float32, float64 where x is.
at::ScalarType RealType(const at::Tensor& x);

// rstd's sizes: x's, with a 1 for each of the last `axes`.
at::DimVector RstdSizes(const at::Tensor& x, int64_t axes);

// A tensor seen as rows. Where its strides don't allow that, `held` is a contiguous copy.
struct Rows {
  at::Tensor held;
  rmsnorm_matrix matrix;
};
Rows RowsOf(const char* name, const at::Tensor& tensor, const Shape& shape);

// Whether two tensors are one view of one memory.
bool SameElements(const at::Tensor& a, const at::Tensor& b);

// Whether the spans of memory that two tensors reach over have a byte in common.
bool MayOverlap(const at::Tensor& a, const at::Tensor& b);

// Gamma's elements; `held` is contiguous.
struct Column {
  at::Tensor held;
  rmsnorm_vector vector;
};
Column ColumnOf(const MaybeTensor& gamma);

}  // namespace rmsnorm::torch_binding

#endif  // RMSNORM_BINDINGS_TORCH_TENSORS_H_
