// compact_: kept rows move to the front, in place.
//
// A block owns a few bytes of every row and walks the kept rows in their order, many at a time. Indices ascend, so row s comes
// from s or later: rows may be written when they and those before them have been read, and what is read next lies behind them.
#pragma once

#include "vtkernels/cuda/element.cuh"
#include "vtkernels/cuda/plan.h"

namespace vtkernels::cuda {

struct CompactRows {
  char* data;
  int64_t stride[3];  // in units: image, row, one unit after another
};

template <class Unit>
struct Compact {
  static constexpr const char* name = "compact_";
  static constexpr int threads = kCompactThreads;
  static constexpr int groups = kCompactThreads / kCompactUnits;  // of threads, on rows of their own
  static constexpr int ahead = 16;

  struct Arguments {
    CompactRows rows;
    int64_t k;
    int64_t units;  // of a row
    int blocks;     // of an image
    Output<const int64_t> indices;
  };

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    const int64_t b = m.block_x() / a.blocks, unit = m.block_x() % a.blocks * int64_t{kCompactUnits} + m.lane();
    const int64_t left = unit < a.units ? a.k : 0;
    Unit* column = reinterpret_cast<Unit*>(a.rows.data) + b * a.rows.stride[0] + unit * a.rows.stride[2];
    for (int64_t start = 0; start < a.k; start += groups * ahead) {
      int64_t from[ahead];
      Unit x[ahead];
#pragma unroll
      for (int i = 0; i < ahead; ++i) {
        const int64_t s = start + i * groups + m.warp();
        from[i] = s < left ? a.indices(b, s) : -1;
      }
#pragma unroll
      for (int i = 0; i < ahead; ++i) {
        x[i] = Unit{};
        if (from[i] >= 0) x[i] = column[from[i] * a.rows.stride[1]];
      }
      m.sync();
#pragma unroll
      for (int i = 0; i < ahead; ++i) {
        const int64_t s = start + i * groups + m.warp();
        if (s < left) column[s * a.rows.stride[1]] = x[i];
      }
    }
  }
};

struct alignas(16) Unit16 {
  uint64_t x[2];
};

// element: bytes of a channel; stride in elements.
template <class Stream>
void compact_(const Stream& stream, const Plan& plan, char* data, int64_t element, const int64_t (&stride)[3], int64_t images,
              int64_t k, int64_t channels, const Output<const int64_t>& indices) {
  if (images == 0 || k == 0 || channels == 0) return;
  const auto launch = [&](auto unit, int64_t per_unit) {
    using Unit = decltype(unit);
    const typename Compact<Unit>::Arguments arguments{
        {data, {stride[0] / per_unit, stride[1] / per_unit, per_unit == 1 ? stride[2] : 1}},
        k,
        channels / per_unit,
        static_cast<int>(plan.shape[0].blocks_x / images),
        indices};
    stream.template run<Compact<Unit>>(arguments, plan.shape[0]);
  };
  if (in_sixteens(data, element, stride, channels)) return launch(Unit16{}, 16 / element);
  if (element == 8) return launch(uint64_t{}, 1);
  if (element == 4) return launch(uint32_t{}, 1);
  launch(uint16_t{}, 1);
}

}  // namespace vtkernels::cuda
