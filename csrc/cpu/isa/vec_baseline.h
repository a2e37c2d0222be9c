// Vectors for any CPU (x86 without AVX, ARM): 16-byte compiler vectors, which become SSE2 or NEON.
// Included inside the namespace of baseline.cpp.

template <typename Scalar>
struct Lanes {
  using T = Scalar;
  typedef T Vector __attribute__((vector_size(16)));
  typedef T Loose __attribute__((vector_size(16), aligned(sizeof(T)), may_alias));
  static constexpr int kWidth = 16 / sizeof(T);
  static constexpr int kTile = 8;  // fits the 16 registers of SSE2; NEON has 32
  Vector v;
  static Lanes load(const T* p) { return {*reinterpret_cast<const Vector*>(p)}; }
  static Lanes loadu(const T* p) { return {*reinterpret_cast<const Loose*>(p)}; }
  static Lanes splat(T x) {
    Lanes y;
    for (int i = 0; i < kWidth; ++i) {
      y.v[i] = x;
    }
    return y;
  }
  void store(T* p) const { *reinterpret_cast<Vector*>(p) = v; }
  void storeu(T* p) const { *reinterpret_cast<Loose*>(p) = v; }
  // The lanes that `where` has bits for; the others are not touched in memory, and read as zeros.
  static Lanes load_where(const T* p, uint32_t where) {
    Lanes x = splat(0);
    for (int i = 0; i < kWidth; ++i) {
      if ((where >> i & 1) != 0) {
        x.v[i] = p[i];
      }
    }
    return x;
  }
  void store_where(T* p, uint32_t where) const {
    for (int i = 0; i < kWidth; ++i) {
      if ((where >> i & 1) != 0) {
        p[i] = v[i];
      }
    }
  }
};
using F32 = Lanes<float>;
using F64 = Lanes<double>;

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
// a in the lanes that `where` has bits for, b in the others.
template <typename V>
static inline V choose(uint32_t where, V a, V b) {
  V y;
  for (int i = 0; i < V::kWidth; ++i) {
    y.v[i] = (where >> i & 1) != 0 ? a.v[i] : b.v[i];
  }
  return y;
}

// sum_lanes(rows): lane i of the result is the sum over the lanes of row i, always in the order
// lanes j and j + half, half = n/2 ... 1.
template <typename T, int kWidth>
static inline Lanes<T> sum_lanes(const Lanes<T> (&rows)[kWidth]) {
  Lanes<T> sums;
  for (int row = 0; row < kWidth; ++row) {
    auto sum = rows[row].v;
    for (int half = kWidth / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) {
        sum[i] = sum[i] + sum[i + half];
      }
    }
    sums.v[row] = sum[0];
  }
  return sums;
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
  return c10::detail::fp16_ieee_to_fp32_value(bits);
}
static inline uint16_t float_to_half(float x) {
  return c10::detail::fp16_ieee_from_fp32_value(x);
}

// Outputs x vectors of one register tile: 8 sums, two inputs, one weight of 16 registers.
constexpr int kPointRows = 4;
// Rows of the taller and of the other factor in a tile of a 1x1 wgrad: 8 sums, two and one loaded.
constexpr int kDotA = 4, kDotB = 2;

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

// a where a > b, else b (also where either is a NaN).
static inline F32 greater_of(F32 a, F32 b) {
  F32 y;
  for (int i = 0; i < F32::kWidth; ++i) {
    y.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  }
  return y;
}

// A number in each lane: how often a was greater.
struct Counts {
  typedef int32_t Vector __attribute__((vector_size(16)));
  Vector v;
};
static inline Counts count_greater(F32 a, F32 b, Counts n) {
  return {n.v - reinterpret_cast<Counts::Vector>(a.v > b.v)};  // -1 in the lanes that are
}
// The sum of all lanes, in the first.
static inline Counts total_of(Counts n) {
  return {Counts::Vector{n.v[0] + n.v[1] + n.v[2] + n.v[3], 0, 0, 0}};
}
