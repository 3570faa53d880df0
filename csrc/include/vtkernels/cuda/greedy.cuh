// The greedy loop of scope_select and coverage_select: a block or a cluster of blocks an image, all steps in one launch.
//
// Similarities are fixed-point integers (negative ones, which never cover anything, are 0), so every gain is an exact sum
// whatever its order. Gains are kept up to date instead of being computed again: choices that raise the coverage of item i
// from `before` to `after` take clamp(C_ij, before, after) - before off the gain of candidate j and touch nothing else. Few
// items rise: about 34 of 576 in the mean of 64 steps, 15 in half of them.
//
// Scores only fall. So the blocks of an image exchange letters not for every choice but once in a round: the best candidates of
// each, with the score of the best that it did not send. The least of those is the bound: as long as a candidate of the pool is
// better, nobody outside of it can be the next choice. A round:
//   1. what the items that rose in the last round take off the gains of the block's candidates
//   2. gains, scores, and the best candidates, which are sent to every block
//   3. all have the same letters, choose the same pool from them, and copy its part of the similarity to shared memory
//   4. every block alone: the best of the pool, while it is better than the bound; coverage rises, the pool's gains fall
// Keys hold score and index, so a tie goes to the lowest index here too. The blocks share the candidates; each keeps the
// coverage of all items. Letters take turns, so that nobody writes what another block still reads: who sends one has received
// all of the round before.
#pragma once

#include <cmath>
#include <type_traits>

#include "vtkernels/cuda/element.cuh"
#include "vtkernels/cuda/plan.h"

namespace vtkernels::cuda {

template <class T>
struct GreedyArguments {
  const T* similarity;  // of an image: a row of candidates for each item, 0 from the valid candidates on
  int64_t image_stride;
  int64_t row_stride;
  const float* scale;  // of each image: what a similarity of 1 / unit is worth; null: 1
  float unit;
  Array<2> weight;  // no data: 1 to multiply, 0 to add
  double alpha;
  bool add;
  Lengths lengths;
  int items;
  int candidates;
  int64_t k;
  bool sort;
  Output<int64_t> indices;
  Output<float> gains;  // no data: not wanted
  int slice;            // candidates of a block
  GreedyLayout layout;
  char* state;  // layout.state bytes a block, where they do not fit in shared memory
};

VTKERNELS_DEVICE float load_float(const Array<2>& x, int64_t b, int64_t j) {
  const int64_t i = b * x.stride[0] + j * x.stride[1];
  switch (x.dtype) {
    case DType::float16: return to_float(static_cast<const Half*>(x.data)[i]);
    case DType::bfloat16: return to_float(static_cast<const BFloat16*>(x.data)[i]);
    case DType::float64: return static_cast<float>(static_cast<const double*>(x.data)[i]);
    default: return static_cast<const float*>(x.data)[i];
  }
}

// max(0, value) ** alpha; NaN where value or power is not finite. In float64, for the float32 power of a GPU is an
// approximation.
VTKERNELS_DEVICE float greedy_weight(float value, double alpha) {
  const float base = value > 0 ? value : 0.0f;
  float weight = base;
  if (alpha == 0) {
    weight = 1.0f;  // 0 ** 0 too
  } else if (alpha != 1) {
    weight = base > 0 ? static_cast<float>(exp2(alpha * log2(static_cast<double>(base)))) : 0.0f;
  }
  return is_finite(value) && is_finite(weight) ? weight : float_from_bits(0x7fc00000u);
}

// An item whose coverage rises, from -uncovered by `rise`.
template <class T>
struct alignas(16) Raise {
  T uncovered, rise;
  int item;
};

VTKERNELS_DEVICE int first_bit(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __ffs(static_cast<int>(x)) - 1;
#else
  return __builtin_ctz(x);
#endif
}

// What of its similarity to an item a candidate loses.
VTKERNELS_DEVICE int32_t lost_to(int32_t similarity, int32_t uncovered, int32_t rise) {
#if defined(__CUDA_ARCH__)
  return __viaddmin_s32_relu(similarity, uncovered, rise);  // one instruction from compute capability 9.0 on
#else
  const int32_t beyond = similarity + uncovered, least = beyond < rise ? beyond : rise;
  return least > 0 ? least : 0;
#endif
}
VTKERNELS_DEVICE int64_t lost_to(int64_t similarity, int64_t uncovered, int64_t rise) {
  const int64_t beyond = similarity + uncovered, least = beyond < rise ? beyond : rise;
  return least > 0 ? least : 0;
}

// A symmetric matrix has the column of a candidate as a row too, which is faster to read: that of scope_select, of 32 bits.
template <class T>
constexpr bool kGreedySymmetric = sizeof(T) == 4;

// More than any similarity.
template <class T>
constexpr T kGreedyMost = static_cast<T>(~std::make_unsigned_t<T>{0} >> 1);

// The key of no candidate; smaller is better.
constexpr uint64_t kGreedyNobody = ~uint64_t{0};

// Of a warp's lanes, those of the pool. The others have the same candidates.
constexpr uint32_t kGreedySlots = (1u << kGreedyPool) - 1;

// What the blocks of an image tell each other. The last letter of a group is a bound: the key of its best candidate that was
// not sent, in place of a gain.
struct alignas(16) GreedyLetter {
  int64_t gain;  // negative: nobody
  float weight;
  uint32_t index;
};

template <class M>
VTKERNELS_DEVICE uint64_t least_of_warp(M& m, uint64_t x) {
  const uint32_t high = static_cast<uint32_t>(x >> 32), least_high = m.reduce_min(high);
  const uint32_t low = m.reduce_min(high == least_high ? static_cast<uint32_t>(x) : ~0u);
  return uint64_t{least_high} << 32 | low;
}

// What a block knows of its image and of its own candidates.
template <class M, class T, GreedyPlace Place>
struct GreedyBlock {
  static constexpr GreedyPlace place = Place;
  static constexpr int threads = kGreedyThreads, warps = threads / 32;
  static constexpr int64_t taken = -2, invalid = -1;  // in place of a gain, which is never negative
  using Element = T;
  using Arguments = GreedyArguments<T>;
  template <class E>
  using Memory = std::conditional_t<Place == GreedyPlace::workspace, E*, typename M::template Shared<E>>;

  M& m;
  const Arguments& a;
  const int thread, lane, warp;
  const int rank, blocks, block_bits;  // there are a power of two
  const int64_t b;                     // the image
  const int first, own;                // candidates of this block, and how many
  const int writers;                   // warps that send letters; one of them has every so many-th candidate
  const int writer_bits;
  const int share;  // candidates of such a warp
  const int each;   // letters of such a warp
  const int valid;
  const T* const similarity;
  const float worth;
  const Memory<int64_t> gains;  // those of a warp side by side
  const Memory<uint64_t> keys;
  const Memory<float> weights;                              // of a taken candidate: its score
  const Memory<int64_t> parts;                              // [groups, slice]: what its items take off each gain
  const typename M::template Shared<GreedyLetter> letters;  // [2, each, writers of all blocks], in turns
  const typename M::template Shared<uint64_t> boxes;

  VTKERNELS_DEVICE GreedyBlock(M& machine, const Arguments& arguments)
      : m(machine),
        a(arguments),
        thread(m.thread()),
        lane(m.lane()),
        warp(m.warp()),
        rank(m.cluster_rank()),
        blocks(m.cluster_size()),
        block_bits(first_bit(static_cast<uint32_t>(blocks))),
        b(m.block_x() >> block_bits),
        first(rank * a.slice),
        own(least(a.slice, a.candidates > first ? a.candidates - first : 0)),
        writers(greedy_writers(blocks)),
        writer_bits(first_bit(static_cast<uint32_t>(writers))),
        share(a.slice >> writer_bits),
        each(greedy_letters(blocks)),
        valid(static_cast<int>(a.lengths(b, a.candidates))),
        similarity(a.similarity + b * a.image_stride),
        worth(a.scale == nullptr ? 1.0f : a.scale[b]),
        gains(memory<int64_t>(a.layout.gains)),
        keys(memory<uint64_t>(a.layout.keys)),
        weights(memory<float>(a.layout.weights)),
        parts(memory<int64_t>(a.layout.parts)),
        letters(m.template shared<GreedyLetter>(a.layout.letters)),
        boxes(m.template shared<uint64_t>(a.layout.boxes)) {}

  // In shared memory, or in the workspace where there is too much of it.
  template <class E>
  VTKERNELS_DEVICE Memory<E> memory(int64_t byte) const {
    if constexpr (Place == GreedyPlace::workspace) {
      return reinterpret_cast<E*>(a.state + m.block_x() * a.layout.state + byte);
    } else {
      return m.template shared<E>(byte);
    }
  }

  // What similarity a candidate has to the items.
  VTKERNELS_DEVICE const T* column(uint32_t candidate) const {
    return similarity + candidate * (kGreedySymmetric<T> ? a.row_stride : 1);
  }

  static VTKERNELS_DEVICE int least(int x, int y) { return x < y ? x : y; }

  // Where the candidate `first + c` is in gains, keys, weights and parts, and back. `writers` is a power of two.
  VTKERNELS_DEVICE int place_of(int c) const { return (c & (writers - 1)) * share + (c >> writer_bits); }
  VTKERNELS_DEVICE int candidate_at(int at) const {
    const int writer = at / share;
    return (at - writer * share) * writers + writer;
  }

  VTKERNELS_DEVICE void load_weights() {
    for (int c = thread; c < own; c += threads) {
      float weight = a.add ? 0.0f : 1.0f;
      if (a.weight.data != nullptr && first + c < valid) weight = greedy_weight(load_float(a.weight, b, first + c), a.alpha);
      weights[place_of(c)] = weight;
    }
  }

  // A block alone needs no mailboxes, and a launch without clusters could not have any.
  VTKERNELS_DEVICE void open() {
    if (blocks == 1) return;
    if (thread < 2) m.open_mailbox(boxes + thread);
    m.sync_cluster();
  }

  VTKERNELS_DEVICE uint64_t key_of(int64_t gain, float weight, uint32_t index) const {
    if (gain < 0) return kGreedyNobody;
    const float score = static_cast<float>(gain) * a.unit * worth;
    return uint64_t{rank_bits(a.add ? score + weight : score * weight)} << 32 | index;
  }

  VTKERNELS_DEVICE auto letters_of(int64_t round) const {
    return letters + static_cast<int>(round % 2) * each * writers * blocks;
  }

  // Step 2: the parts are off the gains; those of round 0 are the gains. Then the letters go out.
  VTKERNELS_DEVICE void settle(int groups, int64_t round) {
    for (int at = thread; at < a.slice; at += threads) {
      int64_t gain = invalid;
      uint32_t index;
      if (round > 0) {
        gain = gains[at];
        index = static_cast<uint32_t>(static_cast<uint64_t>(keys[at]));
      } else {
        const int c = candidate_at(at);
        if (c < own && first + c < valid) gain = 0;
        index = static_cast<uint32_t>(first + c);
      }
      uint64_t key = kGreedyNobody;
      if (gain >= 0) {
        int64_t sum = 0;
        for (int group = 0; group < groups; group += 8) {
          int64_t part[8];  // on their way at the same time, the last ones too
#pragma unroll
          for (int u = 0; u < 8; ++u)
            part[u] = group + u < groups ? static_cast<int64_t>(parts[(group + u) * a.slice + at]) : 0;
#pragma unroll
          for (int u = 0; u < 8; ++u) sum += part[u];
        }
        gain = round > 0 ? gain - sum : sum;
        key = key_of(gain, weights[at], index);
      }
      gains[at] = gain;
      keys[at] = key;
    }
    m.sync();
    const auto box = boxes + static_cast<int>(round % 2);
    if (blocks > 1 && thread == 0) m.expect(box, static_cast<int>(sizeof(GreedyLetter)) * each * writers * blocks);
    if (warp < writers) write_letters(round, box);
  }

  VTKERNELS_DEVICE void receive(int64_t round) {
    if (blocks > 1) {
      m.receive(boxes + static_cast<int>(round % 2), static_cast<int>(round / 2 % 2));
    } else {
      m.sync();
    }
  }

  VTKERNELS_DEVICE void write_letters(int64_t round, typename M::template Shared<uint64_t> box) {
    const int begin = warp * share + lane, end = (warp + 1) * share, own_letter = lane >> block_bits;
    // The lane's two best keys behind `last`.
    uint64_t best = begin < end ? static_cast<uint64_t>(keys[begin]) : kGreedyNobody, last = 0;
    uint64_t second = begin + 32 < end ? static_cast<uint64_t>(keys[begin + 32]) : kGreedyNobody;
    bool no_number = is_no_number(best) || is_no_number(second);
    if (second < best) {
      const uint64_t other = best;
      best = second;
      second = other;
    }
    const auto scan = [&](int from) {
#pragma unroll 1
      for (int at = from; at < end; at += 32) {
        const uint64_t key = keys[at];
        no_number |= is_no_number(key);
        if (key <= last) continue;
        if (key < best) {
          second = best;
          best = key;
        } else if (key < second) {
          second = key;
        }
      }
    };
    scan(begin + 64);
    uint64_t mine = kGreedyNobody;
#pragma unroll 1
    for (int letter = 0;; ++letter) {
      last = least_of_warp(m, best);
      if (letter == own_letter) mine = last;
      if (letter + 1 == each) break;
      if (best == last) {
        best = second;
        second = kGreedyNobody;
        if (best == kGreedyNobody && begin + 64 < end) scan(begin);
      }
    }
    const bool bound = own_letter == each - 1;
    if (m.ballot(no_number) != 0) {
      const uint64_t rising = least_of_warp(m, rising_key(begin, end));
      if (bound && rising < mine) mine = rising;
    }
    if (lane < blocks * each) {
      const auto index = static_cast<uint32_t>(mine);
      GreedyLetter letter{invalid, 0.0f, index};
      if (bound) {
        letter.gain = static_cast<int64_t>(mine);
      } else if (mine != kGreedyNobody) {
        const int at = place_of(static_cast<int>(index) - first);
        letter.gain = gains[at];
        letter.weight = weights[at];
      }
      const auto to = letters_of(round) + (own_letter * writers * blocks + rank * writers + warp);
      if (blocks > 1) {
        m.template send<GreedyLetter>(to, lane & (blocks - 1), letter, box);
      } else {
        to[0] = letter;
      }
    }
  }

  static VTKERNELS_DEVICE bool is_no_number(uint64_t key) {
    return static_cast<uint32_t>(key >> 32) == ~0u && static_cast<uint32_t>(key) != ~0u;
  }

  // An infinite score times 0 is no number, but becomes 0 once the gain has fallen: the only score that can rise.
  VTKERNELS_DEVICE uint64_t rising_key(int begin, int end) const {
    uint64_t least_key = kGreedyNobody;
    for (int at = begin; at < end; at += 32) {
      const uint64_t key = keys[at];
      if (!is_no_number(key)) continue;
      const float weight = weights[at];
      if (weight != weight) continue;
      const uint64_t risen = uint64_t{rank_bits(0.0f)} << 32 | static_cast<uint32_t>(key);
      if (risen < least_key) least_key = risen;
    }
    return least_key;
  }

  VTKERNELS_DEVICE void take(int64_t step, int pick, uint32_t rank_of_score) {
    // No score is negative, so its bits are the rank's but for the sign.
    const float score = rank_of_score == ~0u ? float_from_bits(0x7fc00000u) : float_from_bits(~rank_of_score & 0x7fffffffu);
    const int c = pick - first;
    if (c >= 0 && c < own) {
      gains[place_of(c)] = taken;
      weights[place_of(c)] = score;
    }
    if (!a.sort && rank == 0) write(step, pick, score);
  }

  VTKERNELS_DEVICE void write(int64_t s, int64_t index, float score) {
    a.indices(b, s) = index;
    if (a.gains.data != nullptr) a.gains(b, s) = score;
  }

  // What this block's candidates have been taken, from slot `s` on.
  VTKERNELS_DEVICE void write_ascending(int64_t s) {
    m.sync();
    if (warp != 0) return;
    for (int start = 0; start < own; start += 32) {
      const int c = start + lane, at = place_of(c);
      const bool chosen = c < own && static_cast<int64_t>(gains[at]) == taken;
      const uint32_t word = m.ballot(chosen);
      if (chosen) write(s + population(word & ((1u << lane) - 1)), first + c, weights[at]);
      s += population(word);
    }
  }
};

// The coverage of all items, and step 1. An item is always the same thread's.
template <class Block>
struct GreedyLosses {
  using M = std::remove_reference_t<decltype(Block::m)>;
  using T = typename Block::Element;
  using Sum = std::make_unsigned_t<T>;
  static constexpr bool resident = Block::place == GreedyPlace::resident;
  static constexpr int pack = 16 / sizeof(T);
  static constexpr int ahead = resident ? 4 : 8;  // loads on their way at the same time
  static constexpr int own = 3;                   // items of a thread at a time

  struct alignas(16) Pack {
    T x[pack];
  };

  Block& block;
  M& m;
  const GreedyArguments<T>& a;
  const typename M::template Shared<T> columns;                // [items, slice], where it is resident
  const typename Block::template Memory<T> coverage, settled;  // now, and when the gains were settled
  const typename Block::template Memory<Raise<T>> raises;
  const typename M::template Shared<int> counts;  // of raises: this round's, and the next one's
  const int packs, groups;
  const int group, first_pack;                           // of this thread
  const typename Block::template Memory<Raise<T>> list;  // of the items of this warp that rise, while a choice is made

  explicit VTKERNELS_DEVICE GreedyLosses(Block& block)
      : block(block),
        m(block.m),
        a(block.a),
        columns(m.template shared<T>(a.layout.similarity)),
        coverage(block.template memory<T>(a.layout.coverage)),
        settled(block.template memory<T>(a.layout.settled)),
        raises(block.template memory<Raise<T>>(a.layout.raises)),
        counts(m.template shared<int>(a.layout.counts)),
        packs(greedy_packs(a.slice, sizeof(T))),
        groups(greedy_groups(a.slice, sizeof(T))),
        group(block.thread / packs),
        first_pack(block.thread - group * packs),
        list(raises + block.warp * (greedy_raises(a.items) / Block::warps)) {}

  VTKERNELS_DEVICE void start() {
    if constexpr (resident) {
      for (int i = block.thread; i < a.items * packs; i += Block::threads) {
        const int row = i / packs, c = i % packs * pack;
        const bool inside = block.first + c < a.row_stride;
        m.copy16(columns + (row * a.slice + c), block.similarity + (inside ? row * a.row_stride + block.first + c : 0), inside);
      }
      m.commit_copies();
    }
    for (int i = block.thread; i < a.items; i += Block::threads) {
      coverage[i] = T{0};
      settled[i] = T{0};
      raises[i] = Raise<T>{0, kGreedyMost<T>, i};
    }
    if (block.thread < 2) counts[block.thread] = 0;
    if constexpr (resident) m.template wait_copies<0>();
    m.sync();
    spread(a.items);
  }

  VTKERNELS_DEVICE void add(int64_t round) {
    const int turn = static_cast<int>(round % 2);
    if (block.thread == 0) counts[1 - turn] = 0;
    for (int start = 32 * block.warp; start < a.items; start += own * Block::threads) {
      const Rising rising(
          *this, start, [&](int i) { return static_cast<T>(settled[i]); }, [&](int i) { return static_cast<T>(coverage[i]); });
      if (rising.count == 0) continue;
      const int place = block.lane == 0 ? m.template fetch_add_shared<int>(counts + turn, rising.count) : 0;
      rising.write(raises + m.shuffle(place, 0), [&](int i, T after) { settled[i] = after; });
    }
    m.sync();
    spread(counts[turn]);
  }

  // Up to `own` items of every lane, and how many of the warp's rise.
  struct Rising {
    const int start, lane;
    T before[own] = {}, after[own] = {};
    uint32_t words[own];
    int count = 0;

    template <class Before, class After>
    VTKERNELS_DEVICE Rising(const GreedyLosses& losses, int start, const Before& before_of, const After& after_of)
        : start(start), lane(losses.block.lane) {
#pragma unroll
      for (int u = 0; u < own; ++u) {
        const int i = item(u);
        if (i < losses.a.items) {
          before[u] = before_of(i);
          after[u] = after_of(i);
        }
      }
#pragma unroll
      for (int u = 0; u < own; ++u) {
        words[u] = losses.m.ballot(after[u] > before[u]);
        count += population(words[u]);
      }
    }

    VTKERNELS_DEVICE int item(int u) const { return start + u * Block::threads + lane; }

    template <class List, class Use>
    VTKERNELS_DEVICE void write(List to, const Use& use) const {
      int place = 0;
#pragma unroll
      for (int u = 0; u < own; ++u) {
        if (after[u] > before[u]) {
          to[place + population(words[u] & ((1u << lane) - 1))] = Raise<T>{-before[u], after[u] - before[u], item(u)};
          use(item(u), after[u]);
        }
        place += population(words[u]);
      }
    }
  };

  VTKERNELS_DEVICE Pack load(int item, int p) const {
    if constexpr (resident) {
      return m.template shared<Pack>(a.layout.similarity)[item * packs + p];
    } else {
      return *reinterpret_cast<const Pack*>(block.similarity + item * a.row_stride + (block.first + p * pack));
    }
  }

  // What the candidates lose to the first `count` raises.
  VTKERNELS_DEVICE void spread(int count) {
    for (int p = first_pack; p < packs && group < groups; p += Block::threads) {  // again only where there is one group
      const int c = p * pack;
      const bool inside = resident || block.first + c < a.row_stride;
      int64_t lost[pack] = {};
      for (int r = inside ? group : count; r < count; r += ahead * groups) {
        Raise<T> raise[ahead];
        Pack tile[ahead];
#pragma unroll
        for (int u = 0; u < ahead; ++u) {
          raise[u] = Raise<T>{0, 0, 0};
          if (r + u * groups < count) raise[u] = raises[r + u * groups];
          tile[u] = load(raise[u].item, p);
        }
        Sum all[pack] = {};
#pragma unroll
        for (int u = 0; u < ahead; ++u) {
#pragma unroll
          for (int e = 0; e < pack; ++e) all[e] += static_cast<Sum>(lost_to(tile[u].x[e], raise[u].uncovered, raise[u].rise));
        }
#pragma unroll
        for (int e = 0; e < pack; ++e) lost[e] += static_cast<int64_t>(all[e]);
      }
#pragma unroll
      for (int e = 0; e < pack; ++e) block.parts[group * a.slice + block.place_of(c + e)] = lost[e];
    }
    m.sync();
  }
};

// Steps 3 and 4. A lane has a candidate of the pool, the same one in all warps and, as there are fewer than lanes, twice in
// each.
template <class Block>
struct GreedyPool {
  using M = std::remove_reference_t<decltype(Block::m)>;
  using T = typename Block::Element;
  using Losses = GreedyLosses<Block>;
  static constexpr bool copied = Block::place != GreedyPlace::workspace;
  static_assert(2 * kGreedyPool == 32);

  Block& block;
  Losses& losses;
  M& m;
  const GreedyArguments<T>& a;
  const typename M::template Shared<T> rows;        // [pool, stride]
  const typename M::template Shared<int64_t> lost;  // [2, warps, lanes], in turns
  const typename M::template Shared<int> places;    // [warps, pool]
  const int stride, slot;
  uint64_t bound = 0;
  int turn = 0;
  int before = 0;  // choices from the blocks before this one, as warp 0 knows
  // of this lane's candidate
  uint64_t key = kGreedyNobody;
  int64_t gain = -1;
  float weight = 0;
  uint32_t index = 0;
  int chosen_at = -1;  // step, or not in this round
  uint32_t chosen_with = 0;

  VTKERNELS_DEVICE GreedyPool(Block& block, Losses& losses)
      : block(block),
        losses(losses),
        m(block.m),
        a(block.a),
        rows(m.template shared<T>(a.layout.rows)),
        lost(m.template shared<int64_t>(a.layout.lost)),
        places(m.template shared<int>(a.layout.places)),
        stride(static_cast<int>(greedy_pool_stride(a.items, sizeof(T)))),
        slot(block.lane % kGreedyPool) {}

  VTKERNELS_DEVICE void choose(int64_t round) {
    const auto letters = block.letters_of(round);
    block.receive(round);
    const GreedyLetter letter = letters[block.lane];
    const uint64_t written = block.key_of(letter.gain, letter.weight, letter.index);
    uint64_t other = kGreedyNobody;
    if (block.lane < block.writers * block.blocks) {
      other = static_cast<uint64_t>(static_cast<GreedyLetter>(letters[kGreedyLetters + block.lane]).gain);
    }
    bound = least_of_warp(m, other);
    uint32_t live = m.ballot(written < bound);
    if (live == 0) {  // a score outside may rise: one choice is certain all the same
      bound = least_of_warp(m, written) + 1;
      live = m.ballot(written < bound);
    }
    while (population(live) > a.layout.pool) {
      bound = ~least_of_warp(m, written < bound ? ~written : ~uint64_t{0});
      live = m.ballot(written < bound);
    }
    const auto own_places = places + block.warp * kGreedyPool;
    if (written < bound) own_places[population(live & ((1u << block.lane) - 1))] = block.lane;
    m.sync_warp();
    const int count = population(live);
    const int from = slot < count ? static_cast<int>(own_places[slot]) : 0;
    const GreedyLetter mine = letters[from];
    key = m.shuffle(written, from);
    gain = mine.gain;
    weight = mine.weight;
    index = mine.index;
    chosen_at = -1;
    if (slot >= count) {
      gain = -1;
      key = kGreedyNobody;
    }
    if constexpr (copied) copy(count);
  }

  // What similarity the candidates have to all items.
  VTKERNELS_DEVICE void copy(int count) {
    constexpr int pack = 16 / sizeof(T), ahead = 8;
    for (int s = block.warp; s < count; s += Block::warps) {
      const T* column = block.column(m.shuffle(index, s));
      const auto row = rows + s * stride;
      if constexpr (kGreedySymmetric<T>) {
        for (int i = pack * block.lane; i < a.items; i += 32 * pack) m.copy16(row + i, column + i, true);
      } else {
        for (int start = block.lane; start < a.items; start += 32 * ahead) {
          T x[ahead];
#pragma unroll
          for (int u = 0; u < ahead; ++u) {
            const int i = start + 32 * u;
            x[u] = i < a.items ? column[i * a.row_stride] : T{0};
          }
#pragma unroll
          for (int u = 0; u < ahead; ++u) {
            if (start + 32 * u < a.items) row[start + 32 * u] = x[u];
          }
        }
      }
    }
    m.commit_copies();
    m.template wait_copies<0>();
    m.sync();
  }

  VTKERNELS_DEVICE T entry(int s, uint32_t candidate, int item) const {
    if constexpr (copied) {
      return rows[s * stride + item];
    } else {
      return block.column(candidate)[kGreedySymmetric<T> ? item : item * a.row_stride];
    }
  }

  // The slot of the next choice, or -1 where it may be outside of the pool. Ties are rare: most often one half of the key
  // tells.
  VTKERNELS_DEVICE int best() const {
    const uint32_t high = static_cast<uint32_t>(key >> 32), least = m.reduce_min(high);
    uint32_t holders = m.ballot(high == least) & kGreedySlots;
    if ((holders & (holders - 1)) != 0) {
      const uint32_t low = m.reduce_min(high == least ? static_cast<uint32_t>(key) : ~0u);
      holders = m.ballot(key == (uint64_t{least} << 32 | low)) & kGreedySlots;
    }
    const int chosen = first_bit(holders);
    const auto limit = static_cast<uint32_t>(bound >> 32);
    if (least == limit && m.ballot(slot == chosen && key < bound) == 0) return -1;
    return least <= limit ? chosen : -1;
  }

  VTKERNELS_DEVICE void take(int chosen, int step) {
    if (slot != chosen) return;
    gain = -1;
    chosen_at = step;
    chosen_with = static_cast<uint32_t>(key >> 32);
  }

  // Coverage rises to the similarity of a candidate in slot `chosen`, and the gains of the others fall.
  VTKERNELS_DEVICE void cover(int chosen) {
    constexpr int ahead = 4;
    const uint32_t pick = copied ? 0 : m.shuffle(index, chosen);
    int64_t sum = 0;
    for (int start = 32 * block.warp; start < a.items; start += Losses::own * Block::threads) {
      const typename Losses::Rising rising(
          losses, start, [&](int i) { return static_cast<T>(losses.coverage[i]); },
          [&](int i) { return entry(chosen, pick, i); });
      if (rising.count == 0) continue;
      rising.write(losses.list, [&](int i, T after) { losses.coverage[i] = after; });
      m.sync_warp();
      // A lane's copy of a candidate takes every other item.
#pragma unroll 1
      for (int r = gain >= 0 ? block.lane / kGreedyPool : rising.count; r < rising.count; r += 2 * ahead) {
        Raise<T> raise[ahead];
        T x[ahead];
#pragma unroll
        for (int u = 0; u < ahead; ++u) {
          raise[u] = Raise<T>{0, 0, start};
          if (r + 2 * u < rising.count) raise[u] = losses.list[r + 2 * u];
          x[u] = entry(slot, index, raise[u].item);
        }
        typename Losses::Sum part = 0;
#pragma unroll
        for (int u = 0; u < ahead; ++u) {
          part += static_cast<typename Losses::Sum>(lost_to(x[u], raise[u].uncovered, raise[u].rise));
        }
        sum += static_cast<int64_t>(part);
      }
      m.sync_warp();
    }
    turn = 1 - turn;
    const auto own_lost = lost + turn * Block::threads;
    own_lost[block.thread] = sum;
    m.sync();
    sum = 0;
#pragma unroll
    for (int warp = 0; warp < Block::warps; ++warp) sum += static_cast<int64_t>(own_lost[32 * warp + block.lane]);
    sum += m.shuffle_xor(sum, kGreedyPool);
    if (gain >= 0) gain -= sum;
    key = block.key_of(gain, weight, index);
  }

  // What was chosen in the round.
  VTKERNELS_DEVICE void hand_in() {
    if (block.warp != 0) return;
    const bool chosen = block.lane < kGreedyPool && chosen_at >= 0;
    before += population(m.ballot(chosen && static_cast<int>(index) < block.first));
    if (chosen) block.take(chosen_at, static_cast<int>(index), chosen_with);
  }
};

template <class T, GreedyPlace Place>
struct Greedy {
  static constexpr const char* name = "greedy";
  static constexpr int threads = kGreedyThreads;
  using Arguments = GreedyArguments<T>;

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    using Block = GreedyBlock<M, T, Place>;
    m.wait_for_previous_launch();
    Block block(m, a);
    const int found = a.k < block.valid ? static_cast<int>(a.k) : block.valid;
    if (found > 0) {
      block.open();
      block.load_weights();
      GreedyLosses<Block> losses(block);
      GreedyPool<Block> pool(block, losses);
      int step = 0;
      losses.start();
      for (int64_t round = 0; step < found; ++round) {
        if (round > 0) losses.add(round);
        block.settle(losses.groups, round);
        pool.choose(round);
        for (int chosen; (chosen = pool.best()) >= 0;) {
          pool.take(chosen, step);
          if (++step == found) break;
          pool.cover(chosen);
        }
        pool.hand_in();
      }
      if (a.sort) block.write_ascending(pool.before);
    }
    for (int64_t s = int64_t{found} + block.thread; s < a.k; s += threads) {
      if (block.rank == 0) block.write(s, -1, 0.0f);
    }
  }
};

// The last launch of the plan, on a state behind everything else in the workspace.
template <class T, class Stream>
void launch_greedy(const Stream& stream, const GreedyPlan& plan, GreedyArguments<T>& arguments, char* state) {
  const Shape& shape = plan.shape[plan.launches - 1];
  arguments.slice = greedy_slice(arguments.candidates, shape.cluster);
  arguments.layout = GreedyLayout(plan.place, sizeof(T), arguments.items, arguments.slice, shape.cluster, plan.pool);
  arguments.state = state;
  switch (plan.place) {
    case GreedyPlace::resident: return stream.template run<Greedy<T, GreedyPlace::resident>>(arguments, shape);
    case GreedyPlace::shared: return stream.template run<Greedy<T, GreedyPlace::shared>>(arguments, shape);
    case GreedyPlace::workspace: return stream.template run<Greedy<T, GreedyPlace::workspace>>(arguments, shape);
  }
}

}  // namespace vtkernels::cuda
