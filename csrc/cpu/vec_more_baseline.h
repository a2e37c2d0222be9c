// More of vec_baseline.h, for the kernels around the sparse convolutions: any address, parts of a
// vector, ReLU. Included after it.

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
