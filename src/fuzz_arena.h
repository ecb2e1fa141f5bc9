// Memory in which all arguments of a fuzzed call lie, so that every byte has a known use.
#ifndef RMSNORM_FUZZ_ARENA_H_
#define RMSNORM_FUZZ_ARENA_H_

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "rmsnorm/rmsnorm.h"

namespace rmsnorm {

enum Use : uint8_t { kUnused, kRead, kWritten, kClash };  // kClash: written, and used once more

struct alignas(64) Line {
  uint8_t bytes[64];
};

struct Arena : std::vector<Line> {
  uint8_t* begin() { return reinterpret_cast<uint8_t*>(data()); }
  int64_t bytes() const { return static_cast<int64_t>(size() * sizeof(Line)); }

  // Until Unpoison, to touch an unused byte is an error (up to 7 bytes before a used one are not
  // told from it).
  void PoisonUnused(const std::vector<Use>& uses) {
    for (auto run = uses.begin(); run != uses.end();) {
      const auto end = std::find_if(run, uses.end(), [&](Use use) { return use != *run; });
      const uint8_t* address = begin() + (run - uses.begin());
      if (*run == kUnused) ASAN_POISON_MEMORY_REGION(address, end - run);
      run = end;
    }
  }
  void Unpoison() { ASAN_UNPOISON_MEMORY_REGION(data(), bytes()); }
};

inline constexpr int64_t kNull = -1;

// Where an argument lies. Rows, columns and strides count elements, `at` bytes of the arena.
struct Argument {
  const char* name = nullptr;  // null: absent
  bool written = false;
  int64_t dtype = 0;
  int64_t rows = 0, n = 0, row_stride = 0;
  int64_t element = 0;  // bytes
  int64_t at = kNull;

  int64_t Extent() const { return rows == 0 ? 0 : ((rows - 1) * row_stride + n) * element; }
  void* In(Arena& arena) const { return at == kNull ? nullptr : arena.begin() + at; }
  rmsnorm_dtype Dtype() const { return static_cast<rmsnorm_dtype>(dtype); }
  rmsnorm_matrix Matrix(Arena& arena) const { return {In(arena), row_stride, Dtype()}; }
  rmsnorm_vector Vector(Arena& arena) const { return {In(arena), Dtype()}; }

  // Adds this argument to what is done with each byte of the arena.
  void Mark(std::vector<Use>& uses) const {
    for (int64_t row = 0; row < rows; ++row) {
      const auto begin = uses.begin() + at + row * row_stride * element;
      std::transform(begin, begin + n * element, begin, [&](Use use) {
        if (use > (written ? kUnused : kRead)) return kClash;
        return written ? kWritten : kRead;
      });
    }
  }
};

}  // namespace rmsnorm

#endif  // RMSNORM_FUZZ_ARENA_H_
