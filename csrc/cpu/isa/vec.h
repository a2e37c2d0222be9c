// Vectors of numbers, over the compilers' vector types. Included once per instruction set, inside
// its namespace and target region, by its vec_*.h. That defines the constants kVectorBytes and
// kTileSums before, and what compilers have no operator for behind: `fma`, `half_to_float`,
// `float_to_half`, and overloads where an intrinsic is faster.

template <typename Scalar>
struct Vec {
  using T = Scalar;
  typedef T Vector __attribute__((vector_size(kVectorBytes), may_alias));
  typedef T Loose __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  static constexpr int kWidth = kVectorBytes / sizeof(T);
  static constexpr int kTile = kTileSums;
  Vector v;
  static Vec load(const T* p) { return {*reinterpret_cast<const Vector*>(p)}; }
  static Vec loadu(const T* p) { return {*reinterpret_cast<const Loose*>(p)}; }
  static Vec splat(T x) { return {x - Vector{}}; }  // x - 0 is x, also if x is -0
  void store(T* p) const { *reinterpret_cast<Vector*>(p) = v; }
  void storeu(T* p) const { *reinterpret_cast<Loose*>(p) = v; }
  // The lanes that `where` has bits for; the others are not touched in memory, and read as zeros.
  static Vec load_where(const T* p, uint32_t where) {
    if (where == (1u << kWidth) - 1) {
      return loadu(p);
    }
    Vec x{};
    for (int i = 0; i < kWidth; ++i) {
      if ((where >> i & 1) != 0) {
        x.v[i] = p[i];
      }
    }
    return x;
  }
  void store_where(T* p, uint32_t where) const {
    if (where == (1u << kWidth) - 1) {
      return storeu(p);
    }
    for (int i = 0; i < kWidth; ++i) {
      if ((where >> i & 1) != 0) {
        p[i] = v[i];
      }
    }
  }
  // All bits of the lanes that `where` has bits for.
  static auto mask(uint32_t where) {
    decltype(Vector{} < Vector{}) bits;
    for (int i = 0; i < kWidth; ++i) {
      bits[i] = 1 << i;
    }
    return (bits & static_cast<int32_t>(where)) == bits;
  }
};
using F32 = Vec<float>;
using F64 = Vec<double>;
using Counts = Vec<int32_t>;

// a in the lanes that `where` has bits for, b in the others.
template <typename V>
static inline V choose(uint32_t where, V a, V b) {
  return {V::mask(where) ? a.v : b.v};
}

// g, or 0 where z <= 0.
template <typename V>
static inline V relu_gradient(V z, V g) {
  return {z.v <= 0 ? typename V::Vector{} : g.v};
}

// a where a > b, else b (also where either is a NaN).
template <typename V>
static inline V greater_of(V a, V b) {
  return {a.v > b.v ? a.v : b.v};
}

// x, or 0 where x < 0: a NaN stays, and so does -0.
template <typename V>
static inline V relu(V x) {
  return greater_of(V::splat(0), x);
}

// n, and 1 more in the lanes where a is greater.
template <typename V>
static inline Counts count_greater(V a, V b, Counts n) {
  return {n.v - (a.v > b.v)};  // -1 in the lanes where it is
}

// The sum of all lanes, in each.
static inline Counts total_of(Counts n) {
  int32_t sum = 0;
  for (int i = 0; i < Counts::kWidth; ++i) {
    sum += n.v[i];
  }
  return Counts::splat(sum);
}

// Lanes that a shuffle moves within 16 bytes, which takes one instruction.
template <typename V>
constexpr int kPart = 16 / sizeof(typename V::T);

// Every other unit of kUnit lanes, from the first (kOdd: the second) on: those of a, then those of
// b, in each 16 bytes or, if a unit is as long, in the whole vector.
template <int kUnit, bool kOdd, typename V, int... kLane>
static inline V every_other(V a, V b, std::integer_sequence<int, kLane...>) {
  constexpr auto kFrom = [](int lane) {
    constexpr int kSpan = kUnit < kPart<V> ? kPart<V> : V::kWidth;
    const int i = lane % kSpan, half = i % (kSpan / 2);
    const int from = lane - i + half / kUnit * 2 * kUnit + half % kUnit + (kOdd ? kUnit : 0);
    return from + (i < kSpan / 2 ? 0 : V::kWidth);
  };
#if defined(__clang__)
  return {__builtin_shufflevector(a.v, b.v, kFrom(kLane)...)};
#else
  return {__builtin_shuffle(a.v, b.v, decltype(V::mask(0)){kFrom(kLane)...})};
#endif
}
template <int kUnit, bool kOdd, typename V>
static inline V every_other(V a, V b) {
  return every_other<kUnit, kOdd>(a, b, std::make_integer_sequence<int, V::kWidth>());
}

// Partial sums: kSums lanes for each of kWidth / kSums rows. Two vectors of twice as long ones are
// halved into one, so a row costs two shuffles, not a whole tree.
template <int kSums, typename V>
static inline V partial_sums(const V* rows) {
  if constexpr (kSums == V::kWidth) {
    return *rows;
  } else {
    // So that the rows end up in order.
    constexpr int kApart = (kSums < kPart<V> ? 1 : V::kWidth) * kPart<V> / (2 * kSums);
    const V a = partial_sums<2 * kSums>(rows), b = partial_sums<2 * kSums>(rows + kApart);
    return {every_other<kSums, false>(a, b).v + every_other<kSums, true>(a, b).v};
  }
}
// Lane i of the result is the sum over the lanes of row i, always in the order lanes j and j +
// half, half = n/2 ... 1.
template <typename T, int kWidth>
static inline Vec<T> sum_lanes(const Vec<T> (&rows)[kWidth]) {
  return partial_sums<1>(rows);
}

// In place: lane j of row i becomes lane i of row j. Each round takes rows that are one apart.
template <int kRound = 1, typename V, int kWidth>
static inline void transpose(V (&rows)[kWidth]) {
  if constexpr (kRound < kWidth) {
    constexpr int kUnit = kRound < kPart<V> ? 1 : kPart<V>;
    V next[kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < kWidth / 2; ++i) {
      next[i] = every_other<kUnit, false>(rows[2 * i], rows[2 * i + 1]);
      next[kWidth / 2 + i] = every_other<kUnit, true>(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      rows[i] = next[i];
    }
    transpose<2 * kRound>(rows);
  }
}
// dst[j][i] = src[i][j] for one square block of a vector's width.
template <typename T>
static inline void transpose(const T* const* src, T* const* dst) {
  constexpr int kWidth = Vec<T>::kWidth;
  Vec<T> rows[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    rows[i] = Vec<T>::loadu(src[i]);
  }
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    rows[i].storeu(dst[i]);
  }
}
