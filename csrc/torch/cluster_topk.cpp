#include "adapt.h"

namespace vtkernels::torch_ops {
namespace {

void check_arguments(const Tensor& labels, const Tensor& relevance, int64_t k, double pool,
                     const std::optional<Tensor>& lengths) {
  const char* op = "cluster_topk";
  Argument{op, "labels", labels}.rank("B, N", 2);
  check(labels.scalar_type() == ScalarType::Long, op, ": labels must be int64, got ", name(labels.scalar_type()));
  const int64_t b = labels.size(0), n = labels.size(1);
  Argument{op, "relevance", relevance}.rank("B, N", 2).floats().sizes("B, N", {b, n}).like("labels", labels);
  check_budget(op, k, "N", n);
  check(0 <= pool && pool <= 1, op, ": pool must be in [0, 1], got ", pool);
  check_lengths(op, lengths, b, "labels", labels);
}

void run(const Tensor& labels, const Tensor& relevance, int64_t k, double pool, const std::optional<Tensor>& valid, bool sort,
         const Tensor& out) {
  const Parallel threads = parallel();
  const Scratch scratch(relevance, cpu::cluster_topk_scratch(labels.size(1)), labels.size(0), threads);
  cpu::cluster_topk(index_rows(labels), array<2>(relevance), lengths(valid), k, pool, sort, output<int64_t>(out),
                    scratch.data(), threads);
}

Tensor cluster_topk(Tensor labels, Tensor relevance, int64_t k, double pool, std::optional<Tensor> lengths, bool sort) {
  check_arguments(labels, relevance, k, pool, lengths);
  Tensor out = empty(labels, {labels.size(0), k}, ScalarType::Long);
  run(labels, relevance, k, pool, lengths, sort, out);
  return out;
}

void cluster_topk_out(Tensor labels, Tensor relevance, int64_t k, double pool, std::optional<Tensor> lengths, bool sort,
                      Tensor out) {
  check_arguments(labels, relevance, k, pool, lengths);
  check_out("cluster_topk", out, ScalarType::Long, {labels.size(0), k}, labels);
  check_apart("cluster_topk", out, {{"labels", labels}, {"relevance", relevance}, {"lengths", lengths}});
  run(labels, relevance, k, pool, lengths, sort, out);
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) {
  m.impl("cluster_topk", TORCH_BOX(&cluster_topk));
  m.impl("cluster_topk.out", TORCH_BOX(&cluster_topk_out));
}

}  // namespace vtkernels::torch_ops
