// topk_select: one block per row.
#pragma once

#include "vtkernels/cuda/topk.cuh"

namespace vtkernels::cuda {

// Bits of rank_bits() that tell the values of a type apart: sign, exponent and mantissa of its float32.
template <class T>
constexpr int kScoreBits = 32;
template <>
inline constexpr int kScoreBits<BFloat16> = 16;
template <>
inline constexpr int kScoreBits<Half> = 24;  // 19, in whole digits

template <class T>
struct TopkSelect {
  static constexpr const char* name = "topk_select";
  static constexpr int threads = kTopkThreads;

  struct Arguments {
    const T* scores;
    int64_t stride[2];
    Lengths lengths;
    int64_t n;
    int64_t k;
    bool sort;
    Output<int64_t> indices;
    uint64_t* workspace;
    int64_t workspace_stride;
  };

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    const int64_t b = m.block_x();
    const T* row = a.scores + b * a.stride[0];
    const auto rank = [&](int64_t i) { return rank_bits(to_float(row[i * a.stride[1]])) >> (32 - kScoreBits<T>); };
    const auto write = [&](int64_t s, int64_t i) { a.indices(b, s) = i; };
    Topk<kScoreBits<T>>::run(m, rank, a.lengths(b, a.n), a.k, a.sort, 0, a.workspace + b * a.workspace_stride, write);
  }
};

template <class Stream>
void topk_select(const Stream& stream, const Plan& plan, const Array<2>& scores, const Lengths& lengths, int64_t k, bool sort,
                 const Output<int64_t>& indices, void* workspace) {
  const int64_t n = scores.size[1];
  if (scores.size[0] == 0 || k == 0) return;
  with_element(scores.dtype, [&](auto element) {
    using T = decltype(element);
    const typename TopkSelect<T>::Arguments arguments{
        static_cast<const T*>(scores.data), {scores.stride[0], scores.stride[1]}, lengths, n, k, sort, indices,
        static_cast<uint64_t*>(workspace),  topk_workspace(k, sort) / 8};
    stream.template run<TopkSelect<T>>(arguments, plan.shape[0]);
  });
}

}  // namespace vtkernels::cuda
