// Reductions over a block, in an order that depends on nothing but the number of threads.
#pragma once

#include "vtkernels/cuda/machine.cuh"

namespace vtkernels::cuda {

// op of every thread's x, for all threads; `parts` holds one T per warp.
template <class M, class T, class Op>
VTKERNELS_DEVICE T reduce_block(M& m, typename M::template Shared<T> parts, T x, const Op& op) {
  for (int mask = 16; mask > 0; mask /= 2) x = op(x, m.shuffle_xor(x, mask));
  if (m.lane() == 0) parts[m.warp()] = x;
  m.sync();
  T all = parts[0];
  for (int warp = 1; warp < m.warps(); ++warp) all = op(all, static_cast<T>(parts[warp]));
  m.sync();
  return all;
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
