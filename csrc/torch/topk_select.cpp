#include "adapt.h"
#include "gpu.h"

namespace vtkernels::torch_ops {
namespace {

void check_arguments(const Tensor& scores, int64_t k, const std::optional<Tensor>& lengths) {
  Argument{"topk_select", "scores", scores}.rank("B, N", 2).floats();
  check_budget("topk_select", k, "N", scores.size(1));
  check_lengths("topk_select", lengths, scores.size(0), "scores", scores);
}

void run(const Tensor& scores, int64_t k, const std::optional<Tensor>& valid, bool sort, const Tensor& out) {
#if defined(VTKERNELS_CUDA)
  if (scores.is_cuda()) {
    check_gpu_floats("topk_select", "scores", scores);
    const OnGpu gpu(scores);
    const cuda::Plan plan = cuda::plan_topk_select(cuda::gpu(gpu.device()), scores.size(0), scores.size(1), k, sort);
    const Workspace workspace(scores, plan.workspace);
    cuda::topk_select(plan, array<2>(scores), lengths(valid), k, sort, output<int64_t>(out), workspace.data(), gpu.stream());
    return;
  }
#endif
  const Parallel threads = parallel();
  const Scratch scratch(scores, cpu::topk_select_scratch(scores.size(1)), scores.size(0), threads);
  cpu::topk_select(array<2>(scores), lengths(valid), k, sort, output<int64_t>(out), scratch.data(), threads);
}

Tensor topk_select(Tensor scores, int64_t k, std::optional<Tensor> lengths, bool sort) {
  check_arguments(scores, k, lengths);
  Tensor out = empty(scores, {scores.size(0), k}, ScalarType::Long);
  run(scores, k, lengths, sort, out);
  return out;
}

void topk_select_out(Tensor scores, int64_t k, std::optional<Tensor> lengths, bool sort, Tensor out) {
  check_arguments(scores, k, lengths);
  check_out("topk_select", out, ScalarType::Long, {scores.size(0), k}, scores);
  check_apart("topk_select", out, {{"scores", scores}, {"lengths", lengths}});
  run(scores, k, lengths, sort, out);
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) {
  m.impl("topk_select", TORCH_BOX(&topk_select));
  m.impl("topk_select.out", TORCH_BOX(&topk_select_out));
}

#if defined(VTKERNELS_CUDA)
VTKERNELS_LIBRARY_IMPL(CUDA, m) {
  m.impl("topk_select", TORCH_BOX(&topk_select));
  m.impl("topk_select.out", TORCH_BOX(&topk_select_out));
}
#endif

}  // namespace vtkernels::torch_ops
