// graph_propagate: the weights of all pairs in tiles, then every step of the propagation in one launch whose blocks wait for
// each other. The weights are written once and stay in the L2 cache where they fit (N = 2304: 21 MB).
#pragma once

#include <cmath>

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/gram.cuh"

namespace vtkernels::cuda {

struct GraphBuffers {
  float* weight;  // [B, N, stride]; negative: no edge
  int64_t stride;
  float* norm;      // [B, N]
  float* total;     // [B, N] weights of a row, added up
  float* share[2];  // [B, N] what a token sends, over its total: read and written in turn
  uint32_t* arrived;

  GraphBuffers(void* workspace, int64_t images, int64_t n) : stride(graph_stride(n)) {
    auto* at = static_cast<float*>(workspace);
    const auto take = [&](int64_t floats) {
      float* begin = at;
      at += round_up(floats, 32);
      return begin;
    };
    weight = take(images * n * stride);
    norm = take(images * n);
    total = take(images * n);
    share[0] = take(images * n);
    share[1] = take(images * n);
    arrived = reinterpret_cast<uint32_t*>(take(1));
  }
};

template <class T>
struct GraphWeights {
  static constexpr const char* name = "graph_propagate weights";
  static constexpr int threads = kGramThreads;

  struct Arguments {
    Features<T> features;
    int tiles;  // of an image
    GraphBuffers buffers;
    float threshold, temperature;
  };

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    const int64_t b = m.block_x() / a.tiles, n = a.features.n, stride = a.buffers.stride;
    const GramPlace place = GramPlace::of(m.block_x() % a.tiles);
    if (m.block_x() == 0 && m.thread() == 0) *a.buffers.arrived = 0;
    float* weight = a.buffers.weight + b * n * stride;
    GramTile<T>::run(m, a.features, b, place, [&](int64_t i, int64_t j, float cosine) {
      const float w = i == j ? (cosine > 0 ? 1.0f : -1.0f) : edge(cosine, a.threshold, a.temperature);
      if (i < n && j < stride) weight[i * stride + j] = w;
      if (j < n && i < stride) weight[j * stride + i] = w;
    });
    if (place.row != place.column) return;
    const auto squares = m.template shared<float>(GramTile<T>::squares_byte);
    for (int i = m.thread(); i < kGramTile; i += m.threads()) {
      const int64_t token = int64_t{place.row} * kGramTile + i;
      const float square = squares[i];
      if (token < n) a.buffers.norm[b * n + token] = square > 0 && is_finite(square) ? sqrtf(square) : 0.0f;
    }
  }

  // 1 is the greatest similarity of every row that has an edge, so 1 is what the softmax subtracts.
  static VTKERNELS_DEVICE float edge(float cosine, float threshold, float temperature) {
    if (!(cosine >= threshold)) return -1.0f;
    return expf(((cosine < 1 ? cosine : 1.0f) - 1) / temperature);
  }
};

// A warp for each row, at every step; the grid waits between the steps.
struct GraphSteps {
  static constexpr const char* name = "graph_propagate steps";
  static constexpr int threads = kGraphThreads;

  struct Arguments {
    GraphBuffers buffers;
    int64_t rows;  // of all images
    int64_t n;
    int64_t iterations;
    Output<float> scores;
    Output<int32_t> degree;
  };

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    const GraphBuffers& to = a.buffers;
    const int64_t first = static_cast<int64_t>(m.block_x()) * m.warps() + m.warp();
    const int64_t step = static_cast<int64_t>(m.blocks_x()) * m.warps();
    for (int64_t row = first; row < a.rows; row += step) {
      int edges = 0;
      const float total = over(m, a, row, [&](int64_t, const Four& w) {
        float sum = 0;
        for (int e = 0; e < 4; ++e) {
          edges += w.x[e] >= 0;
          sum += w.x[e] >= 0 ? w.x[e] : 0.0f;
        }
        return sum;
      });
      for (int mask = 16; mask > 0; mask /= 2) edges += m.shuffle_xor(edges, mask);
      if (m.lane() != 0) continue;
      const float norm = to.norm[row];
      to.total[row] = total;
      to.share[0][row] = edges != 0 ? norm / total : 0.0f;
      a.degree(row / a.n, row % a.n) = edges;
      if (a.iterations == 0) a.scores(row / a.n, row % a.n) = edges != 0 ? norm / static_cast<float>(edges) : 0.0f;
    }
    for (int64_t i = 0; i < a.iterations; ++i) {
      m.sync_grid(to.arrived, static_cast<uint32_t>(i) + 1);
      const float* from = to.share[i % 2];
      for (int64_t row = first; row < a.rows; row += step) {
        const float* image = from + row / a.n * a.n;
        const float score = over(m, a, row, [&](int64_t column, const Four& w) {
          float sum = 0;
          for (int e = 0; e < 4; ++e) {
            if (w.x[e] > 0) sum = fmaf(w.x[e], m.fresh(image + column + e), sum);
          }
          return sum;
        });
        if (m.lane() != 0) continue;
        const float total = to.total[row];
        to.share[(i + 1) % 2][row] = total > 0 ? score / total : 0.0f;
        if (i + 1 < a.iterations) continue;
        const int32_t edges = a.degree(row / a.n, row % a.n);
        a.scores(row / a.n, row % a.n) = score / static_cast<float>(edges > 1 ? edges : 1);
      }
    }
  }

 private:
  struct alignas(16) Four {
    float x[4];
  };

  // The sum of f over a row of weights, four columns at a time, for all lanes. Columns behind the row hold no edge.
  template <class M, class F>
  static VTKERNELS_DEVICE float over(M& m, const Arguments& a, int64_t row, const F& f) {
    const float* weight = a.buffers.weight + row * a.buffers.stride;
    float sum = 0;
#pragma unroll 4
    for (int64_t column = 4 * m.lane(); column < a.buffers.stride; column += 4 * 32) {
      sum += f(column, *reinterpret_cast<const Four*>(weight + column));
    }
    for (int mask = 16; mask > 0; mask /= 2) sum += m.shuffle_xor(sum, mask);
    return sum;
  }
};

template <class Stream>
void graph_propagate(const Stream& stream, const Plan& plan, const Array<3>& features, const Lengths& lengths,
                     const GraphOptions& options, const Output<float>& scores, const Output<int32_t>& degree, void* workspace) {
  const int64_t images = features.size[0], n = features.size[1];
  if (images == 0 || n == 0) return;
  const GraphBuffers buffers(workspace, images, n);
  with_element(features.dtype, [&](auto element) {
    using T = decltype(element);
    const typename GraphWeights<T>::Arguments arguments{{features, lengths},
                                                        static_cast<int>(plan.shape[0].blocks_x / images),
                                                        buffers,
                                                        options.threshold,
                                                        options.temperature};
    stream.template run<GraphWeights<T>>(arguments, plan.shape[0]);
  });
  stream.template run<GraphSteps>({buffers, images * n, n, options.iterations, scores, degree}, plan.shape[1]);
}

}  // namespace vtkernels::cuda
