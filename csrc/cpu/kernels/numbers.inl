// Numbers that every kernel needs. Included once per ISA and kind of tile.

static inline int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline int64_t max_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static inline float to_acc(Bf16 x) {
  union {
    uint32_t bits;
    float value;
  } y = {static_cast<uint32_t>(x.bits) << 16};
  return y.value;
}
static inline void from_acc(float x, Bf16* y) {
  union {
    float value;
    uint32_t bits;
  } b = {x};
  const bool nan = (b.bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = b.bits + 0x7fffu + ((b.bits >> 16) & 1);  // to nearest, ties to even
  y->bits = static_cast<uint16_t>(nan ? (b.bits >> 16) | 0x40u : rounded >> 16);
}

template <typename A, typename B>
constexpr bool kSame = false;
template <typename A>
constexpr bool kSame<A, A> = true;

// make<i>() for an i of [0, kN) that only a call knows: it returns an instance of a template.
template <typename Make, int... kI>
static inline auto pick(int64_t i, Make make, std::integer_sequence<int, kI...>) {
  static constexpr decltype(make.template operator()<0>()) kTable[] = {
    make.template operator()<kI>()...
  };
  return kTable[i];
}
template <int64_t kN, typename Make>
static inline auto pick(int64_t i, Make make) {
  return pick(i, make, std::make_integer_sequence<int, int{kN}>());
}

// Calls run<i>() for each i of [0, kN).
template <int kN, int kI = 0, typename Run>
static inline void each(const Run& run) {
  run.template operator()<kI>();
  if constexpr (kI + 1 < kN) {
    each<kN, kI + 1>(run);
  }
}
