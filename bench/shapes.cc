// Reading of shapes.json, and numbers that suit every dtype.
#include "shapes.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <new>
#include <nlohmann/json.hpp>
#include <random>

#include "core/dtype.h"

namespace rmsnorm::bench {

std::string Shape::Name() const {
  const std::string name = std::to_string(rows) + "x" + std::to_string(n);
  return row_stride == n ? name : name + "s" + std::to_string(row_stride);
}

std::vector<Shape> ReadShapes(const std::string& path) {
  std::ifstream file(path);
  std::vector<Shape> shapes;
  for (const auto& shape : nlohmann::json::parse(file)) {
    const int64_t n = shape.at("n");
    shapes.push_back({shape.at("rows"), n, shape.value("row_stride", n)});
  }
  return shapes;
}

Memory Touched(size_t bytes) {
  Memory memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  if (!memory) throw std::bad_alloc();
  std::memset(memory.get(), 0, bytes);
  return memory;
}

namespace {

// Every 16 bits are a number of 2^-7 to 2 in bfloat16, of 1 to 2 in float16, and two of them one of
// 2^-7 to 2 in float32: one filling serves all three types. One in four is negative: with a mean of
// 0, the terms that a wrong backward leaves out would be too small to show.
Memory Numbers(size_t bytes, uint32_t seed) {
  Memory memory = Touched(bytes);
  std::minstd_rand random(seed);
  std::generate_n(static_cast<uint16_t*>(memory.get()), bytes / 2, [&] {
    const auto drawn = static_cast<uint32_t>(random());
    return static_cast<uint16_t>(0x3C00 | (drawn >> 8 & 0x3FF) | ((drawn >> 20 & 3) == 0) << 15);
  });
  return memory;
}

template <class Size>
size_t Largest(const std::vector<Shape>& shapes, const Size& size) {
  size_t largest = 0;
  for (const Shape& shape : shapes) largest = std::max<size_t>(largest, size(shape));
  return largest;
}

}  // namespace

Operands::Operands(const std::vector<Shape>& shapes) {
  const auto n = [](const Shape& shape) { return sizeof(float) * shape.n; };
  const auto rows = [](const Shape& shape) { return sizeof(float) * shape.rows; };
  const auto matrix = [](const Shape& shape) { return sizeof(float) * shape.rows * shape.n; };
  x = Numbers(Largest(shapes, [](const Shape& s) { return 4 * s.rows * s.row_stride; }), 1);
  dy = Numbers(Largest(shapes, matrix), 2);
  gamma = Numbers(Largest(shapes, n), 3);
  y = Touched(Largest(shapes, matrix));
  rstd = Touched(Largest(shapes, rows));
  dgamma = Touched(Largest(shapes, n));
  workspace = Touched(Largest(
      shapes, [](const Shape& s) { return rmsnorm_backward_workspace(s.rows, s.n, nullptr); }));
}

double Element(const Memory& memory, rmsnorm_dtype dtype, int64_t i) {
  if (dtype == RMSNORM_FLOAT32) return static_cast<const float*>(memory.get())[i];
  if (dtype == RMSNORM_FLOAT16) return ToFloat(static_cast<const Float16*>(memory.get())[i]);
  return ToFloat(static_cast<const BFloat16*>(memory.get())[i]);
}

}  // namespace rmsnorm::bench
