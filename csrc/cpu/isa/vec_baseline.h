// Vectors for any CPU (x86 without AVX, ARM): 16-byte compiler vectors, which become SSE2 or NEON.
// Included inside the namespace of baseline.cpp.

typedef float Lanes4 __attribute__((vector_size(16)));
typedef double Lanes2 __attribute__((vector_size(16)));

// A fused multiply-add rounds once; without the instruction it must be imitated, or the bits would
// depend on the ISA. The product of two floats is exact in double, and a sum rounded to odd there
// rounds to float as the exact sum would (Boldo and Melquiond, "Emulation of FMA and correctly
// rounded sums: proved algorithms using rounding to odd", 2008).
static inline float fma_scalar(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  const double p = static_cast<double>(a) * b;
  const double z = c;
  const double s = p + z;
  const double zz = s - p;
  const double error = (p - (s - zz)) + (z - zz);
  union {
    double value;
    uint64_t bits;
  } odd = {s};
  if ((error > 0 || error < 0) && (odd.bits & 1) == 0) {  // a NaN or infinity has no error
    odd.bits += ((error > 0) == (s > 0)) ? 1 : -1;
  }
  return static_cast<float>(odd.value);
#endif
}

struct F32 {
  using T = float;
  static constexpr int kWidth = 4;
  static constexpr int kTile = 8;  // fits the 16 registers of SSE2; NEON has 32
  static constexpr int kWgradTiles = 1;
  Lanes4 v;
  static F32 load(const T* p) { return {*reinterpret_cast<const Lanes4*>(p)}; }
  static F32 splat(T x) { return {Lanes4{x, x, x, x}}; }
  void store(T* p) const { *reinterpret_cast<Lanes4*>(p) = v; }
};
static inline F32 fma(F32 a, F32 b, F32 c) {
  F32 y;
  for (int i = 0; i < 4; ++i) {
    y.v[i] = fma_scalar(a.v[i], b.v[i], c.v[i]);
  }
  return y;
}
static inline F32 mul(F32 a, F32 b) {
  return {a.v * b.v};
}
static inline F32 add(F32 a, F32 b) {
  return {a.v + b.v};
}

struct F64 {
  using T = double;
  static constexpr int kWidth = 2;
  static constexpr int kTile = 8;
  static constexpr int kWgradTiles = 1;
  Lanes2 v;
  static F64 load(const T* p) { return {*reinterpret_cast<const Lanes2*>(p)}; }
  static F64 splat(T x) { return {Lanes2{x, x}}; }
  void store(T* p) const { *reinterpret_cast<Lanes2*>(p) = v; }
};
static inline F64 fma(F64 a, F64 b, F64 c) {
  return {Lanes2{__builtin_fma(a.v[0], b.v[0], c.v[0]), __builtin_fma(a.v[1], b.v[1], c.v[1])}};
}
static inline F64 mul(F64 a, F64 b) {
  return {a.v * b.v};
}
static inline F64 add(F64 a, F64 b) {
  return {a.v + b.v};
}

// sum_lanes(rows, sums): sums[i] = the sum over the lanes of row i, for kBlock rows, always in the
// order lanes j and j + half, half = n/2 ... 1.
template <typename T>
static inline void sum_lanes(const T* rows, T* sums) {
  constexpr int kLanes = static_cast<int>(kRowBytes / sizeof(T));
  for (int row = 0; row < static_cast<int>(16 / sizeof(T)); ++row) {
    T sum[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      sum[i] = rows[row * kLanes + i];
    }
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) {
        sum[i] = sum[i] + sum[i + half];
      }
    }
    sums[row] = sum[0];
  }
}

// transpose(src, dst): dst[j][i] = src[i][j] for one square block of kBlock x kBlock.
constexpr int kBlockF32 = 4;
constexpr int kBlockF64 = 2;

template <typename T>
static inline void transpose(const T* const* src, T* const* dst) {
  constexpr int kBlock = static_cast<int>(16 / sizeof(T));
  for (int i = 0; i < kBlock; ++i) {
    for (int j = 0; j < kBlock; ++j) {
      dst[j][i] = src[i][j];
    }
  }
}

static inline float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  union {
    uint32_t bits;
    float value;
  } y;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    y.bits = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  } else if (magnitude >= 0x0400u) {
    y.bits = (magnitude << 13) + ((127 - 15) << 23);
  } else {  // subnormal: an integer times 2^-24
    y.value = static_cast<float>(magnitude) * 0x1p-24f;
  }
  y.bits |= sign;
  return y.value;
}
static inline uint16_t float_to_half(float x) {
  union {
    float value;
    uint32_t bits;
  } y = {x};
  const uint16_t sign = static_cast<uint16_t>((y.bits >> 16) & 0x8000u);
  y.bits &= 0x7fffffffu;
  if (y.bits > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u);
  }
  if (y.bits >= 0x477ff000u) {  // 65520 and more round to infinity
    return static_cast<uint16_t>(sign | 0x7c00u);
  }
  if (y.bits < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the rounded multiple of 2^-24
    y.value += 0.5f;
    return static_cast<uint16_t>(sign | (y.bits - 0x3f000000u));
  }
  const uint32_t odd = (y.bits >> 13) & 1;
  return static_cast<uint16_t>(sign | ((y.bits - ((127 - 15) << 23) + 0xfffu + odd) >> 13));
}

// Outputs x vectors of one register tile: 8 sums, two inputs, one weight of 16 registers.
constexpr int kPointRows = 4;

typedef float LooseLanes4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef double LooseLanes2 __attribute__((vector_size(16), aligned(8), may_alias));

static inline F32 loadu(const float* p) {
  return {*reinterpret_cast<const LooseLanes4*>(p)};
}
static inline F64 loadu(const double* p) {
  return {*reinterpret_cast<const LooseLanes2*>(p)};
}
static inline void storeu(float* p, F32 x) {
  *reinterpret_cast<LooseLanes4*>(p) = x.v;
}
static inline void storeu(double* p, F64 x) {
  *reinterpret_cast<LooseLanes2*>(p) = x.v;
}

// The first n lanes, 0 <= n < kWidth; the others are not touched in memory, and read as zeros.
static inline F32 load_part(const float* p, int64_t n) {
  F32 x = F32::splat(0);
  for (int64_t i = 0; i < n; ++i) {
    x.v[i] = p[i];
  }
  return x;
}
static inline F64 load_part(const double* p, int64_t n) {
  F64 x = F64::splat(0);
  for (int64_t i = 0; i < n; ++i) {
    x.v[i] = p[i];
  }
  return x;
}
static inline void store_part(float* p, F32 x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    p[i] = x.v[i];
  }
}
static inline void store_part(double* p, F64 x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    p[i] = x.v[i];
  }
}

static inline F32 sub(F32 a, F32 b) {
  return {a.v - b.v};
}
static inline F64 sub(F64 a, F64 b) {
  return {a.v - b.v};
}

// x, or 0 where x < 0: a NaN stays.
template <typename V>
static inline V relu(V x) {
  V y;
  for (int i = 0; i < V::kWidth; ++i) {
    y.v[i] = x.v[i] < 0 ? 0 : x.v[i];
  }
  return y;
}

// g, or 0 where z <= 0.
template <typename V>
static inline V relu_gradient(V z, V g) {
  V y;
  for (int i = 0; i < V::kWidth; ++i) {
    y.v[i] = z.v[i] <= 0 ? 0 : g.v[i];
  }
  return y;
}
