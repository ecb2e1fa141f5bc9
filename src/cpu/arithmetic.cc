// Sums whose results tell a fused, flushed or approximate operation from a right one.
#include "cpu/arithmetic.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/arithmetic.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include <hwy/highway.h>

#include <cmath>

#include "cpu/targets.h"

#ifndef RMSNORM_CPU_ARITHMETIC_CASES_
#define RMSNORM_CPU_ARITHMETIC_CASES_

namespace rmsnorm::cpu {

// expected = the operation's one right result.
struct ArithmeticCase {
  const char* rule;
  enum Operation { kProductPlus, kFusedProductPlus, kProduct, kQuotient, kRoot } operation;
  float a, b, c;
  float expected;
};

}  // namespace rmsnorm::cpu

#endif  // RMSNORM_CPU_ARITHMETIC_CASES_

HWY_BEFORE_NAMESPACE();
namespace rmsnorm::cpu {
namespace HWY_NAMESPACE {

float Scalar(ArithmeticCase::Operation operation, float a, float b, float c) {
  switch (operation) {
    case ArithmeticCase::kProductPlus:
      return a * b + c;
    case ArithmeticCase::kFusedProductPlus:
      return std::fma(a, b, c);
    case ArithmeticCase::kProduct:
      return a * b;
    case ArithmeticCase::kQuotient:
      return a / b;
    default:
      return std::sqrt(a);
  }
}

#if HWY_NATIVE_FMA

namespace hn = hwy::HWY_NAMESPACE;

float Vector(ArithmeticCase::Operation operation, float a, float b, float c) {
  const hn::CappedTag<float, 16> d;
  const auto va = hn::Set(d, a), vb = hn::Set(d, b), vc = hn::Set(d, c);
  switch (operation) {
    case ArithmeticCase::kProductPlus:
      return hn::GetLane(hn::Add(hn::Mul(va, vb), vc));
    case ArithmeticCase::kFusedProductPlus:
      return hn::GetLane(hn::MulAdd(va, vb, vc));
    case ArithmeticCase::kProduct:
      return hn::GetLane(hn::Mul(va, vb));
    default:
      return Scalar(operation, a, b, c);  // kernels divide and take roots in scalars
  }
}

#else

float Vector(ArithmeticCase::Operation operation, float a, float b, float c) {
  return Scalar(operation, a, b, c);
}

#endif

bool Holds(const ArithmeticCase& rule) {
  const float scalar = Scalar(rule.operation, rule.a, rule.b, rule.c);
  const float vector = Vector(rule.operation, rule.a, rule.b, rule.c);
  return scalar == rule.expected && vector == rule.expected;
}

}  // namespace HWY_NAMESPACE
}  // namespace rmsnorm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace rmsnorm::cpu {

HWY_EXPORT(Holds);

namespace {

constexpr ArithmeticCase kCases[] = {
    // (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24, a tie that the product alone rounds down.
    {"a product and a sum are rounded each", ArithmeticCase::kProductPlus, 1 + 0x1p-12f,
     1 + 0x1p-12f, -1 - 0x1p-11f, 0},
    {"fma is rounded once", ArithmeticCase::kFusedProductPlus, 1 + 0x1p-12f, 1 + 0x1p-12f,
     -1 - 0x1p-11f, 0x1p-24f},
    {"subnormal results are kept", ArithmeticCase::kProduct, 0x1p-100f, 0x1p-40f, 0, 0x1p-140f},
    {"subnormal operands are kept", ArithmeticCase::kProduct, 0x1p-140f, 0x1p40f, 0, 0x1p-100f},
    {"rounding is not upward", ArithmeticCase::kProductPlus, 0x1p-13f, 0x1p-12f, 1, 1},
    {"rounding is not downward", ArithmeticCase::kProductPlus, 0x1.8p-12f, 0x1p-12f, 1,
     1 + 0x1p-23f},
    {"a quotient is rounded correctly", ArithmeticCase::kQuotient, 1, 3, 0, 0x1.555556p-2f},
    {"a square root is rounded correctly", ArithmeticCase::kRoot, 2, 0, 0, 0x1.6a09e6p+0f},
};

}  // namespace

const char* BrokenRule() {
  // The reference is compiled for the least CPU, as the static target is.
  const auto holds = UsesReference() ? &HWY_STATIC_DISPATCH(Holds) : &HWY_DYNAMIC_DISPATCH(Holds);
  for (const ArithmeticCase& rule : kCases) {
    if (!holds(rule)) return rule.rule;
  }
  return nullptr;
}

}  // namespace rmsnorm::cpu

#endif  // HWY_ONCE
