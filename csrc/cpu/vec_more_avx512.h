// More of vec_avx512.h, for the kernels around the sparse convolutions: any address, parts of a
// vector, ReLU. Included after it.

// Outputs x vectors of one register tile: 24 sums, two inputs, one weight of 32 registers. With 8
// instead of 12, 1x1 of 141 -> 47 takes 1 % longer (median of its three computations at N = 16,
// L = 128 and 512, one thread of a busy AMD EPYC, Zen 5); with 14, dgrad takes 9 % longer.
constexpr int kPointRows = 12;

static inline F32 loadu(const float* p) {
  return {_mm512_loadu_ps(p)};
}
static inline F64 loadu(const double* p) {
  return {_mm512_loadu_pd(p)};
}
static inline void storeu(float* p, F32 x) {
  _mm512_storeu_ps(p, x.v);
}
static inline void storeu(double* p, F64 x) {
  _mm512_storeu_pd(p, x.v);
}

// The first n lanes, 0 <= n < kWidth; the others are not touched in memory, and read as zeros.
static inline F32 load_part(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)};
}
static inline F64 load_part(const double* p, int64_t n) {
  return {_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p)};
}
static inline void store_part(float* p, F32 x, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x.v);
}
static inline void store_part(double* p, F64 x, int64_t n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), x.v);
}

static inline F32 sub(F32 a, F32 b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
static inline F64 sub(F64 a, F64 b) {
  return {_mm512_sub_pd(a.v, b.v)};
}

// x, or 0 where x < 0. The instruction returns its second operand where either is a NaN.
static inline F32 relu(F32 x) {
  return {_mm512_max_ps(_mm512_setzero_ps(), x.v)};
}
static inline F64 relu(F64 x) {
  return {_mm512_max_pd(_mm512_setzero_pd(), x.v)};
}

// g, or 0 where z <= 0.
static inline F32 relu_gradient(F32 z, F32 g) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(z.v, _mm512_setzero_ps(), _CMP_NLE_UQ), g.v)};
}
static inline F64 relu_gradient(F64 z, F64 g) {
  return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(z.v, _mm512_setzero_pd(), _CMP_NLE_UQ), g.v)};
}
