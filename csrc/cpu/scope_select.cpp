// SCOPE: cosine similarity of all pairs (include/vtkernels/gram.h), then the greedy loop (include/vtkernels/coverage.h).
#include <algorithm>

#include "greedy.h"

namespace vtkernels::cpu {
namespace {

struct Layout {
  int64_t items;       // columns that are summed
  int64_t row_stride;  // of the similarity
  int64_t rows;        // of the similarity

  explicit Layout(int64_t n) {
    items = round_up(n, kPad);
    rows = round_up(n, kPad) + kPad;  // room for the last panel of any width
    // Rows a power of two apart would fall on the same cache lines when the triangle is copied.
    row_stride = rows % 512 == 0 ? rows + 16 : rows;
  }
  int64_t similarity() const { return rows * row_stride; }
  // Channels that are packed at a time: as many as keep the packed block no larger than the similarity.
  int64_t depth() const { return std::max(items, kPad); }
  int64_t panels() const { return rows * depth(); }
};

void similarity_and_gains(const Array<2>& features, const Layout& layout, float* scale, float* panels, const float* zeros, float* c,
                          float* gain, const Parallel& parallel) {
  const Isa& kernels = isa();
  const int64_t n = features.size[0], channels = features.size[1];
  const int64_t panel = kernels.panel, columns = (n + panel - 1) / panel, padded = columns * panel;
  // A task is a square of C: large enough that its rows and columns are read from the second-level cache many times, small
  // enough to share the work out evenly.
  const int64_t side = panel * std::clamp<int64_t>(columns / 6, 1, 8), squares = (padded + side - 1) / side;
  const int64_t block = layout.depth(), blocks = std::max<int64_t>(1, (channels + block - 1) / block);
  const auto tasks_of = [&](int64_t phase) {
    return phase == 2 * blocks ? (n + kernels.width - 1) / kernels.width : phase % 2 == 0 ? columns : squares * squares;
  };
  parallel.for_each_phase(2 * blocks + 1, squares * squares, tasks_of, [&](int64_t phase, int64_t task, int64_t) {
    const int64_t first = phase / 2 * block, depth = std::min(block, channels - first);
    if (phase == 2 * blocks) {
      kernels.mirror(c, layout.row_stride, task * kernels.width, n, layout.items, zeros, gain);
    } else if (phase % 2 == 0) {
      const int64_t begin = task * panel;
      if (first == 0) kernels.inverse_norms(features, begin, std::min(n, begin + panel), scale);
      kernels.pack(features, begin, scale, first, depth, panels + begin * depth);
    } else {
      const int64_t i = task / squares * side, j = task % squares * side;
      const int64_t rows[] = {i, std::min(padded, i + side)}, cols[] = {j, std::min(padded, j + side)};
      if (j <= i) kernels.gram_block(panels, depth, rows, cols, first > 0, c, layout.row_stride);
    }
  });
}

}  // namespace

int64_t scope_select_scratch(int64_t n) {
  const Layout layout(n);
  return layout.similarity() + layout.panels() + layout.rows + GreedyScratch::floats(n, n);
}

void scope_select(const Array<3>& features, const Array<2>& saliency, const Lengths& lengths, int64_t k, const ScopeOptions& options,
                  const Output<int64_t>& indices, float* scratch, const Parallel& parallel) {
  const int64_t per_worker = scope_select_scratch(features.size[1]);
  parallel.for_each_image(features.size[0], [&](int64_t b, int64_t worker, const Parallel& inner) {
    const int64_t most = features.size[1], n = lengths(b, most);
    const Layout layout(n);
    float* c = scratch + worker * per_worker;
    float* panels = c + layout.similarity();
    float* scale = panels + layout.panels();
    const GreedyScratch greedy(scale + layout.rows, most, most);

    Array<2> tokens = features.at(b);
    tokens.size[0] = n;
    std::fill(greedy.covered, greedy.covered + layout.items, 0.0f);
    if (k > 0) similarity_and_gains(tokens, layout, scale, panels, greedy.covered, c, greedy.score, inner);
    Coverage problem{c, layout.row_stride, layout.items, n};
    problem.weight = load_weights(saliency.at(b), n, options.alpha, greedy.weight);
    problem.combine = options.combine;
    select_greedily(problem, greedy, k, options.sort, b, indices, nullptr);
  });
}

}  // namespace vtkernels::cpu
