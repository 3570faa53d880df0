// coverage_select: the greatest entry of each image, fixed point, then the greedy loop. Three launches.
//
// Entries become 64-bit integers relative to the power of two below the greatest of the image, and sums are exact. With fewer
// than 32768 items an entry of at least 2**-22 of the greatest keeps all its bits, a smaller one those from 2**-45 of the
// greatest up.
#pragma once

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/block.cuh"
#include "vtkernels/cuda/greedy.cuh"

namespace vtkernels::cuda {

template <class T>
struct CoverageArguments {
  const T* data;
  int64_t stride[3];
  int64_t items;
  int64_t candidates;
  Lengths lengths;
  int blocks;       // of an image
  float one;        // 2**bits
  float* greatest;  // [B, blocks]
  float* scale;     // [B]
  int64_t* fixed;   // [B, items, row_stride]
  int64_t row_stride;

  // In float32, 0 where negative, not finite or behind the valid candidates.
  VTKERNELS_DEVICE float entry(int64_t b, int64_t valid, int64_t i, int64_t j) const {
    const float x = j < valid ? to_float(data[b * stride[0] + i * stride[1] + j * stride[2]]) : 0.0f;
    return is_finite(x) && x > 0 ? x : 0.0f;
  }

  // use(i, j) for this thread's share of [items, row_stride], in the order in which the entries lie in memory.
  template <class M, class Use>
  VTKERNELS_DEVICE void each(M& m, const Use& use) const {
    const bool by_items = stride[1] < stride[2];
    const int64_t inner = by_items ? items : row_stride, all = items * row_stride;
    for (int64_t e = int64_t{m.block_x() % blocks} * m.threads() + m.thread(); e < all; e += int64_t{blocks} * m.threads()) {
      const int64_t outer = e / inner, at = e - outer * inner;
      if (by_items) {
        use(at, outer);
      } else {
        use(outer, at);
      }
    }
  }
};

template <class T>
struct CoverageGreatest {
  static constexpr const char* name = "coverage_select greatest";
  static constexpr int threads = kCoverageThreads;
  using Arguments = CoverageArguments<T>;

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    m.let_next_launch_start();
    const int64_t b = m.block_x() / a.blocks, valid = a.lengths(b, a.candidates);
    float most = 0;
    a.each(m, [&](int64_t i, int64_t j) { most = Max{}(most, a.entry(b, valid, i, j)); });
    most = reduce_block(m, m.template shared<float>(0), most, Max{});
    if (m.thread() == 0) a.greatest[m.block_x()] = most;
  }
};

template <class T>
struct CoverageFixedPoint {
  static constexpr const char* name = "coverage_select fixed point";
  static constexpr int threads = kCoverageThreads;
  using Arguments = CoverageArguments<T>;

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    m.wait_for_previous_launch();
    m.let_next_launch_start();
    const int64_t b = m.block_x() / a.blocks, valid = a.lengths(b, a.candidates);
    float most = 0;
    for (int i = m.thread(); i < a.blocks; i += threads) most = Max{}(most, a.greatest[b * a.blocks + i]);
    most = reduce_block(m, m.template shared<float>(0), most, Max{});
    // The power of two below the greatest entry, by its exponent bits; kept where its inverse is a float32 too.
    uint32_t exponent = bits_from_float(most) >> 23;
    exponent = exponent < 27 ? 27 : exponent > 253 ? 253 : exponent;
    if (m.block_x() % a.blocks == 0 && m.thread() == 0) a.scale[b] = float_from_bits(exponent << 23);
    const float inverse = float_from_bits((254 - exponent) << 23);
    int64_t* fixed = a.fixed + b * a.items * a.row_stride;
    a.each(m, [&](int64_t i, int64_t j) {
      fixed[i * a.row_stride + j] = static_cast<int64_t>(a.entry(b, valid, i, j) * inverse * a.one);
    });
  }
};

template <class Stream>
void coverage_select(const Stream& stream, const GreedyPlan& plan, const Array<3>& similarity, const Array<2>& weight,
                     const Lengths& lengths, int64_t k, Combine combine, bool sort, const Output<int64_t>& indices,
                     const Output<float>& gains, void* workspace) {
  const int64_t images = similarity.size[0], items = similarity.size[1], n = similarity.size[2], stride = greedy_stride(n);
  if (images == 0 || k == 0) return;
  const int bits = coverage_bits(items), blocks = static_cast<int>(plan.shape[0].blocks_x / images);
  const CoverageWorkspace parts(images, items, n, blocks);
  auto* memory = static_cast<char*>(workspace);
  auto* fixed = reinterpret_cast<int64_t*>(memory);
  auto* scale = reinterpret_cast<float*>(memory + parts.scale);
  with_element(similarity.dtype, [&](auto element) {
    using T = decltype(element);
    const CoverageArguments<T> arguments{static_cast<const T*>(similarity.data),
                                         {similarity.stride[0], similarity.stride[1], similarity.stride[2]},
                                         items,
                                         n,
                                         lengths,
                                         blocks,
                                         static_cast<float>(int64_t{1} << bits),
                                         reinterpret_cast<float*>(memory + parts.greatest),
                                         scale,
                                         fixed,
                                         stride};
    stream.template run<CoverageGreatest<T>>(arguments, plan.shape[0]);
    stream.template run<CoverageFixedPoint<T>>(arguments, plan.shape[1]);
  });
  GreedyArguments<int64_t> arguments{};
  arguments.similarity = fixed;
  arguments.image_stride = items * stride;
  arguments.row_stride = stride;
  arguments.scale = scale;
  arguments.unit = 1.0f / static_cast<float>(int64_t{1} << bits);
  arguments.weight = weight;
  arguments.alpha = 1;
  arguments.add = combine == Combine::add;
  arguments.lengths = lengths;
  arguments.items = static_cast<int>(items);
  arguments.candidates = static_cast<int>(n);
  arguments.k = k;
  arguments.sort = sort;
  arguments.indices = indices;
  arguments.gains = gains;
  launch_greedy(stream, plan, arguments, memory + parts.all);
}

}  // namespace vtkernels::cuda
