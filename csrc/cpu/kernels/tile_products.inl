// Products of blocks by a matrix unit: `Tiles` are eight tiles of 16 rows of 64 bytes, `dot`
// multiplies pairs of bfloat16. Included after block_wgrad.inl.

constexpr int64_t kTileNumbers = 256;

// Loads the first kN tiles, with sums. `apart`: numbers between them, 0 if all begin alike.
// `pitch`: bytes between their rows.
template <int kN>
static inline void load_sums(Tiles& tiles, const float* from, int64_t apart, int64_t pitch) {
  if constexpr (kN > 1) {
    load_sums<kN - 1>(tiles, from, apart, pitch);
  }
  tiles.template load<kN - 1>(from + (kN - 1) * apart, pitch);
}

template <int kN>
static inline void store_sums(const Tiles& tiles, float* to) {
  if constexpr (kN > 1) {
    store_sums<kN - 1>(tiles, to);
  }
  tiles.template store<kN - 1>(to + (kN - 1) * kTileNumbers);
}

// The sums of kN tiles of rows for one block of outputs, one load of weights and kN of inputs for
// kN products.
template <int kN>
static inline void block_products(Tiles& tiles,
                                  const char* rows,
                                  int64_t pitch,
                                  const int64_t* offsets,
                                  const char* weights,
                                  int64_t n,
                                  const float* init,
                                  float* sums) {
  load_sums<kN>(tiles, init, 0, 0);
  for (int64_t e = 0; e < n; ++e, weights += kWeightTileBytes) {
    const char* from = rows + offsets[e];
    tiles.template load<4>(weights, 64);
    tiles.template load<5>(from, pitch);
    tiles.template dot<0, 5, 4>();
    if constexpr (kN > 1) {
      tiles.template load<6>(from + 16 * pitch, pitch);
      tiles.template dot<1, 6, 4>();
    }
    if constexpr (kN > 2) {
      tiles.template load<7>(from + 32 * pitch, pitch);
      tiles.template dot<2, 7, 4>();
    }
    if constexpr (kN > 3) {
      tiles.template load<5>(from + 48 * pitch, pitch);
      tiles.template dot<3, 5, 4>();
    }
  }
  store_sums<kN>(tiles, sums);
}

// The tiles of up to four taps of one pair of blocks, which share the loads of gradients.
template <int kN>
static inline void block_reduce(Tiles& tiles,
                                const BlockSeries& series,
                                const int64_t* offsets,
                                float* sums) {
  load_sums<kN>(tiles, sums, kTileNumbers, 64);
  for (int64_t n = 0; n < series.n; ++n) {
    const char* grads = series.grads + n * series.grads_pitch;
    const char* rows = series.rows + n * series.rows_pitch;
    for (int64_t i = 0; i < series.steps; ++i) {
      tiles.template load<5>(grads, 64);
      tiles.template load<4>(rows + offsets[0], 128);
      tiles.template dot<0, 5, 4>();
      if constexpr (kN > 1) {
        tiles.template load<6>(rows + offsets[1], 128);
        tiles.template dot<1, 5, 6>();
      }
      if constexpr (kN > 2) {
        tiles.template load<7>(rows + offsets[2], 128);
        tiles.template dot<2, 5, 7>();
      }
      if constexpr (kN > 3) {
        tiles.template load<4>(rows + offsets[3], 128);
        tiles.template dot<3, 5, 4>();
      }
      grads += kTileBytes;
      rows += kPairRows * kBlockRowBytes;
    }
  }
  store_sums<kN>(tiles, sums);
}

class TileProducts {
 public:
  // Products of 2 * pairs inputs.
  explicit TileProducts(int pairs) : tiles_(pairs) {}

  // sums[row][16] of one block of outputs, of `count` rows; whole tiles of rows are written.
  void correlate(int64_t count,
                 const char* rows,
                 int64_t pitch,
                 const int64_t* offsets,
                 const char* weights,
                 int64_t n,
                 const float* init,
                 float* sums) {
    const auto products =
        pick<kTilesAtOnce>((count - 1) / 16, []<int kI>() { return block_products<kI + 1>; });
    products(tiles_, rows, pitch, offsets, weights, n, init, sums);
  }

  // Adds to the sums of `count` taps, (count, 16, 16).
  void reduce(int64_t count, const BlockSeries& series, const int64_t* offsets, float* sums) {
    const auto reduce =
        pick<kTilesAtOnce>(count - 1, []<int kI>() { return block_reduce<kI + 1>; });
    reduce(tiles_, series, offsets, sums);
  }

 private:
  Tiles tiles_;
};
