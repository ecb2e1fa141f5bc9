// Argument checks, each with its text.
#include "core/validate.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <span>

#include "core/dtype.h"
#include "core/ops.h"

namespace rmsnorm {
namespace {

// Limits that keep every product and sum below within int64_t.
constexpr int64_t kMaxCount = int64_t{1} << 48;
constexpr int64_t kMaxBytes = int64_t{1} << 61;

__attribute__((format(printf, 2, 3))) bool Reject(Message& message, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message.text, sizeof(message.text), format, values);
  va_end(values);
  return false;
}

const char* Name(rmsnorm_dtype dtype) {
  switch (dtype) {
    case RMSNORM_FLOAT32:
      return "float32";
    case RMSNORM_FLOAT16:
      return "float16";
    case RMSNORM_BFLOAT16:
      return "bfloat16";
    case RMSNORM_FLOAT64:
      return "float64";
    default:
      return nullptr;
  }
}

bool CheckArgs(const void* args, size_t size, size_t expected, Message& message) {
  if (args == nullptr) return Reject(message, "args: null; expected a pointer");
  if (size == expected) return true;
  return Reject(message, "args: size %zu; expected %zu, the sizeof of this library's struct", size,
                expected);
}

bool CheckCount(const char* name, int64_t value, int64_t minimum, Message& message) {
  if (value >= minimum && value <= kMaxCount) return true;
  return Reject(message, "%s: %lld; expected %lld to 2^48", name, static_cast<long long>(value),
                static_cast<long long>(minimum));
}

bool CheckNumber(const AttributeSpec& attribute, double value, Message& message) {
  if (std::isfinite(static_cast<float>(value)) && value >= attribute.minimum) return true;
  return Reject(message, "%s: %g; expected %s (as float32)", attribute.name.data(), value,
                attribute.accepted.data());
}

bool CheckOffset(const rmsnorm_vector& gamma, double offset, Message& message) {
  if (!CheckNumber(kGammaOffset, offset, message)) return false;
  if (gamma.data != nullptr || offset == 0) return true;
  return Reject(message, "gamma_offset: %g without gamma; expected 0", offset);
}

bool CheckRounding(rmsnorm_rounding rounding, Message& message) {
  if (rounding == RMSNORM_ROUND_ONCE || rounding == RMSNORM_ROUND_BEFORE_GAMMA) return true;
  return Reject(message, "rounding: %d; expected RMSNORM_ROUND_ONCE or RMSNORM_ROUND_BEFORE_GAMMA",
                rounding);
}

bool CheckDtype(const TensorSpec& spec, rmsnorm_dtype dtype, rmsnorm_dtype x_dtype,
                Message& message) {
  const char* name = Name(dtype);
  const char* expected = Accepted(spec.dtypes).data();
  if (name == nullptr) {
    return Reject(message, "%s: dtype %d is unknown; expected %s", spec.name.data(), dtype,
                  expected);
  }
  const bool wide = x_dtype == RMSNORM_FLOAT64 || dtype == RMSNORM_FLOAT64;
  const bool accepted = dtype == x_dtype ||
                        (!wide && (spec.dtypes == Dtypes::kAny ||
                                   (spec.dtypes == Dtypes::kOfXOrF32 && dtype == RMSNORM_FLOAT32)));
  if (accepted) return true;
  return Reject(message, "%s: dtype %s; expected %s, and x is %s", spec.name.data(), name, expected,
                Name(x_dtype));
}

bool CheckVector(const TensorSpec& spec, const rmsnorm_vector& vector, rmsnorm_dtype x_dtype,
                 Message& message) {
  return vector.data == nullptr || CheckDtype(spec, vector.dtype, x_dtype, message);
}

enum class Access { kRead, kWrite };

bool CheckMatrix(const TensorSpec& spec, const rmsnorm_matrix& matrix, int64_t rows, int64_t n,
                 rmsnorm_dtype x_dtype, Access access, Message& message) {
  const char* name = spec.name.data();
  if (!CheckDtype(spec, matrix.dtype, x_dtype, message)) return false;
  if (rows == 0) return true;
  if (matrix.data == nullptr) return Reject(message, "%s: null; expected a pointer to rows", name);
  const int64_t least = access == Access::kWrite && rows > 1 ? n : 0;
  if (matrix.row_stride < least) {
    return Reject(message, "%s: row_stride %lld; expected >= %lld%s", name,
                  static_cast<long long>(matrix.row_stride), static_cast<long long>(least),
                  least > 0 ? ", so that its rows don't overlap" : "");
  }
  int64_t bytes;
  if (__builtin_mul_overflow(rows - 1, matrix.row_stride, &bytes) ||
      __builtin_add_overflow(bytes, n, &bytes) ||
      __builtin_mul_overflow(bytes, SizeOf(matrix.dtype), &bytes) || bytes > kMaxBytes) {
    return Reject(message, "%s: %lld rows of %lld elements, row_stride %lld, is too large", name,
                  static_cast<long long>(rows), static_cast<long long>(n),
                  static_cast<long long>(matrix.row_stride));
  }
  return true;
}

// Bytes of an argument: rows of row_bytes, stride bytes apart.
struct Region {
  const char* name;
  uintptr_t data;
  int64_t rows;
  int64_t row_bytes;
  int64_t stride;

  bool empty() const { return data == 0 || rows == 0 || row_bytes == 0; }
  int64_t extent() const { return (rows - 1) * stride + row_bytes; }
};

Region MatrixRegion(const TensorSpec& spec, const rmsnorm_matrix& m, int64_t rows, int64_t n) {
  const int64_t size = SizeOf(m.dtype);
  return {spec.name.data(), reinterpret_cast<uintptr_t>(m.data), rows, n * size,
          m.row_stride * size};
}

Region VectorRegion(const char* name, const void* data, int64_t bytes) {
  return {name, reinterpret_cast<uintptr_t>(data), 1, bytes, bytes};
}

// Whether a row of `rows` has a byte in [data, data + bytes).
bool Meets(const Region& rows, uintptr_t data, int64_t bytes) {
  const int64_t offset = static_cast<int64_t>(data - rows.data);
  if (offset + bytes <= 0 || offset >= rows.extent()) return false;
  if (rows.stride == 0) return true;
  // The first row that ends behind the first byte.
  const int64_t row = std::max<int64_t>(0, (offset - rows.row_bytes) / rows.stride);
  const int64_t begin = row * rows.stride;
  const int64_t next = begin + rows.row_bytes > offset ? begin : begin + rows.stride;
  return next < offset + bytes && next < rows.extent();
}

bool Overlap(const Region& a, const Region& b) {
  if (a.empty() || b.empty()) return false;
  const Region& low = a.data <= b.data ? a : b;
  const Region& high = a.data <= b.data ? b : a;
  const uint64_t distance = high.data - low.data;
  if (distance >= static_cast<uint64_t>(low.extent())) return false;
  if (low.stride == high.stride && low.stride > 0 && std::min(low.rows, high.rows) > 1) {
    // Rows may lie side by side in one wider matrix, as query and key do.
    const int64_t shift = static_cast<int64_t>(distance % static_cast<uint64_t>(low.stride));
    return shift < low.row_bytes || low.stride - shift < high.row_bytes;
  }
  const Region& fewer = a.rows <= b.rows ? a : b;
  const Region& more = a.rows <= b.rows ? b : a;
  for (int64_t row = 0; row < (fewer.stride > 0 ? fewer.rows : 1); ++row) {
    if (Meets(more, fewer.data + row * fewer.stride, fewer.row_bytes)) return true;
  }
  return false;
}

bool SameRows(const Region& a, const Region& b) {
  return a.data == b.data && a.row_bytes == b.row_bytes && (a.rows == 1 || a.stride == b.stride);
}

// in_place: the output that may lie exactly on x, or null.
bool CheckApart(std::span<const Region> writes, std::span<const Region> reads, const Region& x,
                const char* in_place, Message& message) {
  for (size_t i = 0; i < writes.size(); ++i) {
    for (const Region& other : writes.subspan(i + 1)) {
      if (Overlap(writes[i], other)) {
        return Reject(message, "%s: overlaps %s; expected memory of its own", writes[i].name,
                      other.name);
      }
    }
    for (const Region& read : reads) {
      if (Overlap(writes[i], read)) {
        return Reject(message, "%s: overlaps %s; expected memory of its own", writes[i].name,
                      read.name);
      }
    }
    const bool may_be_x = writes[i].name == in_place;
    if (Overlap(writes[i], x) && !(may_be_x && SameRows(writes[i], x))) {
      return Reject(message, "%s: overlaps x; expected %s", writes[i].name,
                    may_be_x ? "x itself or memory apart from it" : "memory of its own");
    }
  }
  return true;
}

bool CheckWorkspace(const rmsnorm_backward_args& a, int64_t least, Message& message) {
  if (a.dgamma == nullptr) return true;
  if (a.workspace_size < static_cast<uint64_t>(least)) {
    return Reject(message, "workspace_size: %zu; expected >= %lld", a.workspace_size,
                  static_cast<long long>(least));
  }
  if (least == 0) return true;
  if (a.workspace == nullptr) return Reject(message, "workspace: null; expected a pointer");
  if (reinterpret_cast<uintptr_t>(a.workspace) % 64 == 0) return true;
  return Reject(message, "workspace: %p; expected an address aligned to 64", a.workspace);
}

bool CheckSums(const rmsnorm_backward_args& a, Message& message) {
  if (a.sums != nullptr) {
    const char* with = a.dx.data != nullptr      ? "dx"
                       : a.dgamma != nullptr     ? "dgamma"
                       : a.whole_sums != nullptr ? "whole_sums"
                                                 : nullptr;
    return with == nullptr || Reject(message, "sums: given with %s; expected sums alone", with);
  }
  return a.whole_sums == nullptr || CheckCount("whole_n", a.whole_n, a.n, message);
}

// "[8, 5120]"; cut with "…" where there are very many axes.
struct ShapeText {
  char text[160] = "[";

  ShapeText(const int64_t* shape, int64_t dims) {
    size_t used = 1;
    for (int64_t i = 0; i < dims; ++i) {
      if (used + 32 > sizeof(text)) {
        used += snprintf(text + used, sizeof(text) - used, "…");
        break;
      }
      used += snprintf(text + used, sizeof(text) - used, i ? ", %lld" : "%lld",
                       static_cast<long long>(shape[i]));
    }
    snprintf(text + used, sizeof(text) - used, "]");
  }
};

bool Product(const int64_t* sizes, int64_t count, int64_t* product) {
  *product = 1;
  bool fits = true;
  for (int64_t i = 0; i < count; ++i) fits &= !__builtin_mul_overflow(*product, sizes[i], product);
  return fits;
}

}  // namespace

bool ValidateCounts(int64_t rows, int64_t n, Message& message) {
  return CheckCount("rows", rows, 0, message) && CheckCount("n", n, 1, message);
}

bool Validate(const rmsnorm_forward_args* args, Message& message) {
  if (!CheckArgs(args, args ? args->size : 0, sizeof(rmsnorm_forward_args), message)) return false;
  const rmsnorm_forward_args& a = *args;
  const TensorSpec& y = kRmsNorm.outputs[0];
  if (!(ValidateCounts(a.rows, a.n, message) &&
        CheckMatrix(kX, a.x, a.rows, a.n, a.x.dtype, Access::kRead, message) &&
        CheckVector(kGamma, a.gamma, a.x.dtype, message) &&
        CheckMatrix(y, a.y, a.rows, a.n, a.x.dtype, Access::kWrite, message) &&
        CheckNumber(kEpsilon, a.epsilon, message) &&
        CheckOffset(a.gamma, a.gamma_offset, message) && CheckRounding(a.rounding, message))) {
    return false;
  }
  const int64_t real = SizeOf(RealOf(a.x.dtype));
  const Region writes[] = {MatrixRegion(y, a.y, a.rows, a.n),
                           VectorRegion("rstd", a.rstd, real * a.rows)};
  const Region reads[] = {VectorRegion("gamma", a.gamma.data, a.n * SizeOf(a.gamma.dtype))};
  return CheckApart(writes, reads, MatrixRegion(kX, a.x, a.rows, a.n), writes[0].name, message);
}

bool Validate(const rmsnorm_backward_args* args, LeastWorkspace least_workspace, Message& message) {
  if (!CheckArgs(args, args ? args->size : 0, sizeof(rmsnorm_backward_args), message)) return false;
  const rmsnorm_backward_args& a = *args;
  const TensorSpec& dy = kRmsNormBackward.inputs[0];
  const TensorSpec& dx = kRmsNormBackward.outputs[0];
  if (!(ValidateCounts(a.rows, a.n, message) &&
        CheckMatrix(kX, a.x, a.rows, a.n, a.x.dtype, Access::kRead, message) &&
        CheckMatrix(dy, a.dy, a.rows, a.n, a.x.dtype, Access::kRead, message) &&
        CheckVector(kGamma, a.gamma, a.x.dtype, message) &&
        CheckOffset(a.gamma, a.gamma_offset, message) &&
        (a.dx.data == nullptr ||
         CheckMatrix(dx, a.dx, a.rows, a.n, a.x.dtype, Access::kWrite, message)))) {
    return false;
  }
  if (a.rstd == nullptr && a.rows > 0) return Reject(message, "rstd: null; expected [rows]");
  if (!CheckSums(a, message) || !CheckWorkspace(a, least_workspace(a), message)) return false;
  const int64_t real = SizeOf(RealOf(a.x.dtype));
  const Region writes[] = {
      MatrixRegion(dx, a.dx, a.rows, a.n), VectorRegion("dgamma", a.dgamma, real * a.n),
      VectorRegion("sums", a.sums, real * a.rows),
      VectorRegion("workspace", a.dgamma ? a.workspace : nullptr,
                   static_cast<int64_t>(std::min<uint64_t>(a.workspace_size, kMaxBytes)))};
  const Region reads[] = {MatrixRegion(dy, a.dy, a.rows, a.n),
                          VectorRegion("gamma", a.gamma.data, a.n * SizeOf(a.gamma.dtype)),
                          VectorRegion("rstd", a.rstd, real * a.rows),
                          VectorRegion("whole_sums", a.whole_sums, real * a.rows)};
  return CheckApart(writes, reads, MatrixRegion(kX, a.x, a.rows, a.n), nullptr, message);
}

bool Validate(const rmsnorm_runner* runner, Message& message) {
  if (runner == nullptr) return true;
  if (runner->size != sizeof(rmsnorm_runner)) {
    return Reject(message, "runner: size %zu; expected %zu", runner->size, sizeof(rmsnorm_runner));
  }
  if (runner->run == nullptr) return Reject(message, "runner.run: null; expected a function");
  return CheckCount("runner.threads", runner->threads, 1, message);
}

bool SplitShape(const int64_t* x_shape, int64_t x_dims, const int64_t* gamma_shape,
                int64_t gamma_dims, int64_t* rows, int64_t* n, Message& message) {
  if (x_dims < 1 || x_shape == nullptr) {
    return Reject(message, "x: %lld dimensions; expected 1 or more",
                  static_cast<long long>(x_dims));
  }
  // Printed only where it is refused: a text for every call took a tenth of one on a single row.
  const auto x_text = [&] { return ShapeText(x_shape, x_dims); };
  if (gamma_dims < 1) {
    return Reject(message, "gamma: %lld dimensions; expected 1 to x's %lld",
                  static_cast<long long>(gamma_dims), static_cast<long long>(x_dims));
  }
  const int64_t leading = x_dims - gamma_dims;
  if (gamma_shape != nullptr &&
      (leading < 0 || !std::equal(gamma_shape, gamma_shape + gamma_dims, x_shape + leading))) {
    return Reject(message, "gamma: shape %s is not the tail of x's %s",
                  ShapeText(gamma_shape, gamma_dims).text, x_text().text);
  }
  if (leading < 0) {
    return Reject(message, "x: shape %s has fewer axes than the %lld to normalize over",
                  x_text().text, static_cast<long long>(gamma_dims));
  }
  if (std::any_of(x_shape, x_shape + x_dims, [](int64_t size) { return size < 0; }) ||
      !Product(x_shape, leading, rows) || !Product(x_shape + leading, gamma_dims, n)) {
    return Reject(message, "x: shape %s is negative or too large", x_text().text);
  }
  if (*n > 0) return true;
  return Reject(message, "x: shape %s has no element to normalize over", x_text().text);
}

}  // namespace rmsnorm
