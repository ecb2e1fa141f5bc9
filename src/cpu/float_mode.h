// The floating-point modes that the contract assumes, for as long as a kernel runs.
#ifndef RMSNORM_CPU_FLOAT_MODE_H_
#define RMSNORM_CPU_FLOAT_MODE_H_

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rmsnorm::cpu {

// On this thread: round to nearest even, gradual underflow, no traps. Puts the caller's modes back.
class FloatMode {
 public:
  FloatMode() : caller_(Get()) { Set(kContract); }
  ~FloatMode() { Set(caller_); }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
#if defined(__x86_64__)
  using Register = uint32_t;
  static constexpr Register kContract = 0x1F80;  // all exceptions masked
  static Register Get() { return _mm_getcsr(); }
  static void Set(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = uint64_t;
  static constexpr Register kContract = 0;
  static Register Get() {
    Register value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void Set(Register value) { asm volatile("msr fpcr, %0" : : "r"(value) : "memory"); }
#else
#error "state here how this architecture controls rounding and flush-to-zero"
#endif

  const Register caller_;
};

}  // namespace rmsnorm::cpu

#endif  // RMSNORM_CPU_FLOAT_MODE_H_
