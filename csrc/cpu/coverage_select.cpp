// The greedy loop on a caller's similarity: candidates become rows, then as in scope_select.
#include <algorithm>

#include "greedy.h"

namespace vtkernels::cpu {
namespace {

constexpr int64_t kTaskCandidates = 64;

}  // namespace

int64_t coverage_select_scratch(int64_t items, int64_t candidates) {
  return round_up(items, kPad) * candidates + GreedyScratch::floats(items, candidates);
}

void coverage_select(const Array<3>& similarity, const Array<2>& weight, const Lengths& lengths, int64_t k, Combine combine,
                     bool sort, const Output<int64_t>& indices, const Output<float>& gains, float* scratch,
                     const Parallel& parallel) {
  const int64_t per_worker = coverage_select_scratch(similarity.size[1], similarity.size[2]);
  parallel.for_each_image(similarity.size[0], [&](int64_t b, int64_t worker, const Parallel& inner) {
    const int64_t most = similarity.size[2], n = lengths(b, most), items = round_up(similarity.size[1], kPad);
    float* rows = scratch + worker * per_worker;
    const GreedyScratch greedy(rows + items * n, items, most);
    if (k > 0) {
      inner.for_each((n + kTaskCandidates - 1) / kTaskCandidates, [&](int64_t task, int64_t) {
        const int64_t begin = task * kTaskCandidates, end = std::min(n, begin + kTaskCandidates);
        isa().transpose(similarity.at(b), begin, end, rows, items);
        isa().first_gains(rows, items, items, begin, end, greedy.score);
      });
    }
    Coverage problem{rows, items, items, n};
    problem.weight = load_weights(weight.at(b), n, 1, greedy.weight);
    problem.combine = combine;
    select_greedily(problem, greedy, k, sort, b, indices, &gains);
  });
}

}  // namespace vtkernels::cpu
