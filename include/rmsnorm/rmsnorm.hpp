// The C++20 interface of rmsnorm: spans in, exceptions out, over the C interface of rmsnorm.h.
// Float16 and bfloat16 elements are given by any 2-byte type and their dtype. Rows are packed, and
// y and dy have x's type; the C interface has the rest (row strides, float32 y, two 16-bit types).
#ifndef RMSNORM_RMSNORM_HPP_
#define RMSNORM_RMSNORM_HPP_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "rmsnorm/rmsnorm.h"

namespace rmsnorm {

// A call that broke a rule: the text names the argument, what came and what is accepted.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

struct ForwardOptions {
  double epsilon = 1e-6;
  double gamma_offset = 0;
  rmsnorm_rounding rounding = RMSNORM_ROUND_ONCE;
};

namespace internal {

template <class T>
constexpr rmsnorm_dtype DtypeFor(rmsnorm_dtype dtype) {
  static_assert(std::is_same_v<std::remove_const_t<T>, float> || sizeof(T) == 2,
                "elements are float, or 2 bytes for float16 and bfloat16");
  return std::is_same_v<std::remove_const_t<T>, float> ? RMSNORM_FLOAT32 : dtype;
}

inline void ThrowUnlessOk(rmsnorm_status status) {
  if (status != RMSNORM_OK) throw Error(rmsnorm_last_error());
}

inline void Expect(const char* name, std::size_t size, std::size_t expected) {
  if (size == expected) return;
  throw Error(std::string(name) + ": " + std::to_string(size) + " elements; expected " +
              std::to_string(expected));
}

// Rows that lie one after the other.
template <class T>
rmsnorm_matrix Packed(std::span<T> elements, std::int64_t n, rmsnorm_dtype dtype) {
  return {const_cast<std::remove_const_t<T>*>(elements.data()), n, DtypeFor<T>(dtype)};
}

template <class T>
std::int64_t CountRows(std::span<const T> x, std::int64_t n) {
  if (n < 1 || x.size() % static_cast<std::size_t>(n) != 0) {
    throw Error("x: " + std::to_string(x.size()) +
                " elements are not rows of n = " + std::to_string(n));
  }
  return static_cast<std::int64_t>(x.size()) / n;
}

}  // namespace internal

// y = x / sqrt(mean(x^2) + epsilon) * (gamma_offset + gamma) for every row of n elements.
//   x, y    rows * n elements of one type; y may be x
//   gamma   n elements of type G, x's unless named, or empty: the scale is 1
//   rstd    rows elements, or empty: not wanted
//   dtype   of 2-byte elements: RMSNORM_FLOAT16 or RMSNORM_BFLOAT16
// Errors: rmsnorm::Error, before anything is written. Threads: OpenMP's.
template <class T, class G = T>
void Forward(std::span<const T> x, std::int64_t n, std::span<const std::type_identity_t<G>> gamma,
             std::span<T> y, std::span<float> rstd = {}, const ForwardOptions& options = {},
             rmsnorm_dtype dtype = RMSNORM_BFLOAT16) {
  const std::int64_t rows = internal::CountRows(x, n);
  internal::Expect("y", y.size(), x.size());
  if (!gamma.empty()) internal::Expect("gamma", gamma.size(), static_cast<std::size_t>(n));
  if (!rstd.empty()) internal::Expect("rstd", rstd.size(), static_cast<std::size_t>(rows));
  rmsnorm_forward_args args = {};
  args.size = sizeof(args);
  args.rows = rows;
  args.n = n;
  args.x = internal::Packed(x, n, dtype);
  args.gamma = {gamma.empty() ? nullptr : gamma.data(), internal::DtypeFor<G>(dtype)};
  args.y = internal::Packed(y, n, dtype);
  args.rstd = rstd.empty() ? nullptr : rstd.data();
  args.epsilon = options.epsilon;
  args.gamma_offset = options.gamma_offset;
  args.rounding = options.rounding;
  internal::ThrowUnlessOk(rmsnorm_forward(&args, nullptr));
}

// dx and dgamma of the call above, from dy and the rstd that it wrote. An empty dx or dgamma is not
// computed. Allocates the workspace of dgamma. Errors and threads as above.
template <class T, class G = T>
void Backward(std::span<const T> dy, std::span<const T> x, std::int64_t n,
              std::span<const std::type_identity_t<G>> gamma, std::span<const float> rstd,
              std::span<T> dx, std::span<float> dgamma, double gamma_offset = 0,
              rmsnorm_dtype dtype = RMSNORM_BFLOAT16) {
  const std::int64_t rows = internal::CountRows(x, n);
  internal::Expect("dy", dy.size(), x.size());
  internal::Expect("rstd", rstd.size(), static_cast<std::size_t>(rows));
  if (!gamma.empty()) internal::Expect("gamma", gamma.size(), static_cast<std::size_t>(n));
  if (!dx.empty()) internal::Expect("dx", dx.size(), x.size());
  if (!dgamma.empty()) internal::Expect("dgamma", dgamma.size(), static_cast<std::size_t>(n));
  rmsnorm_backward_args args = {};
  args.size = sizeof(args);
  args.rows = rows;
  args.n = n;
  args.dy = internal::Packed(dy, n, dtype);
  args.x = internal::Packed(x, n, dtype);
  args.gamma = {gamma.empty() ? nullptr : gamma.data(), internal::DtypeFor<G>(dtype)};
  args.rstd = rstd.data();
  if (!dx.empty()) args.dx = internal::Packed(dx, n, dtype);
  args.gamma_offset = gamma_offset;
  const auto release = [](void* memory) { ::operator delete(memory, std::align_val_t{64}); };
  std::unique_ptr<void, decltype(release)> workspace(nullptr, release);
  if (!dgamma.empty()) {
    args.dgamma = dgamma.data();
    args.workspace_size = rmsnorm_backward_workspace(rows, n, nullptr);
    workspace.reset(::operator new(args.workspace_size, std::align_val_t{64}));
    args.workspace = workspace.get();
  }
  internal::ThrowUnlessOk(rmsnorm_backward(&args, nullptr));
}

}  // namespace rmsnorm

#endif  // RMSNORM_RMSNORM_HPP_
