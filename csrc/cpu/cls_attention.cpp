// Saliency from one query row: logits in groups of tokens, then one softmax pass over the heads.
#include <algorithm>

#include "vtkernels/cpu.h"
#include "vtkernels/isa.h"

namespace vtkernels::cpu {
namespace {

constexpr int64_t kTaskTokens = 64;  // a multiple of every vector width

}  // namespace

int64_t cls_attention_scratch(int64_t heads, int64_t tokens, int64_t channels) {
  return heads * (round_up(channels, kPad) + round_up(tokens, kPad)) + round_up(tokens, kPad);
}

void cls_attention(const Array<3>& query, const Array<4>& key, const Lengths& lengths, const AttentionOptions& options,
                   const Output<float>& scores, float* scratch, const Parallel& parallel) {
  const int64_t heads = key.size[1], tokens = key.size[2], channels = key.size[3];
  const int64_t query_stride = round_up(channels, kPad), logits_stride = round_up(tokens, kPad);
  const int64_t per_worker = cls_attention_scratch(heads, tokens, channels);
  parallel.for_each_image(key.size[0], [&](int64_t b, int64_t worker, const Parallel& inner) {
    const Isa& kernels = isa();
    const int64_t valid = lengths(b, tokens);
    float* padded_query = scratch + worker * per_worker;
    float* logits = padded_query + heads * query_stride;
    float* out = logits + heads * logits_stride;
    kernels.load_query(query.at(b), padded_query, query_stride);
    inner.for_each((valid + kTaskTokens - 1) / kTaskTokens, [&](int64_t task, int64_t) {
      const int64_t begin = task * kTaskTokens, end = std::min(valid, begin + kTaskTokens);
      kernels.logits(padded_query, query_stride, key.at(b), options.scale, begin, end, logits, logits_stride);
    });
    kernels.softmax_reduce(logits, logits_stride, heads, valid, options.reduce, out);
    for (int64_t t = options.prefix; t < tokens; ++t) scores(b, t - options.prefix) = t < valid ? out[t] : 0.0f;
  });
}

}  // namespace vtkernels::cpu
