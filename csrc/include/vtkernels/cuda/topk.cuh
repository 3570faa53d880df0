// The k best of n by one block: a radix search for the key of the last winner, from the top digit down, then a pass that
// numbers the winners in the order of their indices. Ties go to the lowest index.
#pragma once

#include "vtkernels/cuda/block.cuh"
#include "vtkernels/cuda/element.cuh"
#include "vtkernels/cuda/plan.h"

namespace vtkernels::cuda {

// Keys of `Bits` bits: narrow ones need fewer passes.
template <int Bits = 32>
struct Topk {
  // indices(s) = for s < min(k, n) the winners, ascending if `sort`, else best first; -1 behind them. rank(i): smaller is
  // better. `byte`: of topk_shared(), a multiple of 16.
  template <class M, class Rank, class Write>
  static VTKERNELS_DEVICE void run(M& m, const Rank& rank, int64_t n, int64_t k, bool sort, int64_t byte, uint64_t* workspace,
                                   const Write& write) {
    const int64_t found = k < n ? k : n;
    if (found > 0 && n <= kTopkFew * m.threads()) {
      choose<kTopkFew>(m, rank, n, k, sort, byte, workspace, write);
    } else if (found > 0) {
      choose<kTopkMany>(m, rank, n, k, sort, byte, workspace, write);
    }
    for (int64_t s = found + m.thread(); s < k; s += m.threads()) write(s, int64_t{-1});
  }

 private:
  static constexpr int passes = (Bits + 7) / 8;
  static_assert(passes <= kTopkPasses);

  struct alignas(16) Four {
    uint32_t x[4];
  };

  // Keys of one digit: how many, and how many of lower digits.
  struct alignas(16) Bucket {
    uint32_t digit, before, size;
  };

  // All keys below `key` win, and of its equals the first `ties`.
  struct Limit {
    uint32_t key, ties;
  };

  // The keys of `Held` entries a thread. A warp has 32 * Held neighbours, a row of 32 after the other.
  template <class M, int Held>
  struct Keys {
    uint32_t key[Held];
    int first, left;  // entry of this thread's first key, and how many there are, from `start` on

    template <class Rank>
    VTKERNELS_DEVICE void load(M& m, const Rank& rank, int64_t start, int64_t n) {
      const int all = Held * m.threads();
      first = m.warp() * 32 * Held + m.lane();
      left = n - start < all ? static_cast<int>(n - start) : all;
      // The last entry again instead of none: loads without a condition are all on their way at the same time.
#pragma unroll
      for (int r = 0; r < Held; ++r) key[r] = rank(start + (has(r) ? first + 32 * r : left - 1));
    }
    VTKERNELS_DEVICE bool has(int r) const { return first + 32 * r < left; }
  };

  template <int Held, class M, class Rank, class Write>
  static VTKERNELS_DEVICE void choose(M& m, const Rank& rank, int64_t n, int64_t k, bool sort, int64_t byte,
                                      uint64_t* workspace, const Write& write) {
    const int64_t found = k < n ? k : n;
    Keys<M, Held> keys;
    keys.load(m, rank, 0, n);
    Limit limit{~0u, static_cast<uint32_t>(found)};
    if (found < n) limit = search(m, keys, rank, n, static_cast<uint32_t>(found), byte);
    const auto totals = m.template shared<uint32_t>(byte + kTopkHistograms + 16);
    if (sort) {
      number(m, keys, rank, n, limit, totals, [&](uint32_t slot, int64_t i, uint32_t) { write(slot, i); });
      return;
    }
    const auto best_first = [&](const auto& winners) {
      number(m, keys, rank, n, limit, totals, [&](uint32_t slot, int64_t i, uint32_t key) {
        winners[slot] = static_cast<uint64_t>(key) << 32 | static_cast<uint64_t>(i);
      });
      const int64_t padded = power_of_two(found);
      for (int64_t s = found + m.thread(); s < padded; s += m.threads()) winners[s] = ~uint64_t{0};
      m.sync();
      order(m, winners, padded);
      for (int64_t s = m.thread(); s < found; s += m.threads()) {
        write(s, static_cast<int64_t>(static_cast<uint64_t>(winners[s]) & 0xffffffffu));
      }
    };
    if (topk_workspace(k, sort) == 0) {
      best_first(m.template shared<uint64_t>(byte + topk_shared(0, true)));
    } else {
      best_first(workspace);
    }
  }

  // The least limit with which `left` keys win. 0 < left < n.
  template <class M, int Held, class Rank>
  static VTKERNELS_DEVICE Limit search(M& m, Keys<M, Held>& keys, const Rank& rank, int64_t n, uint32_t left, int64_t byte) {
    const int all = Held * m.threads();
    const auto fours = m.template shared<Four>(byte);
    const auto found = m.template shared<Bucket>(byte + kTopkHistograms);
#pragma unroll 1
    for (int i = m.thread(); i < passes * kTopkBuckets / 4; i += m.threads()) fours[i] = Four{};
    m.sync();
    uint32_t prefix = 0;
#pragma unroll 1
    for (int pass = 0, shift = 8 * (passes - 1);; ++pass, shift -= 8) {
      const auto buckets = m.template shared<uint32_t>(byte) + kTopkBuckets * pass;
#pragma unroll 1
      for (int64_t start = 0; start < n; start += all) {
        if (n > all) keys.load(m, rank, start, n);
#pragma unroll
        for (int r = 0; r < Held; ++r) {
          const uint32_t digits = keys.key[r] >> shift;
          if (keys.has(r) && digits >> 8 == prefix) m.template add_shared<uint32_t>(buckets + (digits & 255u), 1u);
        }
      }
      m.sync();
      if (m.warp() == 0) bucket_of(m, fours + kTopkBuckets / 4 * pass, left, found);
      m.sync();
      const Bucket bucket = found[0];
      left -= bucket.before;
      prefix = prefix << 8 | bucket.digit;
      // All of the bucket win: no more digits are needed. Nor does the next prefix overflow, for then all keys would win.
      if (left == bucket.size) return {(prefix + 1) << shift, 0};
      if (shift == 0) return {prefix, left};
    }
  }

  // The bucket of the key that `left` - 1 others precede, by one warp, eight buckets a lane.
  template <class M>
  static VTKERNELS_DEVICE void bucket_of(M& m, typename M::template Shared<Four> fours, uint32_t left,
                                         typename M::template Shared<Bucket> found) {
    const Four low = fours[2 * m.lane()], high = fours[2 * m.lane() + 1];
    uint32_t sums[8] = {low.x[0]};
#pragma unroll
    for (int i = 1; i < 8; ++i) sums[i] = sums[i - 1] + (i < 4 ? low.x[i] : high.x[i - 4]);
    const uint32_t before = sum_of_lanes_before(m, sums[7]);
    if (left <= before || left - before > sums[7]) return;
    uint32_t digit = 8 * m.lane(), less = 0, through = sums[0];
#pragma unroll
    for (int i = 1; i < 8; ++i) {
      const bool beyond = sums[i - 1] < left - before;
      digit += beyond;
      less = beyond ? sums[i - 1] : less;
      through = beyond ? sums[i] : through;
    }
    found[0] = Bucket{digit, before + less, through - less};
  }

  // use(slot, i, key) of every winner, with slots in the order of the indices.
  template <class M, int Held, class Rank, class Use>
  static VTKERNELS_DEVICE void number(M& m, Keys<M, Held>& keys, const Rank& rank, int64_t n, const Limit& limit,
                                      typename M::template Shared<uint32_t> totals, const Use& use) {
    const int all = Held * m.threads();
    uint32_t sure = 0, equal = 0;  // before this warp's entries
    int turn = 0;
#pragma unroll 1
    for (int64_t start = 0; start < n; start += all, turn ^= 1) {
      if (n > all) keys.load(m, rank, start, n);
      uint32_t sure_word[Held], equal_word[Held] = {};
      uint32_t total = 0;  // equal ones in the upper half: both are at most `all`
#pragma unroll
      for (int r = 0; r < Held; ++r) {
        sure_word[r] = m.ballot(keys.has(r) && keys.key[r] < limit.key);
        if (limit.ties != 0) equal_word[r] = m.ballot(keys.has(r) && keys.key[r] == limit.key);
        total += static_cast<uint32_t>(population(sure_word[r]) + (population(equal_word[r]) << 16));
      }
      // In turn, so that one barrier is enough for the entries that follow.
      if (m.lane() == 0) totals[32 * turn + m.warp()] = total;
      m.sync();
      total = m.lane() < m.warps() ? static_cast<uint32_t>(totals[32 * turn + m.lane()]) : 0u;
      const uint32_t before = m.reduce_add(m.lane() < m.warp() ? total : 0u), of_all = m.reduce_add(total);
      const uint32_t lower = (1u << m.lane()) - 1;
      uint32_t sure_before = sure + (before & 0xffffu), equal_before = equal + (before >> 16);
#pragma unroll
      for (int r = 0; r < Held; ++r) {
        const uint32_t ties = equal_before + static_cast<uint32_t>(population(equal_word[r] & lower));
        const bool is_sure = (sure_word[r] >> m.lane() & 1) != 0, is_equal = (equal_word[r] >> m.lane() & 1) != 0;
        if (is_sure || (is_equal && ties < limit.ties)) {
          const uint32_t winning = ties < limit.ties ? ties : limit.ties;
          use(sure_before + static_cast<uint32_t>(population(sure_word[r] & lower)) + winning, start + keys.first + 32 * r,
              keys.key[r]);
        }
        sure_before += static_cast<uint32_t>(population(sure_word[r]));
        equal_before += static_cast<uint32_t>(population(equal_word[r]));
      }
      sure += of_all & 0xffffu;
      equal += of_all >> 16;
    }
  }

  // Bitonic sort of distinct keys (and a tail of the greatest), rising; n a power of two. A warp has 32 pairs side by side, so
  // that at short strides it waits for nobody else.
  template <class M, class Words>
  static VTKERNELS_DEVICE void order(M& m, const Words& keys, int64_t n) {
    for (int64_t size = 2; size <= n; size *= 2) {
      for (int64_t stride = size / 2; stride > 0; stride /= 2) {
        for (int64_t pair = m.thread(); pair < n / 2; pair += m.threads()) {
          const int64_t low = 2 * pair - (pair & (stride - 1)), high = low + stride;
          const uint64_t a = keys[low], b = keys[high];
          if ((a > b) == ((low & size) == 0)) {
            keys[low] = b;
            keys[high] = a;
          }
        }
        // The next step is of this warp's own pairs too, or else it is not.
        if (stride > 32 || (stride == 1 && size > 32)) {
          m.sync();
        } else {
          m.sync_warp();
        }
      }
    }
    m.sync();
  }
};

}  // namespace vtkernels::cuda
