// The table of one instruction set. Compiled once per set, with VTKERNELS_ISA as its namespace.
#include "vtkernels/attention.h"
#include "vtkernels/coverage.h"
#include "vtkernels/gram.h"
#include "vtkernels/graph.h"
#include "vtkernels/profile.h"

namespace vtkernels::VTKERNELS_ISA {
namespace {

template <class F>
VTKERNELS_INLINE void with_type(const void* data, DType dtype, const F& call) {
  switch (dtype) {
    case DType::float32: return call(static_cast<const float*>(data));
    case DType::float16: return call(static_cast<const Float16*>(data));
    case DType::bfloat16: return call(static_cast<const BFloat16*>(data));
    case DType::float64: return call(static_cast<const double*>(data));
  }
}

void inverse_norms(const Array<2>& rows, int64_t begin, int64_t end, float* scale) {
  with_type(rows.data, rows.dtype, [&](const auto* x) {
    for (int64_t i = begin; i < end; ++i) scale[i] = inverse_norm(x + i * rows.stride[0], rows.stride[1], rows.size[1]);
  });
}

void pack(const Array<2>& rows, int64_t begin, const float* scale, int64_t first, int64_t depth, float* panel) {
  with_type(rows.data, rows.dtype, [&](const auto* x) {
    pack_panel(x + begin * rows.stride[0], rows.stride, rows.size[0] - begin, scale + begin, first, depth, panel);
  });
}

void transpose_items(const Array<2>& similarity, int64_t begin, int64_t end, float* rows, int64_t row_stride) {
  with_type(similarity.data, similarity.dtype, [&](const auto* x) {
    transpose_similarity(x, similarity.stride, similarity.size[0], begin, end, rows, row_stride);
  });
}

void add_channels(const Array<1>& row, int64_t begin, int64_t count, double* sum) {
  if (row.dtype == DType::float64) {
    const auto* x = static_cast<const double*>(row.data) + begin * row.stride[0];
    for (int64_t d = 0; d < count; ++d) sum[d] += x[d * row.stride[0]];
    return;
  }
  with_type(row.data, row.dtype, [&](const auto* x) {
    x += begin * row.stride[0];
    int64_t d = 0;
    for (; d + kWidth <= count; d += kWidth) add_to(sum + d, load_some(x + d * row.stride[0], row.stride[0], kWidth));
    float lane[kWidth];
    store(lane, load_some(x + d * row.stride[0], row.stride[0], count - d));
    for (int64_t l = 0; d + l < count; ++l) sum[d + l] += static_cast<double>(lane[l]);
  });
}

void add_scaled(const Array<1>& row, float scale, float* sum) {
  with_type(row.data, row.dtype, [&](const auto* x) {
    const int64_t channels = row.size[0], stride = row.stride[0];
    int64_t d = 0;
    for (; d + kWidth <= channels; d += kWidth) {
      store(sum + d, fma(load_some(x + d * stride, stride, kWidth), splat(scale), load(sum + d)));
    }
    float lane[kWidth];
    store(lane, load_some(x + d * stride, stride, channels - d) * splat(scale));
    for (int64_t l = 0; d + l < channels; ++l) sum[d + l] += lane[l];
  });
}

void load_query(const Array<2>& query, float* padded, int64_t row_stride) {
  with_type(query.data, query.dtype, [&](const auto* x) {
    for (int64_t h = 0; h < query.size[0]; ++h) {
      load_query_row(x + h * query.stride[0], query.stride[1], query.size[1], padded + h * row_stride);
    }
  });
}

void logits(const float* query, int64_t query_stride, const Array<3>& key, float scale, int64_t begin, int64_t end, float* out,
            int64_t row_stride) {
  with_type(key.data, key.dtype,
            [&](const auto* x) { attention_logits(query, query_stride, x, key, scale, begin, end, out, row_stride); });
}

void profile(const void* query, const void* key, DType dtype, bool softmax, const ProfileHead& head) {
  with_type(query, dtype, [&](const auto* q) {
    const auto* k = static_cast<decltype(q)>(key);
    softmax ? softmax_profile(q, k, head) : logit_profile(q, k, head);
  });
}

#define VTKERNELS_STRING_(x) #x
#define VTKERNELS_STRING(x) VTKERNELS_STRING_(x)

}  // namespace

extern const Isa table;
const Isa table{
    VTKERNELS_STRING(VTKERNELS_ISA),
    kWidth,
    kPanel,
    inverse_norms,
    pack,
    gram_block,
    add_channels,
    add_scaled,
    product_block,
    mirror_rows,
    row_moments,
    first_gains,
    transpose_items,
    greedy_coverage,
    edge_weights,
    row_sums,
    row_products,
    edge_bits,
    load_query,
    logits,
    softmax_reduce,
    profile,
};

}  // namespace vtkernels::VTKERNELS_ISA
