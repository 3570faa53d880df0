#include "adapt.h"

namespace vtkernels::torch_ops {
namespace {

void check_arguments(const Tensor& scores, int64_t rows, int64_t width) {
  const char* op = "row_topk";
  Argument{op, "scores", scores}.rank("B, N", 2).floats();
  const int64_t n = scores.size(1);
  check(width >= 1, op, ": width must be >= 1, got ", width);
  check(n % width == 0, op, ": N must be a multiple of width = ", width, ", got N = ", n);
  check(0 <= rows && rows <= n / width, op, ": rows must be between 0 and N / width = ", n / width, ", got ", rows);
}

void run(const Tensor& scores, int64_t rows, int64_t width, bool sort, const Tensor& out) {
  const Parallel threads = parallel();
  const Scratch scratch(scores, cpu::row_topk_scratch(scores.size(1) / width), scores.size(0), threads);
  cpu::row_topk(array<2>(scores), rows, width, sort, output<int64_t>(out), scratch.data(), threads);
}

Tensor row_topk(Tensor scores, int64_t rows, int64_t width, bool sort) {
  check_arguments(scores, rows, width);
  Tensor out = empty(scores, {scores.size(0), rows * width}, ScalarType::Long);
  run(scores, rows, width, sort, out);
  return out;
}

void row_topk_out(Tensor scores, int64_t rows, int64_t width, bool sort, Tensor out) {
  check_arguments(scores, rows, width);
  check_out("row_topk", out, ScalarType::Long, {scores.size(0), rows * width}, scores);
  check_apart("row_topk", out, {{"scores", scores}});
  run(scores, rows, width, sort, out);
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) {
  m.impl("row_topk", TORCH_BOX(&row_topk));
  m.impl("row_topk.out", TORCH_BOX(&row_topk_out));
}

}  // namespace vtkernels::torch_ops
