// Sums and the like over a warp or a block, in an order that depends on nothing but the number of threads.
#pragma once

#include "vtkernels/cuda/machine.cuh"

namespace vtkernels::cuda {

// op of every thread's x, for all threads; `parts` holds one T per warp.
template <class M, class T, class Op>
VTKERNELS_DEVICE T reduce_block(M& m, typename M::template Shared<T> parts, T x, const Op& op) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = op(x, m.shuffle_xor(x, mask));
  if (m.lane() == 0) parts[m.warp()] = x;
  m.sync();
  T all = parts[0];
  for (int warp = 1; warp < m.warps(); ++warp) all = op(all, static_cast<T>(parts[warp]));
  m.sync();
  return all;
}

// The same for several numbers at once, `Warps` parts each, without the last barrier: the caller has one before `parts` are
// used again.
template <int Warps, class M, class T, int Count, class Op>
VTKERNELS_DEVICE void reduce_block_open(M& m, typename M::template Shared<T> parts, T (&x)[Count], const Op& op) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
#pragma unroll
    for (int i = 0; i < Count; ++i) x[i] = op(x[i], m.shuffle_xor(x[i], mask));
  }
  if (m.lane() == 0) {
#pragma unroll
    for (int i = 0; i < Count; ++i) parts[i * Warps + m.warp()] = x[i];
  }
  m.sync();
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    x[i] = parts[i * Warps];
#pragma unroll
    for (int warp = 1; warp < Warps; ++warp) x[i] = op(x[i], static_cast<T>(parts[i * Warps + warp]));
  }
}

// Of integers.
template <class M>
VTKERNELS_DEVICE uint32_t sum_of_lanes_before(M& m, uint32_t x) {
  uint32_t through = x;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = m.shuffle(through, m.lane() - distance);
    through += m.lane() >= distance ? other : 0;
  }
  return through - x;
}

struct Max {
  template <class T>
  VTKERNELS_DEVICE T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

struct Sum {
  template <class T>
  VTKERNELS_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

}  // namespace vtkernels::cuda
