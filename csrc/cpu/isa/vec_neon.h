// Vectors of AArch64's Advanced SIMD (NEON, in every 64-bit Arm): a register is a quarter of a
// scratch row. Included inside the namespace of neon.cpp; no target region is needed.

struct F32 {
  using T = float;
  static constexpr int kWidth = 4;
  // 32 registers: 28 sums (seven rows of the tile), one weight, what a sum begins with, two inputs.
  static constexpr int kTile = 28;
  float32x4_t v;
  static F32 load(const T* p) { return {vld1q_f32(p)}; }
  static F32 splat(T x) {
    // A number in a register is a lane of FMLA; loaded by LD1R it would take the place of one.
    if (!__builtin_constant_p(x)) {
      asm("" : "+w"(x));
    }
    return {vdupq_n_f32(x)};
  }
  void store(T* p) const { vst1q_f32(p, v); }
  static F32 loadu(const T* p) { return {vld1q_f32(p)}; }
  void storeu(T* p) const { vst1q_f32(p, v); }
  // The lanes that `where` has bits for; the others are not touched in memory, and read as zeros.
  static F32 load_where(const T* p, uint32_t where) {
    if (where == 15) {
      return load(p);
    }
    T lanes[4] = {};
    for (int i = 0; i < 4; ++i) {
      if ((where >> i & 1) != 0) {
        lanes[i] = p[i];
      }
    }
    return load(lanes);
  }
  void store_where(T* p, uint32_t where) const {
    if (where == 15) {
      return store(p);
    }
    for (int i = 0; i < 4; ++i) {
      if ((where >> i & 1) != 0) {
        p[i] = v[i];
      }
    }
  }
};
static inline F32 fma(F32 a, F32 b, F32 c) {
  return {vfmaq_f32(c.v, a.v, b.v)};
}
// a in the lanes that `where` has bits for, b in the others.
static inline F32 choose(uint32_t where, F32 a, F32 b) {
  constexpr uint32_t kBits[4] = {1, 2, 4, 8};
  return {vbslq_f32(vtstq_u32(vdupq_n_u32(where), vld1q_u32(kBits)), a.v, b.v)};
}

struct F64 {
  using T = double;
  static constexpr int kWidth = 2;
  static constexpr int kTile = 28;
  float64x2_t v;
  static F64 load(const T* p) { return {vld1q_f64(p)}; }
  static F64 splat(T x) { return {vdupq_n_f64(x)}; }
  void store(T* p) const { vst1q_f64(p, v); }
  static F64 loadu(const T* p) { return {vld1q_f64(p)}; }
  void storeu(T* p) const { vst1q_f64(p, v); }
  // The lanes that `where` has bits for; the others are not touched in memory, and read as zeros.
  static F64 load_where(const T* p, uint32_t where) {
    const T lanes[2] = {(where & 1) != 0 ? p[0] : 0, (where & 2) != 0 ? p[1] : 0};
    return load(lanes);
  }
  void store_where(T* p, uint32_t where) const {
    for (int i = 0; i < 2; ++i) {
      if ((where >> i & 1) != 0) {
        p[i] = v[i];
      }
    }
  }
};
static inline F64 fma(F64 a, F64 b, F64 c) {
  return {vfmaq_f64(c.v, a.v, b.v)};
}
static inline F64 choose(uint32_t where, F64 a, F64 b) {
  constexpr uint64_t kBits[2] = {1, 2};
  return {vbslq_f64(vtstq_u64(vdupq_n_u64(where), vld1q_u64(kBits)), a.v, b.v)};
}

// sum_lanes(rows): lane i of the result is the sum over the lanes of row i, always in the order
// lanes j and j + half, half = n/2 ... 1.
static inline float32x4_t halve_2(float32x4_t a, float32x4_t b) {
  const float64x2_t c = vreinterpretq_f64_f32(a), d = vreinterpretq_f64_f32(b);
  return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(c, d)),
                   vreinterpretq_f32_f64(vzip2q_f64(c, d)));
}
static inline F32 sum_lanes(const F32 (&rows)[4]) {
  return {vpaddq_f32(halve_2(rows[0].v, rows[1].v), halve_2(rows[2].v, rows[3].v))};
}
static inline F64 sum_lanes(const F64 (&rows)[2]) {
  return {vpaddq_f64(rows[0].v, rows[1].v)};
}

// transpose(src, dst): dst[j][i] = src[i][j] for one square block of kBlock x kBlock.
constexpr int kBlockF32 = 4;
constexpr int kBlockF64 = 2;

static inline void transpose(const float* const* src, float* const* dst) {
  const float32x4_t r0 = vld1q_f32(src[0]), r1 = vld1q_f32(src[1]);
  const float32x4_t r2 = vld1q_f32(src[2]), r3 = vld1q_f32(src[3]);
  const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(r0, r1));  // 00 10 02 12
  const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(r0, r1));  // 01 11 03 13
  const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(r2, r3));
  const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(r2, r3));
  vst1q_f32(dst[0], vreinterpretq_f32_f64(vzip1q_f64(a, c)));
  vst1q_f32(dst[1], vreinterpretq_f32_f64(vzip1q_f64(b, d)));
  vst1q_f32(dst[2], vreinterpretq_f32_f64(vzip2q_f64(a, c)));
  vst1q_f32(dst[3], vreinterpretq_f32_f64(vzip2q_f64(b, d)));
}

static inline void transpose(const double* const* src, double* const* dst) {
  const float64x2_t r0 = vld1q_f64(src[0]), r1 = vld1q_f64(src[1]);
  vst1q_f64(dst[0], vzip1q_f64(r0, r1));
  vst1q_f64(dst[1], vzip2q_f64(r0, r1));
}

// FCVT between half and single precision is in every ARMv8; arithmetic in half is not.
static inline float half_to_float(uint16_t bits) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}
static inline uint16_t float_to_half(float x) {
  return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0);
}

// Outputs x vectors of one register tile: 24 sums, two inputs, one weight of 32 registers.
constexpr int kPointRows = 12;
// Rows of the taller and of the other factor in a tile of a 1x1 wgrad: 24 sums, four and one
// loaded.
constexpr int kDotA = 6, kDotB = 4;

// x, or 0 where x < 0: a NaN stays, and so does -0 (FMAX would make +0 of it).
static inline F32 relu(F32 x) {
  return {vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x.v), vcltzq_f32(x.v)))};
}
static inline F64 relu(F64 x) {
  return {vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(x.v), vcltzq_f64(x.v)))};
}

// g, or 0 where z <= 0.
static inline F32 relu_gradient(F32 z, F32 g) {
  return {vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(g.v), vclezq_f32(z.v)))};
}
static inline F64 relu_gradient(F64 z, F64 g) {
  return {vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(g.v), vclezq_f64(z.v)))};
}

// a where a > b, else b (also where either is a NaN).
static inline F32 greater_of(F32 a, F32 b) {
  return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)};
}

// A number in each lane: how often a was greater.
struct Counts {
  int32x4_t v;
};
static inline Counts count_greater(F32 a, F32 b, Counts n) {
  return {vsubq_s32(n.v, vreinterpretq_s32_u32(vcgtq_f32(a.v, b.v)))};  // -1 in the lanes that are
}
// The sum of all lanes, in the first.
static inline Counts total_of(Counts n) {
  return {vdupq_n_s32(vaddvq_s32(n.v))};
}
