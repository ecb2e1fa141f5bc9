// A canary: does the machine code of this library compute as the contract says?
#ifndef RMSNORM_CPU_ARITHMETIC_H_
#define RMSNORM_CPU_ARITHMETIC_H_

namespace rmsnorm::cpu {

// The first rule that the chosen target's code, in vectors or scalars, breaks on this machine and
// in this thread's floating-point modes, in words; null: none.
const char* BrokenRule();

}  // namespace rmsnorm::cpu

#endif  // RMSNORM_CPU_ARITHMETIC_H_
