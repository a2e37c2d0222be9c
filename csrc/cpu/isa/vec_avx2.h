// Vectors of AVX2 with FMA: a register is half a scratch row. Included inside the namespace and
// the target region of avx2.cpp.

struct F32 {
  using T = float;
  static constexpr int kWidth = 8;
  static constexpr int kTile = 15;  // 16 registers: 15 sums, one weight
  __m256 v;
  static F32 load(const T* p) { return {_mm256_load_ps(p)}; }
  static F32 splat(T x) { return {_mm256_set1_ps(x)}; }
  void store(T* p) const { _mm256_store_ps(p, v); }
  static F32 loadu(const T* p) { return {_mm256_loadu_ps(p)}; }
  void storeu(T* p) const { _mm256_storeu_ps(p, v); }
  // The lanes that `where` has bits for; the others are not touched in memory, and read as zeros.
  static __m256i mask(uint32_t where) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(where)), bits),
                              bits);
  }
  static F32 load_where(const T* p, uint32_t where) { return {_mm256_maskload_ps(p, mask(where))}; }
  void store_where(T* p, uint32_t where) const { _mm256_maskstore_ps(p, mask(where), v); }
};
static inline F32 fma(F32 a, F32 b, F32 c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
// a in the lanes that `where` has bits for, b in the others.
static inline F32 choose(uint32_t where, F32 a, F32 b) {
  return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(F32::mask(where)))};
}

struct F64 {
  using T = double;
  static constexpr int kWidth = 4;
  static constexpr int kTile = 15;
  __m256d v;
  static F64 load(const T* p) { return {_mm256_load_pd(p)}; }
  static F64 splat(T x) { return {_mm256_set1_pd(x)}; }
  void store(T* p) const { _mm256_store_pd(p, v); }
  static F64 loadu(const T* p) { return {_mm256_loadu_pd(p)}; }
  void storeu(T* p) const { _mm256_storeu_pd(p, v); }
  // The lanes that `where` has bits for; the others are not touched in memory, and read as zeros.
  static __m256i mask(uint32_t where) {
    const __m256i bits = _mm256_setr_epi64x(1, 2, 4, 8);
    return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(where), bits), bits);
  }
  static F64 load_where(const T* p, uint32_t where) { return {_mm256_maskload_pd(p, mask(where))}; }
  void store_where(T* p, uint32_t where) const { _mm256_maskstore_pd(p, mask(where), v); }
};
static inline F64 fma(F64 a, F64 b, F64 c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
static inline F64 choose(uint32_t where, F64 a, F64 b) {
  return {_mm256_blendv_pd(b.v, a.v, _mm256_castsi256_pd(F64::mask(where)))};
}

// sum_lanes(rows): lane i of the result is the sum over the lanes of row i, always in the order
// lanes j and j + half, half = n/2 ... 1. Two vectors of partial sums are halved into one.
static inline __m256 halve_4(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
static inline __m256 halve_2(__m256 a, __m256 b) {
  const __m256d c = _mm256_castps_pd(a), d = _mm256_castps_pd(b);
  return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(c, d)),
                       _mm256_castpd_ps(_mm256_unpackhi_pd(c, d)));
}
static inline __m256 halve_1(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}
static inline F32 sum_lanes(const F32 (&rows)[8]) {
  // Half h of fours[j] ends up as row 4 h + j.
  __m256 fours[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    fours[j] = halve_4(rows[j].v, rows[4 + j].v);
  }
  return {halve_1(halve_2(fours[0], fours[1]), halve_2(fours[2], fours[3]))};
}
static inline __m256d halve_2(__m256d a, __m256d b) {
  return _mm256_add_pd(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31));
}
static inline F64 sum_lanes(const F64 (&rows)[4]) {
  // Half h of `even` ends up as row 2 h, that of `odd` as row 2 h + 1.
  const __m256d even = halve_2(rows[0].v, rows[2].v), odd = halve_2(rows[1].v, rows[3].v);
  return {_mm256_add_pd(_mm256_unpacklo_pd(even, odd), _mm256_unpackhi_pd(even, odd))};
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

// Outputs x vectors of one register tile: 12 sums, two inputs, one weight of 16 registers. With 4
// instead of 6, 1x1 of 141 -> 47 takes 8 to 9 % longer, with 5 it takes 4 to 7 % (N = 16, L = 128
// and 512, one thread of an AMD EPYC, Zen 5).
constexpr int kPointRows = 6;
// Rows of the taller and of the other factor in a tile of a 1x1 wgrad: 12 sums, three and one
// loaded.
constexpr int kDotA = 4, kDotB = 3;

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

// a where a > b, else b (also where either is a NaN).
static inline F32 greater_of(F32 a, F32 b) {
  return {_mm256_max_ps(a.v, b.v)};
}

// A number in each lane: how often a was greater.
struct Counts {
  __m256i v;
};
static inline Counts count_greater(F32 a, F32 b, Counts n) {
  const __m256i greater = _mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ));
  return {_mm256_sub_epi32(n.v, greater)};  // -1 in the lanes that are
}
// The sum of all lanes, in the first.
static inline Counts total_of(Counts n) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), n.v);
  int32_t sum = 0;
  for (int i = 0; i < 8; ++i) {
    sum += lanes[i];
  }
  return {_mm256_set1_epi32(sum)};
}
