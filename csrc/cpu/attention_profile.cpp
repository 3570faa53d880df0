// FoPru: column and row means of the head-averaged attention. A head is a task; heads are added up in their order.
#include <algorithm>

#include "vtkernels/cpu.h"
#include "vtkernels/isa.h"

namespace vtkernels::cpu {
namespace {

struct Layout {
  int64_t row_stride;  // of one head's profile and of its attention rows
  int64_t worker;      // floats of scratch of one thread

  Layout(int64_t tokens, int64_t channels) {
    row_stride = round_up(tokens, kPad) + kPad;
    worker = row_stride * (channels + 1) + kPad * (channels + row_stride) + 2 * round_up(channels, kPad);
  }
};

}  // namespace

int64_t attention_profile_scratch(int64_t images, int64_t heads, int64_t tokens, int64_t channels, int64_t threads) {
  const Layout layout(tokens, channels);
  return 2 * images * heads * layout.row_stride + threads * layout.worker;
}

void attention_profile(const Array<4>& query, const Array<4>& key, const Lengths& lengths, const ProfileOptions& options,
                       const Output<float>& received, const Output<float>& given, float* scratch, const Parallel& parallel) {
  const int64_t images = key.size[0], heads = key.size[1], tokens = key.size[2], channels = key.size[3];
  const Layout layout(tokens, channels);
  const int64_t one = layout.row_stride;
  float* sums = scratch + parallel.threads * layout.worker;
  const auto tasks = [&](int64_t phase) { return phase == 0 ? images * heads : images; };
  parallel.for_each_phase(2, images * heads, tasks, [&](int64_t phase, int64_t task, int64_t worker) {
    if (phase == 0) {
      const int64_t b = task / heads, h = task % heads;
      const Array<2> q = query.at(b).at(h), k = key.at(b).at(h);
      float* profile = sums + 2 * task * one;
      std::fill(profile, profile + 2 * one, 0.0f);
      const ProfileHead head{lengths(b, tokens),
                             channels,
                             {q.stride[0], q.stride[1]},
                             {k.stride[0], k.stride[1]},
                             options.prefix,
                             options.scale,
                             one,
                             scratch + worker * layout.worker,
                             profile,
                             profile + one};
      isa().profile(q.data, k.data, q.dtype, options.softmax, head);
      return;
    }
    const int64_t b = task, counted = std::max<int64_t>(1, lengths(b, tokens) - options.prefix);
    const float share = 1.0f / (static_cast<float>(heads) * static_cast<float>(counted));
    for (int64_t t = options.prefix; t < tokens; ++t) {
      float in = 0, out = 0;
      for (int64_t h = 0; h < heads; ++h) {
        in += sums[2 * (b * heads + h) * one + t];
        out += sums[(2 * (b * heads + h) + 1) * one + t];
      }
      received(b, t - options.prefix) = in * share;
      given(b, t - options.prefix) = out * share;
    }
  });
}

}  // namespace vtkernels::cpu
