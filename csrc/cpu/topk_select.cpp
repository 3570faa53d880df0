// Top-k by unsigned keys: the score's bits in rank order above, the index below, so that all keys differ and ties fall to the
// lowest index.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "element.h"
#include "vtkernels/cpu.h"

namespace vtkernels::cpu {
namespace {

// Smaller is better: falling numbers, then -inf, then NaN; -0 equals 0.
template <class Bits, class Float>
Bits rank_bits(Float score) {
  if (std::isnan(score)) return ~Bits{0};
  score += Float{0};  // -0 becomes 0
  Bits bits;
  std::memcpy(&bits, &score, sizeof bits);
  constexpr Bits sign = Bits{1} << (8 * sizeof(Bits) - 1);
  return (bits & sign) != 0 ? bits : ~(bits | sign);
}

template <class Key>
void select(Key* keys, int64_t n, int64_t k, bool sort, int64_t b, const Output<int64_t>& indices, int index_bits) {
  const Key index_mask = (Key{1} << index_bits) - 1;
  const int64_t found = std::min(k, n);
  if (found < n) std::nth_element(keys, keys + found, keys + n);
  if (sort) {
    for (int64_t s = 0; s < found; ++s) keys[s] &= index_mask;
  }
  std::sort(keys, keys + found);
  for (int64_t s = 0; s < found; ++s) indices(b, s) = static_cast<int64_t>(keys[s] & index_mask);
  for (int64_t s = found; s < k; ++s) indices(b, s) = -1;
}

}  // namespace

int64_t topk_select_scratch(int64_t n) { return round_up(4 * n, 16); }  // keys of 16 bytes

void topk_select(const Array<2>& scores, const Lengths& lengths, int64_t k, bool sort, const Output<int64_t>& indices,
                 float* scratch, const Parallel& parallel) {
  const int64_t per_worker = topk_select_scratch(scores.size[1]);
  parallel.for_each_image(scores.size[0], [&](int64_t b, int64_t worker, const Parallel&) {
    const int64_t n = lengths(b, scores.size[1]);
    const Array<1> row = scores.at(b);
    if (row.dtype == DType::float64) {
      using Key = unsigned __int128;
      Key* keys = reinterpret_cast<Key*>(scratch + worker * per_worker);
      const auto* x = static_cast<const double*>(row.data);
      for (int64_t i = 0; i < n; ++i) keys[i] = Key{rank_bits<uint64_t>(x[i * row.stride[0]])} << 64 | static_cast<uint64_t>(i);
      select(keys, n, k, sort, b, indices, 64);
    } else {
      auto* keys = reinterpret_cast<uint64_t*>(scratch + worker * per_worker);
      for (int64_t i = 0; i < n; ++i) {
        keys[i] = uint64_t{rank_bits<uint32_t>(element_as_float(row, i))} << 32 | static_cast<uint64_t>(i);
      }
      select(keys, n, k, sort, b, indices, 32);
    }
  });
}

}  // namespace vtkernels::cpu
