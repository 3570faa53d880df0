// Cosines of an image's rows with a second, smaller set of rows: a panel of the image at a time, no matrix of the whole.
#pragma once

#include <algorithm>

#include "vtkernels/isa.h"
#include "vtkernels/parallel.h"

namespace vtkernels::cpu {

// Floats of scratch: the second set, packed, for every running image; a panel of rows and its cosines for every thread.
struct CrossLayout {
  int64_t columns;  // row stride of the cosines
  int64_t channels;

  CrossLayout(int64_t others, int64_t d) : columns(round_up(others, kPad) + kPad), channels(d) {}
  int64_t per_image() const { return columns * channels + columns; }
  int64_t per_thread() const { return kPad * (channels + columns + 1); }
  int64_t total(int64_t images, int64_t threads) const {
    return std::min(images, threads) * per_image() + threads * per_thread();
  }
};

// f(i, cosines of row i with all others) for every row i. `image` is the image's scratch, `threads` that of the first thread.
template <class F>
void for_each_cosine_row(const Array<2>& rows, const Array<2>& others, const CrossLayout& layout, float* image, float* threads,
                         const Parallel& parallel, const F& f) {
  const Isa& kernels = isa();
  const int64_t panel = kernels.panel, d = layout.channels, count = others.size[0];
  const int64_t other_panels = (count + panel - 1) / panel, row_panels = (rows.size[0] + panel - 1) / panel;
  float* packed = image;
  float* scale = packed + layout.columns * d;
  const auto tasks = [&](int64_t phase) { return phase == 0 ? other_panels : row_panels; };
  parallel.for_each_phase(2, std::max(other_panels, row_panels), tasks, [&](int64_t phase, int64_t task, int64_t worker) {
    const int64_t begin = task * panel;
    if (phase == 0) {
      kernels.inverse_norms(others, begin, std::min(count, begin + panel), scale);
      kernels.pack(others, begin, scale, 0, d, packed + begin * d);
      return;
    }
    const Array<2> some = rows_of(rows, begin, std::min(panel, rows.size[0] - begin));
    float* block = threads + worker * layout.per_thread();
    float* cosines = block + kPad * d;
    float* norms = cosines + kPad * layout.columns;
    kernels.inverse_norms(some, 0, some.size[0], norms);
    kernels.pack(some, 0, norms, 0, d, block);
    kernels.product_block(block, packed, d, some.size[0], count, cosines, layout.columns);
    for (int64_t r = 0; r < some.size[0]; ++r) f(begin + r, cosines + r * layout.columns);
  });
}

}  // namespace vtkernels::cpu
