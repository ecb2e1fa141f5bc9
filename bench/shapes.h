// What is measured: the shapes of shapes.json, and the operands of a call on one of them.
#ifndef RMSNORM_BENCH_SHAPES_H_
#define RMSNORM_BENCH_SHAPES_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "rmsnorm/rmsnorm.h"

namespace rmsnorm::bench {

struct Shape {
  int64_t rows, n;
  int64_t row_stride;  // of x, in elements; all else is contiguous

  std::string Name() const;  // 65536x128, 65536x128s384
};

std::vector<Shape> ReadShapes(const std::string& path);

struct FreeDelete {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, FreeDelete>;

// Memory that was written to, aligned to 64; zeros.
Memory Touched(size_t bytes);

// Operands that all shapes and dtypes share, large enough for each. x, dy and gamma are filled;
// outputs have been written to.
struct Operands {
  Memory x, dy, gamma, y, rstd, dgamma, workspace;

  explicit Operands(const std::vector<Shape>& shapes);
};

struct Call {
  Shape shape;
  rmsnorm_dtype dtype;
  int threads;
  const Operands* operands;

  size_t ElementBytes() const { return dtype == RMSNORM_FLOAT32 ? 4 : 2; }
  size_t RowBytes() const { return shape.n * ElementBytes(); }
  size_t Bytes() const { return shape.rows * RowBytes(); }  // of x, dy, y or dx each
};

// Element i of an operand, in binary64.
double Element(const Memory& memory, rmsnorm_dtype dtype, int64_t i);

}  // namespace rmsnorm::bench

#endif  // RMSNORM_BENCH_SHAPES_H_
