#include "adapt.h"

namespace vtkernels::torch_ops {
namespace {

void check_arguments(const Tensor& attention, const std::optional<Tensor>& features, int64_t k, int64_t crops, double beta,
                     const std::string& variant, const std::optional<Tensor>& lengths) {
  const char* op = "crop_topk";
  Argument{op, "attention", attention}.rank("B, N", 2).floats();
  const int64_t b = attention.size(0), n = attention.size(1);
  if (features) {
    const Argument argument{op, "features", *features};
    argument.rank("B, N, D", 3).floats().sizes("B, N, D", {b, n, features->size(2)}).like("attention", attention);
  }
  check_budget(op, k, "N", n);
  check(crops >= 1, op, ": crops must be >= 1, got ", crops);
  check(std::isfinite(beta) && beta >= 0, op, ": beta must be a finite number >= 0, got ", beta);
  check(variant == "released" || variant == "full" || variant == "paper", op,
        ": variant must be 'released' or 'full' or 'paper', got '", variant, "'");
  check(variant != "paper" || features.has_value(), op, ": variant 'paper' needs features, got None");
  check_lengths(op, lengths, b, "attention", attention);
}

void run(const Tensor& attention, const std::optional<Tensor>& features, int64_t k, int64_t crops, double beta,
         const std::string& variant, const std::optional<Tensor>& valid, bool sort, const Tensor& out) {
  const Parallel threads = parallel();
  const int64_t channels = features ? features->size(2) : 0;
  const Scratch scratch(attention,
                        cpu::crop_topk_scratch(attention.size(0), attention.size(1), channels, crops, threads.threads));
  const cpu::CropVariant which = variant == "paper"  ? cpu::CropVariant::paper
                                 : variant == "full" ? cpu::CropVariant::full
                                                     : cpu::CropVariant::released;
  const Array<3> rows_of_features = array<3>(features);
  cpu::crop_topk(array<2>(attention), features ? &rows_of_features : nullptr, lengths(valid), k, {crops, beta, which, sort},
                 output<int64_t>(out), scratch.data(), threads);
}

Tensor crop_topk(Tensor attention, std::optional<Tensor> features, int64_t k, int64_t crops, double beta, std::string variant,
                 std::optional<Tensor> lengths, bool sort) {
  check_arguments(attention, features, k, crops, beta, variant, lengths);
  Tensor out = empty(attention, {attention.size(0), k}, ScalarType::Long);
  run(attention, features, k, crops, beta, variant, lengths, sort, out);
  return out;
}

void crop_topk_out(Tensor attention, std::optional<Tensor> features, int64_t k, int64_t crops, double beta, std::string variant,
                   std::optional<Tensor> lengths, bool sort, Tensor out) {
  check_arguments(attention, features, k, crops, beta, variant, lengths);
  check_out("crop_topk", out, ScalarType::Long, {attention.size(0), k}, attention);
  check_apart("crop_topk", out, {{"attention", attention}, {"features", features}, {"lengths", lengths}});
  run(attention, features, k, crops, beta, variant, lengths, sort, out);
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) {
  m.impl("crop_topk", TORCH_BOX(&crop_topk));
  m.impl("crop_topk.out", TORCH_BOX(&crop_topk_out));
}

}  // namespace vtkernels::torch_ops
