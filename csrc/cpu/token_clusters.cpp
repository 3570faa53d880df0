// Connected components of the thresholded cosine similarity, kept as bits: the similarity exists one block at a time.
#include <algorithm>
#include <cfloat>
#include <cstring>

#include "similarity.h"
#include "vtkernels/cpu.h"

namespace vtkernels::cpu {
namespace {

// Scratch of one running image; the square of similarities belongs to a thread.
struct Layout {
  int64_t rows;   // of packed rows and of bits
  int64_t words;  // of 64 bits in a row of bits
  int64_t packed;

  Layout(int64_t n, int64_t channels) : rows(round_up(n, kPad) + kPad), words(rows / 64), packed(rows * channels) {}
  int64_t bits() const { return 2 * rows * words; }  // in floats, as all of these
  int64_t floats() const { return packed + rows + 2 * bits() + rows + 2 * words; }
};

constexpr int64_t kSquare = kMostSide * kMostSide;

int64_t find(int32_t* parent, int64_t i) {
  while (parent[i] != i) {
    parent[i] = parent[parent[i]];
    i = parent[i];
  }
  return i;
}

// Rows in turn: the lowest neighbour that is not yet in the row's component brings its whole component along.
void connect(const uint64_t* edges, uint64_t* members, int64_t words, int64_t n, int32_t* parent, uint64_t* pending) {
  for (int64_t i = 0; i < n; ++i) {
    parent[i] = static_cast<int32_t>(i);
    std::memset(members + i * words, 0, static_cast<size_t>(words) * 8);
    members[i * words + i / 64] = uint64_t{1} << (i % 64);
    const int64_t last = i / 64;
    std::memcpy(pending, edges + i * words, static_cast<size_t>(last + 1) * 8);
    pending[last] &= (uint64_t{1} << (i % 64)) - 1;  // only the lower triangle was computed
    int64_t root = i;
    for (int64_t w = 0; w <= last; ++w) {
      while (pending[w] != 0) {
        const int64_t other = find(parent, w * 64 + __builtin_ctzll(pending[w]));
        const int64_t keep = std::min(root, other), lose = std::max(root, other);
        parent[lose] = static_cast<int32_t>(keep);
        for (int64_t v = 0; v <= last; ++v) {
          members[keep * words + v] |= members[lose * words + v];
          pending[v] &= ~members[keep * words + v];
        }
        root = keep;
      }
    }
  }
}

}  // namespace

int64_t token_clusters_scratch(int64_t images, int64_t n, int64_t channels, int64_t threads) {
  return round_up(Layout(n, channels).floats(), 16) * std::min(images, threads) + kSquare * threads;
}

void token_clusters(const Array<3>& features, const Lengths& lengths, float threshold, const Output<int64_t>& labels,
                    float* scratch, const Parallel& parallel) {
  const int64_t images = features.size[0], most = features.size[1], channels = features.size[2];
  float* squares = scratch + round_up(Layout(most, channels).floats(), 16) * std::min(images, parallel.threads);
  parallel.for_each_image(images, [&](int64_t b, int64_t worker, const Parallel& inner) {
    const Isa& kernels = isa();
    const float least = std::max(threshold, FLT_MIN);  // what is above 0 in float64 stays above 0 in float32
    const int64_t n = lengths(b, most), panel = kernels.panel, panels = (n + panel - 1) / panel, padded = panels * panel;
    const int64_t side = square_side(n), tasks = (padded + side - 1) / side;
    const Layout layout(n, channels);
    const Array<2> tokens = rows_of(features.at(b), 0, n);
    float* packed = scratch + round_up(Layout(most, channels).floats(), 16) * worker;
    float* scale = packed + layout.packed;
    auto* edges = reinterpret_cast<uint64_t*>(scale + layout.rows);
    auto* members = edges + layout.bits() / 2;
    auto* pending = members + layout.bits() / 2;
    auto* parent = reinterpret_cast<int32_t*>(pending + layout.words);

    inner.for_each_phase(
        2, std::max(panels, tasks * tasks), [&](int64_t phase) { return phase == 0 ? panels : tasks * tasks; },
        [&](int64_t phase, int64_t task, int64_t thread) {
          if (phase == 0) {
            const int64_t begin = task * panel;
            kernels.inverse_norms(tokens, begin, std::min(n, begin + panel), scale);
            kernels.pack(tokens, begin, scale, 0, channels, packed + begin * channels);
            return;
          }
          const int64_t i = task / tasks * side, j = task % tasks * side;
          if (j > i) return;
          const int64_t rows[] = {i, std::min(padded, i + side)}, columns[] = {j, std::min(padded, j + side)};
          float* square = squares + kSquare * (worker + thread);  // one of the two is 0
          kernels.gram_block(packed, channels, rows, columns, false, square, side);
          auto* bits = reinterpret_cast<uint8_t*>(edges + i * layout.words) + j / 8;
          kernels.edge_bits(square, side, rows[1] - i, columns[1] - j, least, bits, layout.words * 8);
        });
    connect(edges, members, layout.words, n, parent, pending);
    for (int64_t i = 0; i < most; ++i) labels(b, i) = i < n ? find(parent, i) : -1;
  });
}

}  // namespace vtkernels::cpu
