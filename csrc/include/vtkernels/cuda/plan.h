// What a launch looks like on a given GPU, decided in plain C++ without one: `vtkernels._host` shows it and the tests read it.
#pragma once

#include <cstdint>

#include "vtkernels/array.h"

namespace vtkernels::cuda {

// What a plan depends on.
struct Gpu {
  int arch;  // ten times the compute capability: 80, 90, 100
  int multiprocessors;
  int64_t shared_per_block;  // bytes a block can have
};

struct Shape {
  int64_t blocks_x = 1;
  int64_t blocks_y = 1;
  int64_t shared = 0;     // bytes of a block
  int cluster = 1;        // blocks along x that reach into each other's shared memory
  bool resident = false;  // the blocks wait for each other, so all must run at the same time
  // The launch before it is of the same call, and this one may start while that still runs. Its kernel must call
  // wait_for_previous_launch(). Not together with `resident`, nor before sm_90.
  bool dependent = false;
};

// One call of an op: the path that was chosen, its launches in order, and the workspace they share.
struct Plan {
  const char* path;
  int launches;
  Shape shape[3];
  int64_t workspace;  // bytes
};

VTKERNELS_INLINE constexpr int64_t power_of_two(int64_t x) {
  int64_t power = 1;
  while (power < x) power *= 2;
  return power;
}

// ------------------------------------------------------------------------------------------------ top-k by one block

constexpr int kTopkThreads = 512;
constexpr int kTopkFew = 2;   // entries a thread that are held in registers in a short row,
constexpr int kTopkMany = 8;  // and in a longer one; beyond, every pass reads them again
constexpr int kTopkPasses = 4;
constexpr int kTopkBuckets = 256;  // of a pass
constexpr int64_t kTopkHistograms = 4 * kTopkPasses * kTopkBuckets;
constexpr int64_t kTopkOrdered = 2048;  // winners that are put in order in shared memory

// Bytes of workspace for a row: best first, more winners than shared memory is for are put in order there.
VTKERNELS_INLINE constexpr int64_t topk_workspace(int64_t k, bool sort) {
  return sort || power_of_two(k) <= kTopkOrdered ? 0 : 8 * power_of_two(k);
}

// Bytes of shared memory: histograms, what one warp tells the others, two numbers per warp, and the winners that are to be put
// in order.
VTKERNELS_INLINE constexpr int64_t topk_shared(int64_t k, bool sort) {
  const bool ordered = k > 0 && !sort && topk_workspace(k, sort) == 0;
  return kTopkHistograms + 16 + 4 * 2 * 32 + (ordered ? 8 * power_of_two(k) : 0);
}

inline Plan plan_topk_select(const Gpu&, int64_t images, int64_t n, int64_t k, bool sort) {
  const Shape shape{images, 1, topk_shared(k, sort), 1, false};
  return {n <= kTopkMany * kTopkThreads ? "registers" : "read again", 1, {shape}, images * topk_workspace(k, sort)};
}

// ------------------------------------------------------------------------------------------------ attention of one query row

constexpr int kAttentionThreads = 512;
constexpr int kAttentionCluster = 8;  // the largest that every GPU with clusters allows

// Bytes of shared memory: for two heads, a query and two numbers per warp; for each of `rows` arrays, a float per token.
VTKERNELS_INLINE constexpr int64_t attention_shared(int64_t tokens, int64_t channels, int rows) {
  return 4 * (2 * round_up(channels, 8) + 2 * 2 * kAttentionThreads / 32 + rows * round_up(tokens, 4));
}

// `k` < 0: the attention alone.
inline Plan plan_attention(const Gpu& gpu, int64_t images, int64_t heads, int64_t tokens, int64_t channels, int64_t, int64_t k,
                           bool sort) {
  const int64_t select = k < 0 ? 0 : round_up(topk_shared(k, sort), 16), sorted = k < 0 ? 0 : images * topk_workspace(k, sort);
  int cluster = 1;
  while (2 * cluster <= kAttentionCluster && 2 * cluster <= heads) cluster *= 2;
  // One launch: a cluster per image, its blocks share the heads and add them up in each other's shared memory.
  const int64_t shared = attention_shared(tokens, channels, 3) + select;
  if (gpu.arch >= 90 && shared <= gpu.shared_per_block) {
    return {"cluster", 1, {{images * cluster, 1, shared, cluster, false}}, sorted};
  }
  // Two: a block per head, then a block per image.
  const Shape head{images * heads, 1, attention_shared(0, channels, 0), 1, false};
  const Shape image{images, 1, select, 1, false, gpu.arch >= 90};
  return {"heads", 2, {head, image}, round_up(4 * images * heads * tokens, 16) + sorted};
}

// ------------------------------------------------------------------------------------------------ compact_

constexpr int kCompactThreads = 128;
constexpr int kCompactUnits = 32;  // of a row that a block moves: 16 bytes or an element each

// Whether rows of `channels` elements can be moved 16 bytes at a time.
inline bool in_sixteens(const void* data, int64_t element, const int64_t (&stride)[3], int64_t channels) {
  const int64_t per = 16 / element;
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && channels % per == 0 && stride[2] == 1 && stride[0] % per == 0 &&
         stride[1] % per == 0;
}

inline Plan plan_compact_(const Gpu&, int64_t images, int64_t channels, int64_t element, bool sixteens) {
  const int64_t units = sixteens ? channels * element / 16 : channels;
  // Along x alone, which takes 2**31 - 1 blocks: along y there can be 65,535.
  const Shape shape{images * ((units + kCompactUnits - 1) / kCompactUnits), 1, 0, 1, false};
  return {sixteens ? "16 bytes" : "elements", 1, {shape}, 0};
}

// ------------------------------------------------------------------------------------------------ the Gram product

constexpr int kGramTile = 64;  // rows and columns of a tile
constexpr int kGramThreads = 128;
constexpr int kGramBytes = 128;  // of a row in a stage
constexpr int kGramStages = 4;
constexpr int64_t kGramStageBytes = 2 * kGramTile * kGramBytes;
constexpr int64_t kGramShared = kGramStages * kGramStageBytes + 2 * kGramTile * (4 + 8);  // and norms, and directions

// Tiles of the lower triangle.
VTKERNELS_INLINE constexpr int64_t gram_tiles(int64_t n) {
  const int64_t rows = (n + kGramTile - 1) / kGramTile;
  return rows * (rows + 1) / 2;
}

// ------------------------------------------------------------------------------------------------ the greedy loop

constexpr int kGreedyThreads = 768;
constexpr int kGreedyCluster = 8;  // the largest that every GPU with clusters allows

// What is in shared memory: similarity and state, state alone, or nothing but what the blocks tell each other.
enum class GreedyPlace { resident, shared, workspace };

// Elements from row to row of a similarity in the workspace.
VTKERNELS_INLINE constexpr int64_t greedy_stride(int64_t n) { return round_up(n, 8); }

// Candidates of each block of a cluster.
VTKERNELS_INLINE constexpr int greedy_slice(int64_t n, int cluster) {
  return static_cast<int>(n == 0 ? 8 : round_up((n + cluster - 1) / cluster, 8));
}

// Warps that have candidates.
VTKERNELS_INLINE constexpr int greedy_writers(int slice) {
  return slice < kGreedyThreads ? (slice + 31) / 32 : kGreedyThreads / 32;
}

// Warps side by side, their lanes on 16 bytes of candidates each; and how many such rows of warps share the items.
VTKERNELS_INLINE constexpr int greedy_wide(int slice, int64_t element) {
  return static_cast<int>((slice * element + 511) / 512);
}
VTKERNELS_INLINE constexpr int greedy_groups(int slice, int64_t element) {
  const int wide = greedy_wide(slice, element), warps = kGreedyThreads / 32;
  return wide < warps ? warps / wide : 1;
}

// Where a block of the loop keeps what: bytes of its shared memory, or of its state in the workspace.
struct GreedyLayout {
  int64_t similarity = 0, coverage = 0, raises = 0, parts = 0, gains = 0, weights = 0, slots = 0, boxes = 0, counts = 0;
  int64_t shared = 0, state = 0;

  GreedyLayout() = default;
  GreedyLayout(GreedyPlace place, int64_t element, int64_t items, int slice, int cluster) {
    int64_t end = 0;
    const auto take = [&](int64_t bytes) {
      const int64_t begin = end;
      end += round_up(bytes, 32);
      return begin;
    };
    if (place == GreedyPlace::resident) {
      similarity = take(items * slice * element);
      parts = take(2 * (kGreedyThreads / 32) * slice * element);
    } else {
      coverage = take(items * element);
      raises = take(items * 4 * element);
      parts = take(int64_t{8} * 2 * greedy_groups(slice, element) * slice);
    }
    gains = take(int64_t{8} * slice);
    weights = take(int64_t{4} * slice);
    if (place == GreedyPlace::workspace) {
      state = end;
      end = 0;
    }
    slots = take(int64_t{8} * 2 * cluster * greedy_writers(slice));
    boxes = take(16);
    counts = take(8);
    shared = end;
  }
};

struct GreedyPlan : Plan {
  GreedyPlace place = GreedyPlace::resident;
};

// The loop as the last launch of `plan`. One block an image where its part of the similarity fits in shared memory, else a
// cluster of blocks; where no cluster is large enough, or there are none, the similarity is read from the cache. Then more
// blocks read faster, as long as they are not wanted for other images.
inline GreedyPlan plan_greedy(const Gpu& gpu, Plan plan, int64_t images, int64_t items, int64_t n, int64_t element) {
  const int largest = gpu.arch >= 90 ? kGreedyCluster : 1;
  GreedyPlace place = GreedyPlace::resident;
  int cluster = 1;
  const auto layout = [&] { return GreedyLayout(place, element, items, greedy_slice(n, cluster), cluster); };
  while (2 * cluster <= largest && layout().shared > gpu.shared_per_block) cluster *= 2;
  if (items > kGreedyThreads || layout().shared > gpu.shared_per_block) {
    place = GreedyPlace::shared;
    cluster = 1;
    while (2 * cluster <= largest && 2 * cluster * images <= gpu.multiprocessors && n > 64 * cluster) cluster *= 2;
    if (layout().shared > gpu.shared_per_block) place = GreedyPlace::workspace;
  }
  plan.path = place == GreedyPlace::resident ? "resident" : place == GreedyPlace::shared ? "streamed" : "streamed, state too";
  plan.shape[plan.launches++] = {images * cluster, 1, layout().shared, cluster, false};
  plan.workspace = round_up(plan.workspace, 256) + images * cluster * layout().state;
  return {plan, place};
}

inline GreedyPlan plan_scope_select(const Gpu& gpu, int64_t images, int64_t n) {
  const Plan gram{"", 1, {{images * gram_tiles(n), 1, kGramShared, 1, false}}, 4 * images * n * greedy_stride(n)};
  return plan_greedy(gpu, gram, images, n, n, 4);
}

// ------------------------------------------------------------------------------------------------ coverage_select

constexpr int kCoverageThreads = 256;
constexpr int64_t kCoverageEntries = 4096;  // of a block, as far as there are blocks for them
constexpr int64_t kCoverageBlocks = 256;    // of an image, at most

// Bits behind the point: an entry is below 2 ** (bits + 2), and the sum of all items must fit 63 bits.
VTKERNELS_INLINE constexpr int coverage_bits(int64_t items) {
  int length = 0;
  while (items >> length != 0) ++length;
  return length <= 15 ? 45 : 60 - length;
}

// Bytes of the workspace in which the fixed point similarity comes first.
struct CoverageWorkspace {
  int64_t greatest, scale, all;

  CoverageWorkspace(int64_t images, int64_t items, int64_t n, int64_t blocks)
      : greatest(round_up(8 * images * items * greedy_stride(n), 256)),
        scale(greatest + round_up(4 * images * blocks, 256)),
        all(scale + round_up(4 * images, 256)) {}
};

inline GreedyPlan plan_coverage_select(const Gpu& gpu, int64_t images, int64_t items, int64_t n) {
  int64_t blocks = (items * greedy_stride(n) + kCoverageEntries - 1) / kCoverageEntries;
  blocks = blocks < 1 ? 1 : blocks > kCoverageBlocks ? kCoverageBlocks : blocks;
  const Shape share{images * blocks, 1, 4 * kCoverageThreads / 32, 1, false};
  const Plan fixed{"", 2, {share, share}, CoverageWorkspace(images, items, n, blocks).all};
  return plan_greedy(gpu, fixed, images, items, n, 8);
}

// ------------------------------------------------------------------------------------------------ graph_propagate

constexpr int kGraphThreads = 1024;

// Elements from row to row of the weights.
VTKERNELS_INLINE constexpr int64_t graph_stride(int64_t n) { return round_up(n, 4); }

// All blocks of the steps run at the same time, one on each multiprocessor at most.
inline Plan plan_graph_propagate(const Gpu& gpu, int64_t images, int64_t n) {
  const int64_t rows = images * n, warps = kGraphThreads / 32, wanted = (rows + warps - 1) / warps;
  const Shape weights{images * gram_tiles(n), 1, kGramShared, 1, false};
  const Shape steps{wanted < gpu.multiprocessors ? wanted : gpu.multiprocessors, 1, 0, 1, true};
  return {"grid", 2, {weights, steps}, 4 * (round_up(rows * graph_stride(n), 32) + 4 * round_up(rows, 32) + 32)};
}

}  // namespace vtkernels::cuda
