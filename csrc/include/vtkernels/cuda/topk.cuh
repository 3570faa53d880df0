// The k best of n by one block: counting for rows that fit, radix selection beyond. Ties go to the lowest index.
#pragma once

#include "vtkernels/cuda/element.cuh"
#include "vtkernels/cuda/plan.h"

namespace vtkernels::cuda {

struct Topk {
  // indices(s) = for s < min(k, n) the winners, ascending if `sort`, else best first; -1 behind them. rank(i): smaller is
  // better.
  template <class M, class Rank, class Write>
  static VTKERNELS_DEVICE void run(M& m, const Rank& rank, int64_t n, int64_t k, bool sort, int64_t byte, uint64_t* workspace,
                                   const Write& write) {
    const int64_t found = k < n ? k : n;
    if (n <= kTopkCounted) {
      count(m, rank, n, found, sort, byte, write);
    } else {
      radix(m, rank, n, found, sort, byte, workspace, write);
    }
    for (int64_t s = found + m.thread(); s < k; s += m.threads()) write(s, int64_t{-1});
  }

 private:
  template <class M, class Rank, class Write>
  static VTKERNELS_DEVICE void count(M& m, const Rank& rank, int64_t n, int64_t found, bool sort, int64_t byte,
                                     const Write& write) {
    const auto keys = m.template shared<uint32_t>(byte);
    const auto words = m.template shared<uint32_t>(byte + 4 * n);
    const int size = static_cast<int>(n), rows = (size + 31) / 32;
    for (int i = m.thread(); i < size; i += m.threads()) keys[i] = rank(i);
    m.sync();
    for (int row = m.warp(); row < rows; row += m.warps()) {
      const int i = row * 32 + m.lane();
      const uint32_t own = i < size ? static_cast<uint32_t>(keys[i]) : ~0u;
      int better = 0;
      for (int j = 0; j < size; ++j) {
        const uint32_t other = keys[j];
        better += other < own || (other == own && j < i);
      }
      const bool chosen = i < size && better < found;
      if (!sort && chosen) write(better, i);
      const uint32_t word = m.ballot(chosen);
      if (m.lane() == 0) words[row] = word;
    }
    m.sync();
    if (!sort) return;
    for (int row = m.warp(); row < rows; row += m.warps()) {
      int before = 0;
      for (int r = 0; r < row; ++r) before += population(words[r]);
      const uint32_t word = words[row];
      const uint32_t lower = (1u << m.lane()) - 1;
      if ((word >> m.lane() & 1) != 0) write(before + population(word & lower), row * 32 + m.lane());
    }
    m.sync();
  }

  template <class M, class Rank, class Write>
  static VTKERNELS_DEVICE void radix(M& m, const Rank& rank, int64_t n, int64_t found, bool sort, int64_t byte,
                                     uint64_t* workspace, const Write& write) {
    const auto histogram = m.template shared<uint32_t>(byte);
    const auto state = m.template shared<uint32_t>(byte + 4 * kTopkBuckets);  // prefix found so far, winners left to find in it
    const auto sums = m.template shared<uint32_t>(byte + 4 * (kTopkBuckets + 2));
    if (m.thread() == 0) {
      state[0] = 0u;
      state[1] = static_cast<uint32_t>(found);
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
      for (int i = m.thread(); i < kTopkBuckets; i += m.threads()) histogram[i] = 0u;
      m.sync();
      const uint32_t prefix = state[0], above = shift == 24 ? 0u : ~0u << (shift + 8);
      for (int64_t i = m.thread(); i < n; i += m.threads()) {
        const uint32_t key = rank(i);
        if ((key & above) == prefix) m.template add_shared<uint32_t>(histogram + (key >> shift & 255u), 1u);
      }
      m.sync();
      if (m.thread() == 0) {
        uint32_t left = state[1], bucket = 0;
        while (bucket < kTopkBuckets - 1 && left > histogram[bucket]) left -= histogram[bucket++];
        state[0] = prefix | bucket << shift;
        state[1] = left;
      }
      m.sync();
    }
    // All better than the threshold win, and of its equals the first ones.
    const uint32_t threshold = state[0], equals = state[1];
    uint32_t winners_before = 0, equals_before = 0;
    for (int64_t start = 0; start < n; start += m.threads()) {
      const int64_t i = start + m.thread();
      const uint32_t key = i < n ? rank(i) : ~0u;
      const bool equal = i < n && key == threshold;
      uint32_t total;
      const uint32_t rank_of_equal = equals_before + before(m, sums, equal, total);
      equals_before += total;
      const bool chosen = i < n && (key < threshold || (equal && rank_of_equal < equals));
      const uint32_t slot = winners_before + before(m, sums, chosen, total);
      winners_before += total;
      if (chosen && sort) write(slot, i);
      if (chosen && !sort) workspace[slot] = static_cast<uint64_t>(key) << 32 | static_cast<uint64_t>(i);
    }
    if (sort) return;
    const int64_t padded = power_of_two(found);
    for (int64_t s = found + m.thread(); s < padded; s += m.threads()) workspace[s] = ~uint64_t{0};
    m.sync();
    order(m, workspace, padded);
    for (int64_t s = m.thread(); s < found; s += m.threads()) write(s, static_cast<int64_t>(workspace[s] & 0xffffffffu));
    m.sync();
  }

  // How many threads of the block before this one have x; `total` of all.
  template <class M>
  static VTKERNELS_DEVICE uint32_t before(M& m, typename M::template Shared<uint32_t> sums, bool x, uint32_t& total) {
    const uint32_t word = m.ballot(x);
    if (m.lane() == 0) sums[m.warp()] = static_cast<uint32_t>(population(word));
    m.sync();
    uint32_t own = 0, all = 0;
    for (int warp = 0; warp < m.warps(); ++warp) {
      const uint32_t count = sums[warp];
      own += warp < m.warp() ? count : 0;
      all += count;
    }
    total = all;
    m.sync();
    return own + static_cast<uint32_t>(population(word & ((1u << m.lane()) - 1)));
  }

  // Bitonic sort of distinct keys (and a tail of the greatest), rising; n a power of two.
  template <class M>
  static VTKERNELS_DEVICE void order(M& m, uint64_t* keys, int64_t n) {
    for (int64_t size = 2; size <= n; size *= 2) {
      for (int64_t stride = size / 2; stride > 0; stride /= 2) {
        for (int64_t pair = m.thread(); pair < n / 2; pair += m.threads()) {
          const int64_t low = pair / stride * stride * 2 + pair % stride, high = low + stride;
          const uint64_t a = keys[low], b = keys[high];
          if ((a > b) == ((low & size) == 0)) {
            keys[low] = b;
            keys[high] = a;
          }
        }
        m.sync();
      }
    }
  }
};

}  // namespace vtkernels::cuda
