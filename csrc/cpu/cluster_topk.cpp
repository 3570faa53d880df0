// PAR: the most relevant clusters, a budget for each in integers, the most relevant tokens inside.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "carve.h"
#include "element.h"
#include "vtkernels/cpu.h"

namespace vtkernels::cpu {
namespace {

struct Choice {
  double *relevance, *mean;
  int64_t *size, *remainder;
  int32_t *clusters, *order;

  static int64_t floats(int64_t n) {
    return 2 * Carve::floats<double>(n) + 2 * Carve::floats<int64_t>(n) + 2 * Carve::floats<int32_t>(n);
  }
  Choice(float* scratch, int64_t n) {
    Carve carve(scratch);
    relevance = carve.take<double>(n);
    mean = carve.take<double>(n);
    size = carve.take<int64_t>(n);
    remainder = carve.take<int64_t>(n);
    clusters = carve.take<int32_t>(n);
    order = carve.take<int32_t>(n);
  }
};

}  // namespace

int64_t cluster_topk_scratch(int64_t n) { return Choice::floats(n); }

void cluster_topk(const Output<const int64_t>& labels, const Array<2>& relevance, const Lengths& lengths, int64_t k,
                  double pool, bool sort, const Output<int64_t>& indices, float* scratch, const Parallel& parallel) {
  const int64_t most = relevance.size[1];
  parallel.for_each_image(relevance.size[0], [&](int64_t b, int64_t worker, const Parallel&) {
    const Choice choice(scratch + worker * Choice::floats(most), most);
    const int64_t n = lengths(b, most);
    const Array<1> row = relevance.at(b);
    std::fill(choice.mean, choice.mean + most, 0.0);
    std::fill(choice.size, choice.size + most, 0);
    int64_t tokens = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double r = element_as_double(row, i);
      const int64_t label = labels(b, i);
      choice.relevance[i] = std::isfinite(r) ? r : -1;
      if (label < 0 || label >= most) continue;  // of no cluster
      choice.mean[label] += choice.relevance[i];
      ++choice.size[label];
      choice.order[tokens++] = static_cast<int32_t>(i);
    }
    int64_t clusters = 0;
    for (int64_t c = 0; c < most; ++c) {
      if (choice.size[c] == 0) continue;
      const double mean = choice.mean[c] / static_cast<double>(choice.size[c]);
      choice.mean[c] = row.dtype == DType::float64 ? mean : static_cast<double>(static_cast<float>(mean));
      choice.clusters[clusters++] = static_cast<int32_t>(c);
    }
    const auto before = [&](int32_t x, int32_t y) {
      return choice.mean[x] != choice.mean[y] ? choice.mean[x] > choice.mean[y] : x < y;
    };
    std::sort(choice.clusters, choice.clusters + clusters, before);

    // Retrieve clusters until they hold enough tokens; one token each, the rest in proportion to what they have beyond that.
    const int64_t wanted = std::max(k, static_cast<int64_t>(std::ceil(pool * static_cast<double>(n) - 1e-6)));
    int64_t retrieved = 0, held = 0;
    while (retrieved < clusters && held < wanted) held += choice.size[choice.clusters[retrieved++]];
    const int64_t spares = held - retrieved, extra = std::max<int64_t>(0, std::min(held, k) - retrieved);
    int64_t left = extra;
    int64_t* quota = choice.size;  // from here on: the share of a cluster, 0 for one that was not retrieved
    for (int64_t c = clusters; c-- > retrieved;) quota[choice.clusters[c]] = 0;
    for (int64_t c = 0; c < retrieved; ++c) {
      const int64_t label = choice.clusters[c], product = extra * (choice.size[label] - 1);
      choice.remainder[c] = product % std::max<int64_t>(1, spares);
      const int64_t share = product / std::max<int64_t>(1, spares);
      quota[label] = c < k ? 1 + share : 0;
      left -= share;
    }
    int64_t* const remainder = choice.remainder;
    double* const place = choice.mean;  // order inside `clusters`, by label
    for (int64_t c = 0; c < clusters; ++c) place[choice.clusters[c]] = static_cast<double>(c);
    std::sort(choice.clusters, choice.clusters + retrieved, [&](int32_t x, int32_t y) {
      const auto px = static_cast<int64_t>(place[x]), py = static_cast<int64_t>(place[y]);
      return remainder[px] != remainder[py] ? remainder[px] > remainder[py] : px < py;
    });
    for (int64_t c = 0; c < std::min(left, retrieved); ++c) ++quota[choice.clusters[c]];

    std::sort(choice.order, choice.order + tokens, [&](int32_t x, int32_t y) {
      const double cx = place[labels(b, x)], cy = place[labels(b, y)];
      if (cx != cy) return cx < cy;
      return choice.relevance[x] != choice.relevance[y] ? choice.relevance[x] > choice.relevance[y] : x < y;
    });
    int64_t found = 0;
    for (int64_t t = 0; t < tokens && found < k; ++t) {
      const int32_t token = choice.order[t];
      if (quota[labels(b, token)]-- > 0) choice.order[found++] = token;  // never ahead of t
    }
    if (sort) std::sort(choice.order, choice.order + found);
    for (int64_t s = 0; s < k; ++s) indices(b, s) = s < found ? choice.order[s] : -1;
  });
}

}  // namespace vtkernels::cpu
