// Vectors of AVX-512: one register is a whole 64-byte scratch row. Included inside the namespace
// and the target region of kernels_avx512.cpp.

struct F32 {
  using T = float;
  static constexpr int kWidth = 16;
  // 32 registers: 28 sums, one weight; the inputs are memory operands of the multiply-adds.
  static constexpr int kTile = 28;
  static constexpr int kWgradPair = 2;  // two 12-position tiles of gradients fill 24 registers
  __m512 v;
  static F32 load(const T* p) { return {_mm512_load_ps(p)}; }
  static F32 splat(T x) { return {_mm512_set1_ps(x)}; }
  void store(T* p) const { _mm512_store_ps(p, v); }
};
static inline F32 fma(F32 a, F32 b, F32 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
static inline F32 mul(F32 a, F32 b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
static inline F32 add(F32 a, F32 b) {
  return {_mm512_add_ps(a.v, b.v)};
}

struct F64 {
  using T = double;
  static constexpr int kWidth = 8;
  static constexpr int kTile = 28;
  static constexpr int kWgradPair = 2;
  __m512d v;
  static F64 load(const T* p) { return {_mm512_load_pd(p)}; }
  static F64 splat(T x) { return {_mm512_set1_pd(x)}; }
  void store(T* p) const { _mm512_store_pd(p, v); }
};
static inline F64 fma(F64 a, F64 b, F64 c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
static inline F64 mul(F64 a, F64 b) {
  return {_mm512_mul_pd(a.v, b.v)};
}
static inline F64 add(F64 a, F64 b) {
  return {_mm512_add_pd(a.v, b.v)};
}

// Sum over the lanes of one row, always in the order lanes i and i + half, half = n/2 ... 1.
static inline float sum_lanes(const float* row) {
  const __m512 r = _mm512_load_ps(row);
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(r), _mm512_extractf32x8_ps(r, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
static inline double sum_lanes(const double* row) {
  const __m512d r = _mm512_load_pd(row);
  const __m256d a = _mm256_add_pd(_mm512_castpd512_pd256(r), _mm512_extractf64x4_pd(r, 1));
  const __m128d b = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
  return _mm_cvtsd_f64(_mm_add_sd(b, _mm_unpackhi_pd(b, b)));
}

// transpose(src, dst): dst[j][i] = src[i][j] for one square block of kBlock x kBlock.
constexpr int kBlockF32 = 16;
constexpr int kBlockF64 = 8;

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

static inline void transpose(const double* const* src, double* const* dst) {
  __m512d t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    const __m512d a = _mm512_loadu_pd(src[i]);
    const __m512d b = _mm512_loadu_pd(src[i + 1]);
    t[i] = _mm512_unpacklo_pd(a, b);
    t[i + 1] = _mm512_unpackhi_pd(a, b);
  }
  // t[2 q + h], 128-bit part p: column 2 p + h of rows 2 q, 2 q + 1.
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const __m512d even0 = _mm512_shuffle_f64x2(t[h], t[2 + h], 0x88);
    const __m512d even1 = _mm512_shuffle_f64x2(t[4 + h], t[6 + h], 0x88);
    const __m512d odd0 = _mm512_shuffle_f64x2(t[h], t[2 + h], 0xdd);
    const __m512d odd1 = _mm512_shuffle_f64x2(t[4 + h], t[6 + h], 0xdd);
    _mm512_storeu_pd(dst[h], _mm512_shuffle_f64x2(even0, even1, 0x88));
    _mm512_storeu_pd(dst[4 + h], _mm512_shuffle_f64x2(even0, even1, 0xdd));
    _mm512_storeu_pd(dst[2 + h], _mm512_shuffle_f64x2(odd0, odd1, 0x88));
    _mm512_storeu_pd(dst[6 + h], _mm512_shuffle_f64x2(odd0, odd1, 0xdd));
  }
}

static inline float half_to_float(uint16_t bits) {
  return _cvtsh_ss(bits);
}
static inline uint16_t float_to_half(float x) {
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
}
