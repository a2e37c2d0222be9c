// Random numbers of positions, which vectors compute: dynamic sparse training grows by them.

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
    uint32_t x = (first + static_cast<uint32_t>(i)) * d.factor + d.offset;
    x = (x ^ x >> 16) * 0x85ebca6b;
    x = (x ^ x >> 13) * 0xc2b2ae35;
    out[i] = (x ^ x >> 16) >> 1;
  }
  return offsets_below(out, n, d.limit, below);
}
