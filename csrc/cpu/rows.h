// Moving one row of an image, or a run of its channels.
#pragma once

#include <cstring>

#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

constexpr int64_t kTaskBytes = 64 << 10;  // below this a second thread costs more than it saves

inline int64_t rows_per_task(int64_t row_bytes) {
  return row_bytes < kTaskBytes ? kTaskBytes / (row_bytes > 0 ? row_bytes : 1) : 1;
}

// to[b, target] = from[b, source], zeros where source is -1, channels [begin, end)
inline void move_row(const Rows& from, const Rows& to, int64_t b, int64_t source, int64_t target, int64_t begin, int64_t end) {
  if (begin >= end) return;  // memory of nothing may be null
  const int64_t size = to.element;
  char* out = to.data + (b * to.stride[0] + target * to.stride[1] + begin * to.stride[2]) * size;
  if (source < 0) {
    for (int64_t d = begin; d < end; ++d, out += to.stride[2] * size) std::memset(out, 0, static_cast<size_t>(size));
    return;
  }
  const char* in = from.data + (b * from.stride[0] + source * from.stride[1] + begin * from.stride[2]) * size;
  if (from.stride[2] == 1 && to.stride[2] == 1) {
    std::memmove(out, in, static_cast<size_t>((end - begin) * size));
    return;
  }
  for (int64_t d = begin; d < end; ++d, in += from.stride[2] * size, out += to.stride[2] * size) {
    std::memmove(out, in, static_cast<size_t>(size));
  }
}

}  // namespace vtkernels::cpu
