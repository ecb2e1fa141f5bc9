// Lengths, addresses, strides and guarded pages: the bits of the reference, nothing else touched.
#include <sys/mman.h>
#include <unistd.h>

#include <functional>
#include <list>
#include <utility>

#include "testing.h"

namespace rmsnorm {
namespace {

using testing::Case;
using testing::Elements;
using testing::Operands;
using testing::SameBits;

class Layouts : public testing::OnEveryTarget {};
RMSNORM_ON_EVERY_TARGET(Layouts);

void ExpectReferenceBits(const Case& c) {
  Operands call(c), expected(c);
  testing::Run(call);
  testing::RunReference(expected);
  testing::ExpectSameResults(call, expected);
}

TEST_P(Layouts, EveryLengthTo1100HasTheBitsOfTheReference) {
  for (int64_t n = 1; n <= 1100; ++n) {
    const rmsnorm_dtype narrow = n % 2 ? RMSNORM_FLOAT16 : RMSNORM_BFLOAT16;
    ExpectReferenceBits({.rows = 2, .n = n});
    ExpectReferenceBits({.x = narrow, .gamma = narrow, .y = narrow, .rows = 2, .n = n});
  }
}

TEST_P(Layouts, AMillionColumnsHaveTheBitsOfTheReference) {
  for (const rmsnorm_dtype dtype : testing::kDtypes) {
    ExpectReferenceBits({.x = dtype, .gamma = dtype, .y = dtype, .rows = 2, .n = 1 << 20});
  }
}

// Memory for the arguments of a call, in the order x, gamma, y, rstd, dy, dx, dgamma, workspace.
using Place = std::function<uint8_t*(int64_t bytes)>;

// Bytes from the first element to the last.
std::span<uint8_t> Extent(Elements& elements, int64_t rows, int64_t n) {
  const int64_t count = (rows - 1) * elements.row_stride + n;
  return std::span(elements.bytes).first(count * SizeOf(elements.dtype));
}

// Both directions, with every argument where `place` puts it: the bits of the reference.
void ExpectReferenceBitsAt(const Case& c, const Place& place, const Place& place_workspace) {
  Operands call(c), expected(c);
  testing::RunReference(expected);
  const auto put = [&](std::span<const uint8_t> bytes) {
    uint8_t* at = place(static_cast<int64_t>(bytes.size()));
    std::memcpy(at, bytes.data(), bytes.size());
    return std::span(at, bytes.size());
  };
  const auto put_matrix = [&](Elements& elements) { return put(Extent(elements, c.rows, c.n)); };
  const auto put_floats = [&](const std::vector<float>& values) {
    return put({reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(float)});
  };
  rmsnorm_forward_args forward = call.Forward();
  const auto x = put_matrix(call.x), gamma = put(call.gamma.bytes), y = put_matrix(call.y);
  const auto rstd = put_floats(call.rstd);
  forward.x.data = x.data();
  forward.gamma.data = gamma.data();
  forward.y.data = y.data();
  forward.rstd = reinterpret_cast<float*>(rstd.data());
  EXPECT_EQ(rmsnorm_forward(&forward, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  EXPECT_TRUE(SameBits(y, Extent(expected.y, c.rows, c.n))) << "y; " << c;
  EXPECT_TRUE(SameBits(rstd, expected.rstd)) << "rstd; " << c;

  rmsnorm_backward_args backward = call.Backward();
  const auto dy = put_matrix(call.dy), dx = put_matrix(call.dx), dgamma = put_floats(call.dgamma);
  backward.x.data = x.data();
  backward.gamma.data = gamma.data();
  backward.rstd = reinterpret_cast<float*>(rstd.data());
  backward.dy.data = dy.data();
  backward.dx.data = dx.data();
  backward.dgamma = reinterpret_cast<float*>(dgamma.data());
  backward.workspace = place_workspace(static_cast<int64_t>(backward.workspace_size));
  EXPECT_EQ(rmsnorm_backward(&backward, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  EXPECT_TRUE(SameBits(dx, Extent(expected.dx, c.rows, c.n))) << "dx; " << c;
  EXPECT_TRUE(SameBits(dgamma, expected.dgamma)) << "dgamma; " << c;
}

// Gives memory that is surrounded by canaries.
class AmongCanaries {
 public:
  uint8_t* Place(int64_t bytes, int64_t offset) {
    blocks_.push_back({std::vector<uint8_t>(bytes + 2 * kMargin, kCanary), bytes, 0});
    Block& block = blocks_.back();
    const auto address = reinterpret_cast<uintptr_t>(block.memory.data());
    block.begin = 64 - address % 64 + offset;
    return block.memory.data() + block.begin;
  }
  bool Live() const {
    for (const Block& block : blocks_) {
      for (int64_t i = 0; i < static_cast<int64_t>(block.memory.size()); ++i) {
        const bool inside = i >= block.begin && i < block.begin + block.bytes;
        if (!inside && block.memory[i] != kCanary) return false;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kMargin = 128;
  static constexpr uint8_t kCanary = 0xC3;
  struct Block {
    std::vector<uint8_t> memory;
    int64_t bytes, begin;
  };
  std::list<Block> blocks_;
};

// x, gamma, y and dy of every type that may go together, in lengths around a step, a leaf, and 1.
std::vector<Case> CasesAroundSteps() {
  std::vector<Case> cases;
  for (const int64_t around : {1, 16, 64, 512}) {
    for (const int64_t n : {around - 1, around, around + 1}) {
      if (n == 0) continue;
      for (Case c : testing::EveryType(/*rows=*/3, n)) {
        if (c.gamma != testing::kAbsent) cases.push_back(c);
      }
    }
  }
  return cases;
}

// Every argument `first` bytes behind an aligned address, then each `step` bytes further.
void ExpectReferenceBitsAtOffsets(const Case& c, int64_t first, int64_t step) {
  AmongCanaries memory;
  int64_t offset = first;
  ExpectReferenceBitsAt(
      c,
      [&](int64_t bytes) {
        uint8_t* at = memory.Place(bytes, offset % 8);
        offset += step;
        return at;
      },
      [&](int64_t bytes) { return memory.Place(bytes, /*offset=*/0); });
  EXPECT_TRUE(memory.Live()) << c;
}

TEST_P(Layouts, AnyByteOffsetOfAllArgumentsHasTheBitsOfTheReference) {
  for (const Case& c : CasesAroundSteps()) {
    for (int64_t offset = 0; offset < 8; ++offset) ExpectReferenceBitsAtOffsets(c, offset, 0);
  }
}

TEST_P(Layouts, OffsetsThatDifferHaveTheBitsOfTheReference) {
  for (const Case& c : CasesAroundSteps()) {
    for (const int64_t step : {1, 3, 5}) ExpectReferenceBitsAtOffsets(c, step, step);
  }
}

// Whole pages between two that can't be touched.
class Fenced {
 public:
  explicit Fenced(int64_t bytes) : size_(CeilDiv(bytes, kPage) * kPage) {
    begin_ = static_cast<uint8_t*>(
                 mmap(nullptr, size_ + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) +
             kPage;
    EXPECT_EQ(mprotect(begin_, size_, PROT_READ | PROT_WRITE), 0);
    std::fill_n(begin_, size_, 0xC3);
  }
  ~Fenced() { munmap(begin_ - kPage, size_ + 2 * kPage); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;

  uint8_t* begin() const { return begin_; }
  uint8_t* end() const { return begin_ + size_; }

 private:
  inline static const int64_t kPage = sysconf(_SC_PAGESIZE);
  int64_t size_;
  uint8_t* begin_;
};

TEST_P(Layouts, NothingIsTouchedBehindTheLastElementOfAnyArgument) {
  for (const Case& c : CasesAroundSteps()) {
    std::list<Fenced> pages;
    const auto at_the_end = [&](int64_t bytes) { return pages.emplace_back(bytes).end() - bytes; };
    ExpectReferenceBitsAt(c, at_the_end, [&](int64_t bytes) {  // which must be aligned to 64
      return at_the_end(CeilDiv(bytes, 64) * 64);
    });
  }
}

TEST_P(Layouts, NothingIsTouchedBeforeTheFirstElementOfAnyArgument) {
  for (const Case& c : CasesAroundSteps()) {
    std::list<Fenced> pages;
    const auto at_the_begin = [&](int64_t bytes) { return pages.emplace_back(bytes).begin(); };
    ExpectReferenceBitsAt(c, at_the_begin, at_the_begin);
  }
}

// The same rows, `gap` elements apart; each byte between them is `fill`.
Elements Apart(const Elements& packed, int64_t rows, int64_t gap, uint8_t fill) {
  Elements apart(packed.dtype, rows, packed.row_stride + gap);
  std::fill(apart.bytes.begin(), apart.bytes.end(), fill);
  const int64_t size = SizeOf(packed.dtype), row_bytes = packed.row_stride * size;
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(packed.bytes.begin() + row * row_bytes, row_bytes,
                apart.bytes.begin() + row * apart.row_stride * size);
  }
  return apart;
}

TEST_P(Layouts, RowsApartHaveTheBitsOfPackedOnesAndWhatLiesBetweenThemStays) {
  constexpr uint8_t kNaN = 0xFF, kCanary = 0xC3;
  for (Case c : CasesAroundSteps()) {
    c.gap = 0;
    for (const int64_t gap : {1, 7, 64, 1000}) {
      Operands call(c), expected(c);
      call.x = Apart(call.x, c.rows, gap, kNaN);
      call.y = Apart(call.y, c.rows, 2 * gap, kCanary);
      call.dy = Apart(call.dy, c.rows, 3 * gap, kNaN);
      call.dx = Apart(call.dx, c.rows, 4 * gap, kCanary);
      testing::RunReference(expected);
      expected.y = Apart(expected.y, c.rows, 2 * gap, kCanary);
      expected.dx = Apart(expected.dx, c.rows, 4 * gap, kCanary);
      testing::Run(call);
      testing::ExpectSameResults(call, expected);
    }
  }
}

void RepeatFirstRow(Elements& elements) {
  const int64_t row_bytes = elements.row_stride * SizeOf(elements.dtype);
  for (size_t i = row_bytes; i < elements.bytes.size(); ++i) {
    elements.bytes[i] = elements.bytes[i - row_bytes];
  }
}

TEST_P(Layouts, StrideZeroHasTheBitsOfTheRowRepeated) {
  for (const auto& [of_x, of_dy] : {std::pair(true, false), {false, true}, {true, true}}) {
    for (Case c : CasesAroundSteps()) {
      c.rows = 20;
      Operands call(c), expected(c);
      if (of_x) RepeatFirstRow(expected.x);
      if (of_dy) RepeatFirstRow(expected.dy);
      if (of_x) call.x.row_stride = 0;
      if (of_dy) call.dy.row_stride = 0;
      testing::RunReference(expected);
      testing::Run(call);
      testing::ExpectSameResults(call, expected);
    }
  }
}

}  // namespace
}  // namespace rmsnorm
