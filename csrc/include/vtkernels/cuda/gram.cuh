// Tiles of the cosines of all pairs of rows of an image.
//
// The matrix is symmetric, so only tiles on and below the diagonal are computed. Products are taken first and normalised after,
// so that half types go to the tensor cores as they are; float32 is multiplied in float32, never in tf32. Every number is a
// function of its two rows alone, whatever their places, the batch or the strides. Tensor cores truncate as they accumulate,
// which over thousands of channels would cost a cosine its last digits: they add up the 128 bytes of a row that a stage holds,
// and the stages are added in float32. The squared norms are products of that kind too, of a row with itself.
#pragma once

#include <cmath>
#include <type_traits>

#include "vtkernels/cuda/element.cuh"
#include "vtkernels/cuda/plan.h"

namespace vtkernels::cuda {

template <class T>
struct Features {
  const T* data;
  int64_t stride[3];  // NOLINT(modernize-use-default-member-init): not before there is an array
  int64_t n;
  int64_t channels;
  Lengths lengths;
  bool sixteens;  // rows can be copied 16 bytes at a time

  Features(const Array<3>& x, const Lengths& lengths)
      : data(static_cast<const T*>(x.data)),
        stride{x.stride[0], x.stride[1], x.stride[2]},
        n(x.size[1]),
        channels(x.size[2]),
        lengths(lengths),
        sixteens(in_sixteens(x.data, sizeof(T), x.stride, x.size[2])) {}
};

// 1/norm of a row as a power of two and a fraction in [1, 2), so that two copies of a row, and a row and its double, have the
// same cosines, and no product leaves the range of float32. Both are 0 where the row has no direction.
struct alignas(8) Direction {
  float power, fraction;

  static VTKERNELS_DEVICE Direction of(float square) {
    if (!(square > 0) || !is_finite(square)) return {0.0f, 0.0f};
    const uint32_t bits = bits_from_float(1.0f / sqrtf(square));
    return {float_from_bits(bits & 0x7f800000u), float_from_bits((bits & 0x007fffffu) | 0x3f800000u)};
  }

  // The order of the two rows changes no bit.
  static VTKERNELS_DEVICE float cosine(float product, const Direction& x, const Direction& y) {
    const float scale = x.fraction * y.fraction;
    return scale > 0 ? product * x.power * y.power * scale : 0.0f;
  }
};

// Tile number t of the lower triangle, counted row by row.
struct GramPlace {
  int row, column;

  static VTKERNELS_DEVICE GramPlace of(int64_t t) {
    int row = static_cast<int>((sqrtf(8.0f * static_cast<float>(t) + 1.0f) - 1.0f) * 0.5f);
    while (int64_t{row} * (row + 1) / 2 > t) --row;  // the root is rounded
    while (int64_t{row + 1} * (row + 2) / 2 <= t) ++row;
    return {row, static_cast<int>(t - int64_t{row} * (row + 1) / 2)};
  }
};

// The stages of a tile in shared memory: rows of kGramBytes, those of the tile's rows first, then those of its columns.
struct GramStage {
  static constexpr int packs = kGramBytes / 16;  // of a row

  // Byte of a piece of a row. Rows that are read together have their pieces in different banks.
  static VTKERNELS_DEVICE int at(int stage, int row, int piece) {
    return stage % kGramStages * static_cast<int>(kGramStageBytes) + row * kGramBytes + (piece ^ (row & 7)) * 16;
  }
};

// The products of a thread: total[r][c] is that of row(r) with column(c). Half types: four warps share the tile two by two, 32
// x 32 each, as 2 x 4 products of the tensor cores.
template <class T>
struct GramProducts : GramStage {
  static constexpr bool bfloat16 = std::is_same_v<T, BFloat16>;

  // Of the squared norms each warp has those of 16 of its rows and 16 of its columns, so that the two warps that share them do
  // not repeat them. They are elements g and g + 8 of a diagonal, held by the lanes that it passes through.
  float total[4][8] = {};
  float row_squares[2] = {}, column_squares[2] = {};

  template <class M>
  VTKERNELS_DEVICE void add(M& m, int stage, bool diagonal) {
    const int g = m.lane() / 4, t = m.lane() % 4, down = m.warp() / 2, across = m.warp() % 2;
    const auto words = m.template shared<uint32_t>(0);
    const int rows = at(stage, 32 * down, 0) / 4, columns = at(stage, (diagonal ? 0 : kGramTile) + 32 * across, 0) / 4;
    const auto word = [&](int base, int row, int piece) -> uint32_t {
      return words[base + (row + g) * (kGramBytes / 4) + (piece ^ g) * 4 + t];
    };
    float part[2][4][4] = {}, square[4][4] = {};
#pragma unroll
    for (int step = 0; step < packs / 2; ++step) {
      uint32_t a[2][4], b[4][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int w = 0; w < 4; ++w) a[i][w] = word(rows, 16 * i + w % 2 * 8, 2 * step + w / 2);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int w = 0; w < 2; ++w) b[j][w] = word(columns, 8 * j, 2 * step + w);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) m.template mma<bfloat16>(part[i][j], a[i], b[j]);
      }
      uint32_t row[4], column[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        row[w] = across ? a[1][w] : a[0][w];
        column[w] = down ? b[2 + w % 2][w / 2] : b[w % 2][w / 2];
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t own_row[2]{row[half], row[2 + half]}, own_column[2]{column[half], column[2 + half]};
        m.template mma<bfloat16>(square[half], row, own_row);
        m.template mma<bfloat16>(square[2 + half], column, own_column);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) total[2 * i + e / 2][2 * j + e % 2] += part[i][j][e];
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row_squares[half] += g % 2 ? square[half][2 * half + 1] : square[half][2 * half];
      column_squares[half] += g % 2 ? square[2 + half][2 * half + 1] : square[2 + half][2 * half];
    }
  }

  template <class M, class Squares>
  VTKERNELS_DEVICE void write_squares(M& m, const Squares& squares) const {
    const int g = m.lane() / 4, t = m.lane() % 4, down = m.warp() / 2, across = m.warp() % 2;
    if (g / 2 != t) return;
    const int row = 32 * down + 16 * across + g, column = kGramTile + 32 * across + 16 * down + g;
    for (int half = 0; half < 2; ++half) {
      squares[row + 8 * half] = row_squares[half];
      squares[column + 8 * half] = column_squares[half];
    }
  }

  template <class M>
  static VTKERNELS_DEVICE int row(M& m, int r) {
    return 32 * (m.warp() / 2) + 8 * r + m.lane() / 4;
  }
  template <class M>
  static VTKERNELS_DEVICE int column(M& m, int c) {
    return 32 * (m.warp() % 2) + c / 2 * 8 + m.lane() % 4 * 2 + c % 2;
  }
};

// float32: one chain in the order of the channels.
template <>
struct GramProducts<float> : GramStage {
  static constexpr int down = kGramTile / 16, across = kGramTile / 8;

  struct alignas(16) Four {
    float x[4];
  };

  float total[down][across] = {};
  float square = 0;

  template <class M>
  VTKERNELS_DEVICE void add(M& m, int stage, bool diagonal) {
    const int x = m.thread() % 8, y = m.thread() / 8, columns = diagonal ? 0 : kGramTile;
    const int own = diagonal ? m.thread() % kGramTile : m.thread();
    const auto four = [&](int row, int piece) -> Four { return m.template shared<Four>(at(stage, row, piece))[0]; };
#pragma unroll 1
    for (int piece = 0; piece < packs; ++piece) {
      Four a[down];
#pragma unroll
      for (int i = 0; i < down; ++i) a[i] = four(y + 16 * i, piece);
#pragma unroll
      for (int j = 0; j < across; ++j) {
        const Four b = four(columns + x + 8 * j, piece);
#pragma unroll
        for (int i = 0; i < down; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) total[i][j] = fmaf(a[i].x[e], b.x[e], total[i][j]);
        }
      }
      const Four c = four(own, piece);
#pragma unroll
      for (int e = 0; e < 4; ++e) square = fmaf(c.x[e], c.x[e], square);
    }
  }

  template <class M, class Squares>
  VTKERNELS_DEVICE void write_squares(M& m, const Squares& squares) const {
    squares[m.thread()] = square;
  }

  template <class M>
  static VTKERNELS_DEVICE int row(M& m, int r) {
    return m.thread() / 8 + 16 * r;
  }
  template <class M>
  static VTKERNELS_DEVICE int column(M& m, int c) {
    return m.thread() % 8 + 8 * c;
  }
};

// One tile by one block of kGramThreads, in kGramShared bytes of shared memory from byte 0 on.
template <class T>
struct GramTile : GramStage {
  static constexpr int pack = 16 / sizeof(T);
  static constexpr int64_t squares_byte = kGramStages * kGramStageBytes;
  static constexpr int64_t directions_byte = squares_byte + 4 * 2 * kGramTile;

  struct alignas(16) Pack {
    T x[pack];
  };

  // emit(i, j, cosine) once for each i >= j of the tile; rows behind the length, and those behind n, have cosine 0 with all.
  template <class M, class Emit>
  static VTKERNELS_DEVICE void run(M& m, const Features<T>& x, int64_t b, const GramPlace& place, const Emit& emit) {
    static_assert(kGramThreads == 2 * kGramTile, "a thread for the norm of each row and column");
    const bool diagonal = place.row == place.column;
    const int valid = static_cast<int>(x.lengths(b, x.n)), row = place.row * kGramTile, column = place.column * kGramTile;
    const int stages = static_cast<int>((x.channels + packs * pack - 1) / (packs * pack));
    const Source rows(m, x, b, row, valid), columns(m, x, b, column, valid);
    const auto fetch = [&](int stage) {
      if (stage < stages) {
        rows.fetch(m, stage, 0);
        if (!diagonal) columns.fetch(m, stage, kGramTile);
      }
      m.commit_copies();  // also where there is nothing to copy: groups are counted
    };

    GramProducts<T> products;
    for (int stage = 0; stage < kGramStages - 1; ++stage) fetch(stage);
    for (int stage = 0; stage < stages; ++stage) {
      m.template wait_copies<kGramStages - 2>();
      m.sync();  // the stage has arrived for all, and all have left the one that is filled next
      fetch(stage + kGramStages - 1);
      products.add(m, stage, diagonal);
    }

    const auto squares = m.template shared<float>(squares_byte);
    const auto directions = m.template shared<Direction>(directions_byte);
    products.write_squares(m, squares);
    m.sync();
    directions[m.thread()] = Direction::of(squares[m.thread()]);
    m.sync();
    Direction of_columns[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) of_columns[c] = directions[kGramTile + products.column(m, c)];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int i = row + products.row(m, r);
      const Direction of_row = directions[products.row(m, r)];
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int j = column + products.column(m, c);
        if (i >= j) emit(i, j, Direction::cosine(products.total[r][c], of_row, of_columns[c]));
      }
    }
  }

 private:
  // A thread's share of 64 rows: one piece of every 16th.
  struct Source {
    static constexpr int apart = kGramThreads / packs, share = kGramTile / apart;

    const Features<T>& x;
    const T* from;
    const int local, piece;
    int left;  // valid rows from the first of this thread on

    template <class M>
    VTKERNELS_DEVICE Source(M& m, const Features<T>& features, int64_t b, int row, int valid)
        : x(features), local(m.thread() / packs), piece(m.thread() % packs), left(valid - row - local) {
      from = x.data + b * x.stride[0] + (row + local) * x.stride[1] + piece * pack * x.stride[2];
    }

    template <class M>
    VTKERNELS_DEVICE void fetch(M& m, int stage, int first) const {
      const int64_t channel = int64_t{stage} * packs * pack;
      const int byte = at(stage, first + local, piece);  // rows apart are a multiple of 8 apart: their pieces lie alike
      const T* start = from + channel * x.stride[2];
      const int64_t channels = x.channels - channel - piece * pack;
      if (x.sixteens) {
#pragma unroll
        for (int u = 0; u < share; ++u) {
          const bool inside = u * apart < left && channels > 0;
          m.copy16(m.template shared<Pack>(byte + u * apart * kGramBytes), inside ? start + u * apart * x.stride[1] : x.data,
                   inside);
        }
        return;
      }
#pragma unroll 1
      for (int u = 0; u < share; ++u) {
        Pack values;
#pragma unroll
        for (int e = 0; e < pack; ++e) {
          values.x[e] = u * apart < left && e < channels ? start[u * apart * x.stride[1] + e * x.stride[2]] : T{};
        }
        m.template shared<Pack>(byte + u * apart * kGramBytes)[0] = values;
      }
    }
  };
};

}  // namespace vtkernels::cuda
