// SCOPE: cosine similarity of all pairs (include/vtkernels/gram.h), then the greedy loop (include/vtkernels/coverage.h).
#include <algorithm>

#include "greedy.h"
#include "similarity.h"

namespace vtkernels::cpu {

int64_t scope_select_scratch(int64_t n, int64_t channels) {
  return SimilarityLayout(n, channels).floats() + GreedyScratch::floats(n, n);
}

void scope_select(const Array<3>& features, const Array<2>& saliency, const Lengths& lengths, int64_t k,
                  const ScopeOptions& options, const Output<int64_t>& indices, float* scratch, const Parallel& parallel) {
  const int64_t per_worker = scope_select_scratch(features.size[1], features.size[2]);
  parallel.for_each_image(features.size[0], [&](int64_t b, int64_t worker, const Parallel& inner) {
    const int64_t most = features.size[1], n = lengths(b, most);
    const SimilarityLayout layout(n, features.size[2]);
    float* memory = scratch + worker * per_worker;
    const GreedyScratch greedy(memory + layout.floats(), most, most);
    const Array<2> tokens = rows_of(features.at(b), 0, n);
    const Similarity similarity(tokens, layout, memory);

    if (k > 0) {
      const int64_t last = similarity.phases(), width = isa().width;
      const auto tasks = [&](int64_t phase) { return phase < last ? similarity.tasks(phase) : similarity.mirror_tasks(); };
      inner.for_each_phase(last + 1, similarity.most_tasks(), tasks, [&](int64_t phase, int64_t task, int64_t) {
        if (phase < last) return similarity.run(phase, task);
        similarity.mirror(task);
        isa().first_gains(similarity.matrix(), layout.row_stride, layout.items, task * width, std::min(n, (task + 1) * width),
                          greedy.score);
      });
    }
    Coverage problem{similarity.matrix(), layout.row_stride, layout.items, n};
    problem.weight = load_weights(saliency.at(b), n, options.alpha, greedy.weight);
    problem.combine = options.combine;
    select_greedily(problem, greedy, k, options.sort, b, indices, nullptr);
  });
}

}  // namespace vtkernels::cpu
