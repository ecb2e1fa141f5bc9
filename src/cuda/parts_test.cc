// Rows that are spread over several calls on a GPU: the bits of one call of the reference.
#include "parts.h"

#include "core/reference.h"
#include "cuda/on_gpu.h"

namespace rmsnorm {
namespace {

using testing::Case;
using testing::OnGpu;
using testing::Operands;

class PartsOnEveryGpu : public testing::OnEveryGpu {};
RMSNORM_ON_EVERY_GPU(PartsOnEveryGpu);

// Operands with the rstd of the forward call, dx and dgamma.
Operands Whole(const Case& c) {
  Operands call(c);
  testing::RunReference(call);
  return call;
}

std::vector<float> SumsByReference(Operands& call) {
  std::vector<float> sums(call.c.rows);
  BackwardReference(testing::ForSums(call.Backward(), sums.data()));
  return sums;
}

// Copies of a call's operands.
class CallOnGpu {
 public:
  explicit CallOnGpu(Operands& call)
      : x_(call.x.bytes),
        gamma_(call.gamma.bytes),
        dy_(call.dy.bytes),
        dx_(call.dx.bytes),
        rstd_(call.rstd),
        dgamma_(call.dgamma),
        workspace_bytes_(rmsnorm_cuda_backward_workspace(call.c.rows, call.c.n, call.c.x)),
        workspace_(workspace_bytes_),
        args_(call.Backward()) {
    args_.x.data = x_.data();
    if (args_.gamma.data != nullptr) args_.gamma.data = gamma_.data();
    args_.dy.data = dy_.data();
    args_.dx.data = dx_.data();
    args_.rstd = rstd_.data();
    args_.dgamma = dgamma_.data();
    args_.workspace = workspace_.data();
    args_.workspace_size = workspace_bytes_.size();
  }

  std::vector<float> Sums(int64_t begin, int64_t n) const {
    std::vector<float> sums(args_.rows, -1);
    OnGpu there(sums);
    const auto args = testing::ForSums(testing::ColumnsOf(args_, begin, n), there.data());
    EXPECT_EQ(rmsnorm_cuda_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
    there.Fetch();
    return sums;
  }

  // dx and dgamma of each part, into the operands.
  void Gradients(std::vector<float> whole_sums, int64_t whole_n, const std::vector<int64_t>& cuts) {
    const OnGpu there(whole_sums);
    for (size_t part = 0; part + 1 < cuts.size(); ++part) {
      if (cuts[part] == cuts[part + 1]) continue;
      auto args = testing::ColumnsOf(args_, cuts[part], cuts[part + 1] - cuts[part]);
      args.whole_sums = there.data();
      args.whole_n = whole_n;
      EXPECT_EQ(rmsnorm_cuda_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
    }
    dx_.Fetch();
    dgamma_.Fetch();
  }

 private:
  OnGpu x_, gamma_, dy_, dx_, rstd_, dgamma_;
  std::vector<uint8_t> workspace_bytes_;
  OnGpu workspace_;
  rmsnorm_backward_args args_;
};

TEST_P(PartsOnEveryGpu, SumsOfRowsHaveTheBitsOfTheReference) {
  for (const int64_t n : {1, 64, 100, 513, 4096, 8200, 24000, 131080}) {
    for (Case c : testing::EveryType(/*rows=*/n <= 4096 ? 18 : 3, n)) {
      c.hard_rows = n % 2 == 0;
      Operands call = Whole(c);
      EXPECT_TRUE(testing::SameBits(CallOnGpu(call).Sums(0, n), SumsByReference(call))) << c;
    }
  }
}

TEST_P(PartsOnEveryGpu, SumsOfPartsAddUpToTheBitsOfWholeRows) {
  for (const int64_t n : testing::LengthsInLeaves()) {
    for (const rmsnorm_dtype dtype : testing::kDtypes) {
      Operands call = Whole({.x = dtype, .gamma = dtype, .y = dtype, .rows = 3, .n = n});
      const CallOnGpu on_gpu(call);
      const std::vector<float> expected = SumsByReference(call);
      for (const int64_t parts : {2, 3, 4}) {
        const auto sums = testing::AddParts<float>(
            testing::Cuts(n, parts), 0, n,
            [&](int64_t begin, int64_t count) { return on_gpu.Sums(begin, count); });
        EXPECT_TRUE(testing::SameBits(sums, expected)) << parts << " parts; " << call.c;
      }
    }
  }
}

// Of parts that a block, a cluster and no cluster can hold.
TEST_P(PartsOnEveryGpu, GradientsOfPartsFromTheWholeRowsSumsHaveTheBitsOfOneCall) {
  for (const int64_t n : {600, 4708, 40000, 300000}) {
    for (const rmsnorm_dtype dtype : testing::kDtypes) {
      const int64_t rows = n < 10000 ? 18 : 3;
      const Case c = {
          .x = dtype, .gamma = dtype, .y = dtype, .rows = rows, .n = n, .hard_rows = n == 600};
      const Operands expected = Whole(c);
      Operands call = expected;
      std::fill(call.dgamma.begin(), call.dgamma.end(), -1);
      call.dx = Operands(c).dx;
      CallOnGpu(call).Gradients(SumsByReference(call), n, testing::Cuts(n, 3));
      EXPECT_TRUE(testing::SameBits(call.dx.bytes, expected.dx.bytes)) << "dx; " << c;
      EXPECT_TRUE(testing::SameBits(call.dgamma, expected.dgamma)) << "dgamma; " << c;
    }
  }
}

TEST_P(PartsOnEveryGpu, Float64SumsAreThoseOfTheDefinition) {
  testing::Random random(1);
  for (const int64_t n : {1, 700, 5000, 70001}) {
    std::vector<double> x(n), ones(1, 1), sums(1);
    for (double& value : x) value = random.Value() * (1 + 1e-12);
    OnGpu x_there(x), ones_there(ones), sums_there(sums);
    rmsnorm_backward_args args = {};
    args.size = sizeof(args);
    args.rows = 1;
    args.n = n;
    args.x = args.dy = {x_there.data(), n, RMSNORM_FLOAT64};
    args.rstd = ones_there.data();
    args.sums = sums_there.data();
    ASSERT_EQ(rmsnorm_cuda_backward(&args, nullptr), RMSNORM_OK) << rmsnorm_last_error();
    sums_there.Fetch();
    const std::vector<double> expected = {testing::DotByLevels(x, x)};
    EXPECT_TRUE(testing::SameBits(sums, expected)) << "n = " << n;
  }
}

}  // namespace
}  // namespace rmsnorm
