// Random numbers of positions, which vectors compute: dynamic sparse training grows by them, and
// dropout keeps by them.

static inline uint32_t drawn(const Draws& d, uint32_t position) {
  uint32_t x = position * d.factor + d.offset;
  x = (x ^ x >> 16) * 0x85ebca6b;
  x = (x ^ x >> 13) * 0xc2b2ae35;
  return (x ^ x >> 16) >> 1;
}

// Writes the offsets of the numbers below the limit, in order, and returns how many they are.
// Without a branch, which would be guessed wrong. AVX-512 has an overload.
template <typename Number>
static int64_t offsets_below(const Number* x, int64_t n, Number limit, uint16_t* out) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    out[found] = static_cast<uint16_t>(i);
    found += x[i] < limit;
  }
  return found;
}

static int64_t draws(const Draws& d, uint32_t first, int64_t n, uint32_t* out, uint16_t* below) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = drawn(d, first + static_cast<uint32_t>(i));
  }
  return offsets_below(out, n, d.limit, below);
}

// In steps of their own, since loops that convert halves are vectorized alone.
template <typename T, typename Acc>
static void dropout(const Dropout& p, int64_t part, int64_t parts, void*) {
  constexpr int64_t kAtOnce = 256;
  const Draws draws = p.draws;
  const Acc scale = static_cast<Acc>(p.scale);
  const int64_t end = p.n * (part + 1) / parts;
  for (int64_t begin = p.n * part / parts; begin < end; begin += kAtOnce) {
    const int64_t n = min_of(kAtOnce, end - begin);
    const T* in = static_cast<const T*>(p.in) + begin;
    T* out = static_cast<T*>(p.out) + begin;
    Acc kept[kAtOnce];
    for (int64_t i = 0; i < n; ++i) {
      kept[i] = to_acc(in[i]) * scale;
    }
    for (int64_t i = 0; i < n; ++i) {
      kept[i] = drawn(draws, static_cast<uint32_t>(begin + i)) < draws.limit ? kept[i] : Acc(0);
    }
    for (int64_t i = 0; i < n; ++i) {
      from_acc(kept[i], out + i);
    }
  }
}
