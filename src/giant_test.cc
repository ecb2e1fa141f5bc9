// Ten million rows, and more than 2^31 elements in many rows or in one: the bits of the reference.
// Little memory is used: one chunk of it is mapped again and again.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "core/canonical.h"
#include "testing.h"

namespace rmsnorm {
namespace {

using testing::Case;
using testing::Elements;
using testing::Operands;
using testing::SameBits;

// The reference would take minutes.
std::vector<std::string> Kernels() {
  std::vector<std::string> names = testing::Targets();
  names.pop_back();
  return names;
}

class Giant : public testing::OnEveryTarget {};
INSTANTIATE_TEST_SUITE_P(Targets, Giant, ::testing::ValuesIn(Kernels()),
                         [](const auto& info) { return info.param; });

// The chunks of a matrix or vector. Those not listed as apart are the same memory; where an index
// has wrapped around, what is apart has got or given the wrong bytes.
class Chunks {
 public:
  Chunks(int64_t bytes_each, int64_t count, const std::vector<int64_t>& apart)
      : bytes_each_(bytes_each), bytes_(bytes_each * count) {
    const int file = memfd_create("chunks", 0);
    EXPECT_EQ(ftruncate(file, bytes_each * (1 + static_cast<int64_t>(apart.size()))), 0);
    data_ = static_cast<uint8_t*>(
        mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (int64_t k = 0; k < count; ++k) {
      const auto found = std::find(apart.begin(), apart.end(), k);
      const int64_t place = found == apart.end() ? 0 : 1 + (found - apart.begin());
      EXPECT_EQ(mmap(at(k), bytes_each, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_FIXED | MAP_POPULATE, file, place * bytes_each),
                at(k));
    }
    close(file);
  }
  ~Chunks() { munmap(data_, bytes_); }
  Chunks(const Chunks&) = delete;
  Chunks& operator=(const Chunks&) = delete;

  uint8_t* at(int64_t k) { return data_ + k * bytes_each_; }

  void Fill(int64_t k, const Elements& from) {
    std::copy(from.bytes.begin(), from.bytes.end(), at(k));
  }
  template <class T>
  bool Holds(int64_t k, const std::vector<T>& expected) {
    const auto bytes = std::as_bytes(std::span(expected));
    return std::memcmp(at(k), bytes.data(), bytes.size()) == 0;
  }

 private:
  int64_t bytes_each_, bytes_;
  uint8_t* data_;
};

// A call that is cut into chunks of rows or columns: the last two are their own, the others equal.
struct Pieces {
  int64_t count;
  Operands usual, before_last, last;

  // `last_case` differs from c in its rows or columns.
  Pieces(int64_t pieces, const Case& c, const Case& last_case)
      : count(pieces), usual(c, 1), before_last(c, 2), last(last_case, 3) {}

  Operands& operator[](int64_t k) {
    return k == count - 1 ? last : k == count - 2 ? before_last : usual;
  }
  std::vector<int64_t> different() const { return {count - 2, count - 1}; }
  std::vector<int64_t> one_of_each() const { return {0, count - 2, count - 1}; }
};

void ExpectPiece(const Operands& expected, int64_t k, Chunks& y, Chunks& dx) {
  EXPECT_TRUE(y.Holds(k, expected.y.bytes)) << "y, chunk " << k;
  EXPECT_TRUE(dx.Holds(k, expected.dx.bytes)) << "dx, chunk " << k;
}

// Chunks of rows, a power of two of leaves each, and a last one of last_rows. The outputs of the
// chunks that are listed as apart have memory of their own.
void ExpectReferenceBitsOfRows(const Case& c, int64_t count, int64_t last_rows,
                               const std::vector<int64_t>& apart) {
  Case last = c;
  last.rows = last_rows;
  Pieces pieces(count, c, last);
  const int64_t bytes = static_cast<int64_t>(pieces.usual.x.bytes.size());
  Chunks x(bytes, count, pieces.different()), dy(bytes, count, pieces.different());
  Chunks y(bytes, count, apart), dx(bytes, count, apart);
  for (const int64_t k : pieces.one_of_each()) {
    pieces[k].gamma = pieces.usual.gamma;
    testing::RunReference(pieces[k]);
    x.Fill(k, pieces[k].x);
    dy.Fill(k, pieces[k].dy);
  }
  rmsnorm_forward_args forward = pieces.usual.Forward();
  rmsnorm_backward_args backward = pieces.usual.Backward();
  forward.rows = backward.rows = (count - 1) * c.rows + last_rows;
  std::vector<float> rstd(forward.rows), dgamma(c.n);
  forward.rstd = rstd.data();
  forward.x.data = x.at(0);
  forward.y.data = y.at(0);
  EXPECT_EQ(rmsnorm_forward(&forward, nullptr), RMSNORM_OK) << rmsnorm_last_error();

  backward.workspace_size = rmsnorm_backward_workspace(forward.rows, c.n, nullptr);
  Chunks workspace(static_cast<int64_t>(backward.workspace_size), 1, {});
  backward.workspace = workspace.at(0);
  backward.rstd = rstd.data();
  backward.dgamma = dgamma.data();
  backward.x.data = x.at(0);
  backward.dy.data = dy.at(0);
  backward.dx.data = dx.at(0);
  EXPECT_EQ(rmsnorm_backward(&backward, nullptr), RMSNORM_OK) << rmsnorm_last_error();

  ExpectPiece(pieces.usual, 0, y, dx);
  for (const int64_t k : apart) ExpectPiece(pieces[k], k, y, dx);
  for (int64_t k = 0; k < count; ++k) {
    const std::span<const float> of_piece(rstd.data() + k * c.rows, pieces[k].rstd.size());
    EXPECT_TRUE(SameBits(of_piece, pieces[k].rstd)) << "rstd, chunk " << k;
  }
  for (int64_t i = 0; i < c.n; ++i) {
    const auto sum = [&](int64_t k) { return pieces[k].dgamma[i]; };
    EXPECT_EQ(dgamma[i], Tree<float>(0, count, sum)) << "dgamma, column " << i;
  }
}

TEST_P(Giant, TenMillionShortRowsHaveTheBitsOfTheReference) {
  constexpr int64_t kRows = 10'000'000, kChunkRows = 1 << 14, kChunks = kRows / kChunkRows + 1;
  std::vector<int64_t> all(kChunks);
  std::iota(all.begin(), all.end(), 0);
  ExpectReferenceBitsOfRows(
      {.x = RMSNORM_BFLOAT16, .y = RMSNORM_BFLOAT16, .rows = kChunkRows, .n = 8}, kChunks,
      kRows % kChunkRows, all);
}

// The last chunk begins at element 2^31 and byte 2^32.
TEST_P(Giant, MoreThan2To31ElementsInManyRowsHaveTheBitsOfTheReference) {
  constexpr int64_t kN = 4096, kChunkRows = 256, kChunks = (int64_t{1} << 31) / kN / kChunkRows + 1;
  ExpectReferenceBitsOfRows(
      {.x = RMSNORM_BFLOAT16, .y = RMSNORM_BFLOAT16, .rows = kChunkRows, .n = kN}, kChunks,
      /*last_rows=*/100, {kChunks - 2, kChunks - 1});
}

// dot of a row from those of its chunks.
float DotOfPieces(Pieces& pieces, const std::function<float(const Operands&)>& dot) {
  const float usual = dot(pieces.usual), before_last = dot(pieces.before_last);
  const float last = dot(pieces.last);
  return Tree<float>(0, pieces.count, [&](int64_t k) {
    return k == pieces.count - 1 ? last : k == pieces.count - 2 ? before_last : usual;
  });
}

// The formulas of docs/numerics.md for one row that is cut into chunks of columns.
void ComputeRow(Pieces& pieces, int64_t n) {
  const auto x = [](const Operands& p, int64_t i) { return p.x.Get(i); };
  const float squares = DotOfPieces(pieces, [&](const Operands& p) {
    const auto x_of = [&](int64_t i) { return x(p, i); };
    return Dot<float>(p.c.n, x_of, x_of);
  });
  const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(n) + 1e-6f);
  const auto xhat = [&](const Operands& p, int64_t i) { return x(p, i) * rstd; };
  const auto w = [](const Operands& p, int64_t i) { return p.dy.Get(i) * p.gamma.Get(i); };
  const float products = DotOfPieces(pieces, [&](const Operands& p) {
    return Dot<float>(
        p.c.n, [&](int64_t i) { return w(p, i); }, [&](int64_t i) { return xhat(p, i); });
  });
  const float c = products / static_cast<float>(n);
  for (const int64_t k : pieces.one_of_each()) {
    Operands& p = pieces[k];
    p.rstd[0] = rstd;
    for (int64_t i = 0; i < p.c.n; ++i) {
      p.y.Set(i, xhat(p, i) * p.gamma.Get(i));
      p.dx.Set(i, std::fma(-xhat(p, i), c, w(p, i)) * rstd);
      p.dgamma[i] = p.dy.Get(i) * xhat(p, i) + 0.0f;
    }
  }
}

// dy is 0 in the chunks that share memory: their columns of the workspace add up in one place.
TEST_P(Giant, ARowOfMoreThan2To31ElementsHasTheBitsOfTheFormula) {
  constexpr int64_t kChunk = 1 << 20, kChunks = 2049, kRest = 777;
  constexpr int64_t kN = (kChunks - 1) * kChunk + kRest;
  const Case c{.x = RMSNORM_BFLOAT16,
               .gamma = RMSNORM_BFLOAT16,
               .y = RMSNORM_BFLOAT16,
               .rows = 1,
               .n = kChunk};
  Case rest = c;
  rest.n = kRest;
  Pieces pieces(kChunks, c, rest);
  for (int64_t i = 0; i < kChunk; ++i) pieces.usual.dy.Set(i, 0);
  ComputeRow(pieces, kN);
  const auto chunks = [&](int64_t size) {
    return Chunks(size * kChunk, kChunks, pieces.different());
  };
  Chunks x = chunks(2), gamma = chunks(2), y = chunks(2), dy = chunks(2), dx = chunks(2);
  Chunks dgamma = chunks(4), workspace = chunks(4);
  for (const int64_t k : pieces.one_of_each()) {
    x.Fill(k, pieces[k].x);
    gamma.Fill(k, pieces[k].gamma);
    dy.Fill(k, pieces[k].dy);
  }
  float rstd;
  rmsnorm_forward_args forward = pieces.usual.Forward();
  rmsnorm_backward_args backward = pieces.usual.Backward();
  forward.n = backward.n = kN;
  forward.x.data = backward.x.data = x.at(0);
  forward.gamma.data = backward.gamma.data = gamma.at(0);
  forward.y.data = y.at(0);
  forward.rstd = &rstd;
  EXPECT_EQ(rmsnorm_forward(&forward, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  EXPECT_EQ(rstd, pieces.usual.rstd[0]);

  backward.rstd = &rstd;
  backward.dy.data = dy.at(0);
  backward.dx.data = dx.at(0);
  backward.dgamma = reinterpret_cast<float*>(dgamma.at(0));
  backward.workspace = workspace.at(0);
  backward.workspace_size = rmsnorm_backward_workspace(1, kN, nullptr);
  EXPECT_EQ(rmsnorm_backward(&backward, nullptr), RMSNORM_OK) << rmsnorm_last_error();
  for (const int64_t k : pieces.one_of_each()) {
    ExpectPiece(pieces[k], k, y, dx);
    EXPECT_TRUE(dgamma.Holds(k, pieces[k].dgamma)) << "dgamma, chunk " << k;
  }
}

}  // namespace
}  // namespace rmsnorm
