// What the tests share: operands of a call made from a seed, the sums as the page defines them, and
// comparison by bits.
#ifndef RMSNORM_TESTING_H_
#define RMSNORM_TESTING_H_

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/reference.h"
#include "rmsnorm/rmsnorm.h"

namespace rmsnorm::testing {

inline constexpr rmsnorm_dtype kAbsent = 0;  // of gamma
inline constexpr rmsnorm_dtype kDtypes[] = {RMSNORM_FLOAT32, RMSNORM_FLOAT16, RMSNORM_BFLOAT16};

// Lengths straddle a lane, a step, a leaf, a block of leaves and an uneven tree, then real widths.
inline constexpr int64_t kLengths[] = {1,    2,    15,   16,   17,    63,    64,   65,
                                       127,  128,  511,  512,  513,   768,   960,  1536,
                                       4096, 5120, 8191, 8193, 12289, 16385, 33000};

inline std::vector<std::string> Targets() {
  std::istringstream names(rmsnorm_cpu_targets());
  return {std::istream_iterator<std::string>(names), {}};
}

// Uses one target until the end of a test.
class WithTarget {
 public:
  explicit WithTarget(const std::string& name) {
    EXPECT_EQ(rmsnorm_use_cpu_target(name.c_str()), RMSNORM_OK) << rmsnorm_last_error();
  }
  ~WithTarget() { EXPECT_EQ(rmsnorm_use_cpu_target(nullptr), RMSNORM_OK); }
};

// SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Bits() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
  }
  // In [-2, 2), a multiple of 2^-22.
  float Value() {
    return static_cast<float>(static_cast<int64_t>(Bits() >> 40) - (1 << 23)) * 0x1p-22f;
  }

 private:
  uint64_t state_;
};

// A matrix or vector of any dtype that owns its memory.
struct Elements {
  rmsnorm_dtype dtype;
  int64_t row_stride;
  std::vector<uint8_t> bytes;

  Elements() : dtype(RMSNORM_FLOAT32), row_stride(0) {}
  Elements(rmsnorm_dtype type, int64_t rows, int64_t stride)
      : dtype(type), row_stride(stride), bytes(rows * stride * SizeOf(type), 0xA5) {}

  rmsnorm_matrix matrix() { return {bytes.empty() ? nullptr : bytes.data(), row_stride, dtype}; }
  rmsnorm_vector vector() const { return {bytes.empty() ? nullptr : bytes.data(), dtype}; }

  void Set(int64_t i, float value) {
    VisitDtype(dtype, [&](auto element) {
      element = FromFloat<decltype(element)>(value);
      std::memcpy(bytes.data() + i * sizeof(element), &element, sizeof(element));
    });
  }
  float Get(int64_t i) const {
    return VisitDtype(dtype, [&](auto element) {
      std::memcpy(&element, bytes.data() + i * sizeof(element), sizeof(element));
      return ToFloat(element);
    });
  }
};

// What a call is made of; the operands follow from it.
struct Case {
  rmsnorm_dtype x = RMSNORM_FLOAT32;
  rmsnorm_dtype gamma = RMSNORM_FLOAT32;  // or kAbsent
  rmsnorm_dtype y = RMSNORM_FLOAT32;      // and dy's
  rmsnorm_rounding rounding = RMSNORM_ROUND_ONCE;
  double gamma_offset = 0;
  int64_t rows = 3;
  int64_t n = 64;
  int64_t gap = 0;  // elements between rows
  double epsilon = 1e-6;
  bool hard_rows = false;

  friend std::ostream& operator<<(std::ostream& out, const Case& c) {
    return out << "x " << c.x << ", gamma " << c.gamma << ", y " << c.y << ", rounding "
               << c.rounding << ", offset " << c.gamma_offset << ", rows " << c.rows << ", n "
               << c.n << ", gap " << c.gap << ", epsilon " << c.epsilon;
  }
};

// Every combination of types, for rows of n elements; offsets and gaps vary with n.
inline std::vector<Case> EveryType(int64_t rows, int64_t n) {
  std::vector<Case> cases;
  for (const rmsnorm_dtype x : kDtypes) {
    for (const bool y_is_x : {true, false}) {
      const auto add = [&](rmsnorm_dtype gamma) {
        cases.push_back({.x = x,
                         .gamma = gamma,
                         .y = y_is_x ? x : rmsnorm_dtype{RMSNORM_FLOAT32},
                         .gamma_offset = gamma != kAbsent && n % 2 ? 1.0 : 0.0,
                         .rows = rows,
                         .n = n,
                         .gap = n % 3});
      };
      add(kAbsent);
      for (const rmsnorm_dtype gamma : kDtypes) add(gamma);
    }
  }
  return cases;
}

struct Operands {
  Case c;
  Elements x, gamma, y, dy, dx;
  std::vector<float> rstd, dgamma;
  std::vector<uint8_t> workspace_bytes;

  explicit Operands(const Case& of, uint64_t seed = 1)
      : c(of),
        x(c.x, c.rows, c.n + c.gap),
        y(c.y, c.rows, c.n + c.gap),
        dy(c.y, c.rows, c.n + c.gap),
        dx(c.x, c.rows, c.n + c.gap),
        rstd(c.rows, -1),
        dgamma(c.n, -1) {
    Random random(seed);
    if (c.gamma != kAbsent) {
      gamma = Elements(c.gamma, 1, c.n);
      for (int64_t i = 0; i < c.n; ++i) gamma.Set(i, random.Value());
    }
    for (int64_t i = 0; i < c.rows * x.row_stride; ++i) {
      x.Set(i, random.Value());
      dy.Set(i, random.Value());
    }
    for (int64_t row = 0; c.hard_rows && row < c.rows; ++row) MakeHard(row, random);
  }

  // Some rows overflow or underflow a float32 sum, hold infinity or NaN, or nothing at all.
  void MakeHard(int64_t row, Random& random) {
    const int64_t first = row * x.row_stride;
    const int64_t any = first + static_cast<int64_t>(random.Bits() % c.n);
    switch (row % 9) {
      case 1:
        for (int64_t i = 0; i < c.n; ++i) x.Set(first + i, x.Get(first + i) * 1e20f);
        break;
      case 2:
        x.Set(any, 1e20f);
        break;
      case 3:
        for (int64_t i = 0; i < c.n; ++i) x.Set(first + i, x.Get(first + i) * 1e-30f);
        break;
      case 4:
        x.Set(any, HUGE_VALF);
        break;
      case 5:
        x.Set(any, -std::nanf(""));
        break;
      case 6:
        for (int64_t i = 0; i < c.n; ++i) x.Set(first + i, i % 2 ? -0.0f : 0.0f);
        break;
      case 7:
        for (int64_t i = 0; i < c.n; ++i) x.Set(first + i, x.Get(first + i) * 1e-41f);
        break;
      default:
        break;
    }
  }

  rmsnorm_forward_args Forward() {
    rmsnorm_forward_args args = {};
    args.size = sizeof(args);
    args.rows = c.rows;
    args.n = c.n;
    args.x = x.matrix();
    args.gamma = gamma.vector();
    args.y = y.matrix();
    args.rstd = rstd.data();
    args.epsilon = c.epsilon;
    args.gamma_offset = c.gamma_offset;
    args.rounding = c.rounding;
    return args;
  }

  // Call after Forward's rstd is there.
  rmsnorm_backward_args Backward(const rmsnorm_runner* runner = nullptr) {
    rmsnorm_backward_args args = {};
    args.size = sizeof(args);
    args.rows = c.rows;
    args.n = c.n;
    args.dy = dy.matrix();
    args.x = x.matrix();
    args.gamma = gamma.vector();
    args.rstd = rstd.data();
    args.dx = dx.matrix();
    args.dgamma = dgamma.data();
    args.gamma_offset = c.gamma_offset;
    args.workspace_size = rmsnorm_backward_workspace(c.rows, c.n, runner);
    workspace_bytes.resize(args.workspace_size + 64);
    const auto address = reinterpret_cast<uintptr_t>(workspace_bytes.data());
    args.workspace = workspace_bytes.data() + (64 - address % 64) % 64;
    return args;
  }
};

template <class A, class B>
::testing::AssertionResult SameBits(const A& a, const B& b) {
  const auto left = std::as_bytes(std::span(a)), right = std::as_bytes(std::span(b));
  if (left.size() != right.size()) return ::testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < left.size(); ++i) {
    if (left[i] != right[i]) {
      return ::testing::AssertionFailure() << "byte " << i << " of " << left.size() << " differs";
    }
  }
  return ::testing::AssertionSuccess();
}

// The sums of docs/numerics.md, word for word: levels instead of cuts, numbers instead of names.
template <class Real>
Real TreeByLevels(std::vector<Real> values) {
  while (values.size() > 1) {
    std::vector<Real> next;
    for (size_t k = 0; 2 * k < values.size(); ++k) {
      const bool paired = 2 * k + 1 < values.size();
      next.push_back(paired ? values[2 * k] + values[2 * k + 1] : values[2 * k]);
    }
    values = next;
  }
  return values[0];
}

template <class Real>
Real DotByLevels(const std::vector<Real>& a, const std::vector<Real>& b) {
  std::vector<Real> leaves;
  for (size_t j = 0; 512 * j < a.size(); ++j) {
    std::vector<Real> lanes(64, 0);
    for (size_t s = 0; s < 8; ++s) {
      for (size_t l = 0; l < 64; ++l) {
        const size_t i = 512 * j + 64 * s + l;
        if (i < a.size()) lanes[l] = std::fma(a[i], b[i], lanes[l]);
      }
    }
    leaves.push_back(TreeByLevels(lanes));
  }
  return TreeByLevels(leaves) + 0;
}

// A runner that splits work into this many pieces and runs them last to first.
class Backwards {
 public:
  explicit Backwards(int64_t threads) : runner_{sizeof(rmsnorm_runner), threads, nullptr, Run} {}
  const rmsnorm_runner* get() const { return &runner_; }

 private:
  static void Run(void*, int64_t count, rmsnorm_task task, void* data) {
    for (int64_t i = count; i-- > 0;) task(data, i, i + 1);
  }
  rmsnorm_runner runner_;
};

// Both directions on the target in use.
inline void Run(Operands& call, const rmsnorm_runner* runner = nullptr) {
  const rmsnorm_forward_args forward = call.Forward();
  EXPECT_EQ(rmsnorm_forward(&forward, runner), RMSNORM_OK) << rmsnorm_last_error();
  const rmsnorm_backward_args backward = call.Backward(runner);
  EXPECT_EQ(rmsnorm_backward(&backward, runner), RMSNORM_OK) << rmsnorm_last_error();
}

// Both directions by the definition.
inline void RunReference(Operands& call) {
  ForwardReference(call.Forward(), 0, call.c.rows);
  BackwardReference(call.Backward());
}

inline void ExpectSameResults(const Operands& actual, const Operands& expected) {
  EXPECT_TRUE(SameBits(actual.y.bytes, expected.y.bytes)) << "y; " << actual.c;
  EXPECT_TRUE(SameBits(actual.rstd, expected.rstd)) << "rstd; " << actual.c;
  EXPECT_TRUE(SameBits(actual.dx.bytes, expected.dx.bytes)) << "dx; " << actual.c;
  EXPECT_TRUE(SameBits(actual.dgamma, expected.dgamma)) << "dgamma; " << actual.c;
}

// A test that runs on every target of the machine, by the name of one.
class OnEveryTarget : public ::testing::TestWithParam<std::string> {
 protected:
  const WithTarget target_{GetParam()};
};

}  // namespace rmsnorm::testing

// Makes the tests of a suite derived from OnEveryTarget.
#define RMSNORM_ON_EVERY_TARGET(Suite)                                                         \
  INSTANTIATE_TEST_SUITE_P(Targets, Suite, ::testing::ValuesIn(::rmsnorm::testing::Targets()), \
                           [](const auto& info) { return info.param; })

#endif  // RMSNORM_TESTING_H_
