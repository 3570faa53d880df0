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

  // Of 16 rows by one block; images have `blocks`. start(image, row, square) once for every row.
  template <class M, class Start>
  static VTKERNELS_DEVICE void run(M& m, const Features<T>& x, int blocks, Direction* directions, void* copy,
                                   const Start& start) {
    const Rows of{m.block_x() / blocks, m.block_x() % blocks * rows, copy};
    float square[2] = {};
    if (x.sixteens) {
      add<true>(m, x, of, square);
    } else {
      add<false>(m, x, of, square);
    }

    const auto parts = m.template shared<float>(0);
    const int g = m.lane() / 4, t = m.lane() % 4;
    if (g / 2 == t) {
      parts[m.warp() * rows + g] = square[0];
      parts[m.warp() * rows + g + 8] = square[1];
    }
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

  // A warp has the diagonal of 16 x 16 products: of rows g and g + 8, in the lanes that it passes through. It waits for its
  // loads once in `batch` stages; those behind the last add 0.
  template <bool Sixteens, class M>
  static VTKERNELS_DEVICE void add(M& m, const Features<T>& x, const Rows& of, float (&square)[2]) {
    constexpr int batch = Sixteens ? 4 : 1;
    const int g = m.lane() / 4, t = m.lane() % 4, valid = static_cast<int>(x.lengths(of.image, x.n));
    const int stages = static_cast<int>((x.channels + channels - 1) / channels);
#pragma unroll 1
    for (int stage = m.warp(); stage < stages; stage += batch * warps) {
      Pack part[batch][2][2];
      const auto channel = [&](int s, int p) { return (stage + s * warps) * channels + 4 * pack * p + pack * t; };
#pragma unroll
      for (int s = 0; s < batch; ++s) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int p = 0; p < 2; ++p) part[s][r][p] = load<Sixteens>(x, of.image, of.first + g + 8 * r, channel(s, p), valid);
        }
      }
#pragma unroll
      for (int s = 0; s < batch; ++s) {
        float c[2][4] = {};
#pragma unroll
        for (int p = 0; p < 2; ++p) {
#pragma unroll
          for (int w = 0; w < 4; w += 2) {
            const uint32_t upper[2]{part[s][0][p].words[w], part[s][0][p].words[w + 1]};
            const uint32_t lower[2]{part[s][1][p].words[w], part[s][1][p].words[w + 1]};
            const uint32_t both[4]{upper[0], lower[0], upper[1], lower[1]};
            m.template mma<bfloat16>(c[0], both, upper);
            m.template mma<bfloat16>(c[1], both, lower);
          }
        }
        square[0] += g % 2 ? c[0][1] : c[0][0];
        square[1] += g % 2 ? c[1][3] : c[1][2];
      }
      if (of.copy == nullptr) continue;
#pragma unroll
      for (int s = 0; s < batch; ++s) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int p = 0; p < 2; ++p) store(x, of, of.first + g + 8 * r, channel(s, p), part[s][r][p]);
        }
      }
    }
  }

  template <bool Sixteens>
  static VTKERNELS_DEVICE Pack load(const Features<T>& x, int64_t b, int row, int channel, int valid) {
    const T* from = x.data + b * x.stride[0] + row * x.stride[1] + channel * x.stride[2];
    Pack values{};
    if (row >= valid || channel >= x.channels) return values;
    if constexpr (Sixteens) return *reinterpret_cast<const Pack*>(from);
#pragma unroll
    for (int e = 0; e < pack; ++e) {
      const uint32_t bits = channel + e < x.channels ? from[e * x.stride[2]].bits : 0;
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
