// Tiles of a matrix unit and pairs in vectors, in plain C++: the bits that AMX and AVX-512 were
// found to compute. Included inside a namespace.

static float flushed(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

// The low or the high half of two bfloat16.
static float member(uint32_t pair, int half) {
  const uint32_t bits = half == 0 ? pair << 16 : pair & 0xffff0000u;
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return flushed(x);
}

// a * b + sum, a zero if that is subnormal as a float of any exponent: the instruction rounds
// before it compares, so a sum that only the range of float rounds up to the least normal number is
// a zero.
static float flushed_fma(float a, float b, float sum) {
  const float found = std::fma(a, b, sum);
  if (!(std::fabs(found) <= 0x1p-126f)) {
    return found;
  }
  const float least = std::fabs(a) < std::fabs(b) ? a : b, most = least == a ? b : a;
  const bool zero = std::fabs(std::fma(2 * least, most, 2 * sum)) < 0x1p-125f;
  return zero ? std::copysign(0.0f, found) : found;
}

struct PairSums {
  float lanes[16];
};

static PairSums pair_dot(PairSums sums, const char* b, const char* a) {
  uint32_t pair, pairs[16];
  __builtin_memcpy(&pair, a, sizeof(pair));
  __builtin_memcpy(pairs, b, sizeof(pairs));
  for (int i = 0; i < 16; ++i) {
    for (int half = 1; half >= 0; --half) {
      sums.lanes[i] =
          flushed_fma(member(pair, half), member(pairs[i], half), flushed(sums.lanes[i]));
    }
  }
  return sums;
}

// Eight tiles of 16 rows of 64 bytes.
class Tiles {
 public:
  // Products of 2 * pairs inputs.
  explicit Tiles(int pairs) : pairs_(pairs) {}
  template <int kTile>
  void load(const void* from, int64_t pitch) {
    for (int64_t row = 0; row < 16; ++row) {
      // Tiles of weights have a row for each pair of inputs, tiles of inputs a column for it.
      const int64_t bytes = kTile >= 5 && pairs_ == 8 ? 32 : 64;
      if (kTile != 4 || row < pairs_) {
        __builtin_memcpy(tile_[kTile][row], static_cast<const char*>(from) + row * pitch, bytes);
      }
    }
  }
  template <int kTile>
  void store(void* to) const {
    __builtin_memcpy(to, tile_[kTile], sizeof(tile_[kTile]));
  }
  // Sums + A * B. AMX sums the even and the odd members of the 32 products apart, each by fused
  // multiply-adds from zero, then both together, and flushes subnormal numbers to zero; found by
  // trying 230 400 sums, none of them next to the least normal number (see flushed_fma).
  template <int kSums, int kA, int kB>
  void dot() {
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 16; ++column) {
        float both[2] = {0, 0};
        for (int pair = 0; pair < pairs_; ++pair) {
          for (int half = 0; half < 2; ++half) {
            const float a = member(tile_[kA][row][pair], half);
            const float b = member(tile_[kB][pair][column], half);
            both[half] = flushed(std::fma(a, b, both[half]));
          }
        }
        float sum;
        __builtin_memcpy(&sum, &tile_[kSums][row][column], sizeof(sum));
        sum = flushed(flushed(sum) + flushed(both[0] + both[1]));
        __builtin_memcpy(&tile_[kSums][row][column], &sum, sizeof(sum));
      }
    }
  }

 private:
  int pairs_;
  uint32_t tile_[8][16][16];
};

// 16 rows of 16 pairs: row i holds (low[j * stride + i], high[j * stride + i]) for j in [0, 16).
static void interleave_transposed(const Bf16* low, const Bf16* high, int64_t stride, char* to) {
  auto* pairs = reinterpret_cast<Bf16*>(to);
  for (int64_t i = 0; i < 16; ++i) {
    for (int64_t j = 0; j < 16; ++j) {
      pairs[32 * i + 2 * j] = low[j * stride + i];
      pairs[32 * i + 2 * j + 1] = high[j * stride + i];
    }
  }
}

// 16 pairs (low[i], high[i]).
static void interleave(const Bf16* low, const Bf16* high, char* to) {
  auto* pairs = reinterpret_cast<Bf16*>(to);
  for (int64_t i = 0; i < 16; ++i) {
    pairs[2 * i] = low[i];
    pairs[2 * i + 1] = high[i];
  }
}

static void transpose_tile(float* tile) {
  for (int64_t i = 0; i < 16; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      std::swap(tile[16 * i + j], tile[16 * j + i]);
    }
  }
}

static void write_samples(const float* from, int64_t n, float* to, int64_t step) {
  for (int64_t i = 0; i < n; ++i) {
    to[i * step] = from[i];
  }
}

static void write_samples(const float* from, int64_t n, Bf16* to, int64_t step) {
  for (int64_t i = 0; i < n; ++i) {
    from_acc(flushed(from[i]), &to[i * step]);
  }
}

// A row of 32 channels; with ReLU negative numbers become 0.
static void write_row(const float* low, const float* high, bool relu, char* to) {
  for (int64_t c = 0; c < 32; ++c) {
    float x = c < 16 ? low[c] : high[c - 16];
    x = relu && x < 0 ? 0 : x;
    write_samples(&x, 1, reinterpret_cast<Bf16*>(to) + c, 1);
  }
}
