// The mean of each kept token and what it absorbs, summed in float64 in the order of the tokens.
#include <algorithm>

#include "carve.h"
#include "vtkernels/cpu.h"
#include "vtkernels/isa.h"

namespace vtkernels::cpu {
namespace {

// A task reads long runs of channels, which the processor fetches ahead, of a few slots, of which there are enough for all.
constexpr int64_t kTaskChannels = 1024, kTaskSlots = 8;

// The tokens of every slot as lists: first[s] is the head, next[i] the one after token i, -1 the end.
struct Members {
  int32_t *first, *last, *count, *next;

  static int64_t floats(int64_t n, int64_t k) { return 3 * Carve::floats<int32_t>(k) + Carve::floats<int32_t>(n); }
  Members(float* scratch, int64_t n, int64_t k) {
    Carve carve(scratch);
    first = carve.take<int32_t>(k);
    last = carve.take<int32_t>(k);
    count = carve.take<int32_t>(k);
    next = carve.take<int32_t>(n);
  }
  void append(int64_t slot, int64_t token) const {
    (count[slot]++ == 0 ? first[slot] : next[last[slot]]) = static_cast<int32_t>(token);
    last[slot] = static_cast<int32_t>(token);
    next[token] = -1;
  }
};

void list_members(const Members& lists, int64_t b, int64_t n, int64_t k, const Output<const int64_t>& indices,
                  const Output<const int64_t>& assignment) {
  constexpr int32_t kFree = -1, kKept = -2;
  std::fill(lists.count, lists.count + k, 0);
  std::fill(lists.next, lists.next + n, kFree);
  for (int64_t s = 0; s < k; ++s) {
    if (indices(b, s) >= 0) lists.next[indices(b, s)] = kKept;
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t slot = assignment(b, i);
    if (lists.next[i] == kKept || slot < 0 || indices(b, slot) < 0) continue;
    lists.append(slot, i);
  }
}

template <class T>
void write_mean(const double* sum, double count, int64_t width, T* out) {
  for (int64_t d = 0; d < width; ++d) out[d] = static_cast<T>(sum[d] / count);
}

}  // namespace

int64_t merge_tokens_scratch(int64_t images, int64_t n, int64_t k, int64_t threads) {
  return images * Members::floats(n, k) + threads * Carve::floats<double>(kTaskChannels);
}

void merge_tokens(const Array<3>& tokens, const Output<const int64_t>& indices, int64_t k,
                  const Output<const int64_t>& assignment, void* merged, float* scratch, const Parallel& parallel) {
  const int64_t images = tokens.size[0], n = tokens.size[1], channels = tokens.size[2];
  const int64_t runs = (channels + kTaskChannels - 1) / kTaskChannels, groups = (k + kTaskSlots - 1) / kTaskSlots;
  float* sums = scratch + images * Members::floats(n, k);
  const auto tasks = [&](int64_t phase) { return phase == 0 ? images : images * groups * runs; };
  parallel.for_each_phase(2, std::max(tasks(0), tasks(1)), tasks, [&](int64_t phase, int64_t task, int64_t worker) {
    const int64_t b = phase == 0 ? task : task / (groups * runs);
    const Members lists(scratch + b * Members::floats(n, k), n, k);
    if (phase == 0) return list_members(lists, b, n, k, indices, assignment);
    const int64_t begin = task % runs * kTaskChannels, width = std::min(kTaskChannels, channels - begin);
    const int64_t first = task / runs % groups * kTaskSlots;
    auto* sum = reinterpret_cast<double*>(sums + worker * Carve::floats<double>(kTaskChannels));
    const Array<2> image = tokens.at(b);
    for (int64_t s = first; s < std::min(k, first + kTaskSlots); ++s) {
      std::fill(sum, sum + width, 0.0);
      const auto add = [&](int64_t i) { isa().add_channels(image.at(i), begin, width, sum); };
      if (indices(b, s) >= 0) add(indices(b, s));
      int64_t left = lists.count[s];
      for (int32_t i = lists.first[s]; left > 0; i = lists.next[i], --left) add(i);
      const auto count = static_cast<double>(lists.count[s] + 1);
      const int64_t at = (b * k + s) * channels + begin;
      if (tokens.dtype == DType::float64) {
        write_mean(sum, count, width, static_cast<double*>(merged) + at);
      } else {
        write_mean(sum, count, width, static_cast<float*>(merged) + at);
      }
    }
  });
}

}  // namespace vtkernels::cpu
