// G-Prune: edge weights from the similarity, then a product of a row vector with the symmetric weights per iteration.
#include <algorithm>
#include <cfloat>

#include "similarity.h"
#include "vtkernels/cpu.h"

namespace vtkernels::cpu {
namespace {

constexpr int64_t kTaskRows = 64;  // a multiple of every vector width

}  // namespace

int64_t graph_propagate_scratch(int64_t n, int64_t channels) {
  const SimilarityLayout layout(n, channels);
  return layout.floats() + 5 * layout.rows;
}

void graph_propagate(const Array<3>& features, const Lengths& lengths, const GraphOptions& options, const Output<float>& scores,
                     const Output<int32_t>& degree, float* scratch, const Parallel& parallel) {
  const int64_t per_worker = graph_propagate_scratch(features.size[1], features.size[2]);
  parallel.for_each_image(features.size[0], [&](int64_t b, int64_t worker, const Parallel& inner) {
    const Isa& kernels = isa();
    // What is above 0 in float64 stays above 0 in float32.
    const float threshold = std::max(options.threshold, FLT_MIN), temperature = std::max(options.temperature, FLT_MIN);
    const int64_t most = features.size[1], n = lengths(b, most);
    const SimilarityLayout layout(n, features.size[2]);
    float* memory = scratch + worker * per_worker;
    const Array<2> tokens = rows_of(features.at(b), 0, n);
    const Similarity similarity(tokens, layout, memory);
    float* mass = memory + layout.floats();                        // q
    float* sum = mass + layout.rows;                               // Z, the softmax denominators
    float* shares[] = {sum + layout.rows, sum + 2 * layout.rows};  // q / Z of this iteration and of the next
    auto* count = reinterpret_cast<int32_t*>(sum + 3 * layout.rows);
    std::fill(shares[0], shares[0] + 2 * layout.rows, 0.0f);

    // A softmax row is weight / sum and the weights are symmetric, so q P is the weights times q / Z, row by row.
    const int64_t weigh = similarity.phases(), mirror = weigh + 1, iterate = weigh + 2;
    const int64_t row_tasks = (n + kTaskRows - 1) / kTaskRows;
    const auto tasks = [&](int64_t phase) { return phase < weigh ? similarity.tasks(phase) : row_tasks; };
    inner.for_each_phase(
        iterate + options.iterations, similarity.most_tasks(), tasks, [&](int64_t phase, int64_t task, int64_t) {
          if (phase < weigh) return similarity.run(phase, task);
          const int64_t begin = task * kTaskRows, end = std::min(n, begin + kTaskRows);
          float* weights = similarity.matrix();
          const float* share = shares[(phase - iterate) % 2 != 0];
          float* next = shares[(phase - iterate) % 2 == 0];
          if (phase == weigh) {
            kernels.edge_weights(weights, layout.row_stride, begin, end, similarity.scale(), threshold, temperature);
            return;
          }
          if (phase == mirror) {
            for (int64_t block = begin / kernels.width; block * kernels.width < end; ++block) similarity.mirror(block);
            kernels.row_sums(weights, layout.row_stride, layout.items, begin, end, sum, count);
            for (int64_t i = begin; i < end; ++i) mass[i] = similarity.scale()[i] != 0 ? 1 / similarity.scale()[i] : 0;
            next = shares[0];
          } else {
            kernels.row_products(weights, layout.row_stride, layout.items, begin, end, share, mass);
          }
          for (int64_t i = begin; i < end; ++i) next[i] = sum[i] > 0 ? mass[i] / sum[i] : 0;
        });
    for (int64_t i = 0; i < most; ++i) {
      degree(b, i) = i < n ? count[i] : 0;
      scores(b, i) = i < n && count[i] > 0 ? mass[i] / static_cast<float>(count[i]) : 0;
    }
  });
}

}  // namespace vtkernels::cpu
