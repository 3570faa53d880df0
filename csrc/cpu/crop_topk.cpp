// HoloV: a budget for every run of tokens, then top-k inside each run. Scores of runs are float64, similarities float32.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "carve.h"
#include "element.h"
#include "vtkernels/cpu.h"
#include "vtkernels/isa.h"

namespace vtkernels::cpu {
namespace {

constexpr double kEps = 1e-6;  // of the published code: in the row norms, under the variance, in the sum of the scores

// The first (n mod crops) of the runs have one token more.
struct Runs {
  int64_t n, count;

  int64_t size(int64_t c) const { return n / count + (c < n % count); }
  int64_t start(int64_t c) const { return c * (n / count) + std::min(c, n % count); }
};

// Scratch of one thread for the similarities of one run of at most `most` tokens.
struct RunLayout {
  int64_t rows, row_stride, channels;

  RunLayout(int64_t most, int64_t d) : rows(round_up(most, kPad) + kPad), row_stride(rows), channels(d) {}
  int64_t floats() const { return rows * channels + rows * row_stride + rows; }
};

// Scratch of one image for its selection.
struct Choice {
  double *rank, *weight;
  int64_t *size, *quota;
  int32_t *by_weight, *order;

  static int64_t floats(int64_t n, int64_t runs) {
    return Carve::floats<double>(n) + Carve::floats<double>(runs) + 2 * Carve::floats<int64_t>(runs) +
           Carve::floats<int32_t>(runs) + Carve::floats<int32_t>(n);
  }
  Choice(float* scratch, int64_t n, int64_t runs) {
    Carve carve(scratch);
    rank = carve.take<double>(n);
    weight = carve.take<double>(runs);
    size = carve.take<int64_t>(runs);
    quota = carve.take<int64_t>(runs);
    by_weight = carve.take<int32_t>(runs);
    order = carve.take<int32_t>(n);
  }
};

// variance[i]: of a token's similarities to its run, its own zero included, over the number of the others
void run_variance(const Array<2>& tokens, int64_t start, int64_t size, const RunLayout& layout, float* scratch,
                  float* variance) {
  const Isa& kernels = isa();
  float* packed = scratch;
  float* c = packed + layout.rows * layout.channels;
  float* scale = c + layout.rows * layout.row_stride;
  const Array<2> run = rows_of(tokens, start, size);
  kernels.inverse_norms(run, 0, size, scale);
  for (int64_t i = 0; i < size; ++i) scale[i] = scale[i] != 0 ? 1 / (1 / scale[i] + static_cast<float>(kEps)) : 0;
  const int64_t items = round_up(size, kPad);
  for (int64_t i = 0; i < size; i += kernels.panel)
    kernels.pack(run, i, scale, 0, layout.channels, packed + i * layout.channels);
  // rows only as far as the last tile; a tile has 8 rows at most
  const int64_t rows[] = {0, round_up(size, 8)}, columns[] = {0, round_up(size, kernels.panel)};
  kernels.gram_block(packed, layout.channels, rows, columns, false, c, layout.row_stride);
  for (int64_t i = 0; i < size; i += kernels.width) kernels.mirror(c, layout.row_stride, i, size);
  const float others = static_cast<float>(std::max<int64_t>(1, size - 1));
  for (int64_t i = 0; i < size; ++i) {
    float sum, squares;
    c[i * layout.row_stride + i] = 0;
    kernels.row_moments(c + i * layout.row_stride, items, &sum, &squares);
    const float mean = sum / others;
    variance[i] = std::max(0.0f, (squares - (others - 1) * mean * mean) / others);
  }
}

// Scores of the runs become their shares; rank becomes what tokens are ranked by.
void weigh(const Array<1>& attention, const float* variance, const Runs& runs, const CropOptions& options,
           const Choice& choice) {
  double total = options.variant == CropVariant::paper ? 0 : kEps;
  for (int64_t c = 0; c < runs.count; ++c) {
    const int64_t start = runs.start(c), size = runs.size(c);
    double mass = 0, spread = 0;
    for (int64_t i = start; i < start + size; ++i) {
      const double a = element_as_double(attention, i);
      choice.rank[i] = std::isfinite(a) ? std::max(a, 0.0) : std::numeric_limits<double>::quiet_NaN();
      if (std::isfinite(a)) mass += std::max(a, 0.0);
      if (variance != nullptr) spread += static_cast<double>(variance[i]);
    }
    const double tokens = static_cast<double>(std::max<int64_t>(1, size)), mean = mass / tokens;
    spread /= tokens;
    if (options.variant == CropVariant::paper) {
      const double gamma = mean / (spread + kEps);
      for (int64_t i = start; i < start + size; ++i) choice.rank[i] += gamma * static_cast<double>(variance[i]);
      choice.weight[c] = mean;
    } else {
      const double factor = 1 + options.beta * (variance == nullptr ? 1 : spread / (spread + kEps));
      choice.weight[c] = size > 1 ? 1000 * mean * factor : mean;
    }
    choice.size[c] = size;
    total += choice.weight[c];
  }
  for (int64_t c = 0; c < runs.count; ++c) {
    const double share = choice.weight[c] / total;
    choice.weight[c] = std::isfinite(share) ? share : 0;
  }
}

// Quota beyond the size of a run goes to runs with room, in proportion to weight times room, round by round.
void redistribute(const Choice& choice, int64_t runs, int64_t k) {
  int64_t left = k;
  for (int64_t c = 0; c < runs; ++c) left -= choice.quota[c] = std::min(choice.quota[c], choice.size[c]);
  for (bool room_left = true; left > 0 && room_left;) {
    double total = 0;
    int64_t rooms = 0;
    for (int64_t c = 0; c < runs; ++c) {
      const int64_t room = choice.size[c] - choice.quota[c];
      total += choice.weight[c] * static_cast<double>(room);
      rooms += room;
    }
    const int64_t before = left;
    const auto budget = static_cast<double>(left);
    for (int64_t c = 0; c < runs; ++c) {
      const auto room = static_cast<double>(choice.size[c] - choice.quota[c]);
      const double pull = total > 0 ? choice.weight[c] * room : room;
      const double share = std::floor(budget * pull / (total > 0 ? total : static_cast<double>(std::max<int64_t>(rooms, 1))));
      const auto given = static_cast<int64_t>(std::min(share, room));
      choice.quota[c] += given;
      left -= given;
    }
    room_left = rooms > 0;
    if (left < before) continue;
    for (int64_t at = 0; at < runs && left > 0; ++at) {  // nobody got anything: one token each, by weight
      const int64_t c = choice.by_weight[at];
      if (choice.quota[c] == choice.size[c]) continue;
      ++choice.quota[c];
      --left;
    }
  }
}

void choose(const Runs& runs, const CropOptions& options, int64_t k, const Choice& choice, int64_t b,
            const Output<int64_t>& indices) {
  std::iota(choice.by_weight, choice.by_weight + runs.count, 0);
  std::sort(choice.by_weight, choice.by_weight + runs.count, [&](int32_t x, int32_t y) {
    const double wx = choice.size[x] > 0 ? choice.weight[x] : -1, wy = choice.size[y] > 0 ? choice.weight[y] : -1;
    return wx != wy ? wx > wy : x < y;
  });
  int64_t left = k;
  for (int64_t c = 0; c < runs.count; ++c) {
    left -= choice.quota[c] = static_cast<int64_t>(std::floor(choice.weight[c] * static_cast<double>(k)));
  }
  for (int64_t at = 0; at < runs.count && left > 0; ++at) {
    if (choice.size[choice.by_weight[at]] == 0) continue;
    ++choice.quota[choice.by_weight[at]];
    --left;
  }
  if (options.variant != CropVariant::released) redistribute(choice, runs.count, k);

  const auto better = [&](int32_t x, int32_t y) {
    const double rx = choice.rank[x], ry = choice.rank[y];
    if (std::isnan(rx) || std::isnan(ry)) return std::isnan(rx) == std::isnan(ry) ? x < y : std::isnan(ry);
    return rx != ry ? rx > ry : x < y;
  };
  int64_t found = 0;
  for (int64_t c = 0; c < runs.count && found < k; ++c) {
    const int64_t start = runs.start(c), size = runs.size(c), quota = std::min({choice.quota[c], size, k - found});
    int32_t* run = choice.order + start;
    std::iota(run, run + size, static_cast<int32_t>(start));
    if (choice.quota[c] < size) std::partial_sort(run, run + std::max<int64_t>(quota, 0), run + size, better);
    for (int64_t s = 0; s < quota; ++s) indices(b, found++) = run[s];
  }
  for (int64_t s = found; s < k; ++s) indices(b, s) = -1;
  if (!options.sort) return;
  // Runs are in token order already; their tokens are not.
  int32_t* ascending = choice.order;
  for (int64_t s = 0; s < found; ++s) ascending[s] = static_cast<int32_t>(indices(b, s));
  std::sort(ascending, ascending + found);
  for (int64_t s = 0; s < found; ++s) indices(b, s) = ascending[s];
}

}  // namespace

int64_t crop_topk_scratch(int64_t images, int64_t n, int64_t channels, int64_t crops, int64_t threads) {
  crops = std::min(crops, std::max<int64_t>(n, 1));
  return threads * RunLayout((n + crops - 1) / crops, channels).floats() +
         images * (round_up(n, 16) + Choice::floats(n, crops));
}

void crop_topk(const Array<2>& attention, const Array<3>* features, const Lengths& lengths, int64_t k,
               const CropOptions& options, const Output<int64_t>& indices, float* scratch, const Parallel& parallel) {
  if (k == 0) return;
  const int64_t images = attention.size[0], n = attention.size[1], count = std::min(options.crops, std::max<int64_t>(n, 1));
  const RunLayout layout((n + count - 1) / count, features != nullptr ? features->size[2] : 0);
  float* variances = scratch + parallel.threads * layout.floats();
  float* choices = variances + images * round_up(n, 16);
  const int64_t runs_of_all = features != nullptr ? images * count : 0;
  const auto tasks = [&](int64_t phase) { return phase == 0 ? runs_of_all : images; };
  parallel.for_each_phase(2, std::max(runs_of_all, images), tasks, [&](int64_t phase, int64_t task, int64_t worker) {
    const int64_t b = phase == 0 ? task / count : task;
    const Runs runs{lengths(b, n), count};
    float* variance = variances + b * round_up(n, 16);
    if (phase == 0) {
      const int64_t start = runs.start(task % count), size = runs.size(task % count);
      run_variance(features->at(b), start, size, layout, scratch + worker * layout.floats(), variance + start);
      return;
    }
    const Choice choice(choices + b * Choice::floats(n, count), n, count);
    weigh(attention.at(b), features != nullptr ? variance : nullptr, runs, options, choice);
    choose(runs, options, k, choice, b, indices);
  });
}

}  // namespace vtkernels::cpu
