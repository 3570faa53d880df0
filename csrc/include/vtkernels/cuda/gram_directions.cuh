// What wide tiles and the copy engine want of the rows: the direction of each, and a copy if the rows do not lie as they
// should.
//
// Half types. The squared norm is a product of the tensor cores, of the row with itself: they truncate here as in the tiles, so
// the cosine of two copies of a row stays as close to 1 as they are to each other. Which channels are added up in which order
// depends on nothing but their number.
#pragma once

#include <type_traits>

#include "vtkernels/cuda/gram.cuh"

namespace vtkernels::cuda {

template <class T>
struct GramDirections {
  static constexpr int warps = kGramDirectionThreads / 32, rows = kGramDirectionRows, pack = 8;
  static constexpr int channels = kGramBytes / 2;  // added up by the tensor cores before they are added in float32
  static constexpr bool bfloat16 = std::is_same_v<T, BFloat16>;

  // Of 8 rows by one block; images have `blocks`. start(image, row, square) once for every row.
  template <class M, class Start>
  static VTKERNELS_DEVICE void run(M& m, const Features<T>& x, int blocks, Direction* directions, void* copy,
                                   const Start& start) {
    const Rows of{m.block_x() / blocks, m.block_x() % blocks * rows, copy};
    float square = 0;
    if (x.sixteens) {
      add<true>(m, x, of, square);
    } else {
      add<false>(m, x, of, square);
    }

    const auto parts = m.template shared<float>(0);
    if (m.lane() / 8 == m.lane() % 4) parts[m.warp() * rows + m.lane() / 4] = square;
    m.sync();
    const int64_t row = of.first + m.thread();
    if (m.thread() >= rows || row >= x.n) return;
    float all = parts[m.thread()];
    for (int warp = 1; warp < warps; ++warp) all += parts[warp * rows + m.thread()];
    directions[of.image * x.n + row] = Direction::of(all);
    start(of.image, row, all);
  }

 private:
  struct alignas(16) Pack {
    uint32_t words[pack / 2];
  };

  struct Rows {
    int64_t image;
    int first;
    void* copy;
  };

  // A warp has the diagonal of 8 x 8 products (the lower half of what the tensor cores can have is left empty): that of row g
  // in the lane g / 2 of those that have read it. It waits for its loads once in `batch` stages; those behind the last add 0.
  template <bool Sixteens, class M>
  static VTKERNELS_DEVICE void add(M& m, const Features<T>& x, const Rows& of, float& square) {
    constexpr int batch = Sixteens ? 4 : 1;
    const int g = m.lane() / 4, t = m.lane() % 4, row = of.first + g;
    const int stages = static_cast<int>((x.channels + channels - 1) / channels), all = static_cast<int>(x.channels);
    const int valid = row < x.lengths(of.image, x.n) ? all : 0;
    const int64_t apart = Sixteens ? 1 : x.stride[2];
    const T* from = x.data + of.image * x.stride[0] + row * x.stride[1];
#pragma unroll 1
    for (int stage = m.warp(); stage < stages; stage += batch * warps) {
      const int first = stage * channels + pack * t;
      Pack part[batch][2];
#pragma unroll
      for (int s = 0; s < batch; ++s) {
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          const int after = s * warps * channels + 4 * pack * p;
          part[s][p] = load<Sixteens>(from + (first + after) * apart, valid - first - after, apart);
        }
      }
#pragma unroll
      for (int s = 0; s < batch; ++s) {
        float c[4] = {};
#pragma unroll
        for (int p = 0; p < 2; ++p) {
#pragma unroll
          for (int w = 0; w < 4; w += 2) {
            const uint32_t own[2]{part[s][p].words[w], part[s][p].words[w + 1]}, upper[4]{own[0], 0, own[1], 0};
            m.template mma<bfloat16>(c, upper, own);
          }
        }
        square += g % 2 ? c[1] : c[0];
      }
      if (of.copy == nullptr) continue;
#pragma unroll
      for (int s = 0; s < batch; ++s) {
#pragma unroll
        for (int p = 0; p < 2; ++p) store(x, of, row, first + s * warps * channels + 4 * pack * p, part[s][p]);
      }
    }
  }

  // The first `left` elements, and zeros.
  template <bool Sixteens>
  static VTKERNELS_DEVICE Pack load(const T* from, int left, int64_t apart) {
    Pack values{};
    if (left <= 0) return values;
    if constexpr (Sixteens) return *reinterpret_cast<const Pack*>(from);
#pragma unroll
    for (int e = 0; e < pack; ++e) {
      const uint32_t bits = e < left ? from[e * apart].bits : 0;
      values.words[e / 2] |= bits << (16 * (e % 2));
    }
    return values;
  }

  static VTKERNELS_DEVICE void store(const Features<T>& x, const Rows& of, int row, int channel, const Pack& values) {
    const int64_t stride = gram_packed_stride(x.channels);
    if (row >= x.n || channel >= stride) return;
    *reinterpret_cast<Pack*>(static_cast<T*>(of.copy) + (of.image * x.n + row) * stride + channel) = values;
  }
};

}  // namespace vtkernels::cuda
