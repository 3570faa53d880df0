#include "adapt.h"
#include "gpu.h"

namespace vtkernels::torch_ops {
namespace {

void check_arguments(const Tensor& features, const std::optional<Tensor>& saliency, int64_t k, double alpha,
                     const std::string& combine, const std::optional<Tensor>& lengths) {
  const char* op = "scope_select";
  Argument{op, "features", features}.rank("B, N, D", 3).floats();
  const int64_t b = features.size(0), n = features.size(1);
  if (saliency) Argument{op, "saliency", *saliency}.rank("B, N", 2).floats().sizes("B, N", {b, n}).like("features", features);
  check_budget(op, k, "N", n);
  check(std::isfinite(alpha) && alpha >= 0, op, ": alpha must be a finite number >= 0, got ", alpha);
  check_option(op, "combine", combine, "multiply", "add");
  check_lengths(op, lengths, b, "features", features);
}

void run(const Tensor& features, const std::optional<Tensor>& saliency, int64_t k, double alpha, const std::string& how,
         const std::optional<Tensor>& valid, bool sort, const Tensor& out) {
#if defined(VTKERNELS_CUDA)
  if (features.is_cuda()) {
    check_gpu_floats("scope_select", "features", features);
    const OnGpu gpu(features);
    const Array<3> x = array<3>(features);
    const cuda::ScopePlan plan = cuda::plan_scope_select(cuda::gpu(gpu.device()), x.size[0], x.size[1], x.size[2],
                                                         element_size(x.dtype), cuda::in_boxes(x));
    const Workspace workspace(features, plan.workspace);
    cuda::scope_select(plan, x, array<2>(saliency), lengths(valid), k, {alpha, combine(how), sort}, output<int64_t>(out),
                       workspace.data(), gpu.stream());
    return;
  }
#endif
  const Parallel threads = parallel();
  const Scratch scratch(features, cpu::scope_select_scratch(features.size(1), features.size(2)), features.size(0), threads);
  cpu::scope_select(array<3>(features), array<2>(saliency), lengths(valid), k, {alpha, combine(how), sort},
                    output<int64_t>(out), scratch.data(), threads);
}

Tensor scope_select(Tensor features, std::optional<Tensor> saliency, int64_t k, double alpha, std::string combine,
                    std::optional<Tensor> lengths, bool sort) {
  check_arguments(features, saliency, k, alpha, combine, lengths);
  Tensor out = empty(features, {features.size(0), k}, ScalarType::Long);
  run(features, saliency, k, alpha, combine, lengths, sort, out);
  return out;
}

void scope_select_out(Tensor features, std::optional<Tensor> saliency, int64_t k, double alpha, std::string combine,
                      std::optional<Tensor> lengths, bool sort, Tensor out) {
  check_arguments(features, saliency, k, alpha, combine, lengths);
  check_out("scope_select", out, ScalarType::Long, {features.size(0), k}, features);
  check_apart("scope_select", out, {{"features", features}, {"saliency", saliency}, {"lengths", lengths}});
  run(features, saliency, k, alpha, combine, lengths, sort, out);
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) {
  m.impl("scope_select", TORCH_BOX(&scope_select));
  m.impl("scope_select.out", TORCH_BOX(&scope_select_out));
}

#if defined(VTKERNELS_CUDA)
VTKERNELS_LIBRARY_IMPL(CUDA, m) {
  m.impl("scope_select", TORCH_BOX(&scope_select));
  m.impl("scope_select.out", TORCH_BOX(&scope_select_out));
}
#endif

}  // namespace vtkernels::torch_ops
