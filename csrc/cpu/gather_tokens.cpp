#include <algorithm>
#include <cstring>

#include "rows.h"

namespace vtkernels::cpu {

void gather_tokens(const Rows& from, const Rows& to, int64_t images, int64_t k, int64_t channels,
                   const Output<const int64_t>& indices, const Parallel& parallel) {
  const int64_t chunk = rows_per_task(channels * from.element), chunks = (k + chunk - 1) / chunk;
  parallel.for_each(images * chunks, [&](int64_t task, int64_t) {
    const int64_t b = task / chunks, begin = task % chunks * chunk, end = std::min(k, begin + chunk);
    for (int64_t s = begin; s < end; ++s) move_row(from, to, b, indices(b, s), s, 0, channels);
  });
}

}  // namespace vtkernels::cpu
