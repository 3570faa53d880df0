// PAR: the greatest cosine of each visual token with the prompt, or its cosine with the mean direction of the prompt.
#include <algorithm>

#include "cross_similarity.h"
#include "vtkernels/cpu.h"

namespace vtkernels::cpu {
namespace {

constexpr int64_t kTaskRows = 16;  // a multiple of every vector width; their second reading comes from the cache

// The sum of the directions of the prompt, for one running image, and the norms of what is summed.
struct MeanLayout {
  int64_t direction, norms;

  MeanLayout(int64_t words, int64_t channels) : direction(round_up(channels, kPad)), norms(round_up(words, 16)) {}
  int64_t floats() const { return direction + norms; }
};

// f(i, the greatest cosine of row i with the rows of the prompt)
template <class F>
void with_each(const Array<2>& vision, const Array<2>& prompt, const CrossLayout& layout, float* image, float* threads,
               const Parallel& parallel, const F& f) {
  for_each_cosine_row(vision, prompt, layout, image, threads, parallel,
                      [&](int64_t i, const float* cosines) { f(i, *std::max_element(cosines, cosines + prompt.size[0])); });
}

// f(i, the cosine of row i with the mean direction of the prompt)
template <class F>
void with_mean(const Array<2>& vision, const Array<2>& prompt, const MeanLayout& layout, float* scratch,
               const Parallel& parallel, const F& f) {
  const Isa& kernels = isa();
  const int64_t words = prompt.size[0], channels = prompt.size[1];
  float *direction = scratch, *norms = scratch + layout.direction, inverse = 0;
  std::fill(direction, direction + layout.direction, 0.0f);
  kernels.inverse_norms(prompt, 0, words, norms);
  for (int64_t w = 0; w < words; ++w) {
    if (norms[w] != 0) kernels.add_scaled(prompt.at(w), norms[w], direction);
  }
  kernels.inverse_norms({direction, DType::float32, {1, channels}, {channels, 1}}, 0, 1, &inverse);
  parallel.for_each((vision.size[0] + kTaskRows - 1) / kTaskRows, [&](int64_t task, int64_t) {
    const int64_t begin = task * kTaskRows, count = std::min(vision.size[0] - begin, kTaskRows);
    const Array<2> rows = rows_of(vision, begin, count);
    float scale[kTaskRows], product[kTaskRows];
    kernels.inverse_norms(rows, 0, count, scale);
    // as one head with one query: products of the rows as they lie, which a packed product would copy first
    kernels.logits(direction, 0, {rows.data, rows.dtype, {1, count, channels}, {0, rows.stride[0], rows.stride[1]}}, inverse, 0,
                   count, product, 0);
    for (int64_t r = 0; r < count; ++r) f(begin + r, scale[r] != 0 ? product[r] * scale[r] : 0.0f);
  });
}

}  // namespace

int64_t prompt_relevance_scratch(int64_t images, int64_t words, int64_t channels, Relevance reduce, int64_t threads) {
  if (reduce == Relevance::mean) return MeanLayout(words, channels).floats() * std::min(images, threads);
  return CrossLayout(words, channels).total(images, threads);
}

void prompt_relevance(const Array<3>& vision, const Array<3>& text, const Lengths& lengths, Relevance reduce,
                      const Output<float>& relevance, float* scratch, const Parallel& parallel) {
  const int64_t images = vision.size[0], n = vision.size[1], channels = vision.size[2], most = text.size[1];
  const CrossLayout cross(most, channels);
  const MeanLayout mean(most, channels);
  float* threads = scratch + std::min(images, parallel.threads) * cross.per_image();
  parallel.for_each_image(images, [&](int64_t b, int64_t worker, const Parallel& inner) {
    const int64_t words = lengths(b, most);
    const Array<2> prompt = rows_of(text.at(b), 0, words);
    const auto write = [&](int64_t i, float cosine) { relevance(b, i) = cosine; };
    if (words == 0) {
      for (int64_t i = 0; i < n; ++i) write(i, 0);
    } else if (reduce == Relevance::mean) {
      with_mean(vision.at(b), prompt, mean, scratch + worker * mean.floats(), inner, write);
    } else {
      with_each(vision.at(b), prompt, cross, scratch + worker * cross.per_image(), threads + worker * cross.per_thread(), inner,
                write);
    }
  });
}

}  // namespace vtkernels::cpu
