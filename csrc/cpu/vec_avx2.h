// Vectors of AVX2 with FMA: a register is half a scratch row. Included inside the namespace and
// the target region of kernels_avx2.cpp.

struct F32 {
  using T = float;
  static constexpr int kWidth = 8;
  static constexpr int kTile = 14;      // 16 registers: 14 sums, one weight
  static constexpr int kWgradPair = 1;  // one 12-position tile of gradients, two sums, one input
  __m256 v;
  static F32 load(const T* p) { return {_mm256_load_ps(p)}; }
  static F32 splat(T x) { return {_mm256_set1_ps(x)}; }
  void store(T* p) const { _mm256_store_ps(p, v); }
};
static inline F32 fma(F32 a, F32 b, F32 c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
static inline F32 mul(F32 a, F32 b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
static inline F32 add(F32 a, F32 b) {
  return {_mm256_add_ps(a.v, b.v)};
}

struct F64 {
  using T = double;
  static constexpr int kWidth = 4;
  static constexpr int kTile = 14;
  static constexpr int kWgradPair = 1;
  __m256d v;
  static F64 load(const T* p) { return {_mm256_load_pd(p)}; }
  static F64 splat(T x) { return {_mm256_set1_pd(x)}; }
  void store(T* p) const { _mm256_store_pd(p, v); }
};
static inline F64 fma(F64 a, F64 b, F64 c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
static inline F64 mul(F64 a, F64 b) {
  return {_mm256_mul_pd(a.v, b.v)};
}
static inline F64 add(F64 a, F64 b) {
  return {_mm256_add_pd(a.v, b.v)};
}

// Sum over the lanes of one row, always in the order lanes i and i + half, half = n/2 ... 1.
static inline float sum_lanes(const float* row) {
  const __m256 a = _mm256_add_ps(_mm256_load_ps(row), _mm256_load_ps(row + 8));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
static inline double sum_lanes(const double* row) {
  const __m256d a = _mm256_add_pd(_mm256_load_pd(row), _mm256_load_pd(row + 4));
  const __m128d b = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
  return _mm_cvtsd_f64(_mm_add_sd(b, _mm_unpackhi_pd(b, b)));
}

// transpose(src, dst): dst[j][i] = src[i][j] for one square block of kBlock x kBlock.
constexpr int kBlockF32 = 8;
constexpr int kBlockF64 = 4;

static inline void transpose(const float* const* src, float* const* dst) {
  __m256 r[8], t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    const __m256 a = _mm256_loadu_ps(src[i]);
    const __m256 b = _mm256_loadu_ps(src[i + 1]);
    t[i] = _mm256_unpacklo_ps(a, b);
    t[i + 1] = _mm256_unpackhi_ps(a, b);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    for (int h = 0; h < 2; ++h) {
      r[i + 2 * h] = _mm256_shuffle_ps(t[i + h], t[i + 2 + h], 0x44);
      r[i + 2 * h + 1] = _mm256_shuffle_ps(t[i + h], t[i + 2 + h], 0xee);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(dst[c], _mm256_permute2f128_ps(r[c], r[4 + c], 0x20));
    _mm256_storeu_ps(dst[4 + c], _mm256_permute2f128_ps(r[c], r[4 + c], 0x31));
  }
}

static inline void transpose(const double* const* src, double* const* dst) {
  const __m256d r0 = _mm256_loadu_pd(src[0]), r1 = _mm256_loadu_pd(src[1]);
  const __m256d r2 = _mm256_loadu_pd(src[2]), r3 = _mm256_loadu_pd(src[3]);
  const __m256d lo01 = _mm256_unpacklo_pd(r0, r1), hi01 = _mm256_unpackhi_pd(r0, r1);
  const __m256d lo23 = _mm256_unpacklo_pd(r2, r3), hi23 = _mm256_unpackhi_pd(r2, r3);
  _mm256_storeu_pd(dst[0], _mm256_permute2f128_pd(lo01, lo23, 0x20));
  _mm256_storeu_pd(dst[1], _mm256_permute2f128_pd(hi01, hi23, 0x20));
  _mm256_storeu_pd(dst[2], _mm256_permute2f128_pd(lo01, lo23, 0x31));
  _mm256_storeu_pd(dst[3], _mm256_permute2f128_pd(hi01, hi23, 0x31));
}

static inline float half_to_float(uint16_t bits) {
  return _cvtsh_ss(bits);
}
static inline uint16_t float_to_half(float x) {
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
}
