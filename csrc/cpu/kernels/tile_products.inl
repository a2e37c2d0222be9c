// Products of blocks by a matrix unit: `Tiles` are eight tiles of 16 rows of 64 bytes, `dot`
// multiplies pairs of bfloat16. Included after block_wgrad.inl.

constexpr int64_t kTileNumbers = 256;

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
  each<kN>([&]<int kI>() { tiles.template load<kI>(init, 0); });  // all rows alike
  for (int64_t e = 0; e < n; ++e, weights += kWeightTileBytes) {
    const char* from = rows + offsets[e];
    tiles.template load<4>(weights, 64);
    each<kN>([&]<int kI>() {
      constexpr int kInputs = 5 + kI % 3;
      tiles.template load<kInputs>(from + kI * 16 * pitch, pitch);
      tiles.template dot<kI, kInputs, 4>();
    });
  }
  each<kN>([&]<int kI>() { tiles.template store<kI>(sums + kI * kTileNumbers); });
}

// The tiles of up to four taps of one pair of blocks, which share the loads of gradients.
template <int kN>
static inline void block_reduce(Tiles& tiles,
                                const BlockSeries& series,
                                const int64_t* offsets,
                                float* sums) {
  each<kN>([&]<int kI>() { tiles.template load<kI>(sums + kI * kTileNumbers, 64); });
  for (int64_t n = 0; n < series.n; ++n) {
    const char* grads = series.grads + n * series.grads_pitch;
    const char* rows = series.rows + n * series.rows_pitch;
    for (int64_t i = 0; i < series.steps; ++i) {
      tiles.template load<5>(grads, 64);
      each<kN>([&]<int kI>() {
        constexpr int kInputs = kI % 3 == 0 ? 4 : 5 + kI;
        tiles.template load<kInputs>(rows + offsets[kI], 128);
        tiles.template dot<kI, 5, kInputs>();
      });
      grads += kTileBytes;
      rows += kPairRows * kBlockRowBytes;
    }
  }
  each<kN>([&]<int kI>() { tiles.template store<kI>(sums + kI * kTileNumbers); });
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
