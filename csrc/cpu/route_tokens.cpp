// PAR: the slot of the most similar kept token, of the same cluster where clusters are given.
#include <algorithm>

#include "cross_similarity.h"
#include "rows.h"
#include "vtkernels/cpu.h"

namespace vtkernels::cpu {
namespace {

// Scratch of one running image beside the cosines: the kept rows side by side, in the features' own type.
int64_t kept_floats(int64_t k, int64_t channels) { return round_up(k * channels * 2, 16); }  // 8 bytes an element at most

}  // namespace

int64_t route_tokens_scratch(int64_t images, int64_t k, int64_t channels, int64_t threads) {
  return CrossLayout(k, channels).total(images, threads) + kept_floats(k, channels) * std::min(images, threads);
}

void route_tokens(const Array<3>& features, const Output<const int64_t>& indices, int64_t k,
                  const Output<const int64_t>& labels, const Lengths& lengths, const Output<int64_t>& slots, float* scratch,
                  const Parallel& parallel) {
  const int64_t images = features.size[0], most = features.size[1], channels = features.size[2];
  const CrossLayout layout(k, channels);
  const int64_t element = element_size(features.dtype);
  float* threads = scratch + std::min(images, parallel.threads) * layout.per_image();
  float* kept_rows = threads + parallel.threads * layout.per_thread();
  const Rows from{static_cast<char*>(const_cast<void*>(features.data)),
                  element,
                  {features.stride[0], features.stride[1], features.stride[2]}};
  parallel.for_each_image(images, [&](int64_t b, int64_t worker, const Parallel& inner) {
    const int64_t n = lengths(b, most);
    for (int64_t i = n; i < most; ++i) slots(b, i) = -1;
    const auto open = [&](int64_t s) { return indices(b, s) >= 0 && indices(b, s) < n; };
    auto* kept = reinterpret_cast<char*>(kept_rows + worker * kept_floats(k, channels));
    for (int64_t s = 0; s < k; ++s)
      move_row(from, {kept, element, {0, channels, 1}}, b, open(s) ? indices(b, s) : -1, s, 0, channels);
    const Array<2> others{kept, features.dtype, {k, channels}, {channels, 1}};
    for_each_cosine_row(rows_of(features.at(b), 0, n), others, layout, scratch + worker * layout.per_image(),
                        threads + worker * layout.per_thread(), inner, [&](int64_t i, const float* cosines) {
                          int64_t nearest = -1;
                          for (int64_t s = 0; s < k; ++s) {
                            if (!open(s)) continue;
                            if (labels.data != nullptr) {
                              const int64_t label = labels(b, indices(b, s));
                              if (label != labels(b, i) || label < 0 || label >= most) continue;
                            }
                            if (nearest < 0 || cosines[s] > cosines[nearest]) nearest = s;
                          }
                          slots(b, i) = nearest;
                        });
    for (int64_t s = k; s-- > 0;) {
      if (open(s)) slots(b, indices(b, s)) = s;  // the lowest slot is written last
    }
  });
}

}  // namespace vtkernels::cpu
