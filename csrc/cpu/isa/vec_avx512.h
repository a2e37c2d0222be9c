// Vectors of AVX-512: one register is a whole 64-byte scratch row. Included inside the namespace
// and the target region of avx512.cpp.

struct F32 {
  using T = float;
  static constexpr int kWidth = 16;
  // 32 registers: 30 sums, one weight, what a sum begins with; inputs are memory operands.
  static constexpr int kTile = 30;
  __m512 v;
  static F32 load(const T* p) { return {_mm512_load_ps(p)}; }
  static F32 splat(T x) { return {_mm512_set1_ps(x)}; }
  void store(T* p) const { _mm512_store_ps(p, v); }
  static F32 loadu(const T* p) { return {_mm512_loadu_ps(p)}; }
  void storeu(T* p) const { _mm512_storeu_ps(p, v); }
  // The lanes that `where` has bits for; the others are not touched in memory, and read as zeros.
  static F32 load_where(const T* p, uint32_t where) {
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(where), p)};
  }
  void store_where(T* p, uint32_t where) const {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(where), v);
  }
};
static inline F32 fma(F32 a, F32 b, F32 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
// a in the lanes that `where` has bits for, b in the others.
static inline F32 choose(uint32_t where, F32 a, F32 b) {
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(where), b.v, a.v)};
}

struct F64 {
  using T = double;
  static constexpr int kWidth = 8;
  static constexpr int kTile = 30;
  __m512d v;
  static F64 load(const T* p) { return {_mm512_load_pd(p)}; }
  static F64 splat(T x) { return {_mm512_set1_pd(x)}; }
  void store(T* p) const { _mm512_store_pd(p, v); }
  static F64 loadu(const T* p) { return {_mm512_loadu_pd(p)}; }
  void storeu(T* p) const { _mm512_storeu_pd(p, v); }
  // The lanes that `where` has bits for; the others are not touched in memory, and read as zeros.
  static F64 load_where(const T* p, uint32_t where) {
    return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(where), p)};
  }
  void store_where(T* p, uint32_t where) const {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(where), v);
  }
};
static inline F64 fma(F64 a, F64 b, F64 c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
static inline F64 choose(uint32_t where, F64 a, F64 b) {
  return {_mm512_mask_blend_pd(static_cast<__mmask8>(where), b.v, a.v)};
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

// sum_lanes(rows): lane i of the result is the sum over the lanes of row i, always in the order
// lanes j and j + half, half = n/2 ... 1. Two shuffles and an addition halve two vectors of partial
// sums into one, so a row costs two shuffles, not a whole tree.
static inline __m512 halve_8(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
static inline __m512 halve_4(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
static inline __m512 halve_2(__m512 a, __m512 b) {
  const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
}
static inline __m512 halve_1(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
static inline F32 sum_lanes(const F32 (&rows)[16]) {
  // Quarter q of fours[j] ends up as row 4 q + j: rows are taken in that order.
  __m512 fours[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    fours[j] = halve_4(halve_8(rows[j].v, rows[4 + j].v), halve_8(rows[8 + j].v, rows[12 + j].v));
  }
  return {halve_1(halve_2(fours[0], fours[1]), halve_2(fours[2], fours[3]))};
}
static inline __m512d halve_4(__m512d a, __m512d b) {
  return _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x44), _mm512_shuffle_f64x2(a, b, 0xee));
}
static inline __m512d halve_2(__m512d a, __m512d b) {
  return _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xdd));
}
static inline F64 sum_lanes(const F64 (&rows)[8]) {
  // Quarter q of twos[j] ends up as row 2 q + j.
  __m512d twos[2];
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    twos[j] = halve_2(halve_4(rows[j].v, rows[2 + j].v), halve_4(rows[4 + j].v, rows[6 + j].v));
  }
  return {
      _mm512_add_pd(_mm512_unpacklo_pd(twos[0], twos[1]), _mm512_unpackhi_pd(twos[0], twos[1]))};
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

// Outputs x vectors of one register tile: 24 sums, two inputs, one weight of 32 registers. With 8
// instead of 12, 1x1 of 141 -> 47 takes 1 % longer (median of its three computations at N = 16,
// L = 128 and 512, one thread of a busy AMD EPYC, Zen 5); with 14, dgrad takes 9 % longer.
constexpr int kPointRows = 12;
// Rows of the taller and of the other factor in a tile of a 1x1 wgrad: 24 sums, four and one
// loaded.
constexpr int kDotA = 6, kDotB = 4;

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

// a where a > b, else b (also where either is a NaN).
static inline F32 greater_of(F32 a, F32 b) {
  return {_mm512_max_ps(a.v, b.v)};
}

// A number in each lane: how often a was greater.
struct Counts {
  __m512i v;
};
static inline Counts count_greater(F32 a, F32 b, Counts n) {
  const __mmask16 greater = _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
  return {_mm512_mask_add_epi32(n.v, greater, n.v, _mm512_set1_epi32(1))};
}
// The sum of all lanes, in the first.
static inline Counts total_of(Counts n) {
  return {_mm512_set1_epi32(_mm512_reduce_add_epi32(n.v))};
}
