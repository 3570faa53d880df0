// Wide tiles of the cosines of all pairs of rows of an image, by the warpgroups of sm_90a.
//
// Half types. The two blocks of a cluster have the same rows and 128 columns each: every block has half of the rows copied to
// both, and its columns to itself, so that 192 x 256 products read 448 rows. One thread has the stages copied by the copy
// engine; the warpgroups multiply 64 x 128 each. As in gram.cuh a stage is 128 bytes of a row, the tensor cores add up what a
// stage holds, and the stages are added in float32. The directions of the rows come from a launch before.
#pragma once

#include <type_traits>

#include "vtkernels/cuda/gram.cuh"

namespace vtkernels::cuda {

// Boxes of half the rows and of all columns of a tile.
struct WideMaps {
  TensorMap rows, columns;

  // A dimension of one element has no distance that counts, but must have a valid one.
  template <class Stream>
  WideMaps(const Stream& stream, const Array<3>& x, int groups)
      : WideMaps(stream,
                 {x.data, x.dtype == DType::bfloat16, x.size[2], x.size[1], x.size[0],
                  x.size[1] == 1 ? 16 : x.stride[1] * element_size(x.dtype),
                  x.size[0] == 1 ? 16 : x.stride[0] * element_size(x.dtype), 0},
                 groups) {}

 private:
  template <class Stream>
  WideMaps(const Stream& stream, const TensorBoxes& boxes, int groups)
      : rows(stream.tensor_map(with(boxes, wide_rows(groups) / kWideCluster))),
        columns(stream.tensor_map(with(boxes, kWideColumns))) {}

  static TensorBoxes with(TensorBoxes boxes, int rows) {
    boxes.rows = rows;
    return boxes;
  }
};

// What the copy engine reads: the features, or the copy that GramDirections makes.
inline Array<3> wide_features(const GramPlan& plan, const Array<3>& features, const void* copy) {
  if (!plan.packed) return features;
  const int64_t images = features.size[0], n = features.size[1], channels = features.size[2];
  const int64_t stride = gram_packed_stride(channels);
  return {copy, features.dtype, {images, n, channels}, {n * stride, stride, 1}};
}

// Calls f with the groups of the plan as a constant.
template <class F>
void with_groups(const GramPlan& plan, const F& f) {
  if (plan.groups == kWideSmall) return f(std::integral_constant<int, kWideSmall>());
  f(std::integral_constant<int, kWideLarge>());
}

// The tile of a block.
struct WidePlace {
  int image;
  int row, column;  // its first
};

template <class T, int Groups>
struct GramWide {
  static constexpr bool bfloat16 = std::is_same_v<T, BFloat16>;
  static constexpr int channels = kGramBytes / 2, steps = channels / 16;
  static constexpr int rows = wide_rows(Groups), warps = 4 * Groups, slots = wide_stages(Groups);
  static constexpr int half_bytes = rows / kWideCluster * kGramBytes, row_bytes = rows * kGramBytes;
  static constexpr int64_t stage_bytes = wide_stage_bytes(Groups);

  // In shared memory when all is done, where the stages were. The threads of a warp write to no more than two places of a bank,
  // and read a row or a column from a bank each.
  static constexpr int pitch = kWideColumns + 5;
  static_assert(4 * rows * pitch <= slots * stage_bytes, "in place of the stages");

  static int stages(int64_t of_channels) { return static_cast<int>((of_channels + channels - 1) / channels); }

  // `clusters` of an image, counted row by row.
  template <class M>
  static VTKERNELS_DEVICE WidePlace place(M& m, int clusters) {
    const int cluster = m.block_x() / kWideCluster;
    int row = 0, t = cluster % clusters;
    for (; t >= wide_clusters_of_row(row, Groups); ++row) t -= wide_clusters_of_row(row, Groups);
    return {cluster / clusters, row * rows, (t * kWideCluster + m.cluster_rank()) * kWideColumns};
  }

  // Writes value(i, j, cosine) of all pairs i >= j of the tile to both of their places in to[n, stride] of its image. Columns
  // behind the last row are written as the rows that have them are. All threads of the cluster call this. The launch before
  // gives the directions, which are asked for last, and where features are `packed`, those too.
  template <class M, class Value, class Of>
  static VTKERNELS_DEVICE void run(M& m, const WideMaps& maps, bool packed, const WidePlace& place, int stages,
                                   const Direction* directions, int n, Value* to, int stride, const Of& value) {
    if (packed) m.wait_for_previous_launch();
    const auto full = m.template shared<uint64_t>(slots * stage_bytes), empty = full + slots;
    if (m.thread() == 0) {
      for (int slot = 0; slot < slots; ++slot) {
        m.open_mailbox(full + slot);
        m.open_mailbox(empty + slot, kWideCluster * warps);
      }
    }
    m.sync_cluster();
    if (m.thread() >= 128 * Groups) {
      if constexpr (Groups > kWideSmall) m.template fewer_registers<32>();
      if (m.thread() == 128 * Groups) copy(m, maps, place, stages, full, empty);
      m.sync_warp();
      m.wait_for_previous_launch();
      m.sync_cluster();
      for (int barrier = 0; barrier < 2; ++barrier) m.sync();
    } else {
      if constexpr (Groups > kWideSmall) m.template more_registers<160>();
      float total[64] = {};
      multiply(m, stages, full, empty, total);
      m.wait_for_previous_launch();
      const auto products = m.template shared<float>(0);
      m.sync_cluster();  // all have read the last stages, and no block sends to one that may have left
#pragma unroll
      for (int e = 0; e < 64; ++e) {
        const int row = 16 * m.warp() + e / 2 % 2 * 8 + m.lane() / 4, column = e / 4 * 8 + m.lane() % 4 * 2 + e % 2;
        products[row * pitch + column] = total[e];
      }
      m.sync();
      write(m, place, directions, n, to, stride, value);
    }
  }

 private:
  template <class M>
  static VTKERNELS_DEVICE auto stage_at(M& m, int slot) {
    return m.template shared<unsigned char>(slot * stage_bytes);
  }

  template <class M, class Boxes>
  static VTKERNELS_DEVICE void copy(M& m, const WideMaps& maps, const WidePlace& place, int stages, const Boxes& full,
                                    const Boxes& empty) {
    const int rank = m.cluster_rank();
    int slot = 0, round = 0;
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) {
      if (round > 0) m.receive(empty + slot, (round - 1) % 2);  // both blocks have left the slot
      const auto to = stage_at(m, slot);
      m.expect(full + slot, static_cast<int>(stage_bytes));
      m.template copy_box<true>(to + rank * half_bytes, maps.rows, stage * channels, place.row + rank * (rows / kWideCluster),
                                place.image, full + slot);
      m.template copy_box<false>(to + row_bytes, maps.columns, stage * channels, place.column, place.image, full + slot);
      if (++slot == slots) slot = 0, ++round;
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
      if (++slot == slots) slot = 0, ++round;
    }
  }

  // Rows of the tile as rows, then its columns as rows. Several are read before the first is written.
  template <class M, class Value, class Of>
  static VTKERNELS_DEVICE void write(M& m, const WidePlace& place, const Direction* directions, int n, Value* to, int stride,
                                     const Of& value) {
    static_assert(sizeof(Value) == sizeof(float), "in place of the products");
    constexpr int share = kWideColumns / 32, own = rows / warps, batch = 4;
    const auto products = m.template shared<float>(0);
    const auto values = m.template shared<Value>(0);
    const auto direction = [&](int i) { return i < n ? directions[i] : Direction{0.0f, 0.0f}; };
    Direction of_column[share];
#pragma unroll
    for (int c = 0; c < share; ++c) of_column[c] = direction(place.column + 32 * c + m.lane());
    const Direction of_rows = direction(place.row + m.warp() + m.lane() % own * warps);
#pragma unroll 1
    for (int first = 0; first < own; first += batch) {
      float product[batch][share];
#pragma unroll
      for (int k = 0; k < batch; ++k) {
#pragma unroll
        for (int c = 0; c < share; ++c) product[k][c] = products[(m.warp() + (first + k) * warps) * pitch + 32 * c + m.lane()];
      }
#pragma unroll
      for (int k = 0; k < batch; ++k) {
        const int r = m.warp() + (first + k) * warps, i = place.row + r;
        const Direction of_row{m.shuffle(of_rows.power, first + k), m.shuffle(of_rows.fraction, first + k)};
#pragma unroll
        for (int c = 0; c < share; ++c) {
          const int j = place.column + 32 * c + m.lane();
          const Value x = value(i, j, Direction::cosine(product[k][c], of_row, of_column[c]));
          values[r * pitch + 32 * c + m.lane()] = x;
          if (j <= i && i < n) to[int64_t{i} * stride + j] = x;
        }
      }
    }
    m.sync();
#pragma unroll 2
    for (int c = m.warp(); c < kWideColumns; c += warps) {
      const int j = place.column + c;
      Value x[rows / 32];
#pragma unroll
      for (int k = 0; k < rows / 32; ++k) x[k] = values[(32 * k + m.lane()) * pitch + c];
#pragma unroll
      for (int k = 0; k < rows / 32; ++k) {
        const int i = place.row + 32 * k + m.lane();
        if (j < i && i < stride && j < n) to[int64_t{j} * stride + i] = x[k];
      }
    }
  }
};

}  // namespace vtkernels::cuda
