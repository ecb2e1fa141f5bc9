// Lane sums, leaf sums and conversions of every target: a wrong fusion shows in all lane sums,
// though in few final values.
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

// Of the leaf that is the whole row of n <= 512 floats, in the order of vectors for an x of dtype:
// its 64 lane sums, and their tree.
void LeafOf(rmsnorm_dtype dtype, const float* a, const float* b, int64_t n, float* lanes,
            float* leaf);

// Of count floats, a multiple of 32: each stored as an element of dtype, and what Rounded makes of
// it, NaN canonical.
void Convert(rmsnorm_dtype dtype, const float* values, int64_t count, void* stored, float* rounded);

// The same by the scalar conversions, which define the bits.
void ConvertOneByOne(rmsnorm_dtype dtype, const float* values, int64_t count, void* stored,
                     float* rounded) {
  VisitDtype(dtype, [&](auto element) {
    for (int64_t i = 0; i < count; ++i) {
      element = FromFloat<decltype(element)>(values[i]);
      static_cast<decltype(element)*>(stored)[i] = element;
      rounded[i] = FromFloat<float>(ToFloat(element));
    }
  });
}

int64_t TargetThatRuns() { return HWY_TARGET; }

size_t VectorBytes() {
  const hwy::HWY_NAMESPACE::ScalableTag<uint8_t> d;
  return hwy::HWY_NAMESPACE::Lanes(d);
}

#if HWY_NATIVE_FMA

template <class TX>
struct Products {
  const float* a;
  const float* b;

  HWY_INLINE void operator()(DF d, size_t i, VF& a0, VF& b0, VF& a1, VF& b1) const {
    LoadPair<TX>(d, a + i, a0, a1);
    LoadPair<TX>(d, b + i, b0, b1);
  }
};

template <class TX>
void LeafOfPairs(const float* a, const float* b, int64_t n, float* lanes, float* leaf) {
  const DF d;
  const size_t N = hn::Lanes(d);
  const size_t rest = n % kLanes;
  const Tail<float> a_tail(a + n - rest, rest), b_tail(b + n - rest, rest);
  const Products<TX> row{a, b}, tail{a_tail.data, b_tail.data};
  VF acc0, acc1, acc2, acc3;
  for (size_t lane = 0; lane < kLanes; lane += 4 * N) {
    LaneSums<TX>(d, row, n / kLanes, tail, rest, lane, acc0, acc1, acc2, acc3);
    StorePair<false, TX>(d, acc0, acc1, lanes + lane);
    StorePair<false, TX>(d, acc2, acc3, lanes + lane + 2 * N);
  }
  HWY_ALIGN float quads[kQuads + 2 * kMaxLanes] = {};
  LeafQuads<TX>(d, row, n / kLanes, tail, rest, quads);
  HWY_ALIGN float sums[kGroupRows];
  FoldEach(d, quads, 1, kQuads, sums);
  *leaf = sums[0];
}

void LeafOf(rmsnorm_dtype dtype, const float* a, const float* b, int64_t n, float* lanes,
            float* leaf) {
  VisitDtype(dtype, [&](auto x) { LeafOfPairs<decltype(x)>(a, b, n, lanes, leaf); });
}

void Convert(rmsnorm_dtype dtype, const float* values, int64_t count, void* stored,
             float* rounded) {
  VisitDtype(dtype, [&](auto element) HWY_ATTR {
    using T = decltype(element);
    const DF d;
    for (int64_t i = 0; i < count; i += 2 * hn::Lanes(d)) {
      VF v0, v1;
      LoadPair<T>(d, values + i, v0, v1);
      StorePair<true, T>(d, v0, v1, static_cast<T*>(stored) + i);
      StorePair<true, T>(d, Rounded<true, T>(d, v0), Rounded<true, T>(d, v1), rounded + i);
    }
  });
}

#else

void LeafOf(rmsnorm_dtype, const float* a, const float* b, int64_t n, float* lanes, float* leaf) {
  const auto at = [](const float* p) { return [p](int64_t i) { return p[i]; }; };
  for (int64_t l = 0; l < kLanes; ++l) lanes[l] = LaneSum<float>(0, l, n, at(a), at(b));
  *leaf = Dot<float>(n, at(a), at(b));
}

void Convert(rmsnorm_dtype dtype, const float* values, int64_t count, void* stored,
             float* rounded) {
  ConvertOneByOne(dtype, values, count, stored, rounded);
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace rmsnorm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <cstdlib>

#include "cpu/targets.h"
#include "testing.h"

namespace rmsnorm::cpu {

HWY_EXPORT(LeafOf);
HWY_EXPORT(Convert);
HWY_EXPORT(TargetThatRuns);
HWY_EXPORT(VectorBytes);

namespace {

class EveryTarget : public testing::OnEveryTarget {};
RMSNORM_ON_EVERY_TARGET(EveryTarget);

TEST_P(EveryTarget, LaneSumsAndLeafSumsHaveTheBitsOfTheReference) {
  testing::Random random(3);
  for (int64_t n = 1; n <= kLeaf; ++n) {
    std::vector<float> a(n), b(n), lanes(kLanes), expected(kLanes);
    for (float& value : a) value = random.Value();
    for (float& value : b) value = random.Value();
    const auto a_at = [&](int64_t i) { return a[i]; };
    const auto b_at = [&](int64_t i) { return b[i]; };
    for (int64_t l = 0; l < kLanes; ++l) expected[l] = LaneSum<float>(0, l, n, a_at, b_at);
    for (const rmsnorm_dtype dtype : testing::kDtypes) {
      float leaf;
      HWY_DYNAMIC_DISPATCH(LeafOf)(dtype, a.data(), b.data(), n, lanes.data(), &leaf);
      EXPECT_TRUE(testing::SameBits(lanes, expected)) << "n = " << n << ", dtype " << dtype;
      EXPECT_EQ(std::bit_cast<uint32_t>(leaf), std::bit_cast<uint32_t>(Dot<float>(n, a_at, b_at)))
          << "n = " << n << ", dtype " << dtype;
    }
  }
}

// How many of these floats a target converts to other bits than the scalar conversions.
int64_t CountWrong(rmsnorm_dtype dtype, const std::vector<float>& values) {
  const int64_t count = static_cast<int64_t>(values.size()), size = SizeOf(dtype);
  std::vector<uint8_t> stored(count * size), expected_stored(count * size);
  std::vector<float> rounded(count), expected_rounded(count);
  HWY_DYNAMIC_DISPATCH(Convert)(dtype, values.data(), count, stored.data(), rounded.data());
  HWY_STATIC_DISPATCH(ConvertOneByOne)
  (dtype, values.data(), count, expected_stored.data(), expected_rounded.data());
  if (stored == expected_stored && testing::SameBits(rounded, expected_rounded)) return 0;
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    wrong += std::memcmp(&stored[i * size], &expected_stored[i * size], size) != 0 ||
             std::memcmp(&rounded[i], &expected_rounded[i], sizeof(float)) != 0;
  }
  return wrong;
}

// The floats around the ties of both 16-bit types, and a sample of all others.
std::vector<float> Sample() {
  std::vector<float> values;
  const auto add = [&](uint32_t bits) { values.push_back(std::bit_cast<float>(bits)); };
  for (uint32_t i = 0; i < 1 << 16; ++i) {
    add(i * 65521u);
    for (const uint32_t beside : {~0u, 0u, 1u}) {
      add((i << 16 | 0x8000) + beside);
      const float code = ToFloat(Float16{static_cast<uint16_t>(i)});
      const float next = ToFloat(Float16{static_cast<uint16_t>(i + 1)});
      add(std::bit_cast<uint32_t>(0.5f * (code + next)) + beside);
    }
  }
  values.resize(values.size() / 32 * 32);
  return values;
}

TEST_P(EveryTarget, SampledFloatsAndThoseAroundEveryTieConvertToTheScalarBits) {
  for (const rmsnorm_dtype dtype : testing::kDtypes) EXPECT_EQ(CountWrong(dtype, Sample()), 0);
}

TEST_P(EveryTarget, DISABLED_EveryFloatConvertsToTheScalarBits) {
  if (GetParam() == "reference") GTEST_SKIP() << "is the scalar conversion";
  constexpr int64_t kBlock = 1 << 12;
  for (const rmsnorm_dtype dtype : testing::kDtypes) {
    int64_t wrong = 0;
#pragma omp parallel for reduction(+ : wrong)
    for (int64_t begin = 0; begin < int64_t{1} << 32; begin += kBlock) {
      std::vector<float> values(kBlock);
      for (int64_t i = 0; i < kBlock; ++i) {
        values[i] = std::bit_cast<float>(static_cast<uint32_t>(begin + i));
      }
      wrong += CountWrong(dtype, values);
    }
    EXPECT_EQ(wrong, 0) << "dtype " << dtype;
  }
}

TEST_P(EveryTarget, IsTheOneThatRuns) {
  if (GetParam() == "reference") {
    EXPECT_TRUE(UsesReference());
  } else {
    EXPECT_FALSE(UsesReference());
    EXPECT_EQ(hwy::TargetName(HWY_DYNAMIC_DISPATCH(TargetThatRuns)()), GetParam());
  }
}

// tests/emulated.cmake says what it expects of the CPU that qemu stands in for.
class EmulatedCpu : public ::testing::TestWithParam<std::string> {};

std::vector<std::string> ExpectedTargets() {
  const char* expected = std::getenv("RMSNORM_EXPECTED_TARGETS");
  return expected != nullptr ? std::vector<std::string>{expected} : std::vector<std::string>{};
}

TEST_P(EmulatedCpu, HasTheInstructionSetsAndVectorBytesThatWereAskedFor) {
  std::string targets;
  for (const std::string& name : testing::Targets()) {
    const testing::WithTarget target(name);
    if (name == "reference") {
      targets += name;
    } else {
      targets += name + ':' + std::to_string(HWY_DYNAMIC_DISPATCH(VectorBytes)()) + ' ';
    }
  }
  EXPECT_EQ(targets, GetParam());
}

INSTANTIATE_TEST_SUITE_P(OnlyThere, EmulatedCpu, ::testing::ValuesIn(ExpectedTargets()));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(EmulatedCpu);

}  // namespace
}  // namespace rmsnorm::cpu

#endif  // HWY_ONCE
