// What cls_attention and attention_topk share.
#pragma once

#include "adapt.h"

namespace vtkernels::torch_ops {

inline cpu::AttentionOptions attention_options(const Tensor& key, std::optional<double> scale, int64_t prefix,
                                               Reduce reduce = Reduce::mean) {
  const auto d = static_cast<double>(key.size(3));
  return {static_cast<float>(scale ? *scale : 1 / std::sqrt(d)), prefix, reduce};
}

inline int64_t attention_scratch(const Tensor& key) {
  return cpu::cls_attention_scratch(key.size(1), key.size(2), key.size(3));
}

}  // namespace vtkernels::torch_ops
