// cls_attention, then topk_select on its scores.
#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

void attention_topk(const Array<3>& query, const Array<4>& key, const Lengths& lengths, const AttentionOptions& options,
                    int64_t k, bool sort, const Output<int64_t>& indices, const Output<float>& scores, float* scratch,
                    const Parallel& parallel) {
  cls_attention(query, key, lengths, options, scores, scratch, parallel);
  const Array<2> ranked{
      scores.data, DType::float32, {key.size[0], key.size[2] - options.prefix}, {scores.stride[0], scores.stride[1]}};
  topk_select(ranked, lengths.minus(options.prefix), k, sort, indices, scratch, parallel);
}

}  // namespace vtkernels::cpu
