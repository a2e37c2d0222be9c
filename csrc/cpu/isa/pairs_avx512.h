// Pairs of bfloat16 in vectors of AVX-512. Included inside the namespace and the target region of
// avx512bf16.cpp.

typedef __m512 PairSums;

// Sums + b.high * a.high + b.low * a.low in each lane, by fused multiply-adds in this order that
// flush subnormal numbers to zero; found by trying 48 million sums on a Zen 4.
static inline __attribute__((always_inline)) PairSums pair_dot(PairSums sums,
                                                               const char* b,
                                                               const char* a) {
  int pair;
  __builtin_memcpy(&pair, a, sizeof(pair));
  return _mm512_dpbf16_ps(sums, (__m512bh)_mm512_load_si512(b), (__m512bh)_mm512_set1_epi32(pair));
}

// In place: 16 vectors of 16 lanes of 32 bits, transposed.
static inline void transpose_16(__m512i* r) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const int from = i / 4 * 8 + i % 4;
    t[from] = _mm512_shuffle_i32x4(r[from], r[from + 4], 0x88);
    t[from + 4] = _mm512_shuffle_i32x4(r[from], r[from + 4], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

static inline __m256i load_halves(const Bf16* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

static void interleave_transposed(const Bf16* low, const Bf16* high, int64_t stride, char* to) {
  __m512i r[16];
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) {
    const __m512i a = _mm512_cvtepu16_epi32(load_halves(low + j * stride));
    const __m512i b = _mm512_cvtepu16_epi32(load_halves(high + j * stride));
    r[j] = _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
  }
  transpose_16(r);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    _mm512_store_si512(to + i * kBlockRowBytes, r[i]);
  }
}

// 16 pairs (low[i], high[i]).
static void interleave(const Bf16* low, const Bf16* high, char* to) {
  const __m512i a = _mm512_cvtepu16_epi32(load_halves(low));
  const __m512i b = _mm512_cvtepu16_epi32(load_halves(high));
  _mm512_store_si512(to, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
}

static void transpose_tile(float* tile) {
  __m512i r[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    r[i] = _mm512_load_si512(tile + 16 * i);
  }
  transpose_16(r);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    _mm512_store_si512(tile + 16 * i, r[i]);
  }
}

static __m512 without_negatives(__m512 x) {  // NaN stays
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLT_UQ), x);
}

static void write_row(const float* low, const float* high, bool relu, char* to) {
  __m512 a = _mm512_load_ps(low), b = _mm512_load_ps(high);
  if (relu) {
    a = without_negatives(a);
    b = without_negatives(b);
  }
  _mm512_store_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
}

static void write_samples(const float* from, int64_t n, float* to, int64_t step) {
  if (step == 1) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1), _mm512_load_ps(from));
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    to[i * step] = from[i];
  }
}

static void write_samples(const float* from, int64_t n, Bf16* to, int64_t step) {
  const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_load_ps(from)));
  if (step == 1) {
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << n) - 1), rounded);
    return;
  }
  alignas(32) Bf16 halves[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(halves), rounded);
  for (int64_t i = 0; i < n; ++i) {
    to[i * step] = halves[i];
  }
}
