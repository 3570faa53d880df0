#include "attention.h"
#include "gpu.h"

namespace vtkernels::torch_ops {
namespace {

void check_arguments(const Tensor& query, const Tensor& key, std::optional<double> scale, int64_t prefix,
                     const std::string& reduce, const std::optional<Tensor>& lengths) {
  check_attention("cls_attention", query, "B, H, d", key, scale, prefix, lengths);
  check_option("cls_attention", "reduce", reduce, "mean", "sum");
}

void run(const Tensor& query, const Tensor& key, std::optional<double> scale, int64_t prefix, const std::string& reduce,
         const std::optional<Tensor>& valid, const Tensor& out) {
#if defined(VTKERNELS_CUDA)
  if (key.is_cuda()) {
    check_gpu_floats("cls_attention", "key", key);
    const OnGpu gpu(key);
    const cuda::Plan plan =
        cuda::plan_attention(cuda::gpu(gpu.device()), key.size(0), key.size(1), key.size(2), key.size(3), prefix, -1, true);
    const Workspace workspace(key, plan.workspace);
    const cpu::AttentionOptions options = attention_options(key, scale, prefix);
    cuda::cls_attention(plan, array<3>(query), array<4>(key), lengths(valid),
                        {options.scale, prefix, reduce == "sum" ? Reduce::sum : Reduce::mean}, output<float>(out),
                        workspace.data(), gpu.stream());
    return;
  }
#endif
  const Parallel threads = parallel();
  const Scratch scratch(key, attention_scratch(key), key.size(0), threads);
  cpu::cls_attention(array<3>(query), array<4>(key), lengths(valid),
                     attention_options(key, scale, prefix, reduce == "sum" ? Reduce::sum : Reduce::mean), output<float>(out),
                     scratch.data(), threads);
}

Tensor cls_attention(Tensor query, Tensor key, std::optional<double> scale, int64_t prefix, std::string reduce,
                     std::optional<Tensor> lengths) {
  check_arguments(query, key, scale, prefix, reduce, lengths);
  Tensor out = empty(key, {key.size(0), key.size(2) - prefix}, ScalarType::Float);
  run(query, key, scale, prefix, reduce, lengths, out);
  return out;
}

void cls_attention_out(Tensor query, Tensor key, std::optional<double> scale, int64_t prefix, std::string reduce,
                       std::optional<Tensor> lengths, Tensor out) {
  check_arguments(query, key, scale, prefix, reduce, lengths);
  check_out("cls_attention", out, ScalarType::Float, {key.size(0), key.size(2) - prefix}, key);
  check_apart("cls_attention", out, {{"query", query}, {"key", key}, {"lengths", lengths}});
  run(query, key, scale, prefix, reduce, lengths, out);
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) {
  m.impl("cls_attention", TORCH_BOX(&cls_attention));
  m.impl("cls_attention.out", TORCH_BOX(&cls_attention_out));
}

#if defined(VTKERNELS_CUDA)
VTKERNELS_LIBRARY_IMPL(CUDA, m) {
  m.impl("cls_attention", TORCH_BOX(&cls_attention));
  m.impl("cls_attention.out", TORCH_BOX(&cls_attention_out));
}
#endif

}  // namespace vtkernels::torch_ops
