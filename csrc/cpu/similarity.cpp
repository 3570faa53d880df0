#include "similarity.h"

#include <algorithm>

namespace vtkernels::cpu {
namespace {

constexpr int64_t kWidestPanel = 48;

}  // namespace

SimilarityLayout::SimilarityLayout(int64_t n, int64_t channels) {
  items = round_up(n, kPad);
  rows = items + kPad;
  // Rows a power of two apart would fall on the same cache lines when the triangle is copied.
  row_stride = rows % 512 == 0 ? rows + 16 : rows;
  depth = std::max<int64_t>(1, std::min(channels, std::max(items, kPad)));
}

int64_t square_side(int64_t n) {
  const int64_t panel = isa().panel, panels = (n + panel - 1) / panel;
  return panel * std::clamp<int64_t>(panels / 6, 1, kMostSide / kWidestPanel);
}

Similarity::Similarity(const Array<2>& features, const SimilarityLayout& layout, float* scratch)
    : features_(features), layout_(layout), c_(scratch), n_(features.size[0]), channels_(features.size[1]) {
  packed_ = c_ + layout.rows * layout.row_stride;
  scale_ = packed_ + layout.rows * layout.depth;
  const int64_t panel = isa().panel;
  blocks_ = std::max<int64_t>(1, (channels_ + layout.depth - 1) / layout.depth);
  panels_ = (n_ + panel - 1) / panel;
  padded_ = panels_ * panel;
  side_ = square_side(n_);
  squares_ = (padded_ + side_ - 1) / side_;
}

void Similarity::run(int64_t phase, int64_t task) const {
  const Isa& kernels = isa();
  const int64_t first = phase / 2 * layout_.depth, depth = std::min(layout_.depth, channels_ - first);
  if (phase % 2 == 0) {
    const int64_t begin = task * kernels.panel;
    if (first == 0) kernels.inverse_norms(features_, begin, std::min(n_, begin + kernels.panel), scale_);
    kernels.pack(features_, begin, scale_, first, depth, packed_ + begin * depth);
  } else {
    const int64_t i = task / squares_ * side_, j = task % squares_ * side_;
    const int64_t rows[] = {i, std::min(padded_, i + side_)}, columns[] = {j, std::min(padded_, j + side_)};
    if (j <= i)
      kernels.gram_block(packed_, depth, rows, columns, first > 0, c_ + i * layout_.row_stride + j, layout_.row_stride);
  }
}

int64_t Similarity::mirror_tasks() const { return (n_ + isa().width - 1) / isa().width; }

void Similarity::mirror(int64_t task) const { isa().mirror(c_, layout_.row_stride, task * isa().width, n_); }

}  // namespace vtkernels::cpu
