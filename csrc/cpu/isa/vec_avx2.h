// Vectors of AVX2 with FMA: a register is half a scratch row. Included inside the namespace and
// the target region of avx2.cpp.

constexpr int kVectorBytes = 32;
constexpr int kTileSums = 15;  // 16 registers: 15 sums, one weight
// Outputs x vectors of one register tile: 12 sums, two inputs, one weight of 16 registers. With 4
// instead of 6, 1x1 of 141 -> 47 takes 8 to 9 % longer, with 5 it takes 4 to 7 % (N = 16, L = 128
// and 512, one thread of an AMD EPYC, Zen 5).
constexpr int kPointRows = 6;
// Rows of the taller and of the other factor in a tile of a 1x1 wgrad: 12 sums, three and one
// loaded.
constexpr int kDotA = 4, kDotB = 3;

#include "vec.h"

template <>
inline F32 F32::load_where(const float* p, uint32_t where) {
  return {_mm256_maskload_ps(p, reinterpret_cast<__m256i>(mask(where)))};
}
template <>
inline F64 F64::load_where(const double* p, uint32_t where) {
  return {_mm256_maskload_pd(p, reinterpret_cast<__m256i>(mask(where)))};
}
template <>
inline void F32::store_where(float* p, uint32_t where) const {
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(mask(where)), v);
}
template <>
inline void F64::store_where(double* p, uint32_t where) const {
  _mm256_maskstore_pd(p, reinterpret_cast<__m256i>(mask(where)), v);
}

static inline F32 fma(F32 a, F32 b, F32 c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
static inline F64 fma(F64 a, F64 b, F64 c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}

// The instruction returns its second operand where either is a NaN.
static inline F32 greater_of(F32 a, F32 b) {
  return {_mm256_max_ps(a.v, b.v)};
}
static inline F64 greater_of(F64 a, F64 b) {
  return {_mm256_max_pd(a.v, b.v)};
}

static inline float half_to_float(uint16_t bits) {
  return _cvtsh_ss(bits);
}
static inline uint16_t float_to_half(float x) {
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
}
