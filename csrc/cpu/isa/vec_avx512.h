// Vectors of AVX-512: one register is a whole 64-byte scratch row. Included inside the namespace
// and the target region of avx512.cpp, and of avx512bf16.cpp.

constexpr int kVectorBytes = 64;
// 32 registers: 30 sums, one weight, what a sum begins with; inputs are memory operands.
constexpr int kTileSums = 30;
// Outputs x vectors of one register tile: 24 sums, two inputs, one weight of 32 registers. With 8
// instead of 12, 1x1 of 141 -> 47 takes 1 % longer (median of its three computations at N = 16,
// L = 128 and 512, one thread of a busy AMD EPYC, Zen 5); with 14, dgrad takes 9 % longer.
constexpr int kPointRows = 12;
// Rows of the taller and of the other factor in a tile of a 1x1 wgrad: 24 sums, four and one
// loaded.
constexpr int kDotA = 6, kDotB = 4;

#include "vec.h"

template <>
inline F32 F32::load_where(const float* p, uint32_t where) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(where), p)};
}
template <>
inline F64 F64::load_where(const double* p, uint32_t where) {
  return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(where), p)};
}
template <>
inline void F32::store_where(float* p, uint32_t where) const {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(where), v);
}
template <>
inline void F64::store_where(double* p, uint32_t where) const {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(where), v);
}

static inline F32 fma(F32 a, F32 b, F32 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
static inline F64 fma(F64 a, F64 b, F64 c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}

static inline F32 choose(uint32_t where, F32 a, F32 b) {
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(where), b.v, a.v)};
}
static inline F64 choose(uint32_t where, F64 a, F64 b) {
  return {_mm512_mask_blend_pd(static_cast<__mmask8>(where), b.v, a.v)};
}

// The instruction returns its second operand where either is a NaN.
static inline F32 greater_of(F32 a, F32 b) {
  return {_mm512_max_ps(a.v, b.v)};
}
static inline F64 greater_of(F64 a, F64 b) {
  return {_mm512_max_pd(a.v, b.v)};
}

static inline Counts count_greater(F32 a, F32 b, Counts n) {
  const __mmask16 greater = _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
  return {reinterpret_cast<Counts::Vector>(
      _mm512_mask_add_epi32(reinterpret_cast<__m512i>(n.v), greater, reinterpret_cast<__m512i>(n.v),
                            _mm512_set1_epi32(1)))};
}

// With half the registers of the general one: packing, most of the first layer's dgrad, takes 15 %
// longer with that (Zen 4).
static inline void transpose(const float* const* src, float* const* dst) {
  __m512 r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    r[i] = _mm512_loadu_ps(src[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    for (int h = 0; h < 2; ++h) {
      const __m512d a = _mm512_castps_pd(t[i + h]);
      const __m512d b = _mm512_castps_pd(t[i + 2 + h]);
      r[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      r[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
  // r[4 q + c], 128-bit part p: column 4 p + c of rows 4 q .. 4 q + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even0 = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
    const __m512 even1 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
    const __m512 odd0 = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
    const __m512 odd1 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    _mm512_storeu_ps(dst[c], _mm512_shuffle_f32x4(even0, even1, 0x88));
    _mm512_storeu_ps(dst[8 + c], _mm512_shuffle_f32x4(even0, even1, 0xdd));
    _mm512_storeu_ps(dst[4 + c], _mm512_shuffle_f32x4(odd0, odd1, 0x88));
    _mm512_storeu_ps(dst[12 + c], _mm512_shuffle_f32x4(odd0, odd1, 0xdd));
  }
}

// See kernels/draws.inl. Writes 15 past the end at most.
static inline int64_t offsets_below(const uint32_t* x, int64_t n, uint32_t limit, uint16_t* out) {
  const __m512i ascending = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i bound = _mm512_set1_epi32(static_cast<int>(limit));
  int64_t found = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const auto inside = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffff);
    const __mmask16 below =
        _mm512_mask_cmplt_epu32_mask(inside, _mm512_maskz_loadu_epi32(inside, x + i), bound);
    const __m512i at = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(i)), ascending);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + found),
                        _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(below, at)));
    found += __builtin_popcount(below);
  }
  return found;
}

static inline float half_to_float(uint16_t bits) {
  return _cvtsh_ss(bits);
}
static inline uint16_t float_to_half(float x) {
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
}
