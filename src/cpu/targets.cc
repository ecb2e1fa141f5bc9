// The choice among Highway's targets.
#include "cpu/targets.h"

#include <hwy/highway.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string_view>

namespace rmsnorm::cpu {
namespace {

constexpr const char* kReference = "reference";

// Targets without a fused multiply-add run the reference, so they don't count as kernels.
constexpr int64_t kWithoutFma = HWY_SSSE3 | HWY_SSE4 | HWY_EMU128 | HWY_SCALAR;

// The targets of this machine that have kernels, a bit for each, the best the lowest.
int64_t Kernels() {
  static const int64_t kernels = hwy::SupportedTargets() & HWY_TARGETS & ~kWithoutFma;
  return kernels;
}

// Calls f with each target of a set, the best first.
template <class F>
void ForEachTarget(int64_t targets, const F& f) {
  for (; targets != 0; targets &= targets - 1) f(targets & -targets);
}

std::atomic<bool> uses_reference = false;

}  // namespace

const char* TargetNames() {
  // In memory of its own, so that it can't fail.
  struct Names {
    char text[512] = "";
    Names() {
      ForEachTarget(Kernels(), [this](int64_t target) { Append(hwy::TargetName(target), " "); });
      Append(kReference, "");
    }
    void Append(const char* name, const char* separator) {
      const size_t length = std::strlen(text);
      std::snprintf(text + length, sizeof(text) - length, "%s%s", name, separator);
    }
  };
  static const Names names;
  return names.text;
}

bool UseTarget(std::string_view name) {
  int64_t mask = 0;  // Highway: no restriction
  ForEachTarget(Kernels(), [&](int64_t target) {
    if (name == hwy::TargetName(target)) mask = target;
  });
  if (mask == 0 && !name.empty() && name != kReference) return false;
  uses_reference = name == kReference;
  hwy::SetSupportedTargetsForTest(mask);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return true;
}

bool UsesReference() { return uses_reference.load(std::memory_order_relaxed); }

}  // namespace rmsnorm::cpu
