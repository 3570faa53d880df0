// scope_select: the cosine of all pairs in tiles, then the greedy loop. Two launches.
#pragma once

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/gram.cuh"
#include "vtkernels/cuda/greedy.cuh"

namespace vtkernels::cuda {

// A cosine is kept as an integer of 2**-26: its rounding is an eighth of the last bit of a float32 just below 1, and less than
// the error of the float32 product it comes from.
constexpr float kScopeOne = 67108864.0f;

template <class T>
struct ScopeSimilarity {
  static constexpr const char* name = "scope_select similarity";
  static constexpr int threads = kGramThreads;

  struct Arguments {
    Features<T> features;
    int tiles;            // of an image
    int32_t* similarity;  // [B, N, stride]
    int stride;
  };

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    const int b = m.block_x() / a.tiles, n = static_cast<int>(a.features.n);
    int32_t* similarity = a.similarity + a.features.n * b * a.stride;
    GramTile<T>::run(m, a.features, b, GramPlace::of(m.block_x() % a.tiles), [&](int i, int j, float cosine) {
      const int32_t fixed = fixed_point(cosine);
      if (i < n && j < a.stride) similarity[int64_t{i} * a.stride + j] = fixed;
      if (j < n && i < a.stride) similarity[int64_t{j} * a.stride + i] = fixed;
    });
  }

  // To the nearest; a negative cosine covers nothing.
  static VTKERNELS_DEVICE int32_t fixed_point(float cosine) {
    const float scaled = cosine > 0 ? cosine * kScopeOne : 0.0f;
    const auto whole = static_cast<int32_t>(scaled);
    return whole + (scaled - static_cast<float>(whole) >= 0.5f);
  }
};

template <class Stream>
void scope_select(const Stream& stream, const GreedyPlan& plan, const Array<3>& features, const Array<2>& saliency,
                  const Lengths& lengths, int64_t k, const ScopeOptions& options, const Output<int64_t>& indices,
                  void* workspace) {
  const int64_t images = features.size[0], n = features.size[1], stride = greedy_stride(n);
  if (images == 0 || k == 0) return;
  auto* similarity = static_cast<int32_t*>(workspace);
  with_element(features.dtype, [&](auto element) {
    using T = decltype(element);
    const typename ScopeSimilarity<T>::Arguments arguments{
        {features, lengths}, static_cast<int>(plan.shape[0].blocks_x / images), similarity, static_cast<int>(stride)};
    stream.template run<ScopeSimilarity<T>>(arguments, plan.shape[0]);
  });
  GreedyArguments<int32_t> arguments{};
  arguments.similarity = similarity;
  arguments.image_stride = n * stride;
  arguments.row_stride = stride;
  arguments.unit = 1.0f / kScopeOne;
  arguments.weight = saliency;
  arguments.alpha = options.alpha;
  arguments.add = options.combine == Combine::add;
  arguments.lengths = lengths;
  arguments.items = arguments.candidates = static_cast<int>(n);
  arguments.k = k;
  arguments.sort = options.sort;
  arguments.indices = indices;
  launch_greedy(stream, plan, arguments, static_cast<char*>(workspace) + round_up(4 * images * n * stride, 256));
}

}  // namespace vtkernels::cuda
