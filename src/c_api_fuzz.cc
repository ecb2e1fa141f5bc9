// Fuzzes the C API: a call is refused and writes nothing, or it writes the bits of the reference.
// All arguments lie in one arena: compared with a copy on which the reference ran, it shows every
// wrong, missing and stray byte.
#include <fuzzer/FuzzedDataProvider.h>
#include <omp.h>

#include <array>
#include <cfloat>
#include <iostream>

#include "core/reference.h"
#include "fuzz_arena.h"
#include "testing.h"

namespace rmsnorm {
namespace {

using Input = FuzzedDataProvider;

constexpr int64_t kMaxCount = int64_t{1} << 48;  // of rows, columns and threads
constexpr float kSpecials[] = {0.0f,     -0.0f,    HUGE_VALF, -HUGE_VALF, NAN,      FLT_MAX,
                               -FLT_MAX, 1e20f,    -1e20f,    1e-30f,     -1e-30f,  1e-41f,
                               -1e-45f,  65519.0f, 65520.0f,  0x1p-14f,   0x1p-25f, 1 + 0x1p-8f};

// Runs pieces in groups of *context, last to first where that is negative.
void RunGroups(void* context, int64_t count, rmsnorm_task task, void* data) {
  const int64_t group = *static_cast<int64_t*>(context), size = std::abs(group);
  const int64_t groups = CeilDiv(count, size);
  for (int64_t k = 0; k < groups; ++k) {
    const int64_t begin = size * (group < 0 ? groups - 1 - k : k);
    task(data, begin, std::min(begin + size, count));
  }
}

class Call {
 public:
  explicit Call(Input& in) {
    ChooseNumbers(in);
    ChooseArguments(in);
    LayOut(in);
    if (in.ConsumeIntegralInRange(0, 3) == 3) Spoil(in);
    for (const Argument* a : arguments_) {
      if (!spoiled_ && a->name != nullptr && !a->written) Fill(*a, in);
    }
  }

  // The call that runs, for a report of AddressSanitizer.
  static inline const Call* running = nullptr;

  void Describe() const {
    std::cerr << (backward_ ? "rmsnorm_backward on " : "rmsnorm_forward on ") << target_
              << ": rows " << rows_ << ", n " << n_ << ", epsilon " << epsilon_ << ", gamma_offset "
              << gamma_offset_ << ", rounding " << rounding_ << ", args.size " << args_size_
              << ", threads " << (with_runner_ ? runner_.threads : omp_threads_) << " of "
              << (with_runner_ ? "a runner, groups of " + std::to_string(group_) : "OpenMP");
    for (const Argument* a : arguments_) {
      if (a->name == nullptr) continue;
      std::cerr << "\n  " << a->name << ": dtype " << a->dtype << ", rows " << a->rows << ", n "
                << a->n << ", row_stride " << a->row_stride << ", at byte " << a->at;
    }
    std::cerr << std::endl;
  }

  // Aborts with the call in words unless it does what rmsnorm.h says.
  void Check() {
    const std::vector<Use> uses = spoiled_ ? std::vector<Use>(arena_.bytes()) : Uses();
    const bool acceptable = !spoiled_ && std::ranges::count(uses, kClash) == 0;
    Arena expected = arena_;
    running = this;
    arena_.PoisonUnused(uses);
    const rmsnorm_status status = Run();
    arena_.Unpoison();
    running = nullptr;
    if ((status == RMSNORM_OK) != acceptable) Fail(acceptable ? "was refused" : "was accepted");
    if ((*rmsnorm_last_error() == '\0') != acceptable) Fail("left the wrong message");
    if (acceptable) RunReference(expected);
    uint8_t* const end = arena_.begin() + arena_.bytes();
    const auto [wrong, right] = std::mismatch(arena_.begin(), end, expected.begin());
    if (wrong != end) Fail("left a wrong byte at " + std::to_string(wrong - arena_.begin()));
  }

 private:
  void ChooseNumbers(Input& in) {
    const auto around = [&](std::initializer_list<const int64_t> centres) {
      return in.PickValueInArray(centres) + in.PickValueInArray<int64_t>({0, 1, -1, 2, 15, 40, 65});
    };
    backward_ = in.ConsumeBool();
    target_ = kTargets[in.ConsumeIntegralInRange<size_t>(0, kTargets.size() - 1)];
    const int64_t most = in.PickValueInArray<int64_t>({300, 300, 3000, 3000, 40000});  // elements
    n_ = std::clamp<int64_t>(around({1, 16, 64, 128, 512, 1024, 4096, 8192}), 1, most);
    rows_ = std::clamp<int64_t>(around({1, 2, 16, 32, 64, 128, 512}), 0, most / n_);
    args_size_ = backward_ ? sizeof(rmsnorm_backward_args) : sizeof(rmsnorm_forward_args);
    epsilon_ = in.PickValueInArray({1e-6, 0.0, 1e-45, 1e-12, 3.0, 1e38, -0.0});
    gamma_offset_ = in.PickValueInArray({0.0, 1.0, 0.1, -1.0, 1e-60});
    rounding_ = in.PickValueInArray({RMSNORM_ROUND_ONCE, RMSNORM_ROUND_BEFORE_GAMMA});
    group_ = in.PickValueInArray<int64_t>({1, -1, 2, -2, 5, -64});
    runner_ = {sizeof(runner_), in.PickValueInArray<int64_t>({1, 2, 3, 7, 64}), &group_, RunGroups};
    with_runner_ = in.ConsumeBool();
    omp_threads_ = in.ConsumeIntegralInRange(1, 4);
  }

  void ChooseArguments(Input& in) {
    const rmsnorm_dtype narrow = in.PickValueInArray(testing::kDtypes);
    const bool wide = in.ConsumeIntegralInRange(0, 7) == 7;
    const rmsnorm_dtype x = wide ? rmsnorm_dtype{RMSNORM_FLOAT64} : narrow;
    const rmsnorm_dtype y = in.ConsumeBool() ? x : RealOf(x);
    const rmsnorm_dtype gamma = wide ? x : in.PickValueInArray(testing::kDtypes);
    const auto matrix = [&](const char* name, rmsnorm_dtype dtype, bool written) {
      const int64_t least = written && rows_ > 1 ? n_ : 0;
      const int64_t stride = in.PickValueInArray(
          {n_, n_ + 1, n_ + 7, 2 * n_, 3 * n_ + 1, least, std::max<int64_t>(least, 1)});
      return Argument{name, written, dtype, rows_, n_, stride, SizeOf(dtype)};
    };
    const auto vector = [&](const char* name, rmsnorm_dtype dtype, int64_t n, bool written) {
      return Argument{name, written, dtype, n > 0, n, n, SizeOf(dtype)};
    };
    x_ = matrix("x", x, false);
    y_ = matrix(backward_ ? "dy" : "y", y, !backward_);
    if (in.ConsumeBool()) gamma_ = vector("gamma", gamma, n_, false);
    if (gamma_.name == nullptr) gamma_offset_ = 0;
    if (backward_ || in.ConsumeBool()) rstd_ = vector("rstd", RealOf(x), rows_, !backward_);
    const int sums = backward_ ? in.ConsumeIntegralInRange(0, 3) : 0;
    if (sums == 2) {
      whole_sums_ = vector("whole_sums", RealOf(x), rows_, false);
      whole_n_ = n_ + in.PickValueInArray<int64_t>({0, 1, 1000});
    } else if (sums == 3) {
      sums_ = vector("sums", RealOf(x), rows_, true);
    }
    const bool gradients = backward_ && sums_.name == nullptr;
    if (gradients && in.ConsumeBool()) dx_ = matrix("dx", x, true);
    if (gradients && in.ConsumeBool()) {
      dgamma_ = vector("dgamma", RealOf(x), n_, true);
      const testing::Backwards one(1);
      least_workspace_ = rmsnorm_backward_workspace(rows_, n_, one.get());
      const int64_t size = rmsnorm_backward_workspace(rows_, n_, Runner()) +
                           in.PickValueInArray<int64_t>({0, 1, 64});
      workspace_ = {"workspace", true, 0, 1, std::max(least_workspace_, size), 0, 1};
    }
  }

  const rmsnorm_runner* Runner() const { return with_runner_ ? &runner_ : nullptr; }

  // Arguments one behind the other, from any byte on; sometimes one is moved onto another.
  void LayOut(Input& in) {
    int64_t end = 0;
    for (Argument* a : arguments_) {
      if (a->name == nullptr) continue;
      a->at = end + in.PickValueInArray<int64_t>({0, 1, 2, 3, 4, 8, 61});
      if (a == &workspace_) a->at = CeilDiv(a->at, 64) * 64;
      end = a->at + a->Extent();
    }
    arena_.resize(CeilDiv(end + 64, 64));
    std::memset(arena_.begin(), 0xA5, arena_.bytes());
    const int how = in.ConsumeIntegralInRange(0, 7);
    if (how == 5 && x_.element == y_.element) {
      x_.at = y_.at;
      x_.row_stride = y_.row_stride;
    } else if (how >= 6) {
      Argument& a = *in.PickValueInArray(arguments_);
      const Argument& onto = *in.PickValueInArray(arguments_);
      if (onto.row_stride >= a.n) a.row_stride = std::min(a.row_stride, onto.row_stride);
      const int64_t row = n_ * onto.element;
      const int64_t by = in.PickValueInArray({int64_t{0}, row, onto.Extent(), -a.Extent()}) +
                         in.PickValueInArray<int64_t>({0, 1, -1, 4, -4, 64, row / 2});
      if (onto.at != kNull && a.at != kNull) {
        a.at = std::clamp<int64_t>(onto.at + by, 0, arena_.bytes() - a.Extent());
        if (&a == &workspace_) a.at = a.at / 64 * 64;
      }
    }
  }

  // Values of one scale, some of them special, or bytes of the input again and again.
  void Fill(const Argument& a, Input& in) {
    uint8_t* data = arena_.begin() + a.at;
    if (in.ConsumeIntegralInRange(0, 3) == 3) {
      std::array<uint8_t, 24> bytes;
      for (uint8_t& byte : bytes) byte = in.ConsumeIntegral<uint8_t>();
      for (int64_t i = 0; i < a.Extent(); ++i) data[i] = bytes[i % bytes.size()];
      return;
    }
    testing::Random random(in.ConsumeIntegral<uint16_t>());
    const float scale = in.PickValueInArray({1.0f, 1e20f, 1e-30f, -1e-30f, 1e-41f, 0.0f});
    const bool all_equal = in.ConsumeBool();
    const uint64_t special = in.PickValueInArray({0, 1, 16, 64});  // of 64
    for (int64_t i = 0; i < a.Extent() / a.element; ++i) {
      float value = all_equal ? scale : scale * random.Value();
      if (random.Bits() % 64 < special) value = kSpecials[random.Bits() % std::size(kSpecials)];
      if (a.dtype == RMSNORM_FLOAT64) {
        StoreElement(data, i, double{value});
      } else {
        VisitDtype(a.Dtype(),
                   [&](auto e) { StoreElement(data, i, FromFloat<decltype(e)>(value)); });
      }
    }
  }

  // Makes one thing wrong, so that the call must be refused.
  void Spoil(Input& in) {
    spoiled_ = true;
    if (in.ConsumeIntegralInRange(0, 7) == 7) {
      gamma_offset_ = in.PickValueInArray({double{NAN}, -HUGE_VAL, -1e39});
      return;
    }
    if (!backward_ && in.ConsumeIntegralInRange(0, 7) == 7) {
      epsilon_ = in.PickValueInArray({double{NAN}, HUGE_VAL, 1e39, -1.0, -1e-60});
      return;
    }
    std::vector<std::pair<int64_t*, int64_t>> faults;
    const auto add = [&](bool possible, int64_t& field, std::initializer_list<int64_t> values) {
      for (const int64_t value : values) {
        if (possible) faults.push_back({&field, value});
      }
    };
    add(true, args_size_, {args_size_ + 8, 0});
    add(true, rows_, {-1, kMaxCount + 1, INT64_MIN});
    add(true, n_, {0, -1, kMaxCount + 1, INT64_MAX});
    for (Argument* m : {&x_, &y_, &dx_}) {
      add(m->name != nullptr, m->dtype, {0, 5, -1});
      add(m->name != nullptr && m != &x_, m->dtype, {x_.dtype == 2 ? 3 : 2});
      add(m != &dx_ && rows_ > 0, m->at, {kNull});
      add(m->name != nullptr && rows_ > 1, m->row_stride, {-1, INT64_MAX / 4, INT64_MAX});
      add(m->written && rows_ > 1, m->row_stride, {0, n_ - 1});
    }
    add(gamma_.name != nullptr, gamma_.dtype, {0, 5, -1, x_.dtype == 4 ? 1 : 4});
    add(!backward_, rounding_, {0, 3, -1});
    add(backward_ && rows_ > 0, rstd_.at, {kNull});
    add(whole_sums_.name != nullptr, whole_n_, {0, n_ - 1, -1, kMaxCount + 1});
    add(dgamma_.name != nullptr && rows_ > 0, workspace_.n,
        {0, least_workspace_ - 1, least_workspace_ / 2});
    add(dgamma_.name != nullptr && rows_ > 0, workspace_.at, {kNull, workspace_.at + 4});
    add(with_runner_, runner_.threads, {0, -1, kMaxCount + 1, INT64_MIN});
    const auto [field, value] = faults[in.ConsumeIntegralInRange<size_t>(0, faults.size() - 1)];
    *field = value;
  }

  std::vector<Use> Uses() {
    const bool in_place = y_.written && y_.at == x_.at && y_.element == x_.element &&
                          (rows_ == 1 || y_.row_stride == x_.row_stride);
    std::vector<Use> uses(arena_.bytes(), kUnused);
    for (const Argument* a : arguments_) {
      if (a->name != nullptr && !(in_place && a == &x_)) a->Mark(uses);
    }
    return uses;
  }

  rmsnorm_forward_args Forward(Arena& arena) const {
    return {.size = static_cast<size_t>(args_size_),
            .rows = rows_,
            .n = n_,
            .x = x_.Matrix(arena),
            .gamma = gamma_.Vector(arena),
            .y = y_.Matrix(arena),
            .rstd = rstd_.In(arena),
            .epsilon = epsilon_,
            .gamma_offset = gamma_offset_,
            .rounding = static_cast<rmsnorm_rounding>(rounding_)};
  }

  rmsnorm_backward_args Backward(Arena& arena) const {
    return {.size = static_cast<size_t>(args_size_),
            .rows = rows_,
            .n = n_,
            .dy = y_.Matrix(arena),
            .x = x_.Matrix(arena),
            .gamma = gamma_.Vector(arena),
            .rstd = rstd_.In(arena),
            .dx = dx_.Matrix(arena),
            .dgamma = dgamma_.In(arena),
            .gamma_offset = gamma_offset_,
            .workspace = workspace_.In(arena),
            .workspace_size = static_cast<size_t>(workspace_.n),
            .sums = sums_.In(arena),
            .whole_sums = whole_sums_.In(arena),
            .whole_n = whole_n_};
  }

  rmsnorm_status Run() {
    rmsnorm_use_cpu_target(target_.c_str());
    omp_set_num_threads(omp_threads_);
    const rmsnorm_forward_args forward = Forward(arena_);
    const rmsnorm_backward_args backward = Backward(arena_);
    return backward_ ? rmsnorm_backward(&backward, Runner()) : rmsnorm_forward(&forward, Runner());
  }

  // The workspace may hold anything: it is taken from the call.
  void RunReference(Arena& arena) {
    if (!backward_) return ForwardReference(Forward(arena), 0, rows_);
    BackwardReference(Backward(arena));
    if (workspace_.n > 0) std::memcpy(workspace_.In(arena), workspace_.In(arena_), workspace_.n);
  }

  [[noreturn]] void Fail(const std::string& what) const {
    std::cerr << (backward_ ? "rmsnorm_backward " : "rmsnorm_forward ") << what << ", message \""
              << rmsnorm_last_error() << "\"\n";
    Describe();
    std::abort();
  }

  static const std::vector<std::string> kTargets;
  bool backward_;
  std::string target_;
  int64_t args_size_, rows_, n_, rounding_;
  double epsilon_, gamma_offset_;
  int64_t group_;
  rmsnorm_runner runner_;
  bool with_runner_;
  int omp_threads_;
  // y_: dy of backward
  Argument x_, gamma_, rstd_, y_, dx_, dgamma_, workspace_, sums_, whole_sums_;
  Argument* const arguments_[9] = {&x_,      &gamma_,     &rstd_, &y_,         &dx_,
                                   &dgamma_, &workspace_, &sums_, &whole_sums_};
  int64_t least_workspace_ = 0;
  int64_t whole_n_ = 0;
  bool spoiled_ = false;
  Arena arena_;
};

const std::vector<std::string> Call::kTargets = testing::Targets();

std::vector<int64_t> Sizes(Input& in, int64_t axes) {
  constexpr int64_t kHuge = int64_t{1} << 40;
  std::vector<int64_t> sizes(axes);
  for (int64_t& size : sizes) {
    size = in.PickValueInArray<int64_t>({1, 2, 3, 4, 1 << 20, kHuge, 0, -1, INT64_MAX});
  }
  return sizes;
}

// Multiplies in 128 bits; false where a size is negative or a product on the way leaves int64_t.
bool Product(std::span<const int64_t> sizes, int64_t* product) {
  *product = 1;
  for (const int64_t size : sizes) {
    const __int128 next = static_cast<__int128>(*product) * size;
    if (size < 0 || next > INT64_MAX) return false;
    *product = static_cast<int64_t>(next);
  }
  return true;
}

// Aborts unless rmsnorm_split_shape accepts the shapes that fit, and only those, and splits them.
void CheckShapes(Input& in) {
  const std::vector<int64_t> x = Sizes(in, in.ConsumeIntegralInRange<int64_t>(0, 9));
  const int64_t x_axes = std::ssize(x), axes = in.ConsumeIntegralInRange<int64_t>(-1, 9);
  const int64_t leading = x_axes - axes;
  const bool with_gamma = in.ConsumeBool(), of_x = in.ConsumeBool() && axes >= 0 && leading >= 0;
  const std::vector<int64_t> gamma =
      of_x ? std::vector(x.begin() + leading, x.end()) : Sizes(in, std::max<int64_t>(axes, 0));
  bool fits = axes >= 1 && leading >= 0;
  int64_t rows = 0, n = 0, found_rows = 0, found_n = 0;
  if (fits && with_gamma) fits = std::equal(gamma.begin(), gamma.end(), x.begin() + leading);
  if (fits) {
    const std::span<const int64_t> all(x);
    fits = Product(all.first(leading), &rows) && Product(all.subspan(leading), &n) && n > 0;
  }
  const rmsnorm_status status = rmsnorm_split_shape(
      x.data(), x_axes, with_gamma ? gamma.data() : nullptr, axes, &found_rows, &found_n);
  const bool right = fits ? found_rows == rows && found_n == n : *rmsnorm_last_error() != '\0';
  if ((status == RMSNORM_OK) == fits && right) return;
  std::cerr << "rmsnorm_split_shape is wrong about x of";
  for (const int64_t size : x) std::cerr << ' ' << size;
  std::cerr << ", gamma " << (with_gamma ? "of" : "absent, of") << ' ' << axes << " axes:";
  for (const int64_t size : gamma) std::cerr << ' ' << size;
  std::cerr << "; message \"" << rmsnorm_last_error() << '"' << std::endl;
  std::abort();
}

}  // namespace
}  // namespace rmsnorm

extern "C" void __asan_on_error() {
  if (rmsnorm::Call::running != nullptr) rmsnorm::Call::running->Describe();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Choices are taken from the end. Where a short input has no more of them, chance goes on.
  const std::string_view chosen(reinterpret_cast<const char*>(data), size);
  rmsnorm::testing::Random random(std::hash<std::string_view>{}(chosen));
  std::vector<uint8_t> all(256);
  for (uint8_t& byte : all) byte = static_cast<uint8_t>(random.Bits());
  all.insert(all.end(), data, data + size);
  FuzzedDataProvider in(all.data(), all.size());
  if (in.ConsumeIntegralInRange(0, 15) == 15) {
    rmsnorm::CheckShapes(in);
  } else {
    rmsnorm::Call(in).Check();
  }
  return 0;
}
