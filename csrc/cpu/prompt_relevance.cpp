// PAR: the greatest cosine of each visual token with the prompt, or its cosine with the mean direction of the prompt.
#include <algorithm>

#include "cross_similarity.h"
#include "element.h"
#include "vtkernels/cpu.h"

namespace vtkernels::cpu {

int64_t prompt_relevance_scratch(int64_t images, int64_t words, int64_t channels, int64_t threads) {
  return CrossLayout(std::max<int64_t>(words, 1), channels).total(images, threads) +
         (round_up(words, 16) + round_up(channels, 16)) * std::min(images, threads);
}

void prompt_relevance(const Array<3>& vision, const Array<3>& text, const Lengths& lengths, Relevance reduce,
                      const Output<float>& relevance, float* scratch, const Parallel& parallel) {
  const int64_t images = vision.size[0], n = vision.size[1], channels = vision.size[2], most = text.size[1];
  const int64_t running = std::min(images, parallel.threads);
  const CrossLayout layout(std::max<int64_t>(most, 1), channels);
  float* threads = scratch + running * layout.per_image();
  float* means = threads + parallel.threads * layout.per_thread();
  parallel.for_each_image(images, [&](int64_t b, int64_t worker, const Parallel& inner) {
    const int64_t words = lengths(b, most);
    Array<2> prompt = rows_of(text.at(b), 0, words);
    float* mean = means + worker * (round_up(most, 16) + round_up(channels, 16));
    if (reduce == Relevance::mean && words > 0) {
      float* norms = mean + round_up(channels, 16);
      isa().inverse_norms(prompt, 0, words, norms);
      std::fill(mean, mean + channels, 0.0f);
      for (int64_t w = 0; w < words; ++w) {
        if (norms[w] == 0) continue;
        for (int64_t d = 0; d < channels; ++d) mean[d] += norms[w] * element_as_float(prompt.at(w), d);
      }
      prompt = {mean, DType::float32, {1, channels}, {channels, 1}};
    }
    if (words == 0) {
      for (int64_t i = 0; i < n; ++i) relevance(b, i) = 0;
      return;
    }
    for_each_cosine_row(
        vision.at(b), prompt, layout, scratch + worker * layout.per_image(), threads + worker * layout.per_thread(), inner,
        [&](int64_t i, const float* cosines) { relevance(b, i) = *std::max_element(cosines, cosines + prompt.size[0]); });
  });
}

}  // namespace vtkernels::cpu
