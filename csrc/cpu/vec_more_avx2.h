// More of vec_avx2.h, for the kernels around the sparse convolutions: any address, parts of a
// vector, ReLU. Included after it.

// Outputs x vectors of one register tile: 12 sums, two inputs, one weight of 16 registers. With 4
// instead of 6, 1x1 of 141 -> 47 takes 8 to 9 % longer, with 5 it takes 4 to 7 % (N = 16, L = 128
// and 512, one thread of an AMD EPYC, Zen 5).
constexpr int kPointRows = 6;

static inline F32 loadu(const float* p) {
  return {_mm256_loadu_ps(p)};
}
static inline F64 loadu(const double* p) {
  return {_mm256_loadu_pd(p)};
}
static inline void storeu(float* p, F32 x) {
  _mm256_storeu_ps(p, x.v);
}
static inline void storeu(double* p, F64 x) {
  _mm256_storeu_pd(p, x.v);
}

// The first n lanes, 0 <= n < kWidth; the others are not touched in memory, and read as zeros.
static inline __m256i first_lanes32(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline __m256i first_lanes64(int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
static inline F32 load_part(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, first_lanes32(n))};
}
static inline F64 load_part(const double* p, int64_t n) {
  return {_mm256_maskload_pd(p, first_lanes64(n))};
}
static inline void store_part(float* p, F32 x, int64_t n) {
  _mm256_maskstore_ps(p, first_lanes32(n), x.v);
}
static inline void store_part(double* p, F64 x, int64_t n) {
  _mm256_maskstore_pd(p, first_lanes64(n), x.v);
}

static inline F32 sub(F32 a, F32 b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
static inline F64 sub(F64 a, F64 b) {
  return {_mm256_sub_pd(a.v, b.v)};
}

// x, or 0 where x < 0. The instruction returns its second operand where either is a NaN.
static inline F32 relu(F32 x) {
  return {_mm256_max_ps(_mm256_setzero_ps(), x.v)};
}
static inline F64 relu(F64 x) {
  return {_mm256_max_pd(_mm256_setzero_pd(), x.v)};
}

// g, or 0 where z <= 0.
static inline F32 relu_gradient(F32 z, F32 g) {
  return {_mm256_and_ps(_mm256_cmp_ps(z.v, _mm256_setzero_ps(), _CMP_NLE_UQ), g.v)};
}
static inline F64 relu_gradient(F64 z, F64 g) {
  return {_mm256_and_pd(_mm256_cmp_pd(z.v, _mm256_setzero_pd(), _CMP_NLE_UQ), g.v)};
}
