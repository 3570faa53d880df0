// One vector type per instruction set. Included only by translation units that are compiled for that set, inside the
// namespace VTKERNELS_ISA, so that no function here can be shared with code for another set. VTKERNELS_ISA_<name> says which:
// the compiler's own macros follow its flags, but not a target pragma in C++.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "vtkernels/half.h"

namespace vtkernels::VTKERNELS_ISA {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

#if defined(VTKERNELS_ISA_avx512)
constexpr int kWidth = 16;
using Vec = __m512;

inline Vec splat(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
// x where it is finite, else other
inline Vec finite_or(Vec x, Vec other) {
  return _mm512_mask_mov_ps(other, _mm512_cmp_ps_mask(_mm512_sub_ps(x, x), Vec{}, _CMP_EQ_OQ), x);
}
// y where x >= limit, else 0
inline Vec where_at_least(Vec x, Vec limit, Vec y) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), y); }
// bit l set where x[l] >= limit[l]
inline uint32_t at_least_mask(Vec x, Vec limit) { return _mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ); }
// bit l set where a[l] == b[l]
inline uint32_t equal_mask(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline void interleave(Vec a, Vec b, Vec& low, Vec& high) {
  const __m512i lo = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i hi = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  low = _mm512_permutex2var_ps(a, lo, b);
  high = _mm512_permutex2var_ps(a, hi, b);
}
inline Vec load_as_float(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Vec load_as_float(const BFloat16* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
// sum[l] += x[l] in double precision
inline void add_to(double* sum, Vec x) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
  const __m512d high = _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
  _mm512_storeu_pd(sum, _mm512_add_pd(_mm512_loadu_pd(sum), low));
  _mm512_storeu_pd(sum + 8, _mm512_add_pd(_mm512_loadu_pd(sum + 8), high));
}
// 2**n for integer-valued n in [-126, 127]
inline Vec exp2_integer(Vec n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline Vec round_to_integer(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// the upper half of the lanes added to the lower, until one is left
inline float fold_lanes(Vec x) {
  const __m256 eight =
      _mm256_add_ps(_mm512_castps512_ps256(x), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#elif defined(VTKERNELS_ISA_avx2)
constexpr int kWidth = 8;
using Vec = __m256;

inline Vec splat(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec finite_or(Vec x, Vec other) {
  return _mm256_blendv_ps(other, x, _mm256_cmp_ps(_mm256_sub_ps(x, x), Vec{}, _CMP_EQ_OQ));
}
inline Vec where_at_least(Vec x, Vec limit, Vec y) { return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_GE_OQ), y); }
inline uint32_t at_least_mask(Vec x, Vec limit) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, limit, _CMP_GE_OQ)));
}
inline uint32_t equal_mask(Vec a, Vec b) { return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ))); }
inline void interleave(Vec a, Vec b, Vec& low, Vec& high) {
  const Vec even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b);
  low = _mm256_permute2f128_ps(even, odd, 0x20);
  high = _mm256_permute2f128_ps(even, odd, 0x31);
}
inline Vec load_as_float(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Vec load_as_float(const BFloat16* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline void add_to(double* sum, Vec x) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
  _mm256_storeu_pd(sum, _mm256_add_pd(_mm256_loadu_pd(sum), low));
  _mm256_storeu_pd(sum + 4, _mm256_add_pd(_mm256_loadu_pd(sum + 4), high));
}
inline Vec exp2_integer(Vec n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Vec round_to_integer(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline float fold_lanes(Vec x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#elif defined(VTKERNELS_ISA_portable)  // any machine: the compiler's own four-lane vectors
constexpr int kWidth = 4;
using Vec __attribute__((vector_size(16))) = float;
using IntVec __attribute__((vector_size(16))) = int32_t;

inline Vec splat(float x) { return Vec{x, x, x, x}; }
inline Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec finite_or(Vec x, Vec other) { return x - x == Vec{} ? x : other; }  // NOLINT(misc-redundant-expression)
inline Vec where_at_least(Vec x, Vec limit, Vec y) { return x >= limit ? y : Vec{}; }
inline uint32_t mask_of(IntVec lanes) { return (lanes[0] & 1u) | (lanes[1] & 2u) | (lanes[2] & 4u) | (lanes[3] & 8u); }
inline uint32_t equal_mask(Vec a, Vec b) { return mask_of(a == b); }
inline uint32_t at_least_mask(Vec x, Vec limit) { return mask_of(x >= limit); }
inline void interleave(Vec a, Vec b, Vec& low, Vec& high) {
  low = Vec{a[0], b[0], a[1], b[1]};
  high = Vec{a[2], b[2], a[3], b[3]};
}
inline Vec load_as_float(const Float16* p) {
  return Vec{float_from_float16(p[0].bits), float_from_float16(p[1].bits), float_from_float16(p[2].bits),
             float_from_float16(p[3].bits)};
}
inline Vec load_as_float(const BFloat16* p) {
  return Vec{float_from_bfloat16(p[0].bits), float_from_bfloat16(p[1].bits), float_from_bfloat16(p[2].bits),
             float_from_bfloat16(p[3].bits)};
}
inline void add_to(double* sum, Vec x) {
  for (int l = 0; l < 4; ++l) sum[l] += static_cast<double>(x[l]);
}
inline Vec exp2_integer(Vec n) {
  Vec r;
  for (int l = 0; l < 4; ++l) r[l] = float_from_bits(static_cast<uint32_t>(static_cast<int32_t>(n[l]) + 127) << 23);
  return r;
}
inline Vec round_to_integer(Vec x) { return (x + splat(12582912.0f)) - splat(12582912.0f); }
inline float fold_lanes(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }
#else
#error "VTKERNELS_ISA_avx512, VTKERNELS_ISA_avx2 or VTKERNELS_ISA_portable must say what is compiled"
#endif

// ---------------------------------------------------------------------------------- for every instruction set

// Every sum runs over 64 lanes (element i in lane i mod 64) and folds them by halves: one order, whatever the vector width.
constexpr int kLanes = 64;
constexpr int kSums = kLanes / kWidth;

inline Vec fold_vectors(Vec (&sum)[kSums]) {
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sum[i] = sum[i] + sum[i + half];
  }
  return sum[0];
}

inline float fold(Vec (&sum)[kSums]) { return fold_lanes(fold_vectors(sum)); }

// rows[i][j] becomes rows[j][i]: a perfect shuffle repeated log2(kWidth) times.
inline void transpose(Vec (&rows)[kWidth]) {
  for (int stage = 1; stage < kWidth; stage *= 2) {
    Vec next[kWidth];
    for (int i = 0; i < kWidth / 2; ++i) interleave(rows[i], rows[i + kWidth / 2], next[2 * i], next[2 * i + 1]);
    for (int i = 0; i < kWidth; ++i) rows[i] = next[i];
  }
}

inline Vec load_as_float(const float* p) { return load(p); }
inline Vec load_as_float(const double* p) {
  float x[kWidth];
  for (int l = 0; l < kWidth; ++l) x[l] = static_cast<float>(p[l]);
  return load(x);
}

// count (<= kWidth) elements at distance stride; the other lanes are 0
template <class T>
inline Vec load_some(const T* p, int64_t stride, int64_t count) {
  if (stride == 1 && count == kWidth) return load_as_float(p);
  T x[kWidth];
  std::memset(x, 0, sizeof x);
  for (int64_t l = 0; l < count; ++l) x[l] = p[l * stride];
  return load_as_float(x);
}

}  // namespace vtkernels::VTKERNELS_ISA
