// Ascending indices only ever move a row towards the front, past rows that have already been read: no second buffer.
#include <algorithm>

#include "rows.h"

namespace vtkernels::cpu {

void compact_(const Rows& tokens, int64_t images, int64_t k, int64_t channels, const Output<const int64_t>& indices,
              const Parallel& parallel) {
  // Rows depend on each other, channels do not: a task is a run of channels of one image.
  const int64_t runs = images < parallel.threads
                           ? std::max<int64_t>(1, std::min(parallel.threads, k * channels * tokens.element / kTaskBytes))
                           : 1;
  const int64_t run = (channels + runs - 1) / std::max<int64_t>(runs, 1);
  parallel.for_each(images * runs, [&](int64_t task, int64_t) {
    const int64_t b = task / runs, begin = task % runs * run, end = std::min(channels, begin + run);
    for (int64_t s = 0; s < k && begin < end; ++s) move_row(tokens, tokens, b, indices(b, s), s, begin, end);
  });
}

}  // namespace vtkernels::cpu
