// Row sums in float64, top-k of the rows, and the tokens of each row chosen.
#include "carve.h"
#include "element.h"
#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

int64_t row_topk_scratch(int64_t grid_rows) {
  return Carve::floats<double>(grid_rows) + Carve::floats<int64_t>(grid_rows) + topk_select_scratch(grid_rows);
}

void row_topk(const Array<2>& scores, int64_t rows, int64_t width, bool sort, const Output<int64_t>& indices, float* scratch,
              const Parallel& parallel) {
  const int64_t grid_rows = scores.size[1] / width;
  parallel.for_each_image(scores.size[0], [&](int64_t b, int64_t worker, const Parallel&) {
    Carve carve(scratch + worker * row_topk_scratch(grid_rows));
    auto* sums = carve.take<double>(grid_rows);
    auto* chosen = carve.take<int64_t>(grid_rows);
    auto* keys = carve.take<float>(topk_select_scratch(grid_rows));
    const Array<1> tokens = scores.at(b);
    for (int64_t r = 0; r < grid_rows; ++r) {
      sums[r] = 0;
      for (int64_t i = r * width; i < (r + 1) * width; ++i) sums[r] += element_as_double(tokens, i);
    }
    const Array<2> ranked{sums, DType::float64, {1, grid_rows}, {grid_rows, 1}};
    topk_select(ranked, Lengths{nullptr, false, 0}, rows, sort, Output<int64_t>{chosen, {grid_rows, 1}}, keys,
                Parallel{1, nullptr});
    for (int64_t s = 0; s < rows; ++s) {
      for (int64_t i = 0; i < width; ++i) indices(b, s * width + i) = chosen[s] * width + i;
    }
  });
}

}  // namespace vtkernels::cpu
