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

static inline __m256i load_halves(const Bf16* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// 16 pairs (low[i], high[i]).
static inline F32 interleaved(const Bf16* low, const Bf16* high) {
  const __m512i a = _mm512_cvtepu16_epi32(load_halves(low));
  const __m512i b = _mm512_cvtepu16_epi32(load_halves(high));
  return {_mm512_castsi512_ps(_mm512_or_si512(a, _mm512_slli_epi32(b, 16)))};
}

static void interleave_transposed(const Bf16* low, const Bf16* high, int64_t stride, char* to) {
  F32 rows[16];
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) {
    rows[j] = interleaved(low + j * stride, high + j * stride);
  }
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    rows[i].store(reinterpret_cast<float*>(to + i * kBlockRowBytes));
  }
}

static void interleave(const Bf16* low, const Bf16* high, char* to) {
  interleaved(low, high).store(reinterpret_cast<float*>(to));
}

static void transpose_tile(float* tile) {
  F32 rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    rows[i] = F32::load(tile + 16 * i);
  }
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    rows[i].store(tile + 16 * i);
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
