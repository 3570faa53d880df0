// What a launch looks like on a given GPU, decided in plain C++ without one: `vtkernels._host` shows it and the tests read it.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "vtkernels/array.h"

namespace vtkernels::cuda {

// What a plan depends on.
struct Gpu {
  int arch;  // ten times the compute capability: 80, 90, 100
  int multiprocessors;
  int64_t shared_per_block;      // bytes a block can have
  int clusters[3] = {};          // of 2, 4 and 8 blocks, that run at the same time with all of that; 0: not known
  bool warpgroups = arch == 90;  // the library has kernels for sm_90a
};

VTKERNELS_INLINE constexpr int64_t clusters_at_once(const Gpu& gpu, int blocks) {
  const int known = blocks == 2 ? gpu.clusters[0] : blocks == 4 ? gpu.clusters[1] : blocks == 8 ? gpu.clusters[2] : 0;
  const int all = known > 0 ? known : gpu.multiprocessors / blocks;
  return all > 0 ? all : 1;
}

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

// Wide tiles, by the warpgroups of sm_90a: 64 rows for each of `groups` warpgroups that multiply. Two blocks side by side share
// the rows and have columns of their own.
constexpr int kWideColumns = 128;
constexpr int kWideCluster = 2;
constexpr int kWideSmall = 1;  // groups, of which a multiprocessor has two blocks
constexpr int kWideLarge = 3;

VTKERNELS_INLINE constexpr int wide_rows(int groups) { return 64 * groups; }
// Those that multiply, and a warp that has the stages copied; all of its warpgroup where registers are given away.
VTKERNELS_INLINE constexpr int wide_threads(int groups) { return 128 * groups + (groups == kWideSmall ? 32 : 128); }
VTKERNELS_INLINE constexpr int wide_stages(int groups) { return groups == kWideSmall ? 4 : 5; }
VTKERNELS_INLINE constexpr int64_t wide_stage_bytes(int groups) { return (wide_rows(groups) + kWideColumns) * kGramBytes; }
// And two mailboxes a stage.
VTKERNELS_INLINE constexpr int64_t wide_shared(int groups) { return wide_stages(groups) * (wide_stage_bytes(groups) + 2 * 8); }

// Whether the copy engine can read features as they lie.
inline bool in_boxes(const Array<3>& x) {
  const int64_t size = element_size(x.dtype);
  const auto regular = [&](int r) { return x.size[r] == 1 || (x.stride[r] > 0 && x.stride[r] * size % 16 == 0); };
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride[2] == 1 && regular(0) && regular(1);
}

// Clusters that row `row` of tiles needs on and below the diagonal, and all rows.
VTKERNELS_INLINE constexpr int wide_clusters_of_row(int row, int groups) {
  const int columns = kWideCluster * kWideColumns;
  return (wide_rows(groups) * (row + 1) + columns - 1) / columns;
}
VTKERNELS_INLINE constexpr int64_t wide_clusters(int64_t n, int groups) {
  int64_t clusters = 0;
  for (int row = 0; row * int64_t{wide_rows(groups)} < n; ++row) clusters += wide_clusters_of_row(row, groups);
  return clusters;
}

// Wide tiles have the directions of the rows from a launch before.
constexpr int kGramDirectionRows = 8;  // of a block
constexpr int kGramDirectionThreads = 256;

// Elements from row to row of features that are copied into the workspace.
VTKERNELS_INLINE constexpr int64_t gram_packed_stride(int64_t channels) { return round_up(channels, 8); }

struct GramPlan {
  int groups = 0;       // of wide tiles; 0: tiles of 64 x 64
  bool packed = false;  // wide tiles read a copy of the features

  // Bytes of workspace.
  int64_t directions(int64_t images, int64_t n) const { return groups == 0 ? 0 : round_up(8 * images * n, 256); }
  int64_t copy(int64_t images, int64_t n, int64_t channels) const {
    return packed ? round_up(2 * images * n * gram_packed_stride(channels), 256) : 0;
  }
};

// Adds the launches of the product to `plan`. `boxes`: the copy engine can read the features as they lie. Whether tiles are
// wide depends on the GPU, the tokens and the element type alone: an image has the same bits in any batch and any layout. They
// are, from the size on at which small ones occupy a twentieth of the multiprocessors (N = 193 for 132): below that the launch
// of the directions costs more than the faster stages save. How large they are changes no bit: large ones read less, small ones
// keep more multiprocessors busy where there are few tiles.
inline GramPlan plan_gram(const Gpu& gpu, Plan& plan, int64_t images, int64_t n, int64_t channels, int64_t element,
                          bool boxes) {
  const auto blocks = [&](int groups) { return kWideCluster * wide_clusters(n, groups); };
  GramPlan gram;
  if (!gpu.warpgroups || element != 2 || channels == 0 || wide_shared(kWideLarge) > gpu.shared_per_block ||
      20 * blocks(kWideSmall) < gpu.multiprocessors) {
    plan.shape[plan.launches++] = {images * gram_tiles(n), 1, kGramShared, 1, false};
    return gram;
  }
  gram.groups = 4 * images * blocks(kWideLarge) < 3 * gpu.multiprocessors ? kWideSmall : kWideLarge;
  gram.packed = !boxes;
  const int64_t directions = (n + kGramDirectionRows - 1) / kGramDirectionRows;
  plan.shape[plan.launches++] = {images * directions, 1, 4 * kGramDirectionThreads / 32 * kGramDirectionRows, 1, false};
  plan.shape[plan.launches++] = {images * blocks(gram.groups), 1, wide_shared(gram.groups), kWideCluster, false, true};
  return gram;
}

// ------------------------------------------------------------------------------------------------ the greedy loop

constexpr int kGreedyThreads = 256;
constexpr int kGreedyCluster = 8;   // the largest that every GPU with clusters allows
constexpr int kGreedyLetters = 32;  // candidates that the blocks of an image tell each other at an exchange: one for a lane
constexpr int kGreedyPool = 16;     // of them are kept, at most

// What is in shared memory: similarity, the pool's part of it, and state; the latter two; or what the blocks tell each other.
enum class GreedyPlace { resident, shared, workspace };

// Elements from row to row of a similarity in the workspace.
VTKERNELS_INLINE constexpr int64_t greedy_stride(int64_t n) { return round_up(n, 8); }

// Candidates of each block of a cluster.
VTKERNELS_INLINE constexpr int greedy_slice(int64_t n, int cluster) {
  return static_cast<int>(n == 0 ? 8 : round_up((n + cluster - 1) / cluster, 8));
}

// Warps of a block that send letters, each the best of its own candidates.
VTKERNELS_INLINE constexpr int greedy_writers(int cluster) { return cluster <= 2 ? 8 : 16 / cluster; }

// Of such a warp: the candidates it sends, and the best that it does not send.
VTKERNELS_INLINE constexpr int greedy_letters(int cluster) { return kGreedyLetters / (cluster * greedy_writers(cluster)) + 1; }

// Threads side by side, with 16 bytes of candidates each; and how many such rows of threads share the items.
VTKERNELS_INLINE constexpr int greedy_packs(int slice, int64_t element) { return static_cast<int>(slice * element / 16); }
VTKERNELS_INLINE constexpr int greedy_groups(int slice, int64_t element) {
  const int packs = greedy_packs(slice, element);
  return packs < kGreedyThreads ? kGreedyThreads / packs : 1;
}

// Elements from candidate to candidate of the pool: four banks apart, and all of them aligned to 16 bytes.
VTKERNELS_INLINE constexpr int64_t greedy_pool_stride(int64_t items, int64_t element) {
  return round_up(items, 128 / element) + 16 / element;
}

// Entries of the list of items that rise: each warp has a part of its own.
VTKERNELS_INLINE constexpr int64_t greedy_raises(int64_t items) { return round_up(items, kGreedyThreads); }

// Where a block of the loop keeps what: bytes of its shared memory, or of its state in the workspace.
struct GreedyLayout {
  int pool = kGreedyPool;  // candidates that are kept
  int64_t similarity = 0, coverage = 0, settled = 0, raises = 0, parts = 0, gains = 0, keys = 0, weights = 0, rows = 0;
  int64_t lost = 0, places = 0, letters = 0, boxes = 0, counts = 0;
  int64_t shared = 0, state = 0;

  GreedyLayout() = default;
  GreedyLayout(GreedyPlace place, int64_t element, int64_t items, int slice, int cluster, int kept) : pool(kept) {
    int64_t end = 0;
    const auto take = [&](int64_t bytes) {
      const int64_t begin = end;
      end += round_up(bytes, 32);
      return begin;
    };
    if (place == GreedyPlace::resident) similarity = take(items * slice * element);
    coverage = take(items * element);
    settled = take(items * element);
    raises = take(greedy_raises(items) * 4 * element);
    gains = take(int64_t{8} * slice);
    keys = take(int64_t{8} * slice);
    weights = take(int64_t{4} * slice);
    const int64_t of_parts = int64_t{8} * greedy_groups(slice, element) * slice, of_lost = int64_t{8} * 2 * kGreedyThreads;
    if (place == GreedyPlace::workspace) parts = take(of_parts);
    if (place == GreedyPlace::workspace) {
      state = end;
      end = 0;
    } else {
      rows = take(kept * greedy_pool_stride(items, element) * element);
    }
    constexpr int warps = kGreedyThreads / 32;
    // What one choice takes off the gains of the pool, and what all choices of a round take off those of the block.
    lost = take(place != GreedyPlace::workspace && of_parts > of_lost ? of_parts : of_lost);
    if (place != GreedyPlace::workspace) parts = lost;
    places = take(int64_t{4} * warps * kGreedyPool);
    letters = take(int64_t{16} * 2 * cluster * greedy_writers(cluster) * greedy_letters(cluster));
    boxes = take(16);
    counts = take(8);
    shared = end;
  }
};

struct GreedyPlan : Plan {
  GreedyPlace place = GreedyPlace::resident;
  int pool = kGreedyPool;
};

// A wave of images takes as long as it takes a block to read so many bytes of the similarity, from the cache and over the
// steps.
constexpr int64_t kGreedyWave = 384 * 1024;

// The loop as the last launch of `plan`: the cluster of blocks for an image with which all images are done first. Its blocks
// have their part of the similarity in shared memory if it fits, else they read it from the cache, which takes the longer the
// larger the part is.
inline GreedyPlan plan_greedy(const Gpu& gpu, Plan plan, int64_t images, int64_t items, int64_t n, int64_t element) {
  struct Choice {
    GreedyPlace place;
    int cluster, pool;
    GreedyLayout layout;
    int64_t cost;
  };
  const auto best_with = [&](int cluster) {
    const int slice = greedy_slice(n, cluster);
    const int64_t waves = (images + clusters_at_once(gpu, cluster) - 1) / clusters_at_once(gpu, cluster);
    const int64_t streamed = waves * (kGreedyWave + slice * items * element);
    for (const GreedyPlace place : {GreedyPlace::resident, GreedyPlace::shared}) {
      for (int pool = kGreedyPool; pool >= 4; pool /= 2) {
        const GreedyLayout layout(place, element, items, slice, cluster, pool);
        if (layout.shared > gpu.shared_per_block) continue;
        return Choice{place, cluster, pool, layout, place == GreedyPlace::resident ? waves * kGreedyWave : streamed};
      }
    }
    const GreedyLayout layout(GreedyPlace::workspace, element, items, slice, cluster, kGreedyPool);
    return Choice{GreedyPlace::workspace, cluster, kGreedyPool, layout, streamed};
  };
  Choice choice = best_with(1);
  int64_t state = choice.layout.state;  // of an image, with whatever cluster, so that it does not depend on the other images
  for (int cluster = 2; cluster <= (gpu.arch >= 90 ? kGreedyCluster : 1); cluster *= 2) {
    const Choice other = best_with(cluster);
    if (other.cost < choice.cost) choice = other;
    if (cluster * other.layout.state > state) state = cluster * other.layout.state;
  }
  plan.path = choice.place == GreedyPlace::resident ? "resident"
              : choice.place == GreedyPlace::shared ? "streamed"
                                                    : "streamed, state too";
  plan.shape[plan.launches++] = {images * choice.cluster, 1, choice.layout.shared, choice.cluster, false, gpu.arch >= 90};
  plan.workspace = round_up(plan.workspace, 256) + images * state;
  return {plan, choice.place, choice.pool};
}

// Bytes of the workspace in which the similarity comes first.
struct ScopeWorkspace {
  int64_t directions, copy, all;

  ScopeWorkspace(const GramPlan& gram, int64_t images, int64_t n, int64_t channels)
      : directions(round_up(4 * images * n * greedy_stride(n), 256)),
        copy(directions + gram.directions(images, n)),
        all(copy + gram.copy(images, n, channels)) {}
};

struct ScopePlan : GreedyPlan {
  GramPlan gram;
};

inline ScopePlan plan_scope_select(const Gpu& gpu, int64_t images, int64_t n, int64_t channels, int64_t element, bool boxes) {
  Plan first{};
  const GramPlan gram = plan_gram(gpu, first, images, n, channels, element, boxes);
  first.workspace = ScopeWorkspace(gram, images, n, channels).all;
  ScopePlan plan{plan_greedy(gpu, first, images, n, n, 4), gram};
  if (gram.groups != 0) {
    plan.path = plan.place == GreedyPlace::resident ? "wide, resident"
                : plan.place == GreedyPlace::shared ? "wide, streamed"
                                                    : "wide, streamed, state too";
  }
  return plan;
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
  Shape fixed_point = share;
  fixed_point.dependent = gpu.arch >= 90;
  const Plan fixed{"", 2, {share, fixed_point}, CoverageWorkspace(images, items, n, blocks).all};
  return plan_greedy(gpu, fixed, images, items, n, 8);
}

// ------------------------------------------------------------------------------------------------ graph_propagate

constexpr int kGraphThreads = 1024;
constexpr int kGraphResidentThreads = 640;
constexpr int64_t kGraphLeastRows = 8;  // of a block that keeps its rows

// Elements from row to row of the weights.
VTKERNELS_INLINE constexpr int64_t graph_stride(int64_t n) { return round_up(n, 4); }

// What the blocks of the steps tell each other: a share and of which step it is.
constexpr int kGraphWord = 8;

// Images that `rows` rows one after the other can belong to.
VTKERNELS_INLINE constexpr int64_t graph_images(int64_t rows, int64_t n) { return (rows + n - 2) / n + 1; }

// Bytes of shared memory of a block that keeps `rows` rows: their weights, the shares of their images, and of each row the sum
// of its weights and its edges.
VTKERNELS_INLINE constexpr int64_t graph_shared(int64_t rows, int64_t n) {
  return 4 * (graph_stride(n) * (rows + graph_images(rows, n)) + 2 * round_up(rows, 4));
}

struct GraphPlan : Plan {
  GramPlan gram;
  bool resident = false;  // the steps read the weights from shared memory
  int64_t rows = 0;       // of a block of the steps, where resident
};

// All blocks of the steps run at the same time, one on each multiprocessor at most.
inline GraphPlan plan_graph_propagate(const Gpu& gpu, int64_t images, int64_t n, int64_t channels, int64_t element,
                                      bool boxes) {
  const int64_t rows = images * n, warps = kGraphThreads / 32, stride = graph_stride(n);
  GraphPlan plan{};
  plan.gram = plan_gram(gpu, plan, images, n, channels, element, boxes);
  plan.rows = (rows + gpu.multiprocessors - 1) / gpu.multiprocessors;
  if (plan.rows < kGraphLeastRows) plan.rows = kGraphLeastRows;
  const int64_t kept = n == 0 ? 0 : graph_shared(plan.rows, n);
  plan.resident = kept <= gpu.shared_per_block;
  const int64_t of_block = plan.resident ? plan.rows : warps, wanted = (rows + of_block - 1) / of_block;
  plan.shape[plan.launches++] = {wanted < gpu.multiprocessors ? wanted : gpu.multiprocessors, 1, plan.resident ? kept : 0, 1,
                                 true};
  plan.path = plan.gram.groups != 0 ? (plan.resident ? "wide, resident" : "wide") : plan.resident ? "resident" : "grid";
  plan.workspace = 4 * (round_up(rows * stride, 32) + 4 * round_up(rows, 32) + round_up(2 * rows, 32) + 32);
  plan.workspace += 2 * kGraphWord * round_up(images * stride, 32);
  plan.workspace += plan.gram.copy(images, n, channels);
  return plan;
}

}  // namespace vtkernels::cuda
