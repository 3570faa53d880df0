// Wide tiles of the products of all pairs of rows of an image, by the warpgroups of sm_90a.
//
// Half types. A cluster of two blocks has 192 rows and 128 columns for each block: every block has half of the rows copied to
// both, and its columns to itself, so that 192 x 256 products read 448 rows. One thread has the stages copied by the copy
// engine; three warpgroups multiply 64 x 128 each. As in gram.cuh a stage is 128 bytes of a row, the tensor cores add up what a
// stage holds, and the stages are added in float32.
#pragma once

#include <type_traits>

#include "vtkernels/cuda/element.cuh"
#include "vtkernels/cuda/plan.h"

namespace vtkernels::cuda {

// Boxes of half the rows and of all columns of a tile.
struct WideMaps {
  TensorMap rows, columns;

  // A dimension of one element has no distance that counts, but must have a valid one.
  template <class Stream>
  WideMaps(const Stream& stream, const Array<3>& x)
      : WideMaps(stream, {x.data, x.dtype == DType::bfloat16, x.size[2], x.size[1], x.size[0],
                          x.size[1] == 1 ? 16 : x.stride[1] * element_size(x.dtype),
                          x.size[0] == 1 ? 16 : x.stride[0] * element_size(x.dtype), 0}) {}

 private:
  template <class Stream>
  WideMaps(const Stream& stream, const TensorBoxes& boxes)
      : rows(stream.tensor_map(with(boxes, kWideRows / kWideCluster))), columns(stream.tensor_map(with(boxes, kWideColumns))) {}

  static TensorBoxes with(TensorBoxes boxes, int rows) {
    boxes.rows = rows;
    return boxes;
  }
};

// The tile of a block: cluster number t of the image, counted row by row.
struct WidePlace {
  int row, column;  // its first

  static VTKERNELS_DEVICE WidePlace of(int t, int rank) {
    int row = 0;
    for (; t >= wide_clusters_of_row(row); ++row) t -= wide_clusters_of_row(row);
    return {row * kWideRows, (t * kWideCluster + rank) * kWideColumns};
  }
};

template <class T>
struct GramWide {
  static constexpr bool bfloat16 = std::is_same_v<T, BFloat16>;
  static constexpr int channels = kGramBytes / 2, steps = channels / 16, multipliers = kWideThreads / 128 - 1;
  static constexpr int warps = 4 * multipliers;
  static constexpr int half_bytes = kWideRows / kWideCluster * kGramBytes, row_bytes = kWideRows * kGramBytes;

  // In shared memory when all is done, where the stages were. The threads of a warp write to no more than two places of a bank,
  // and read a row or a column from a bank each.
  static constexpr int pitch = kWideColumns + 5;
  static_assert(4 * kWideRows * pitch <= kWideStages * kWideStageBytes, "in place of the stages");

  // Calls finish(products) in the warps that multiply, which share them: products[row * pitch + column] of the tile. It passes
  // one barrier of the block. All threads of the cluster call this.
  template <class M, class Finish>
  static VTKERNELS_DEVICE void run(M& m, const WideMaps& maps, int image, const WidePlace& place, int stages,
                                   const Finish& finish) {
    static_assert(kWideRows == 64 * multipliers, "64 rows for each warpgroup");
    const auto full = m.template shared<uint64_t>(kWideStages * kWideStageBytes), empty = full + kWideStages;
    if (m.thread() == 0) {
      for (int slot = 0; slot < kWideStages; ++slot) {
        m.open_mailbox(full + slot);
        m.open_mailbox(empty + slot, kWideCluster * multipliers * 4);
      }
    }
    m.sync_cluster();
    if (m.thread() >= 128 * multipliers) {
      m.template fewer_registers<32>();
      if (m.thread() == 128 * multipliers) copy(m, maps, image, place, stages, full, empty);
      for (int barrier = 0; barrier < 3; ++barrier) m.sync();
    } else {
      m.template more_registers<160>();
      float total[64] = {};
      multiply(m, stages, full, empty, total);
      const auto products = m.template shared<float>(0);
      m.sync();  // all have read the last stages
#pragma unroll
      for (int e = 0; e < 64; ++e) {
        const int row = 16 * m.warp() + e / 2 % 2 * 8 + m.lane() / 4, column = e / 4 * 8 + m.lane() % 4 * 2 + e % 2;
        products[row * pitch + column] = total[e];
      }
      m.sync();
      finish(products);
    }
    m.sync_cluster();  // nobody leaves while the other block still sends
  }

 private:
  template <class M>
  static VTKERNELS_DEVICE auto stage_at(M& m, int slot) {
    return m.template shared<unsigned char>(slot * kWideStageBytes);
  }

  template <class M, class Boxes>
  static VTKERNELS_DEVICE void copy(M& m, const WideMaps& maps, int image, const WidePlace& place, int stages,
                                    const Boxes& full, const Boxes& empty) {
    const int rank = m.cluster_rank();
    int slot = 0, round = 0;
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      if (round > 0) m.receive(empty + slot, (round - 1) % 2);  // both blocks have left the slot
      const auto to = stage_at(m, slot);
      m.expect(full + slot, static_cast<int>(kWideStageBytes));
      m.template copy_box<true>(to + rank * half_bytes, maps.rows, stage * channels,
                                place.row + rank * (kWideRows / kWideCluster), image, full + slot);
      m.template copy_box<false>(to + row_bytes, maps.columns, stage * channels, place.column, image, full + slot);
      if (++slot == kWideStages) slot = 0, ++round;
    }
  }

  template <class M, class Boxes>
  static VTKERNELS_DEVICE void multiply(M& m, int stages, const Boxes& full, const Boxes& empty, float (&total)[64]) {
    float part[64] = {};
    int slot = 0, round = 0;
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      const auto from = stage_at(m, slot);
      m.receive(full + slot, round % 2);
      m.wgmma_begin(part);
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        m.template wgmma<bfloat16>(part, from + m.warp() / 4 * 64 * kGramBytes, from + row_bytes, step, step > 0);
      }
      m.wgmma_end(part);
      if (m.lane() < kWideCluster) m.arrive(empty + slot, m.lane());
#pragma unroll
      for (int e = 0; e < 64; ++e) total[e] += part[e];
      if (++slot == kWideStages) slot = 0, ++round;
    }
  }
};

}  // namespace vtkernels::cuda
