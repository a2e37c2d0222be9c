// Activations with an exponential, and their gradients: torch's own take several times as long.
// Included once per ISA, after lanes.inl.

template <typename T>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr int kTerms = 8, kMantissa = 23;
  static constexpr float kLargest = 88;       // exp of it is finite
  static constexpr float kRounder = 0x3p22f;  // numbers near it are whole
  static constexpr float kLn2 = 0x1.62e43p-1f, kRestOfLn2 = -0x1.05c61p-29f;
};
template <>
struct Exponential<double> {
  static constexpr int kTerms = 14, kMantissa = 52;
  static constexpr double kLargest = 708;
  static constexpr double kRounder = 0x3p51;
  static constexpr double kLn2 = 0x1.62e42fefa39efp-1, kRestOfLn2 = 0x1.abc9e3b39803fp-56;
};

constexpr double inverse_factorial(int n) {
  return n < 2 ? 1 : inverse_factorial(n - 1) / n;
}

// exp(x) as 2^k and exp(r) - 1, where x = k ln 2 + r, and the latter is a Taylor series.
template <typename V>
struct Exp {
  V power, series;
  V value() const { return fma(power, series, power); }
  V minus_1() const { return fma(power, series, sub(power, V::splat(1))); }  // exact near 0, too
};

// Beyond +-kLargest, as there.
template <typename V>
static inline Exp<V> exp(V x) {
  using E = Exponential<typename V::T>;
  using Vector = typename V::Vector;
  using Bits = decltype(x.v < x.v);
  x = greater_of(V::splat(-E::kLargest), x);  // a NaN stays
  x = {x.v > E::kLargest ? V::splat(E::kLargest).v : x.v};
  const V shifted = fma(x, V::splat(1.4426950408889634), V::splat(E::kRounder));
  const V k = {shifted.v - E::kRounder};
  const V r = fma(k, V::splat(-E::kRestOfLn2), fma(k, V::splat(-E::kLn2), x));
  V series = V::splat(inverse_factorial(E::kTerms));
#pragma GCC unroll 16
  for (int i = E::kTerms - 1; i >= 2; --i) {
    series = fma(series, r, V::splat(inverse_factorial(i)));
  }
  series = fma(mul(r, r), series, r);
  // k is in the lowest bits of `shifted`, and zeros are where it is moved from.
  const V one = V::splat(1);
  return {{(Vector)(((Bits)shifted.v << E::kMantissa) + (Bits)one.v)}, series};
}

template <typename V>
static inline V tanh(V x) {
  const V grown = exp(add(x, x)).minus_1();
  return {grown.v / (grown.v + 2)};
}

template <typename V>
static inline V sigmoid(V x) {
  const V falling = exp(V{-x.v}).minus_1();
  return {1 / (falling.v + 2)};
}

// ELU or tanh.
template <typename V, bool kTanh>
static void activate_each(const Activation& p, int64_t begin, int64_t end) {
  using T = typename V::T;
  const T* in = static_cast<const T*>(p.in);
  const T* grad = static_cast<const T*>(p.grad);
  T* out = static_cast<T*>(p.out);
  for (int64_t i = begin; i < end; i += V::kWidth) {
    const V x = V::load(in + i);
    if (kTanh) {
      const V f = tanh(x);
      (grad == nullptr ? f : mul(V::load(grad + i), V{1 - f.v * f.v})).store(out + i);
      continue;
    }
    const Exp<V> below = exp(x);
    if (grad == nullptr) {
      V{x.v > 0 ? x.v : below.minus_1().v}.store(out + i);
    } else {
      const V g = V::load(grad + i);
      V{x.v > 0 ? g.v : g.v * below.value().v}.store(out + i);
    }
  }
}

// The product of f of the first half of the channels and the sigmoid of the second half.
template <typename V, bool kTanh>
static void gate_each(const Activation& p, int64_t begin, int64_t end) {
  using T = typename V::T;
  const T *in = static_cast<const T*>(p.in), *gates = in + p.n;
  const T* grad = static_cast<const T*>(p.grad);
  T* out = static_cast<T*>(p.out);
  for (int64_t i = begin; i < end; i += V::kWidth) {
    const V x = V::load(in + i), f = kTanh ? tanh(x) : x;
    const V gate = sigmoid(V::load(gates + i));
    if (grad == nullptr) {
      mul(f, gate).store(out + i);
      continue;
    }
    const V g = mul(V::load(grad + i), gate);
    V{kTanh ? g.v * (1 - f.v * f.v) : g.v}.store(out + i);
    V{g.v * f.v * (1 - gate.v)}.store(out + p.n + i);
  }
}

template <typename V>
static void activate(const Activation& p, int64_t part, int64_t parts, void*) {
  const int64_t vectors = p.n / V::kWidth;
  const int64_t begin = vectors * part / parts * V::kWidth;
  const int64_t end = vectors * (part + 1) / parts * V::kWidth;
  if (p.kind == ActivationKind::elu) {
    activate_each<V, false>(p, begin, end);
  } else if (p.kind == ActivationKind::tanh) {
    activate_each<V, true>(p, begin, end);
  } else if (p.kind == ActivationKind::glu) {
    gate_each<V, false>(p, begin, end);
  } else {
    gate_each<V, true>(p, begin, end);
  }
}

template <typename V>
static void prelu(const Prelu& p, int64_t part, int64_t parts, void*) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>, kVectors = kN / V::kWidth;
  for (int64_t row = p.rows * part / parts; row < p.rows * (part + 1) / parts; ++row) {
    const V slope = V::splat(static_cast<const T*>(p.weight)[row % p.channels]);
    const T* in = static_cast<const T*>(p.in) + row * p.length;
    const T* grad = p.grad ? static_cast<const T*>(p.grad) + row * p.length : nullptr;
    T* out = static_cast<T*>(p.out) + row * p.length;
    V sums[kVectors] = {};
    for (int64_t i = 0; i < p.length; i += kN) {
      for (int h = 0; h < kVectors && i + h * V::kWidth < p.length; ++h) {
        const int64_t at = i + h * V::kWidth, left = p.length - at;
        const uint32_t where = (1u << (left < V::kWidth ? left : V::kWidth)) - 1;
        const V x = V::load_where(in + at, where);
        const V g = grad ? V::load_where(grad + at, where) : x;
        V{x.v > 0 ? g.v : slope.v * g.v}.store_where(out + at, where);
        sums[h] = add(sums[h], V{x.v > 0 ? V::splat(0).v : x.v * g.v});
      }
    }
    for (int h = 0; grad && h < kVectors; ++h) {
      sums[h].storeu(static_cast<T*>(p.sums) + row * kN + h * V::kWidth);
    }
  }
}
