// Random numbers of positions, which vectors compute: dynamic sparse training grows by them.

static void draws(const Draws& d, uint32_t first, int64_t n, uint32_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t x = (first + static_cast<uint32_t>(i)) * d.factor + d.offset;
    x = (x ^ x >> 16) * 0x85ebca6b;
    x = (x ^ x >> 13) * 0xc2b2ae35;
    out[i] = (x ^ x >> 16) >> 1;
  }
}
