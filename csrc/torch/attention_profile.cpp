#include <tuple>

#include "attention.h"

namespace vtkernels::torch_ops {
namespace {

std::tuple<Tensor, Tensor> attention_profile(Tensor query, Tensor key, std::optional<double> scale, int64_t prefix,
                                             bool softmax, std::optional<Tensor> valid) {
  check_attention("attention_profile", query, "B, H, T, d", key, scale, prefix, valid);
  const int64_t b = key.size(0), h = key.size(1), t = key.size(2);
  Tensor received = empty(key, {b, t - prefix}, ScalarType::Float), given = empty(key, {b, t - prefix}, ScalarType::Float);
  const Parallel threads = parallel();
  const Scratch scratch(key, cpu::attention_profile_scratch(b, h, t, key.size(3), threads.threads));
  const cpu::ProfileOptions options{attention_options(key, scale, prefix).scale, prefix, softmax};
  cpu::attention_profile(array<4>(query), array<4>(key), lengths(valid), options, output<float>(received), output<float>(given),
                         scratch.data(), threads);
  return {received, given};
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) { m.impl("attention_profile", TORCH_BOX(&attention_profile)); }

}  // namespace vtkernels::torch_ops
