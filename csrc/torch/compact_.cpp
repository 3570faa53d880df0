#include "adapt.h"
#include "gpu.h"

namespace vtkernels::torch_ops {
namespace {

void compact_(Tensor tokens, Tensor indices) {
  const char* op = "compact_";
  Argument{op, "tokens", tokens}.rank("B, N, D", 3).floats();
  check_indices(op, indices, tokens);
  const int64_t b = tokens.size(0), n = tokens.size(1), k = indices.size(1);
  check(k <= n, op, ": indices must have at most N = ", n, " columns, got ", k);
  check_writable(op, "tokens", tokens);
#if defined(VTKERNELS_CUDA)
  if (tokens.is_cuda()) {  // the indices are not read back, so their order is the caller's word
    const cpu::Rows to = rows(tokens);
    const int64_t d = tokens.size(2);
    const OnGpu gpu(tokens);
    const bool sixteens = cuda::in_sixteens(to.data, to.element, to.stride, d);
    cuda::compact_(cuda::plan_compact_(cuda::gpu(gpu.device()), b, d, to.element, sixteens), to.data, to.element, to.stride, b,
                   k, d, index_rows(indices), gpu.stream());
    return;
  }
#endif
  check_in_range(op, indices, n);
  const auto index = index_rows(indices);
  for (int64_t i = 0; i < b; ++i) {
    int64_t previous = -1;
    for (int64_t s = 0; s < k; ++s) {
      const int64_t at = index(i, s);
      check(at == -1 || (previous < at && (s == 0 || index(i, s - 1) != -1)), op,
            ": indices must be ascending and distinct, with -1 only at the end");
      previous = at == -1 ? n : at;
    }
  }
  cpu::compact_(rows(tokens), b, k, tokens.size(2), index, parallel());
}

}  // namespace

VTKERNELS_LIBRARY_IMPL(CPU, m) { m.impl("compact_", TORCH_BOX(&compact_)); }
#if defined(VTKERNELS_CUDA)
VTKERNELS_LIBRARY_IMPL(CUDA, m) { m.impl("compact_", TORCH_BOX(&compact_)); }
#endif

}  // namespace vtkernels::torch_ops
