#include <tuple>

#include "attention.h"
#include "gpu.h"

namespace vtkernels::torch_ops {
namespace {

std::tuple<Tensor, Tensor> attention_topk(Tensor query, Tensor key, int64_t k, std::optional<double> scale, int64_t prefix,
                                          std::optional<Tensor> valid, bool sort) {
  check_attention("attention_topk", query, "B, H, d", key, scale, prefix, valid);
  const int64_t b = key.size(0), n = key.size(2) - prefix;
  check_budget("attention_topk", k, "T - prefix", n);

  Tensor indices = empty(key, {b, k}, ScalarType::Long), scores = empty(key, {b, n}, ScalarType::Float);
#if defined(VTKERNELS_CUDA)
  if (key.is_cuda()) {
    check_gpu_floats("attention_topk", "key", key);
    const OnGpu gpu(key);
    const cuda::Plan plan =
        cuda::plan_attention(cuda::gpu(gpu.device()), b, key.size(1), key.size(2), key.size(3), prefix, k, sort);
    const Workspace workspace(key, plan.workspace);
    cuda::attention_topk(plan, array<3>(query), array<4>(key), lengths(valid),
                         {attention_options(key, scale, prefix).scale, prefix, Reduce::mean}, k, sort, output<int64_t>(indices),
                         output<float>(scores), workspace.data(), gpu.stream());
    return {indices, scores};
  }
#endif
  const Parallel threads = parallel();
  const Scratch scratch(key, std::max(attention_scratch(key), cpu::topk_select_scratch(n)), b, threads);
  cpu::attention_topk(array<3>(query), array<4>(key), lengths(valid), attention_options(key, scale, prefix), k, sort,
                      output<int64_t>(indices), output<float>(scores), scratch.data(), threads);
  return {indices, scores};
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) { m.impl("attention_topk", TORCH_BOX(&attention_topk)); }
#if defined(VTKERNELS_CUDA)
VTKERNELS_LIBRARY_IMPL(CUDA, m) { m.impl("attention_topk", TORCH_BOX(&attention_topk)); }
#endif

}  // namespace vtkernels::torch_ops
