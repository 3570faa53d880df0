#include "greedy.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "element.h"

namespace vtkernels::cpu {
namespace {

std::atomic<bool> lazy{true};

}  // namespace

void set_lazy(bool value) { lazy = value; }

int64_t GreedyScratch::floats(int64_t items, int64_t candidates) {
  // covered, then score, weight, gains and fresh of 4 bytes, picks of 8
  return round_up(items, kPad) + 6 * round_up(candidates, kPad);
}

GreedyScratch::GreedyScratch(float* scratch, int64_t items, int64_t candidates) {
  const int64_t n = round_up(candidates, kPad);
  covered = scratch;
  score = covered + round_up(items, kPad);
  weight = score + n;
  gains = weight + n;
  fresh = reinterpret_cast<int32_t*>(gains + n);
  picks = reinterpret_cast<int64_t*>(fresh + n);
}

const float* load_weights(const Array<1>& values, int64_t n, double alpha, float* weight) {
  if (values.data == nullptr) return nullptr;
  for (int64_t j = 0; j < n; ++j) {
    const float x = element_as_float(values, j);
    const float base = std::max(x, 0.0f);
    const float w = alpha == 1 ? base : std::pow(base, static_cast<float>(alpha));
    weight[j] = std::isfinite(x) && std::isfinite(w) ? w : std::numeric_limits<float>::quiet_NaN();
  }
  return weight;
}

void select_greedily(Coverage problem, const GreedyScratch& scratch, int64_t k, bool sort, int64_t b,
                     const Output<int64_t>& indices, const Output<float>* gains) {
  problem.lazy = lazy;
  problem.covered = scratch.covered;
  problem.score = scratch.score;
  problem.fresh = scratch.fresh;
  isa().greedy(problem, k, scratch.picks, gains != nullptr ? scratch.gains : nullptr);

  const int64_t found = std::min(k, problem.candidates);
  if (!sort) {
    for (int64_t s = 0; s < k; ++s) {
      indices(b, s) = scratch.picks[s];
      if (gains != nullptr) (*gains)(b, s) = scratch.gains[s];
    }
    return;
  }
  // In token order: mark each candidate with its step, then read the marks off in one pass.
  std::fill(scratch.fresh, scratch.fresh + problem.candidates, -1);
  for (int64_t s = 0; s < found; ++s) scratch.fresh[scratch.picks[s]] = static_cast<int32_t>(s);
  int64_t slot = 0;
  for (int64_t j = 0; j < problem.candidates; ++j) {
    if (scratch.fresh[j] < 0) continue;
    indices(b, slot) = j;
    if (gains != nullptr) (*gains)(b, slot) = scratch.gains[scratch.fresh[j]];
    ++slot;
  }
  for (; slot < k; ++slot) {
    indices(b, slot) = -1;
    if (gains != nullptr) (*gains)(b, slot) = 0;
  }
}

}  // namespace vtkernels::cpu
