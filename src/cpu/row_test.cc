// Lane sums and leaf sums of every target: a wrong fusion shows in all of them, though in few
// final values.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/row_test.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include <hwy/highway.h>

#include "core/reference.h"
#include "cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rmsnorm::cpu {
namespace HWY_NAMESPACE {

// Of the leaf that is the whole row of n <= 512 elements: its 64 lane sums, and their tree.
void LeafOf(const float* a, const float* b, int64_t n, float* lanes, float* leaf);

int64_t TargetThatRuns() { return HWY_TARGET; }

#if HWY_NATIVE_FMA

struct Products {
  const float* a;
  const float* b;

  HWY_INLINE void operator()(DF d, size_t i, VF& va, VF& vb) const {
    va = LoadFloats(d, a + i);
    vb = LoadFloats(d, b + i);
  }
};

void LeafOf(const float* a, const float* b, int64_t n, float* lanes, float* leaf) {
  const DF d;
  const size_t N = hn::Lanes(d);
  const Tail<float> a_tail(a, n), b_tail(b, n);
  const Products row{a, b}, tail{a_tail.data, b_tail.data};
  VF acc0, acc1, acc2, acc3;
  for (size_t lane = 0; lane < kLanes; lane += 4 * N) {
    LaneSums(d, row, 0, n / kLanes, tail, n % kLanes, lane, acc0, acc1, acc2, acc3);
    hn::StoreU(acc0, d, lanes + lane);
    hn::StoreU(acc1, d, lanes + lane + N);
    hn::StoreU(acc2, d, lanes + lane + 2 * N);
    hn::StoreU(acc3, d, lanes + lane + 3 * N);
  }
  HWY_ALIGN float quads[kQuads];
  LeafQuads(d, row, 0, n / kLanes, tail, n % kLanes, quads);
  *leaf = FoldQuads(d, quads, 1);
}

#else

void LeafOf(const float* a, const float* b, int64_t n, float* lanes, float* leaf) {
  const auto at = [](const float* p) { return [p](int64_t i) { return p[i]; }; };
  for (int64_t l = 0; l < kLanes; ++l) lanes[l] = LaneSum<float>(0, l, n, at(a), at(b));
  *leaf = Dot<float>(n, at(a), at(b));
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace rmsnorm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include "cpu/targets.h"
#include "testing.h"

namespace rmsnorm::cpu {

HWY_EXPORT(LeafOf);
HWY_EXPORT(TargetThatRuns);

namespace {

class EveryTarget : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryTarget, LaneSumsAndLeafSumsHaveTheBitsOfTheReference) {
  const testing::WithTarget target(GetParam());
  testing::Random random(3);
  for (int64_t n = 1; n <= kLeaf; ++n) {
    std::vector<float> a(n), b(n), lanes(kLanes), expected(kLanes);
    for (float& value : a) value = random.Value();
    for (float& value : b) value = random.Value();
    const auto a_at = [&](int64_t i) { return a[i]; };
    const auto b_at = [&](int64_t i) { return b[i]; };
    float leaf;
    HWY_DYNAMIC_DISPATCH(LeafOf)(a.data(), b.data(), n, lanes.data(), &leaf);
    for (int64_t l = 0; l < kLanes; ++l) expected[l] = LaneSum<float>(0, l, n, a_at, b_at);
    EXPECT_TRUE(testing::SameBits(lanes, expected)) << "n = " << n;
    EXPECT_EQ(std::bit_cast<uint32_t>(leaf), std::bit_cast<uint32_t>(Dot<float>(n, a_at, b_at)))
        << "n = " << n;
  }
}

TEST_P(EveryTarget, IsTheOneThatRuns) {
  const testing::WithTarget target(GetParam());
  if (GetParam() == "reference") {
    EXPECT_TRUE(UsesReference());
  } else {
    EXPECT_FALSE(UsesReference());
    EXPECT_EQ(hwy::TargetName(HWY_DYNAMIC_DISPATCH(TargetThatRuns)()), GetParam());
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, EveryTarget, ::testing::ValuesIn(testing::Targets()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace rmsnorm::cpu

#endif  // HWY_ONCE
