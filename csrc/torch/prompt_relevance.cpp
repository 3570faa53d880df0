#include "adapt.h"

namespace vtkernels::torch_ops {
namespace {

void check_arguments(const Tensor& vision, const Tensor& text, const std::optional<Tensor>& text_lengths,
                     const std::string& reduce) {
  const char* op = "prompt_relevance";
  Argument{op, "vision", vision}.rank("B, N, D", 3).floats();
  const Argument argument{op, "text", text};
  argument.rank("B, T, D", 3).floats().sizes("B, T, D", {vision.size(0), text.size(1), vision.size(2)});
  check(text.scalar_type() == vision.scalar_type(), op, ": text must be ", name(vision.scalar_type()), " like vision, got ",
        name(text.scalar_type()));
  argument.like("vision", vision);
  check_lengths(op, text_lengths, vision.size(0), "vision", vision, "text_lengths");
  check_option(op, "reduce", reduce, "max", "mean");
}

void run(const Tensor& vision, const Tensor& text, const std::optional<Tensor>& text_lengths, const std::string& reduce,
         const Tensor& out) {
  const Parallel threads = parallel();
  const cpu::Relevance how = reduce == "mean" ? cpu::Relevance::mean : cpu::Relevance::max;
  const int64_t floats = cpu::prompt_relevance_scratch(vision.size(0), text.size(1), vision.size(2), how, threads.threads);
  const Scratch scratch(vision, floats);
  cpu::prompt_relevance(array<3>(vision), array<3>(text), lengths(text_lengths), how, output<float>(out), scratch.data(),
                        threads);
}

Tensor prompt_relevance(Tensor vision, Tensor text, std::optional<Tensor> text_lengths, std::string reduce) {
  check_arguments(vision, text, text_lengths, reduce);
  Tensor out = empty(vision, {vision.size(0), vision.size(1)}, ScalarType::Float);
  run(vision, text, text_lengths, reduce, out);
  return out;
}

void prompt_relevance_out(Tensor vision, Tensor text, std::optional<Tensor> text_lengths, std::string reduce, Tensor out) {
  check_arguments(vision, text, text_lengths, reduce);
  check_out("prompt_relevance", out, ScalarType::Float, {vision.size(0), vision.size(1)}, vision);
  check_apart("prompt_relevance", out, {{"vision", vision}, {"text", text}, {"text_lengths", text_lengths}});
  run(vision, text, text_lengths, reduce, out);
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) {
  m.impl("prompt_relevance", TORCH_BOX(&prompt_relevance));
  m.impl("prompt_relevance.out", TORCH_BOX(&prompt_relevance_out));
}

}  // namespace vtkernels::torch_ops
