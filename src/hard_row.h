// What the tests of hard inputs share: a hard row between two normal ones.
#ifndef RMSNORM_HARD_ROW_H_
#define RMSNORM_HARD_ROW_H_

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <vector>

#include "testing.h"

namespace rmsnorm::testing {

inline constexpr int64_t kHardRow = 1;

// Three rows of these types of x, y of x's type and float32, in lengths that straddle a lane, a
// leaf and a block of leaves.
inline std::vector<Case> HardCases(std::initializer_list<rmsnorm_dtype> dtypes, double epsilon) {
  std::vector<Case> cases;
  for (const rmsnorm_dtype x : dtypes) {
    for (const rmsnorm_dtype y : {x, rmsnorm_dtype{RMSNORM_FLOAT32}}) {
      for (const int64_t n : {2, 5, 64, 100, 513, 9000}) {
        cases.push_back({.x = x, .y = y, .rows = 3, .n = n, .epsilon = epsilon});
      }
    }
  }
  return cases;
}

inline void SetBits(Elements& elements, int64_t i, uint32_t bits) {
  VisitDtype(elements.dtype, [&](auto element) {
    std::memcpy(elements.bytes.data() + i * sizeof(element), &bits, sizeof(element));
  });
}

inline uint32_t BitsAt(const Elements& elements, int64_t i) {
  uint32_t bits = 0;
  VisitDtype(elements.dtype, [&](auto element) {
    std::memcpy(&bits, elements.bytes.data() + i * sizeof(element), sizeof(element));
  });
  return bits;
}

// Of the one NaN that is written.
inline uint32_t NaNBits(rmsnorm_dtype dtype) {
  return dtype == RMSNORM_FLOAT32 ? 0x7FFFFFFF : 0x7FFF;
}

inline std::span<const uint8_t> RowBytes(const Elements& elements, int64_t row) {
  const int64_t bytes = elements.row_stride * SizeOf(elements.dtype);
  return std::span(elements.bytes).subspan(row * bytes, bytes);
}

// The call's two normal rows alone.
inline Operands WithoutHardRow(const Operands& call) {
  Case c = call.c;
  c.rows = 2;
  Operands two(c);
  two.gamma = call.gamma;
  for (const int64_t row : {0, 1}) {
    const auto copy = [row](const Elements& from, Elements& to) {
      const auto bytes = RowBytes(from, 2 * row);
      std::copy(bytes.begin(), bytes.end(), to.bytes.begin() + row * bytes.size());
    };
    copy(call.x, two.x);
    copy(call.dy, two.dy);
  }
  return two;
}

// Runs both directions after `change` has made the inputs hard. Expects the bits of the reference,
// and for the normal rows those that they have without the hard one.
inline Operands RunHard(const Case& c, const std::function<void(Operands&)>& change) {
  Operands call(c);
  change(call);
  Operands expected = call, alone = WithoutHardRow(call);
  Run(call);
  RunReference(expected);
  Run(alone);
  ExpectSameResults(call, expected);
  for (const int64_t row : {0, 1}) {
    EXPECT_TRUE(SameBits(RowBytes(call.y, 2 * row), RowBytes(alone.y, row))) << "y beside; " << c;
    EXPECT_TRUE(SameBits(RowBytes(call.dx, 2 * row), RowBytes(alone.dx, row)))
        << "dx beside; " << c;
    EXPECT_EQ(std::bit_cast<uint32_t>(call.rstd[2 * row]), std::bit_cast<uint32_t>(alone.rstd[row]))
        << "rstd beside; " << c;
  }
  return call;
}

}  // namespace rmsnorm::testing

#endif  // RMSNORM_HARD_ROW_H_
