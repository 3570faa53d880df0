// cls_attention and attention_topk: the attention that one query row gives, added over the heads.
//
// With clusters, one launch: the blocks of an image's cluster share its heads, add up the shares of every token through each
// other's shared memory, and the first one selects. Without, a block per head leaves its shares in the workspace for a block
// per image.
#pragma once

#include <cmath>

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
  bool aligned;  // rows of keys can be read 16 bytes at a time
  Output<int64_t> indices;
  float* shares;  // [images, heads, tokens]
  uint64_t* sorted;
  int64_t sorted_stride;
};

// Softmax of one head over the valid tokens. A logit that is not finite counts as -inf, and a row without any mass gives none.
template <class T>
struct HeadAttention {
  static constexpr int pack = 16 / sizeof(T);
  static constexpr int ahead = 4;  // rows whose keys are on their way at the same time

  // set(t, logit), then get and set again with the share; every thread keeps to its own tokens after the logits.
  template <class M, class Get, class Set>
  static VTKERNELS_DEVICE void run(M& m, const AttentionArguments<T>& a, int64_t b, int head, int64_t valid, int64_t byte,
                                   const Get& get, const Set& set) {
    const auto query = m.template shared<float>(byte);
    const auto parts = m.template shared<float>(byte + 4 * round_up(a.channels, 4));
    const T* q = a.query + b * a.query_stride[0] + head * a.query_stride[1];
    for (int c = m.thread(); c < a.channels; c += m.threads()) query[c] = to_float(q[c * a.query_stride[2]]);
    m.sync();

    // A few lanes share a row, each with every so many-th 16 bytes of it.
    const T* key = a.key + b * a.key_stride[0] + head * a.key_stride[1];
    const int packs = (a.channels + pack - 1) / pack;
    int lanes = 1;
    while (lanes < packs && lanes < 32) lanes *= 2;
    const int rows = 32 / lanes, own = m.lane() % lanes, place = m.lane() / lanes;
    const int64_t step = static_cast<int64_t>(m.warps()) * rows * ahead;
    for (int64_t start = static_cast<int64_t>(m.warp()) * rows * ahead; start < valid; start += step) {
      float sum[ahead] = {};
      for (int p = own; p < packs; p += lanes) {
        float x[ahead][pack];
#pragma unroll
        for (int i = 0; i < ahead; ++i) load(a, key, start + i * rows + place, p, valid, x[i]);
#pragma unroll
        for (int j = 0; j < pack; ++j) {
          const int c = p * pack + j;
          const float factor = c < a.channels ? static_cast<float>(query[c]) : 0.0f;
#pragma unroll
          for (int i = 0; i < ahead; ++i) sum[i] = fmaf(factor, x[i][j], sum[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < ahead; ++i) {
        for (int mask = lanes / 2; mask > 0; mask /= 2) sum[i] += m.shuffle_xor(sum[i], mask);
        const int64_t t = start + i * rows + place;
        const float logit = sum[i] * a.scale;
        if (own == 0 && t < valid) set(t, is_finite(logit) ? logit : -INFINITY);
      }
    }
    m.sync();

    float greatest = -INFINITY, mass = 0;
    for (int64_t t = m.thread(); t < valid; t += m.threads()) greatest = fmaxf(greatest, get(t));
    greatest = reduce_block(m, parts, greatest, Max());
    if (greatest == -INFINITY) greatest = 0;
    for (int64_t t = m.thread(); t < valid; t += m.threads()) {
      const float weight = expf(get(t) - greatest);
      set(t, weight);
      mass += weight;
    }
    mass = reduce_block(m, parts, mass, Sum());
    const float share = mass == 0 ? 0.0f : 1 / mass;
    for (int64_t t = m.thread(); t < valid; t += m.threads()) set(t, get(t) * share);
  }

 private:
  struct alignas(16) Pack {
    T x[pack];
  };

  static VTKERNELS_DEVICE void load(const AttentionArguments<T>& a, const T* key, int64_t t, int p, int64_t valid,
                                    float (&x)[pack]) {
    const T* row = key + t * a.key_stride[2];
    if (t < valid && a.aligned) {
      const Pack in = *reinterpret_cast<const Pack*>(row + p * pack);
#pragma unroll
      for (int j = 0; j < pack; ++j) x[j] = to_float(in.x[j]);
      return;
    }
#pragma unroll
    for (int j = 0; j < pack; ++j) {
      const int c = p * pack + j;
      x[j] = t < valid && c < a.channels ? to_float(row[c * a.key_stride[3]]) : 0.0f;
    }
  }
};

template <class T, bool Select>
struct ClusterAttention {
  static constexpr const char* name = Select ? "attention_topk_cluster" : "cls_attention_cluster";
  static constexpr int threads = kAttentionThreads;
  using Arguments = AttentionArguments<T>;

  template <class M>
  static VTKERNELS_DEVICE void run(M& m, const Arguments& a) {
    const int size = m.cluster_size(), rank = m.cluster_rank();
    const int64_t b = m.block_x() / size, valid = a.lengths(b, a.tokens), n = a.tokens - a.prefix;
    const int64_t tokens = round_up(a.tokens, 4), first = attention_shared(0, a.channels, 0);
    const auto own = m.template shared<float>(first);
    const auto added = m.template shared<float>(first + 4 * tokens);
    const auto scores = m.template shared<float>(first + 8 * tokens);

    for (int64_t t = m.thread(); t < a.tokens; t += m.threads()) added[t] = 0.0f;
    for (int head = rank; head < a.heads; head += size) {
      HeadAttention<T>::run(
          m, a, b, head, valid, 0, [&](int64_t t) { return static_cast<float>(own[t]); },
          [&](int64_t t, float x) { own[t] = x; });
      for (int64_t t = m.thread(); t < valid; t += m.threads()) added[t] = added[t] + own[t];
      m.sync();
    }
    m.sync_cluster();
    // Each block adds up its stretch of tokens and leaves the result with the first.
    const int64_t stretch = (n + size - 1) / size, begin = rank * stretch, end = begin + stretch < n ? begin + stretch : n;
    const auto leader = m.peer(scores, 0);
    for (int64_t i = begin + m.thread(); i < end; i += m.threads()) {
      float sum = 0;
      for (int r = 0; r < size; ++r) sum += m.peer(added, r)[i + a.prefix];
      sum /= a.denominator;
      a.scores(b, i) = sum;
      if (Select) leader[i] = sum;
    }
    m.sync_cluster();  // and nobody leaves while others still read
    if (!Select || rank != 0) return;
    const auto ranking = [&](int64_t i) { return rank_bits(scores[i]); };
    const auto write = [&](int64_t s, int64_t i) { a.indices(b, s) = i; };
    Topk::run(m, ranking, valid > a.prefix ? valid - a.prefix : 0, a.k, a.sort, first + 12 * tokens,
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
    const int64_t b = m.block_x() / a.heads, valid = a.lengths(b, a.tokens);
    float* row = a.shares + static_cast<int64_t>(m.block_x()) * a.tokens;
    HeadAttention<T>::run(
        m, a, b, m.block_x() % a.heads, valid, 0, [&](int64_t t) { return row[t]; }, [&](int64_t t, float x) { row[t] = x; });
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
    for (int64_t i = m.thread(); i < n; i += m.threads()) {
      float sum = 0;
      for (int head = 0; head < a.heads; ++head) sum += rows[head * a.tokens + i];
      a.scores(b, i) = sum / a.denominator;
    }
    if (!Select) return;
    m.sync();
    const auto ranking = [&](int64_t i) { return rank_bits(a.scores(b, i)); };
    const auto write = [&](int64_t s, int64_t i) { a.indices(b, s) = i; };
    Topk::run(m, ranking, valid > a.prefix ? valid - a.prefix : 0, a.k, a.sort, 0, a.sorted + b * a.sorted_stride, write);
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
    const int64_t pack = HeadAttention<T>::pack;
    a.aligned = reinterpret_cast<uintptr_t>(key.data) % 16 == 0 && channels % pack == 0 && key.stride[3] == 1 &&
                key.stride[0] % pack == 0 && key.stride[1] % pack == 0 && key.stride[2] % pack == 0;
    a.indices = indices;
    a.shares = static_cast<float*>(workspace);
    const int64_t before = plan.launches == 1 ? 0 : round_up(4 * images * heads * tokens, 16);
    a.sorted = reinterpret_cast<uint64_t*>(static_cast<char*>(workspace) + before);
    a.sorted_stride = Select ? topk_workspace(tokens - options.prefix, k, sort) / 8 : 0;
    if (plan.launches == 1) {
      stream.template run<ClusterAttention<T, Select>>(a, plan.shape[0]);
    } else {
      stream.template run<AttentionHeads<T>>(a, plan.shape[0]);
      stream.template run<AttentionJoin<T, Select>>(a, plan.shape[1]);
    }
  });
}

}  // namespace vtkernels::cuda
