// scope_select: the cosine of all pairs in tiles, then the greedy loop. Two launches; wide tiles have the directions of the
// tokens from a launch before.
#pragma once

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/gram.cuh"
#include "vtkernels/cuda/gram_directions.cuh"
#include "vtkernels/cuda/gram_wide.cuh"
#include "vtkernels/cuda/greedy.cuh"

namespace vtkernels::cuda {

// A cosine is kept as an integer of 2**-26: its rounding is an eighth of the last bit of a float32 just below 1, and less than
// the error of the float32 product it comes from.
constexpr float kScopeOne = 67108864.0f;

// To the nearest; a negative cosine covers nothing.
VTKERNELS_DEVICE int32_t scope_fixed_point(float cosine) {
  const float scaled = cosine > 0 ? cosine * kScopeOne : 0.0f;
  const auto whole = static_cast<int32_t>(scaled);
  return whole + (scaled - static_cast<float>(whole) >= 0.5f);
}

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
    m.let_next_launch_start();
    const int b = m.block_x() / a.tiles, n = static_cast<int>(a.features.n);
    int32_t* similarity = a.similarity + a.features.n * b * a.stride;
    GramTile<T>::run(m, a.features, b, GramPlace::of(m.block_x() % a.tiles), [&](int i, int j, float cosine) {
      const int32_t fixed = scope_fixed_point(cosine);
      if (i < n && j < a.stride) similarity[int64_t{i} * a.stride + j] = fixed;
      if (j < n && i < a.stride) similarity[int64_t{j} * a.stride + i] = fixed;
    });
  }
};

template <class T>
struct ScopeDirections {
  static constexpr const char* name = "scope_select directions";
  static constexpr int threads = kGramDirectionThreads;

  struct Arguments {
    Features<T> features;
    int blocks;  // of an image
    Direction* directions;
    void* copy;  // or nullptr
  };

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    m.let_next_launch_start();
    GramDirections<T>::run(m, a.features, a.blocks, a.directions, a.copy, [](int64_t, int64_t, float) {});
  }
};

template <class T, int Groups>
struct ScopeWideSimilarity {
  static constexpr const char* name = "scope_select wide similarity";
  static constexpr int threads = wide_threads(Groups);

  struct Arguments {
    WideMaps maps;
    bool packed;
    int n;
    int stages;
    int clusters;  // of an image
    const Direction* directions;
    int32_t* similarity;
    int stride;
  };

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    if constexpr (M::warpgroups) {
      using Wide = GramWide<T, Groups>;
      m.let_next_launch_start();
      const WidePlace place = Wide::place(m, a.clusters);
      const int64_t before = int64_t{place.image} * a.n;
      Wide::run(m, a.maps, a.packed, place, a.stages, a.directions + before, a.n, a.similarity + before * a.stride, a.stride,
                [](int, int, float cosine) { return scope_fixed_point(cosine); });
    }
  }
};

// The similarity of all pairs, to the start of the workspace.
template <class Stream>
void scope_similarity(const Stream& stream, const ScopePlan& plan, const Array<3>& features, const Lengths& lengths,
                      void* workspace) {
  const int64_t images = features.size[0], n = features.size[1];
  const int stride = static_cast<int>(greedy_stride(n));
  auto* similarity = static_cast<int32_t*>(workspace);
  const auto of_image = [&](int launch) { return static_cast<int>(plan.shape[launch].blocks_x / images); };
  with_element(features.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) == 2) {
      if (plan.gram.groups != 0) {
        const ScopeWorkspace at(plan.gram, images, n, features.size[2]);
        auto* directions = reinterpret_cast<Direction*>(static_cast<char*>(workspace) + at.directions);
        void* copy = plan.gram.packed ? static_cast<char*>(workspace) + at.copy : nullptr;
        stream.template run<ScopeDirections<T>>({{features, lengths}, of_image(0), directions, copy}, plan.shape[0]);
        with_groups(plan.gram, [&](auto groups) {
          constexpr int Groups = decltype(groups)::value;
          const typename ScopeWideSimilarity<T, Groups>::Arguments arguments{
              {stream, wide_features(plan.gram, features, copy), Groups},
              plan.gram.packed,
              static_cast<int>(n),
              GramWide<T, Groups>::stages(features.size[2]),
              of_image(1) / kWideCluster,
              directions,
              similarity,
              stride};
          stream.template run<ScopeWideSimilarity<T, Groups>>(arguments, plan.shape[1]);
        });
        return;
      }
    }
    stream.template run<ScopeSimilarity<T>>({{features, lengths}, of_image(0), similarity, stride}, plan.shape[0]);
  });
}

template <class Stream>
void scope_select(const Stream& stream, const ScopePlan& plan, const Array<3>& features, const Array<2>& saliency,
                  const Lengths& lengths, int64_t k, const ScopeOptions& options, const Output<int64_t>& indices,
                  void* workspace) {
  const int64_t images = features.size[0], n = features.size[1], stride = greedy_stride(n);
  if (images == 0 || k == 0) return;
  scope_similarity(stream, plan, features, lengths, workspace);
  GreedyArguments<int32_t> arguments{};
  arguments.similarity = static_cast<int32_t*>(workspace);
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
  launch_greedy(stream, plan, arguments,
                static_cast<char*>(workspace) + ScopeWorkspace(plan.gram, images, n, features.size[2]).all);
}

}  // namespace vtkernels::cuda
