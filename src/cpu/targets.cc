// The choice among Highway's targets.
#include "cpu/targets.h"

#include <hwy/highway.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rmsnorm::cpu {
namespace {

constexpr std::string_view kReference = "reference";

// Targets without a fused multiply-add run the reference, so they don't count as kernels.
constexpr int64_t kWithoutFma = HWY_SSSE3 | HWY_SSE4 | HWY_EMU128 | HWY_SCALAR;

const std::vector<int64_t>& Kernels() {
  static const std::vector<int64_t> kernels = [] {
    std::vector<int64_t> supported;
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      if ((target & kWithoutFma) == 0) supported.push_back(target);
    }
    return supported;
  }();
  return kernels;
}

std::atomic<bool> uses_reference = false;

}  // namespace

const char* TargetNames() {
  static const std::string names = [] {
    std::string all;
    for (const int64_t target : Kernels()) all += std::string(hwy::TargetName(target)) + ' ';
    return all += kReference;
  }();
  return names.c_str();
}

bool UseTarget(std::string_view name) {
  int64_t mask = 0;  // Highway: no restriction
  for (const int64_t target : Kernels()) {
    if (name == hwy::TargetName(target)) mask = target;
  }
  if (mask == 0 && !name.empty() && name != kReference) return false;
  uses_reference = name == kReference;
  hwy::SetSupportedTargetsForTest(mask);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return true;
}

bool UsesReference() { return uses_reference.load(std::memory_order_relaxed); }

}  // namespace rmsnorm::cpu
