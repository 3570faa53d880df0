// graph_propagate: the weights of all pairs in tiles, then every step of the propagation in one launch whose blocks wait for
// each other. Each block of the steps keeps its rows of the weights in shared memory where they fit (N = 2304: 166 KB), else
// they stay in the L2 cache as long as they fit there. Wide tiles have the norms from a launch before.
#pragma once

#include <cmath>

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/gram.cuh"
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
  void* packed;  // [B, N, graph_packed_stride(channels)] features, where they are copied

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

// What the tiles, the propagation and the copy engine want of the rows: the direction of each, its norm, and a copy if asked.
// Half types. The squared norm is a product of the tensor cores, of the row with itself: they truncate here as in the tiles, so
// the cosine of two copies of a row stays as close to 1 as they are to each other. Which channels are added up in which order
// depends on nothing but their number.
template <class T>
struct GraphDirections {
  static constexpr const char* name = "graph_propagate directions";
  static constexpr int threads = kGraphDirectionThreads, rows = kGraphDirectionRows, pack = 8;
  static constexpr int channels = kGramBytes / 2;  // added up by the tensor cores before they are added in float32
  static constexpr bool bfloat16 = std::is_same_v<T, BFloat16>;

  struct Arguments {
    Features<T> features;
    int blocks;  // of an image
    GraphBuffers buffers;
    bool packed;
  };

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    const Features<T>& x = a.features;
    const int64_t b = m.block_x() / a.blocks;
    const int first = m.block_x() % a.blocks * rows, valid = static_cast<int>(x.lengths(b, x.n));
    const int g = m.lane() / 4, t = m.lane() % 4;
    if (m.block_x() == 0 && m.thread() == 0) *a.buffers.arrived = 0;

    const Squares square = x.sixteens ? squares<true>(m, a, b, first, valid) : squares<false>(m, a, b, first, valid);
    const auto parts = m.template shared<float>(0);
    if (g / 2 == t) {
      parts[m.warp() * rows + g] = square.of[0];
      parts[m.warp() * rows + g + 8] = square.of[1];
    }
    m.sync();
    const int row = first + m.thread();
    if (m.thread() >= rows || row >= x.n) return;
    float all = parts[m.thread()];
    for (int warp = 1; warp < threads / 32; ++warp) all += parts[warp * rows + m.thread()];
    a.buffers.direction[b * x.n + row] = Direction::of(all);
    a.buffers.start(b, row, x.n, all);
  }

 private:
  struct alignas(16) Pack {
    uint32_t words[pack / 2];
  };

  // A warp's share of the stages: the diagonal of 16 x 16 products, of rows g and g + 8 in the lanes that it passes through.
  struct Squares {
    float of[2];
  };

  template <bool Sixteens, class M>
  static VTKERNELS_DEVICE Squares squares(M& m, const Arguments& a, int64_t b, int first, int valid) {
    const Features<T>& x = a.features;
    const int g = m.lane() / 4, t = m.lane() % 4, stages = static_cast<int>((x.channels + channels - 1) / channels);
    Squares square{{0.0f, 0.0f}};
#pragma unroll(Sixteens ? 4 : 1)
    for (int stage = m.warp(); stage < stages; stage += threads / 32) {
      Pack part[2][2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          const int row = first + g + 8 * r, channel = stage * channels + 4 * pack * p + pack * t;
          part[r][p] = load<Sixteens>(x, b, row, channel, valid);
          if (a.packed) store(a, b, row, channel, part[r][p]);
        }
      }
      float c[2][4] = {};
#pragma unroll
      for (int p = 0; p < 2; ++p) {
#pragma unroll
        for (int w = 0; w < 4; w += 2) {
          const uint32_t upper[2]{part[0][p].words[w], part[0][p].words[w + 1]};
          const uint32_t lower[2]{part[1][p].words[w], part[1][p].words[w + 1]};
          const uint32_t both[4]{upper[0], lower[0], upper[1], lower[1]};
          m.template mma<bfloat16>(c[0], both, upper);
          m.template mma<bfloat16>(c[1], both, lower);
        }
      }
      square.of[0] += g % 2 ? c[0][1] : c[0][0];
      square.of[1] += g % 2 ? c[1][3] : c[1][2];
    }
    return square;
  }

  // Without a branch where it is one load, so that those of several stages are under way together.
  template <bool Sixteens>
  static VTKERNELS_DEVICE Pack load(const Features<T>& x, int64_t b, int row, int channel, int valid) {
    const T* from = x.data + b * x.stride[0] + row * x.stride[1] + channel * x.stride[2];
    const bool inside = row < valid && channel < x.channels;
    Pack values{};
    if constexpr (Sixteens) {
      const Pack loaded = *reinterpret_cast<const Pack*>(inside ? from : x.data);
      for (int w = 0; w < pack / 2; ++w) values.words[w] = inside ? loaded.words[w] : 0;
      return values;
    }
    if (!inside) return values;
#pragma unroll
    for (int e = 0; e < pack; ++e) {
      const uint32_t bits = channel + e < x.channels ? from[e * x.stride[2]].bits : 0;
      values.words[e / 2] |= bits << (16 * (e % 2));
    }
    return values;
  }

  static VTKERNELS_DEVICE void store(const Arguments& a, int64_t b, int row, int channel, const Pack& values) {
    const int64_t stride = graph_packed_stride(a.features.channels);
    if (row >= a.features.n || channel >= stride) return;
    *reinterpret_cast<Pack*>(static_cast<T*>(a.buffers.packed) + (b * a.features.n + row) * stride + channel) = values;
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
template <class T>
struct GraphWideWeights {
  static constexpr const char* name = "graph_propagate wide weights";
  static constexpr int threads = kWideThreads;

  struct Arguments {
    WideMaps maps;
    int n;
    int stages;
    int clusters;  // of an image
    GraphBuffers buffers;
    float threshold, temperature;
  };

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    if constexpr (M::warpgroups) {
      const int cluster = m.block_x() / kWideCluster, b = cluster / a.clusters;
      const WidePlace place = WidePlace::of(cluster % a.clusters, m.cluster_rank());
      GramWide<T>::run(m, a.maps, b, place, a.stages, [&](const auto& products) { write(m, a, b, place, products); });
    }
  }

 private:
  static constexpr int pitch = GramWide<T>::pitch, warps = GramWide<T>::warps;

  // Rows of the tile as rows, then its columns as rows.
  template <class M, class Products>
  static VTKERNELS_DEVICE void write(M& m, const Arguments& a, int b, const WidePlace& place, const Products& products) {
    constexpr int share = kWideColumns / 32;
    const Direction* directions = a.buffers.direction + int64_t{b} * a.n;
    const auto direction = [&](int i) { return i < a.n ? directions[i] : Direction{0.0f, 0.0f}; };
    const int stride = static_cast<int>(a.buffers.stride);
    float* weight = a.buffers.weight + a.buffers.stride * a.n * b;
    Direction of_column[share];
#pragma unroll
    for (int c = 0; c < share; ++c) of_column[c] = direction(place.column + 32 * c + m.lane());
    const Direction of_rows = direction(place.row + m.warp() + m.lane() % (kWideRows / warps) * warps);
#pragma unroll 1
    for (int k = 0; k < kWideRows / warps; ++k) {
      const int r = m.warp() + k * warps, i = place.row + r;
      const Direction of_row{m.shuffle(of_rows.power, k), m.shuffle(of_rows.fraction, k)};
#pragma unroll
      for (int c = 0; c < share; ++c) {
        const int local = r * pitch + 32 * c + m.lane(), j = place.column + 32 * c + m.lane();
        const float cosine = Direction::cosine(products[local], of_row, of_column[c]);
        const float w = i == j ? graph_own(cosine) : graph_edge(cosine, a.threshold, a.temperature);
        products[local] = w;
        if (j <= i && i < a.n) weight[int64_t{i} * stride + j] = w;
      }
    }
    m.sync();
#pragma unroll 1
    for (int c = m.warp(); c < kWideColumns; c += warps) {
      const int j = place.column + c;
#pragma unroll
      for (int r = m.lane(); r < kWideRows; r += 32) {
        const int i = place.row + r;
        if (j < i && i < stride && j < a.n) weight[int64_t{j} * stride + i] = products[r * pitch + c];
      }
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
  const int64_t images = features.size[0], n = features.size[1], channels = features.size[2];
  if (images == 0 || n == 0) return;
  const GraphBuffers buffers(workspace, images, n);
  const auto of_image = [&](int launch) { return static_cast<int>(plan.shape[launch].blocks_x / images); };
  with_element(features.dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) == 2) {
      if (plan.wide) {
        stream.template run<GraphDirections<T>>({{features, lengths}, of_image(0), buffers, plan.packed}, plan.shape[0]);
        const int64_t stride = graph_packed_stride(channels);
        const Array<3> copy{buffers.packed, features.dtype, {images, n, channels}, {n * stride, stride, 1}};
        const typename GraphWideWeights<T>::Arguments arguments{
            {stream, plan.packed ? copy : features},
            static_cast<int>(n),
            static_cast<int>((channels + GramWide<T>::channels - 1) / GramWide<T>::channels),
            of_image(1) / kWideCluster,
            buffers,
            options.threshold,
            options.temperature};
        stream.template run<GraphWideWeights<T>>(arguments, plan.shape[1]);
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
