// The formula of docs/numerics.md, row by row in binary64.
#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

namespace rmsnorm::bench {

namespace {

// The norm of the differences over the norm of what is right.
class Distance {
 public:
  void Add(double got, double wanted) {
    difference_ += (got - wanted) * (got - wanted);
    norm_ += wanted * wanted;
  }

  std::string Above(double bound, const char* name) const {
    const double relative = std::sqrt(difference_ / norm_);
    if (relative <= bound) return "";
    char text[64];
    std::snprintf(text, sizeof(text), "%s is off by %.0e of its norm", name, relative);
    return text;
  }

 private:
  double difference_ = 0, norm_ = 0;
};

// Half a unit of the dtype for rounding the result, and some of float32 for its sums.
double Bound(rmsnorm_dtype dtype) {
  constexpr double kSums = 4 * 0x1p-23;
  if (dtype == RMSNORM_FLOAT32) return 0x1p-24 + kSums;
  return (dtype == RMSNORM_FLOAT16 ? 0x1p-11 : 0x1p-8) + kSums;
}

struct Row {
  std::vector<double> xhat;
  double rstd;
};

Row Normalized(const Call& call, int64_t row) {
  Row result{std::vector<double>(call.shape.n), 0};
  double sum = 0;
  for (int64_t i = 0; i < call.shape.n; ++i) {
    const double x = Element(call.operands->x, call.dtype, row * call.shape.row_stride + i);
    result.xhat[i] = x;
    sum += x * x;
  }
  result.rstd = 1 / std::sqrt(sum / call.shape.n + kEpsilon);
  for (double& value : result.xhat) value *= result.rstd;
  return result;
}

int64_t RowsBetweenCompared(const Call& call) { return std::max<int64_t>(1, call.shape.rows / 64); }

}  // namespace

std::string WrongInForward(const Call& call) {
  const auto& [shape, dtype, threads, operands] = call;
  Distance y;
  for (int64_t row = 0; row < shape.rows; row += RowsBetweenCompared(call)) {
    const Row right = Normalized(call, row);
    for (int64_t i = 0; i < shape.n; ++i) {
      y.Add(Element(operands->y, dtype, row * shape.n + i),
            right.xhat[i] * Element(operands->gamma, dtype, i));
    }
  }
  return y.Above(Bound(dtype), "y");
}

std::string WrongInBackward(const Call& call) {
  const auto& [shape, dtype, threads, operands] = call;
  Distance dx, dgamma;
  std::vector<double> sums(shape.n), dy(shape.n), w(shape.n);
  for (int64_t row = 0; row < shape.rows; ++row) {
    const Row right = Normalized(call, row);
    double c = 0;
    for (int64_t i = 0; i < shape.n; ++i) {
      dy[i] = Element(operands->dy, dtype, row * shape.n + i);
      sums[i] += dy[i] * right.xhat[i];
      w[i] = dy[i] * Element(operands->gamma, dtype, i);
      c += w[i] * right.xhat[i] / shape.n;
    }
    if (row % RowsBetweenCompared(call) != 0) continue;
    for (int64_t i = 0; i < shape.n; ++i) {
      dx.Add(Element(operands->y, dtype, row * shape.n + i),
             (w[i] - right.xhat[i] * c) * right.rstd);
    }
  }
  for (int64_t i = 0; i < shape.n; ++i) {
    dgamma.Add(Element(operands->dgamma, RMSNORM_FLOAT32, i), sums[i]);
  }
  const std::string wrong = dx.Above(Bound(dtype), "dx");
  // A plain sum of the rows in float32 strays like a random walk.
  const double bound = Bound(RMSNORM_FLOAT32) * std::max(1.0, std::sqrt(shape.rows));
  return wrong.empty() ? dgamma.Above(bound, "dgamma") : wrong;
}

}  // namespace rmsnorm::bench
