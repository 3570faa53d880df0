// cls_attention and attention_topk: the attention that one query row gives, added over the heads.
//
// With clusters, one launch: the blocks of an image's cluster share its heads, add up the shares of every token through each
// other's shared memory, and the first one selects. Without, a block per head leaves its shares in the workspace for a block
// per image.
#pragma once

#include <cmath>
#include <cstdint>

#include "vtkernels/cuda.h"
#include "vtkernels/cuda/block.cuh"
#include "vtkernels/cuda/topk.cuh"

namespace vtkernels::cuda {

template <class T>
struct AttentionArguments {
  const T* query;
  const T* key;
  int64_t query_stride[3];  // image, head, channel
  int64_t key_stride[4];    // image, head, token, channel
  Lengths lengths;          // of all tokens
  int heads;
  int channels;
  int64_t tokens;
  int64_t prefix;
  float scale;
  float denominator;
  Output<float> scores;
  int64_t k;
  bool sort;
  bool aligned;        // rows of keys can be read 16 bytes at a time
  uint32_t row_bytes;  // from row to row of keys, if aligned
  Output<int64_t> indices;
  float* shares;  // [images, heads, tokens]
  uint64_t* sorted;
  int64_t sorted_stride;
};

// Softmax of up to `Together` heads over the valid tokens. A logit that is not finite counts as -inf, and a row without any
// mass gives none.
template <class T, int Together>
struct HeadAttention {
  static constexpr int pack = 16 / sizeof(T);
  static constexpr int ahead = 4;  // rows whose keys are on their way while the products of as many others are added up
  static constexpr int warps = kAttentionThreads / 32;

  // `count` heads of an image, from `head` on, `step` apart.
  struct Heads {
    int image, head, step, count, valid;
  };

  // set(h, t, logit) for the h-th head, then get and set again, at last use(h, t, share), in the order of h; every thread keeps
  // to its own tokens after the logits. Before `byte` is used for anything else, there must be a barrier.
  template <class M, class Get, class Set, class Use>
  static VTKERNELS_DEVICE void run(M& m, const AttentionArguments<T>& a, const Heads& heads, int64_t byte, const Get& get,
                                   const Set& set, const Use& use) {
    const int packs = (a.channels + pack - 1) / pack;
    if (!a.aligned) {
      logits<false, 0>(m, a, heads, byte, packs, set);
    } else if (packs <= 4) {
      logits<true, 2>(m, a, heads, byte, packs, set);
    } else if (packs <= 8) {
      logits<true, 3>(m, a, heads, byte, packs, set);
    } else if (packs <= 16) {
      logits<true, 4>(m, a, heads, byte, packs, set);
    } else {
      logits<true, 5>(m, a, heads, byte, packs, set);
    }
    m.sync();

    const auto parts = m.template shared<float>(byte + 4 * Together * query_stride(a));
    const auto each = [&](const auto& f) {
#pragma unroll 1
      for (int t = m.thread(); t < heads.valid; t += m.threads()) {
#pragma unroll
        for (int h = 0; h < Together; ++h) {
          if (h < heads.count) f(h, t);
        }
      }
    };
    float greatest[Together], mass[Together], share[Together];
#pragma unroll
    for (int h = 0; h < Together; ++h) {
      greatest[h] = -INFINITY;
      mass[h] = 0;
    }
    each([&](int h, int t) { greatest[h] = fmaxf(greatest[h], get(h, t)); });
    reduce_block_open<warps>(m, parts, greatest, Max());
#pragma unroll
    for (int h = 0; h < Together; ++h) greatest[h] = greatest[h] == -INFINITY ? 0 : greatest[h];
    each([&](int h, int t) {
      const float weight = expf(get(h, t) - greatest[h]);
      set(h, t, weight);
      mass[h] += weight;
    });
    reduce_block_open<warps>(m, parts + Together * warps, mass, Sum());
#pragma unroll
    for (int h = 0; h < Together; ++h) share[h] = mass[h] == 0 ? 0.0f : 1 / mass[h];
    each([&](int h, int t) { use(h, t, get(h, t) * share[h]); });
  }

 private:
  // Elements side by side, as words: they wait in registers, which have 32 bits.
  struct alignas(16) Pack {
    uint32_t word[4];

    VTKERNELS_DEVICE float operator[](int j) const {
      if constexpr (sizeof(T) == 4) {
        return float_from_bits(word[j]);
      } else {
        return to_float(T{static_cast<uint16_t>(word[j / 2] >> 16 * (j % 2))});
      }
    }
    VTKERNELS_DEVICE void add(int j, T x) {
      if constexpr (sizeof(T) == 4) {
        word[j] = bits_from_float(x);
      } else {
        word[j / 2] |= static_cast<uint32_t>(x.bits) << 16 * (j % 2);
      }
    }
  };
  struct alignas(16) Four {
    float x[4];
  };

  static VTKERNELS_DEVICE int64_t query_stride(const AttentionArguments<T>& a) { return round_up(a.channels, 8); }

  // The warps share the heads, and 2**Shift lanes share a row, as few as can read it at once, each with every so many-th 16
  // bytes of it. Shift 0: found here.
  template <bool Aligned, int Shift, class M, class Set>
  static VTKERNELS_DEVICE void logits(M& m, const AttentionArguments<T>& a, const Heads& heads, int64_t byte, int packs,
                                      const Set& set) {
    constexpr int share = warps / Together;
    const bool alone = heads.count == 1;
    const int h = alone ? 0 : m.warp() / share, member = alone ? m.warp() : m.warp() % share;
    int shift = Shift == 0 ? 2 : Shift;
    if (Shift == 0) {
      while (1 << shift < packs && shift < 5) ++shift;
    }
    const int lanes = 1 << shift, rows = 32 >> shift, turns = Shift > 0 && Shift < 5 ? 1 : (packs + lanes - 1) >> shift;
    const int own = m.lane() & (lanes - 1), half = lanes / 2, quarter = lanes / 4;
    const int step = (alone ? warps : share) * rows * ahead;
    int start = member * rows * ahead + (m.lane() >> shift), turn = 0;
    // The row whose sum this lane has in the end, as the first of the lanes that have it.
    const int result = ((own & half) != 0 ? 2 * rows : 0) + ((own & quarter) != 0 ? rows : 0);
    const bool first = (own & (quarter - 1)) == 0;

    const T* key = a.key + heads.image * a.key_stride[0] + (heads.head + h * heads.step) * a.key_stride[1];
    Pack x[ahead] = {};
    if (heads.valid > 0) load_keys<Aligned>(a, key, start, rows, own, packs, heads.valid, x);
    load_query(m, a, heads, byte);
    const auto query = m.template shared<Four>(byte + 4 * h * query_stride(a));
    float factor[pack] = {}, sum[ahead] = {};
    if (own < packs) load_factor(query, own, factor);
#pragma unroll 1
    while (start - (m.lane() >> shift) < heads.valid) {
      const int p = own + (turn << shift), t = start + result;
      if (turns > 1 && p < packs) load_factor(query, p, factor);
      if (p < packs) {
#pragma unroll
        for (int j = 0; j < pack; ++j) {
#pragma unroll
          for (int i = 0; i < ahead; ++i) sum[i] = fmaf(factor[j], x[i][j], sum[i]);
        }
      }
      if (++turn == turns) {
        turn = 0;
        start += step;
      }
      load_keys<Aligned>(a, key, start, rows, own + (turn << shift), packs, heads.valid, x);
      if (turn != 0) continue;
      const float logit = add_lanes(m, sum, half, quarter) * a.scale;
      if (first && t < heads.valid) set(h, t, is_finite(logit) ? logit : -INFINITY);
#pragma unroll
      for (int i = 0; i < ahead; ++i) sum[i] = 0;
    }
  }

  template <class Query>
  static VTKERNELS_DEVICE void load_factor(const Query& query, int p, float (&factor)[pack]) {
#pragma unroll
    for (int j = 0; j < pack; j += 4) {
      const Four four = query[(p * pack + j) / 4];
#pragma unroll
      for (int e = 0; e < 4; ++e) factor[j + e] = four.x[e];
    }
  }

  // The p-th 16 bytes of the rows t, t + rows, ... Behind the end, the last ones again: loads without a condition are all on
  // their way at the same time.
  template <bool Aligned>
  static VTKERNELS_DEVICE void load_keys(const AttentionArguments<T>& a, const T* key, int t, int rows, int p, int packs,
                                         int valid, Pack (&x)[ahead]) {
    p = p < packs ? p : packs - 1;
    int row[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      row[i] = t + i * rows < valid ? t + i * rows : valid - 1;
      if constexpr (Aligned) {
        const char* column = reinterpret_cast<const char*>(key + p * pack);
        x[i] = *reinterpret_cast<const Pack*>(column + uint64_t{static_cast<uint32_t>(row[i])} * a.row_bytes);
      } else {
        x[i] = Pack{};
      }
    }
    if constexpr (!Aligned) {
#pragma unroll
      for (int j = 0; j < pack; ++j) {
        const int c = p * pack + j;
        if (c >= a.channels) break;
        const T* column = key + c * a.key_stride[3];
#pragma unroll
        for (int i = 0; i < ahead; ++i) x[i].add(j, column[row[i] * a.key_stride[2]]);
      }
    }
  }

  // In float32, zeros behind the channels.
  template <class M>
  static VTKERNELS_DEVICE void load_query(M& m, const AttentionArguments<T>& a, const Heads& heads, int64_t byte) {
    const auto query = m.template shared<float>(byte);
    const int stride = static_cast<int>(query_stride(a));
    const T* q = a.query + heads.image * a.query_stride[0] + heads.head * a.query_stride[1];
#pragma unroll 1
    for (int c = m.thread(); c < stride; c += m.threads()) {
#pragma unroll
      for (int h = 0; h < Together; ++h) {
        if (h == heads.count) break;
        query[h * stride + c] = c < a.channels ? to_float(q[h * heads.step * a.query_stride[1] + c * a.query_stride[2]]) : 0.0f;
      }
    }
    m.sync();
  }

  // The sums of four rows over the lanes that share them. Half of the rows are given away at each of the first two steps, which
  // adds the same pairs as a butterfly for each would.
  template <class M>
  static VTKERNELS_DEVICE float add_lanes(M& m, const float (&sum)[ahead], int half, int quarter) {
    static_assert(ahead == 4);
    const bool upper = (m.lane() & half) != 0, second = (m.lane() & quarter) != 0;
    const float low = (upper ? sum[2] : sum[0]) + m.shuffle_xor(upper ? sum[0] : sum[2], half);
    const float high = (upper ? sum[3] : sum[1]) + m.shuffle_xor(upper ? sum[1] : sum[3], half);
    float all = (second ? high : low) + m.shuffle_xor(second ? low : high, quarter);
#pragma unroll
    for (int mask = 4; mask > 0; mask /= 2) {
      if (mask < quarter) all += m.shuffle_xor(all, mask);
    }
    return all;
  }
};

template <class T, bool Select>
struct ClusterAttention {
  static constexpr const char* name = Select ? "attention_topk_cluster" : "cls_attention_cluster";
  static constexpr int threads = kAttentionThreads;
  static constexpr int together = 2;
  using Arguments = AttentionArguments<T>;
  using Attention = HeadAttention<T, together>;

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    const int size = m.cluster_size(), rank = m.cluster_rank();
    const int shift = population(size - 1);  // sizes are powers of two
    const int b = m.block_x() >> shift, valid = static_cast<int>(a.lengths(b, a.tokens));
    const int n = static_cast<int>(a.tokens - a.prefix), stride = static_cast<int>(round_up(a.tokens, 4));
    const int first = static_cast<int>(attention_shared(0, a.channels, 0));
    const auto added = m.template shared<float>(first);
    const auto own = m.template shared<float>(first + 4 * stride);
    const auto scores = own;  // of the first block, once all have added up their heads

#pragma unroll 1
    for (int t = m.thread(); t < a.tokens; t += m.threads()) added[t] = 0.0f;
#pragma unroll 1
    for (int head = rank; head < a.heads; head += together * size) {
      const int count = head + size < a.heads ? together : 1;
      Attention::run(
          m, a, {b, head, size, count, valid}, 0, [&](int h, int t) { return static_cast<float>(own[h * stride + t]); },
          [&](int h, int t, float x) { own[h * stride + t] = x; }, [&](int, int t, float x) { added[t] = added[t] + x; });
    }
    m.sync_cluster();
    // Each block adds up its stretch of tokens and leaves the result with the first, which writes what it ranks: a barrier of
    // the cluster waits for all that was written before it.
    const int stretch = (n + size - 1) >> shift, begin = rank * stretch, end = begin + stretch < n ? begin + stretch : n;
    // A block alone is launched without a cluster, and has nothing to map.
    const auto leader = size == 1 ? scores : m.peer(scores, 0);
    const auto added_by = [&](int r) { return size == 1 ? added : m.peer(added, r); };
#pragma unroll 1
    for (int i = begin + m.thread(); i < end; i += m.threads()) {
      float part[kAttentionCluster], sum = 0;
#pragma unroll
      for (int r = 0; r < kAttentionCluster; ++r) {
        part[r] = r < size ? static_cast<float>(added_by(r)[i + a.prefix]) : 0.0f;
      }
#pragma unroll
      for (int r = 0; r < kAttentionCluster; ++r) sum += part[r];
      sum /= a.denominator;
      if (Select) {
        leader[i] = sum;
      } else {
        a.scores(b, i) = sum;
      }
    }
    m.sync_cluster();  // and nobody leaves while others still read
    if constexpr (Select) {
      if (rank == 0) select(m, a, b);
    }
  }

 private:
  template <class M>
  static VTKERNELS_DEVICE void select(M& m, const Arguments& a, int b) {
    const int64_t tokens = round_up(a.tokens, 4), first = attention_shared(0, a.channels, 0), valid = a.lengths(b, a.tokens);
    const auto scores = m.template shared<float>(first + 4 * tokens);
#pragma unroll 1
    for (int64_t i = m.thread(); i < a.tokens - a.prefix; i += m.threads()) a.scores(b, i) = scores[i];
    const auto ranking = [&](int64_t i) { return rank_bits(scores[i]); };
    const auto write = [&](int64_t s, int64_t i) { a.indices(b, s) = i; };
    Topk<>::run(m, ranking, valid > a.prefix ? valid - a.prefix : 0, a.k, a.sort, first + 12 * tokens,
                a.sorted + b * a.sorted_stride, write);
  }
};

template <class T>
struct AttentionHeads {
  static constexpr const char* name = "attention_heads";
  static constexpr int threads = kAttentionThreads;
  using Arguments = AttentionArguments<T>;

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    m.let_next_launch_start();
    const int64_t b = m.block_x() / a.heads, valid = a.lengths(b, a.tokens);
    float* row = a.shares + static_cast<int64_t>(m.block_x()) * a.tokens;
    HeadAttention<T, 1>::run(
        m, a, {static_cast<int>(b), m.block_x() % a.heads, 0, 1, static_cast<int>(valid)}, 0,
        [&](int, int t) { return row[t]; }, [&](int, int t, float x) { row[t] = x; }, [&](int, int t, float x) { row[t] = x; });
    for (int64_t t = valid + m.thread(); t < a.tokens; t += m.threads()) row[t] = 0;
  }
};

template <class T, bool Select>
struct AttentionJoin {
  static constexpr const char* name = Select ? "attention_topk_join" : "cls_attention_join";
  static constexpr int threads = kAttentionThreads;
  using Arguments = AttentionArguments<T>;

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    const int64_t b = m.block_x(), valid = a.lengths(b, a.tokens), n = a.tokens - a.prefix;
    const float* rows = a.shares + b * a.heads * a.tokens + a.prefix;
    m.wait_for_previous_launch();
    for (int64_t i = m.thread(); i < n; i += m.threads()) {
      float sum = 0;
#pragma unroll 8
      for (int head = 0; head < a.heads; ++head) sum += rows[head * a.tokens + i];
      a.scores(b, i) = sum / a.denominator;
    }
    if (!Select) return;
    m.sync();
    const auto ranking = [&](int64_t i) { return rank_bits(a.scores(b, i)); };
    const auto write = [&](int64_t s, int64_t i) { a.indices(b, s) = i; };
    Topk<>::run(m, ranking, valid > a.prefix ? valid - a.prefix : 0, a.k, a.sort, 0, a.sorted + b * a.sorted_stride, write);
  }
};

// query [B,H,d], key [B,H,T,d] -> scores [B,T-prefix]; with Select also indices [B,k].
template <bool Select, class Stream>
void attention(const Stream& stream, const Plan& plan, const Array<3>& query, const Array<4>& key, const Lengths& lengths,
               const AttentionOptions& options, int64_t k, bool sort, const Output<float>& scores,
               const Output<int64_t>& indices, void* workspace) {
  const int64_t images = key.size[0], heads = key.size[1], tokens = key.size[2], channels = key.size[3];
  if (images == 0 || tokens == options.prefix) return;
  with_element(key.dtype, [&](auto element) {
    using T = decltype(element);
    AttentionArguments<T> a{};
    a.query = static_cast<const T*>(query.data);
    a.key = static_cast<const T*>(key.data);
    for (int i = 0; i < 3; ++i) a.query_stride[i] = query.stride[i];
    for (int i = 0; i < 4; ++i) a.key_stride[i] = key.stride[i];
    a.lengths = lengths;
    a.heads = static_cast<int>(heads);
    a.channels = static_cast<int>(channels);
    a.tokens = tokens;
    a.prefix = options.prefix;
    a.scale = options.scale;
    a.denominator = options.reduce == Reduce::mean ? static_cast<float>(heads) : 1.0f;
    a.scores = scores;
    a.k = k;
    a.sort = sort;
    const int64_t pack = HeadAttention<T, 1>::pack;
    const int64_t row_bytes = key.stride[2] * static_cast<int64_t>(sizeof(T));
    a.aligned = reinterpret_cast<uintptr_t>(key.data) % 16 == 0 && channels != 0 && channels % pack == 0 &&
                key.stride[3] == 1 && key.stride[0] % pack == 0 && key.stride[1] % pack == 0 && key.stride[2] % pack == 0 &&
                row_bytes <= UINT32_MAX;
    a.row_bytes = a.aligned ? static_cast<uint32_t>(row_bytes) : 0;
    a.indices = indices;
    a.shares = static_cast<float*>(workspace);
    const int64_t before = plan.launches == 1 ? 0 : round_up(4 * images * heads * tokens, 16);
    a.sorted = reinterpret_cast<uint64_t*>(static_cast<char*>(workspace) + before);
    a.sorted_stride = Select ? topk_workspace(k, sort) / 8 : 0;
    if (plan.launches == 1) {
      stream.template run<ClusterAttention<T, Select>>(a, plan.shape[0]);
    } else {
      stream.template run<AttentionHeads<T>>(a, plan.shape[0]);
      stream.template run<AttentionJoin<T, Select>>(a, plan.shape[1]);
    }
  });
}

}  // namespace vtkernels::cuda
