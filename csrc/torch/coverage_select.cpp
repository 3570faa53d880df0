#include <tuple>

#include "adapt.h"
#include "gpu.h"

namespace vtkernels::torch_ops {
namespace {

std::tuple<Tensor, Tensor> coverage_select(Tensor similarity, std::optional<Tensor> weight, int64_t k, std::string how,
                                           std::optional<Tensor> valid, bool sort) {
  const char* op = "coverage_select";
  Argument{op, "similarity", similarity}.rank("B, M, N", 3).floats();
  const int64_t b = similarity.size(0), m = similarity.size(1), n = similarity.size(2);
  if (weight) Argument{op, "weight", *weight}.rank("B, N", 2).floats().sizes("B, N", {b, n}).like("similarity", similarity);
  check_budget(op, k, "N", n);
  check_option(op, "combine", how, "multiply", "add");
  check_lengths(op, valid, b, "similarity", similarity);

  Tensor indices = empty(similarity, {b, k}, ScalarType::Long), gains = empty(similarity, {b, k}, ScalarType::Float);
#if defined(VTKERNELS_CUDA)
  if (similarity.is_cuda()) {
    check_gpu_floats(op, "similarity", similarity);
    const OnGpu gpu(similarity);
    const cuda::GreedyPlan plan = cuda::plan_coverage_select(cuda::gpu(gpu.device()), b, m, n);
    const Workspace workspace(similarity, plan.workspace);
    cuda::coverage_select(plan, array<3>(similarity), array<2>(weight), lengths(valid), k, combine(how), sort,
                          output<int64_t>(indices), output<float>(gains), workspace.data(), gpu.stream());
    return {indices, gains};
  }
#endif
  const Parallel threads = parallel();
  const Scratch scratch(similarity, cpu::coverage_select_scratch(m, n), b, threads);
  cpu::coverage_select(array<3>(similarity), array<2>(weight), lengths(valid), k, combine(how), sort, output<int64_t>(indices),
                       output<float>(gains), scratch.data(), threads);
  return {indices, gains};
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) { m.impl("coverage_select", TORCH_BOX(&coverage_select)); }

#if defined(VTKERNELS_CUDA)
VTKERNELS_LIBRARY_IMPL(CUDA, m) { m.impl("coverage_select", TORCH_BOX(&coverage_select)); }
#endif

}  // namespace vtkernels::torch_ops
