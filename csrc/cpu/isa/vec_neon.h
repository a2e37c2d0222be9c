// Vectors of AArch64's Advanced SIMD (NEON, in every 64-bit Arm): a register is a quarter of a
// scratch row. Included inside the namespace of neon.cpp; no target region is needed.

constexpr int kVectorBytes = 16;
// 32 registers: 28 sums (seven rows of the tile), one weight, what a sum begins with, two inputs.
constexpr int kTileSums = 28;
// Outputs x vectors of one register tile: 24 sums, two inputs, one weight of 32 registers.
constexpr int kPointRows = 12;
// Rows of the taller and of the other factor in a tile of a 1x1 wgrad: 24 sums, four and one
// loaded.
constexpr int kDotA = 6, kDotB = 4;

#include "vec.h"

template <>
inline F32 F32::splat(float x) {
  // A number in a register is a lane of FMLA; loaded by LD1R it would take the place of one.
  if (!__builtin_constant_p(x)) {
    asm("" : "+w"(x));
  }
  return {vdupq_n_f32(x)};
}

static inline F32 fma(F32 a, F32 b, F32 c) {
  return {vfmaq_f32(c.v, a.v, b.v)};
}
static inline F64 fma(F64 a, F64 b, F64 c) {
  return {vfmaq_f64(c.v, a.v, b.v)};
}

// FCVT between half and single precision is in every ARMv8; arithmetic in half is not.
static inline float half_to_float(uint16_t bits) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}
static inline uint16_t float_to_half(float x) {
  return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0);
}
