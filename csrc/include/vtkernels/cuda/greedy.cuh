// The greedy loop of scope_select and coverage_select: a block or a cluster of blocks an image, all steps in one launch.
//
// Similarities are fixed-point integers (negative ones, which never cover anything, are 0), so every gain is an exact sum
// whatever its order. Gains are kept up to date instead of being computed again: a choice that raises the coverage of item i
// from `before` to `after` takes clamp(C_ij, before, after) - before off the gain of candidate j and touches nothing else. Few
// items rise: about 34 of 576 in the mean of 64 steps, 15 in half of them. Lazy evaluation would read as many rows, 22 to 90,
// one after the other and each behind a search of the maximum.
//
// The blocks of a cluster share the candidates; each keeps the coverage of all items. A step:
//   1. all know the choice; coverage rises to its column of the similarity
//   2. what the items that rise take off the gains of the block's candidates, added up by several warps
//   3. gains, scores, and the best of every warp's candidates, which is sent to a slot in the shared memory of every block
//   4. all wait for their letters, and every warp finds the best of the slots
// Slots take turns, so that nobody writes what another block still reads: who sends a letter has received all of the round
// before.
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
  int64_t item_stride;       // in the column of a candidate. A symmetric matrix has it as a row too, which is faster to read
  int64_t candidate_stride;  // from column to column
  const float* scale;        // of each image: what a similarity of 1 / unit is worth; null: 1
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

// An item whose coverage rises.
template <class T>
struct alignas(16) Raise {
  T before, after;
  int item;
};

// What of its similarity to the item a candidate loses.
template <class T>
VTKERNELS_DEVICE T lost_to(T similarity, T before, T after) {
  const T reached = similarity < after ? similarity : after;
  return reached > before ? reached - before : T{0};
}

VTKERNELS_DEVICE int first_bit(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __ffs(static_cast<int>(x)) - 1;
#else
  return __builtin_ctz(x);
#endif
}

// More than any similarity.
template <class T>
constexpr T kGreedyMost = static_cast<T>(~std::make_unsigned_t<T>{0} >> 1);

// What a block knows of its image, and steps 1, 3 and 4.
template <class M, class T, GreedyPlace Place>
struct GreedyBlock {
  static constexpr int threads = kGreedyThreads, warps = threads / 32;
  static constexpr int64_t taken = -2, invalid = -1;  // in place of a gain, which is never negative
  using Arguments = GreedyArguments<T>;
  using Part = std::conditional_t<Place == GreedyPlace::resident && sizeof(T) == 4, uint32_t, int64_t>;
  template <class E>
  using Memory = std::conditional_t<Place == GreedyPlace::workspace, E*, typename M::template Shared<E>>;

  M& m;
  const Arguments& a;
  const int rank, blocks;
  const int64_t b;       // the image
  const int first, own;  // candidates of this block, and how many
  const int writers;     // warps that have candidates, in the blocks that have most of them
  const int valid;
  const T* const similarity;
  const float worth;
  const Memory<int64_t> gains;
  const Memory<float> weights;  // of a taken candidate: its score
  const Memory<Part> parts;     // [2, groups, slice]: what step 2 leaves, in turns
  const typename M::template Shared<uint64_t> slots, boxes;

  VTKERNELS_DEVICE GreedyBlock(M& machine, const Arguments& arguments)
      : m(machine),
        a(arguments),
        rank(m.cluster_rank()),
        blocks(m.cluster_size()),
        b(m.block_x() / blocks),
        first(rank * a.slice),
        own(least(a.slice, a.candidates > first ? a.candidates - first : 0)),
        writers(greedy_writers(a.slice)),
        valid(static_cast<int>(a.lengths(b, a.candidates))),
        similarity(a.similarity + b * a.image_stride),
        worth(a.scale == nullptr ? 1.0f : a.scale[b]),
        gains(memory<int64_t>(a.layout.gains)),
        weights(memory<float>(a.layout.weights)),
        parts(memory<Part>(a.layout.parts)),
        slots(m.template shared<uint64_t>(a.layout.slots)),
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

  static VTKERNELS_DEVICE int least(int x, int y) { return x < y ? x : y; }

  VTKERNELS_DEVICE void load_weights() {
    for (int c = m.thread(); c < own; c += threads) {
      float weight = a.add ? 0.0f : 1.0f;
      if (a.weight.data != nullptr && first + c < valid) weight = greedy_weight(load_float(a.weight, b, first + c), a.alpha);
      weights[c] = weight;
    }
  }

  VTKERNELS_DEVICE void open() {
    if (m.thread() < 2) m.open_mailbox(boxes + m.thread());
    m.sync_cluster();
  }

  // The best score of the image, packed, after the parts of this round are off the gains; those of round 0 are the gains.
  VTKERNELS_DEVICE uint64_t settle(int groups, int64_t round) {
    const int turn = static_cast<int>(round % 2), parity = static_cast<int>(round / 2 % 2), letters = blocks * writers;
    const auto own_parts = parts + turn * groups * a.slice;
    const auto own_slots = slots + turn * letters;
    m.sync();
    uint64_t best = ~uint64_t{0};
    for (int c = m.thread(); c < own; c += threads) {
      int64_t sum = 0;
#pragma unroll 8
      for (int group = 0; group < groups; ++group)
        sum += static_cast<int64_t>(static_cast<Part>(own_parts[group * a.slice + c]));
      int64_t gain = round > 0 ? static_cast<int64_t>(gains[c]) : first + c < valid ? 0 : invalid;
      if (gain >= 0) gain = round > 0 ? gain - sum : sum;
      gains[c] = gain;
      if (gain < 0) continue;
      const float score = static_cast<float>(gain) * a.unit * worth, weight = weights[c];
      const uint64_t key = rank_bits(a.add ? score + weight : score * weight);
      const uint64_t packed = key << 32 | static_cast<uint32_t>(first + c);
      if (packed < best) best = packed;
    }
    if (m.thread() == 0) m.expect(boxes + turn, 8 * letters);
    if (m.warp() < writers) {
      best = least_of_warp(best);
      if (m.lane() < blocks) m.send(own_slots + (rank * writers + m.warp()), m.lane(), best, boxes + turn);
    }
    m.receive(boxes + turn, parity);
    best = ~uint64_t{0};
    for (int s = m.lane(); s < letters; s += 32) {
      const uint64_t other = own_slots[s];
      if (other < best) best = other;
    }
    return least_of_warp(best);
  }

  VTKERNELS_DEVICE uint64_t least_of_warp(uint64_t x) {
    const uint32_t high = static_cast<uint32_t>(x >> 32), least_high = m.reduce_min(high);
    const uint32_t low = m.reduce_min(high == least_high ? static_cast<uint32_t>(x) : ~0u);
    return uint64_t{least_high} << 32 | low;
  }

  VTKERNELS_DEVICE void take(int64_t step, int pick, uint32_t key) {
    // No score is negative, so its bits are the key's but for the sign.
    const float score = key == ~0u ? float_from_bits(0x7fc00000u) : float_from_bits(~key & 0x7fffffffu);
    const int c = pick - first;
    if (c >= 0 && c < own && c % threads == m.thread()) {  // the thread that has this candidate in settle
      gains[c] = taken;
      weights[c] = score;
    }
    if (!a.sort && rank == 0 && m.thread() == 0) write(step, pick, score);
  }

  VTKERNELS_DEVICE void write(int64_t s, int64_t index, float score) {
    a.indices(b, s) = index;
    if (a.gains.data != nullptr) a.gains(b, s) = score;
  }

  // What this block's candidates have been taken, from slot `s` on.
  VTKERNELS_DEVICE void write_ascending(int64_t s) {
    m.sync();
    if (m.warp() != 0) return;
    for (int start = 0; start < own; start += 32) {
      const int c = start + m.lane();
      const bool chosen = c < own && static_cast<int64_t>(gains[c]) == taken;
      const uint32_t word = m.ballot(chosen);
      if (chosen) write(s + population(word & ((1u << m.lane()) - 1)), first + c, weights[c]);
      s += population(word);
    }
  }
};

// Step 2 with the block's columns of the similarity in shared memory. A warp has a few items, one in a lane, and their coverage
// in registers; it goes over those that rise with its lanes on the candidates. Nothing has to be listed for others.
template <class Block>
struct ResidentLosses;

template <class M, class T>
struct ResidentLosses<GreedyBlock<M, T, GreedyPlace::resident>> {
  using Block = GreedyBlock<M, T, GreedyPlace::resident>;
  static constexpr int unroll = 3;  // candidates of a lane at a time
  static constexpr int groups = Block::warps;

  Block& block;
  M& m;
  const GreedyArguments<T>& a;
  const typename M::template Shared<T> columns;  // [items, slice]
  const int item;
  T covered = 0;

  explicit VTKERNELS_DEVICE ResidentLosses(Block& block)
      : block(block), m(block.m), a(block.a), columns(m.template shared<T>(a.layout.similarity)), item(item_of(m.lane())) {}

  // Items are dealt eight at a time: 32 bytes are read at once, and neighbours rise together.
  VTKERNELS_DEVICE int item_of(int lane) const { return 8 * (lane / 8 * Block::warps + m.warp()) + lane % 8; }

  VTKERNELS_DEVICE void start() {
    constexpr int pack = 16 / sizeof(T);
    const int packs = a.slice / pack;
    for (int i = m.thread(); i < a.items * packs; i += Block::threads) {
      const int row = i / packs, c = i % packs * pack;
      const bool inside = block.first + c < a.row_stride;
      m.copy16(columns + (row * a.slice + c), block.similarity + (inside ? row * a.row_stride + block.first + c : 0), inside);
    }
    m.commit_copies();
    m.template wait_copies<0>();
    m.sync();
    spread(item < a.items, 0, kGreedyMost<T>, 0);
  }

  VTKERNELS_DEVICE void add(int pick, int turn) {
    T after = 0;
    if (item < a.items) after = block.similarity[pick * a.candidate_stride + item * a.item_stride];
    spread(after > covered, covered, after, turn);
    if (after > covered) covered = after;
  }

  // What the candidates lose to those items of the warp that rise.
  VTKERNELS_DEVICE void spread(bool rises, T before, T after, int turn) {
    const uint32_t rising = m.ballot(rises);
    for (int from = 0; from < a.slice; from += 32 * unroll) {
      typename Block::Part lost[unroll] = {};
      for (uint32_t left = rising; left != 0; left &= left - 1) {
        const int lane = first_bit(left);
        const T low = m.shuffle(before, lane), high = m.shuffle(after, lane);
        const auto row = columns + (item_of(lane) * a.slice + from + m.lane());
#pragma unroll
        for (int u = 0; u < unroll; ++u) {
          if (from + 32 * u + m.lane() < a.slice) lost[u] += lost_to<T>(row[32 * u], low, high);
        }
      }
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        const int c = from + 32 * u + m.lane();
        if (c < a.slice) block.parts[(turn * groups + m.warp()) * a.slice + c] = lost[u];
      }
    }
  }
};

// Step 2 with the similarity in global memory, which the cache keeps. The items that rise are listed; a warp goes over every so
// many-th of them, its lanes on 16 bytes of candidates each.
template <class Block>
struct StreamedLosses;

template <class M, class T, GreedyPlace Place>
struct StreamedLosses<GreedyBlock<M, T, Place>> {
  using Block = GreedyBlock<M, T, Place>;
  static constexpr int pack = 16 / sizeof(T);
  static constexpr int ahead = 4;  // loads on their way at the same time

  struct alignas(16) Pack {
    T x[pack];
  };

  Block& block;
  M& m;
  const GreedyArguments<T>& a;
  const typename Block::template Memory<T> coverage;
  const typename Block::template Memory<Raise<T>> raises;
  const typename M::template Shared<int> counts;  // of raises: this step's, and the next one's
  const int wide, groups;

  explicit VTKERNELS_DEVICE StreamedLosses(Block& block)
      : block(block),
        m(block.m),
        a(block.a),
        coverage(block.template memory<T>(a.layout.coverage)),
        raises(block.template memory<Raise<T>>(a.layout.raises)),
        counts(m.template shared<int>(a.layout.counts)),
        wide(greedy_wide(a.slice, sizeof(T))),
        groups(greedy_groups(a.slice, sizeof(T))) {}

  VTKERNELS_DEVICE void start() {
    for (int i = m.thread(); i < a.items; i += Block::threads) {
      coverage[i] = T{0};
      raises[i] = Raise<T>{0, kGreedyMost<T>, i};
    }
    if (m.thread() < 2) counts[m.thread()] = 0;
    m.sync();
    spread(a.items, 0);
  }

  VTKERNELS_DEVICE void add(int pick, int turn) {
    if (m.thread() == 0) counts[1 - turn] = 0;
    const T* column = block.similarity + pick * a.candidate_stride;
    for (int start = 32 * m.warp(); start < a.items; start += ahead * Block::threads) {
      T after[ahead];
#pragma unroll
      for (int u = 0; u < ahead; ++u) {
        const int i = start + u * Block::threads + m.lane();
        after[u] = i < a.items ? column[i * a.item_stride] : T{0};
      }
#pragma unroll
      for (int u = 0; u < ahead; ++u) {
        const int i = start + u * Block::threads + m.lane();
        const T before = i < a.items ? static_cast<T>(coverage[i]) : T{0};
        const bool rises = after[u] > before;
        const uint32_t rising = m.ballot(rises);
        if (rising == 0) continue;
        int place = m.lane() == 0 ? m.template fetch_add_shared<int>(counts + turn, population(rising)) : 0;
        place = m.shuffle(place, 0) + population(rising & ((1u << m.lane()) - 1));
        if (rises) {
          coverage[i] = after[u];
          raises[place] = Raise<T>{before, after[u], i};  // in any order: the sums are exact
        }
      }
    }
    m.sync();
    spread(counts[turn], turn);
  }

  // What the candidates lose to the first `count` items of the list.
  VTKERNELS_DEVICE void spread(int count, int turn) {
    for (int unit = m.warp(); unit < wide * groups; unit += Block::warps) {
      const int c = (unit % wide * 32 + m.lane()) * pack, group = unit / wide;
      if (c >= a.slice) continue;
      const T* own = block.similarity + block.first + c;
      const bool inside = block.first + c < a.row_stride;
      int64_t lost[pack] = {};
      for (int r = group; r < count; r += ahead * groups) {
        Raise<T> raise[ahead];
        Pack tile[ahead];
#pragma unroll
        for (int u = 0; u < ahead; ++u) {
          raise[u] = Raise<T>{0, 0, 0};
          tile[u] = Pack{};
          if (r + u * groups >= count || !inside) continue;
          raise[u] = raises[r + u * groups];
          tile[u] = *reinterpret_cast<const Pack*>(own + raise[u].item * a.row_stride);
        }
#pragma unroll
        for (int u = 0; u < ahead; ++u) {
#pragma unroll
          for (int e = 0; e < pack; ++e) lost[e] += lost_to<T>(tile[u].x[e], raise[u].before, raise[u].after);
        }
      }
#pragma unroll
      for (int e = 0; e < pack; ++e) block.parts[(turn * groups + group) * a.slice + c + e] = lost[e];
    }
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
    Block block(m, a);
    const int64_t found = a.k < block.valid ? a.k : block.valid;
    int64_t before = 0;  // choices from the blocks before this one
    if (found > 0) {
      block.open();
      block.load_weights();
      std::conditional_t<Place == GreedyPlace::resident, ResidentLosses<Block>, StreamedLosses<Block>> losses(block);
      losses.start();
      uint64_t best = block.settle(losses.groups, 0);
      for (int64_t step = 0;; ++step) {
        const int pick = static_cast<int>(best & 0xffffffffu);
        block.take(step, pick, static_cast<uint32_t>(best >> 32));
        before += pick < block.first;
        if (step + 1 == found) break;
        losses.add(pick, static_cast<int>((step + 1) % 2));
        best = block.settle(losses.groups, step + 1);
      }
      if (a.sort) block.write_ascending(before);
    }
    for (int64_t s = found + m.thread(); s < a.k; s += threads) {
      if (block.rank == 0) block.write(s, -1, 0.0f);
    }
  }
};

// The last launch of the plan, on a state behind everything else in the workspace.
template <class T, class Stream>
void launch_greedy(const Stream& stream, const GreedyPlan& plan, GreedyArguments<T>& arguments, char* state) {
  const Shape& shape = plan.shape[plan.launches - 1];
  arguments.slice = greedy_slice(arguments.candidates, shape.cluster);
  arguments.layout = GreedyLayout(plan.place, sizeof(T), arguments.items, arguments.slice, shape.cluster);
  arguments.state = state;
  switch (plan.place) {
    case GreedyPlace::resident: return stream.template run<Greedy<T, GreedyPlace::resident>>(arguments, shape);
    case GreedyPlace::shared: return stream.template run<Greedy<T, GreedyPlace::shared>>(arguments, shape);
    case GreedyPlace::workspace: return stream.template run<Greedy<T, GreedyPlace::workspace>>(arguments, shape);
  }
}

}  // namespace vtkernels::cuda
