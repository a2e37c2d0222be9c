// Vectors for any CPU (x86 without AVX, ARM): 16 bytes, which become SSE2 or NEON. Included inside
// the namespace of baseline.cpp.

constexpr int kVectorBytes = 16;
constexpr int kTileSums = 8;  // fits the 16 registers of SSE2; NEON has 32
// Outputs x vectors of one register tile: 8 sums, two inputs, one weight of 16 registers.
constexpr int kPointRows = 4;
// Rows of the taller and of the other factor in a tile of a 1x1 wgrad: 8 sums, two and one loaded.
constexpr int kDotA = 4, kDotB = 2;

#include "vec.h"

// A fused multiply-add rounds once; without the instruction it must be imitated, or the bits would
// depend on the ISA. The product of two floats is exact in double, and a sum rounded to odd there
// rounds to float as the exact sum would (Boldo and Melquiond, "Emulation of FMA and correctly
// rounded sums: proved algorithms using rounding to odd", 2008).
#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kHasFma = true;
static inline F32 fma(F32 a, F32 b, F32 c) {
  F32 y;
  for (int i = 0; i < F32::kWidth; ++i) {
    y.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  }
  return y;
}
#else
constexpr bool kHasFma = false;
typedef int64_t Bits64 __attribute__((vector_size(16)));
static inline F64::Vector sum_rounded_to_odd(F64::Vector a, F64::Vector b) {
  const F64::Vector s = a + b;
  const F64::Vector bb = s - a;
  const F64::Vector error = (a - (s - bb)) + (b - bb);
  const Bits64 inexact = (error > 0) | (error < 0);  // a NaN or infinity has no error
  const Bits64 even = ((Bits64)s & 1) - 1;
  const Bits64 too_far = (error > 0) ^ (s > 0);  // from zero, so that a bit less is wanted
  return (F64::Vector)((Bits64)s + (inexact & even & (too_far | 1)));
}
// A call: inlined everywhere, it would be most of the extension, and of the time to compile it.
__attribute__((noinline)) static F32 fma(F32 a, F32 b, F32 c) {
  typedef double Wide __attribute__((vector_size(32)));
  union Halves {
    Wide whole;
    F64::Vector half[2];  // of 16 bytes: compilers take a longer vector's comparison apart
  } product, sum;
  product.whole = __builtin_convertvector(a.v, Wide) * __builtin_convertvector(b.v, Wide);
  sum.whole = __builtin_convertvector(c.v, Wide);
  for (int i = 0; i < 2; ++i) {
    sum.half[i] = sum_rounded_to_odd(product.half[i], sum.half[i]);
  }
  return {__builtin_convertvector(sum.whole, F32::Vector)};
}
#endif
static inline F64 fma(F64 a, F64 b, F64 c) {
  F64 y;
  for (int i = 0; i < F64::kWidth; ++i) {
    y.v[i] = __builtin_fma(a.v[i], b.v[i], c.v[i]);
  }
  return y;
}

static inline float half_to_float(uint16_t bits) {
  return c10::detail::fp16_ieee_to_fp32_value(bits);
}
static inline uint16_t float_to_half(float x) {
  return c10::detail::fp16_ieee_from_fp32_value(x);
}
