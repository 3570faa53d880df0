// graph_propagate: the weights of all pairs in tiles, then every step of the propagation in one launch whose blocks wait for
// each other. Each block of the steps keeps its rows of the weights in shared memory where they fit (N = 2304: 166 KB), else
// they stay in the L2 cache as long as they fit there. Wide tiles have the norms from a launch before.
#pragma once

#include <cmath>

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/gram.cuh"
#include "vtkernels/cuda/gram_directions.cuh"
#include "vtkernels/cuda/gram_wide.cuh"

namespace vtkernels::cuda {

struct GraphBuffers {
  float* weight;  // [B, N, stride]; negative: no edge
  int64_t stride;
  float* norm;           // [B, N]
  float* total;          // [B, N] weights of a row, added up
  float* share[2];       // [B, N] what a token sends, over its total: read and written in turn
  uint64_t* word[2];     // [B, stride] the same as a word, whose upper half is the number of the step that reads it
  Direction* direction;  // [B, N]
  uint32_t* arrived;
  void* packed;  // [B, N, gram_packed_stride(channels)] features, where they are copied

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
    for (auto& words : word) words = reinterpret_cast<uint64_t*>(take(2 * images * stride));
    direction = reinterpret_cast<Direction*>(take(2 * images * n));
    arrived = reinterpret_cast<uint32_t*>(take(1));
    packed = at;
  }

  // Of a token, before the launch of the steps: no words yet.
  VTKERNELS_DEVICE void start(int64_t b, int64_t token, int64_t n, float square) const {
    norm[b * n + token] = square > 0 && is_finite(square) ? sqrtf(square) : 0.0f;
    for (auto* words : word) words[b * stride + token] = 0;
  }
};

template <class T>
struct GraphDirections {
  static constexpr const char* name = "graph_propagate directions";
  static constexpr int threads = kGramDirectionThreads;

  struct Arguments {
    Features<T> features;
    int blocks;  // of an image
    GraphBuffers buffers;
    bool packed;
  };

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    m.let_next_launch_start();
    if (m.block_x() == 0 && m.thread() == 0) *a.buffers.arrived = 0;
    GramDirections<T>::run(m, a.features, a.blocks, a.buffers.direction, a.packed ? a.buffers.packed : nullptr,
                           [&](int64_t b, int64_t token, float square) { a.buffers.start(b, token, a.features.n, square); });
  }
};

// 1 is the greatest similarity of every row that has an edge, so 1 is what the softmax subtracts.
VTKERNELS_DEVICE float graph_edge(float cosine, float threshold, float temperature) {
  if (!(cosine >= threshold)) return -1.0f;
  return expf(((cosine < 1 ? cosine : 1.0f) - 1) / temperature);
}
// What a token keeps to itself: it is exactly 1 from itself, if it has a direction.
VTKERNELS_DEVICE float graph_own(float cosine) { return cosine > 0 ? 1.0f : -1.0f; }

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
      const float w = i == j ? graph_own(cosine) : graph_edge(cosine, a.threshold, a.temperature);
      if (i < n && j < stride) weight[i * stride + j] = w;
      if (j < n && i < stride) weight[j * stride + i] = w;
    });
    if (place.row != place.column) return;
    const auto squares = m.template shared<float>(GramTile<T>::squares_byte);
    for (int i = m.thread(); i < kGramTile; i += m.threads()) {
      const int64_t token = int64_t{place.row} * kGramTile + i;
      if (token < n) a.buffers.start(b, token, n, squares[i]);
    }
  }
};

// The same in wide tiles.
template <class T, int Groups>
struct GraphWideWeights {
  static constexpr const char* name = "graph_propagate wide weights";
  static constexpr int threads = wide_threads(Groups);

  struct Arguments {
    WideMaps maps;
    bool packed;
    int n;
    int stages;
    int clusters;  // of an image
    GraphBuffers buffers;
    float threshold, temperature;
  };

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    if constexpr (M::warpgroups) {
      using Wide = GramWide<T, Groups>;
      const WidePlace place = Wide::place(m, a.clusters);
      const int stride = static_cast<int>(a.buffers.stride);
      const int64_t before = int64_t{place.image} * a.n;
      Wide::run(m, a.maps, a.packed, place, a.stages, a.buffers.direction + before, a.n, a.buffers.weight + before * stride,
                stride, [&](int i, int j, float cosine) {
                  return i == j ? graph_own(cosine) : graph_edge(cosine, a.threshold, a.temperature);
                });
    }
  }
};

// Four weights of a row, as a lane reads them.
struct alignas(16) GraphFour {
  float x[4];
};

// The sum of f over the columns of a row, four at a time, for all lanes. Columns behind the row hold no edge.
template <class M, class F>
VTKERNELS_DEVICE float graph_sum(M& m, const GraphBuffers& buffers, const F& f) {
  const int columns = static_cast<int>(buffers.stride);
  float sum = 0;
#pragma unroll 4
  for (int column = 4 * m.lane(); column < columns; column += 4 * 32) sum += f(column);
  for (int mask = 16; mask > 0; mask /= 2) sum += m.shuffle_xor(sum, mask);
  return sum;
}

struct GraphStepsArguments {
  GraphBuffers buffers;
  int rows;  // of all images
  int rows_of_block;
  int n;
  int iterations;
  Output<float> scores;
  Output<int32_t> degree;

  VTKERNELS_DEVICE GraphFour weights(int64_t row, int column) const {
    return *reinterpret_cast<const GraphFour*>(buffers.weight + row * buffers.stride + column);
  }
  // What a token without edges has is 0.
  VTKERNELS_DEVICE void write(int row, float score, int edges) const {
    scores(row / n, row % n) = edges != 0 ? score / static_cast<float>(edges) : 0.0f;
    degree(row / n, row % n) = edges;
  }
};

// A warp for each row, at every step; the grid waits between the steps.
struct GraphSteps {
  static constexpr const char* name = "graph_propagate steps";
  static constexpr int threads = kGraphThreads;
  using Arguments = GraphStepsArguments;

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    const GraphBuffers& to = a.buffers;
    const int first = m.block_x() * m.warps() + m.warp(), step = m.blocks_x() * m.warps();
    for (int row = first; row < a.rows; row += step) {
      int edges = 0;
      const float total = graph_sum(m, to, [&](int column) {
        const GraphFour w = a.weights(row, column);
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
      a.write(row, norm, edges);
    }
    for (int i = 0; i < a.iterations; ++i) {
      m.sync_grid(to.arrived, static_cast<uint32_t>(i) + 1);
      const float* from = to.share[i % 2];
      for (int row = first; row < a.rows; row += step) {
        const float* image = from + int64_t{row / a.n} * a.n;
        const float score = graph_sum(m, to, [&](int column) {
          const GraphFour w = a.weights(row, column);
          float sum = 0;
          for (int e = 0; e < 4; ++e) {
            if (w.x[e] > 0) sum = fmaf(w.x[e], m.fresh(image + column + e), sum);
          }
          return sum;
        });
        if (m.lane() != 0) continue;
        const float total = to.total[row];
        to.share[(i + 1) % 2][row] = total > 0 ? score / total : 0.0f;
        if (i + 1 == a.iterations) a.write(row, score, a.degree(row / a.n, row % a.n));
      }
    }
  }
};

// The same by blocks that keep their rows: weights are read once. The blocks do not wait for each other but for what they tell
// each other, word by word. A word takes the place of that of two steps before, which everybody has read: its sender has words
// of the step between from all, and they had read theirs before they sent.
struct GraphResidentSteps {
  static constexpr const char* name = "graph_propagate resident steps";
  static constexpr int threads = kGraphResidentThreads;
  using Arguments = GraphStepsArguments;

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    const GraphBuffers& to = a.buffers;
    const int stride = static_cast<int>(to.stride), first = m.block_x() * a.rows_of_block;
    const int rows = first + a.rows_of_block < a.rows ? a.rows_of_block : a.rows - first;
    const int image = first / a.n, images = (first + rows - 1) / a.n - image + 1;
    const auto weights = m.template shared<GraphFour>(0);
    const auto shares = weights + a.rows_of_block * stride / 4;
    const auto totals = m.template shared<float>(int64_t{4} * stride * (a.rows_of_block + graph_images(a.rows_of_block, a.n)));
    const auto degrees = m.template shared<int>(totals_end(a));

    for (int r = m.warp(); r < rows; r += m.warps()) {
      int edges = 0;
      const float total = graph_sum(m, to, [&](int column) {
        GraphFour w = a.weights(first + r, column);
        float sum = 0;
        for (int e = 0; e < 4; ++e) {
          edges += w.x[e] >= 0;
          w.x[e] = w.x[e] >= 0 ? w.x[e] : 0.0f;
          sum += w.x[e];
        }
        weights[(r * stride + column) / 4] = w;
        return sum;
      });
      for (int mask = 16; mask > 0; mask /= 2) edges += m.shuffle_xor(edges, mask);
      if (m.lane() != 0) continue;
      const float norm = to.norm[first + r];
      totals[r] = total;
      degrees[r] = edges;
      send(m, a, first + r, 0, edges != 0 ? norm / total : 0.0f);
      if (a.iterations == 0) a.write(first + r, norm, edges);
    }
    for (int i = 0; i < a.iterations; ++i) {
      m.sync();  // all have read the shares of the step before
      for (int b = 0; b < images; ++b) {
        const uint64_t* words = to.word[i % 2] + int64_t{image + b} * stride;
        for (int column = 4 * m.thread(); column < stride; column += 4 * m.threads()) {
          shares[(b * stride + column) / 4] = receive(m, words + column, i, a.n - column);
        }
      }
      m.sync();
      for (int r = 2 * m.warp(); r < rows; r += 2 * m.warps()) {
        const int second = r + 1 < rows ? r + 1 : r;
        const int b = (first + r) / a.n - image, b_second = (first + second) / a.n - image;
        const Scores scores = multiply(m, weights + r * stride / 4, weights + second * stride / 4, shares + b * stride / 4,
                                       shares + b_second * stride / 4, b != b_second, stride);
        const int own = r + m.lane(), row = first + own;
        if (m.lane() > second - r) continue;
        const float score = m.lane() == 0 ? scores.first : scores.second, total = totals[own];
        if (i + 1 == a.iterations) {
          a.write(row, score, degrees[own]);
        } else {
          send(m, a, row, i + 1, total > 0 ? score / total : 0.0f);
        }
      }
    }
  }

 private:
  static VTKERNELS_DEVICE int64_t totals_end(const Arguments& a) {
    return graph_shared(a.rows_of_block, a.n) - 4 * round_up(a.rows_of_block, 4);
  }

  struct Scores {
    float first, second;
  };

  // Two rows by the shares of their images, which are read once where it is the same.
  template <class M, class Fours>
  static VTKERNELS_DEVICE Scores multiply(M& m, const Fours& w, const Fours& w_second, const Fours& share,
                                          const Fours& share_second, bool two_images, int stride) {
    Scores sum{0.0f, 0.0f};
#pragma unroll 4
    for (int i = m.lane(); i < stride / 4; i += 32) {
      const GraphFour x = w[i], x_second = w_second[i], y = share[i];
      GraphFour y_second = y;
      if (two_images) y_second = share_second[i];
      float first = 0, second = 0;
      for (int e = 0; e < 4; ++e) {
        first = fmaf(x.x[e], y.x[e], first);
        second = fmaf(x_second.x[e], y_second.x[e], second);
      }
      sum.first += first;
      sum.second += second;
    }
    for (int mask = 16; mask > 0; mask /= 2) {
      sum.first += m.shuffle_xor(sum.first, mask);
      sum.second += m.shuffle_xor(sum.second, mask);
    }
    return sum;
  }

  // To whoever computes step i.
  template <class M>
  static VTKERNELS_DEVICE void send(M& m, const Arguments& a, int row, int i, float share) {
    const uint64_t step = static_cast<uint32_t>(i) + 1;
    m.post(a.buffers.word[i % 2] + row / a.n * a.buffers.stride + row % a.n, step << 32 | bits_from_float(share));
  }

  // Four shares of step i, of which `valid` are sent; 0 for the others.
  template <class M>
  static VTKERNELS_DEVICE GraphFour receive(M& m, const uint64_t* at, int i, int valid) {
    uint64_t words[2][2];
    for (bool all = false; !all;) {
      all = true;
      for (int pair = 0; pair < 2; ++pair) m.look(at + 2 * pair, words[pair]);
      for (int e = 0; e < 4; ++e) all &= e >= valid || static_cast<int>(words[e / 2][e % 2] >> 32) == i + 1;
      if (!all) m.pause();
    }
    GraphFour four;
    for (int e = 0; e < 4; ++e) four.x[e] = e < valid ? float_from_bits(static_cast<uint32_t>(words[e / 2][e % 2])) : 0.0f;
    return four;
  }
};

template <class Stream>
void graph_propagate(const Stream& stream, const GraphPlan& plan, const Array<3>& features, const Lengths& lengths,
                     const GraphOptions& options, const Output<float>& scores, const Output<int32_t>& degree, void* workspace) {
  const int64_t images = features.size[0], n = features.size[1];
  if (images == 0 || n == 0) return;
  const GraphBuffers buffers(workspace, images, n);
  const auto of_image = [&](int launch) { return static_cast<int>(plan.shape[launch].blocks_x / images); };
  with_element(features.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) == 2) {
      if (plan.gram.groups != 0) {
        stream.template run<GraphDirections<T>>({{features, lengths}, of_image(0), buffers, plan.gram.packed}, plan.shape[0]);
        with_groups(plan.gram, [&](auto groups) {
          constexpr int Groups = decltype(groups)::value;
          const typename GraphWideWeights<T, Groups>::Arguments arguments{
              {stream, wide_features(plan.gram, features, buffers.packed), Groups},
              plan.gram.packed,
              static_cast<int>(n),
              GramWide<T, Groups>::stages(features.size[2]),
              of_image(1) / kWideCluster,
              buffers,
              options.threshold,
              options.temperature};
          stream.template run<GraphWideWeights<T, Groups>>(arguments, plan.shape[1]);
        });
        return;
      }
    }
    stream.template run<GraphWeights<T>>({{features, lengths}, of_image(0), buffers, options.threshold, options.temperature},
                                         plan.shape[0]);
  });
  const GraphStepsArguments arguments{buffers,
                                      static_cast<int>(images * n),
                                      static_cast<int>(plan.rows),
                                      static_cast<int>(n),
                                      static_cast<int>(options.iterations),
                                      scores,
                                      degree};
  const Shape& steps = plan.shape[plan.launches - 1];
  if (plan.resident) {
    stream.template run<GraphResidentSteps>(arguments, steps);
  } else {
    stream.template run<GraphSteps>(arguments, steps);
  }
}

}  // namespace vtkernels::cuda
