// Products of blocks by a matrix unit: `Tiles` are eight tiles of 16 rows of 64 bytes, `dot`
// multiplies pairs of bfloat16. Included after block_wgrad.inl.

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
  tiles.template load<0>(init, 0);
  if constexpr (kN > 1) {
    tiles.template load<1>(init, 0);
  }
  if constexpr (kN > 2) {
    tiles.template load<2>(init, 0);
  }
  if constexpr (kN > 3) {
    tiles.template load<3>(init, 0);
  }
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
  tiles.template store<0>(sums);
  if constexpr (kN > 1) {
    tiles.template store<1>(sums + 256);
  }
  if constexpr (kN > 2) {
    tiles.template store<2>(sums + 512);
  }
  if constexpr (kN > 3) {
    tiles.template store<3>(sums + 768);
  }
}

// The tiles of up to four taps of one pair of blocks, which share the loads of gradients.
template <int kN>
static inline void block_reduce(Tiles& tiles,
                                const BlockSeries& series,
                                const int64_t* offsets,
                                float* sums) {
  tiles.template load<0>(sums, 64);
  if constexpr (kN > 1) {
    tiles.template load<1>(sums + 256, 64);
  }
  if constexpr (kN > 2) {
    tiles.template load<2>(sums + 512, 64);
  }
  if constexpr (kN > 3) {
    tiles.template load<3>(sums + 768, 64);
  }
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
  tiles.template store<0>(sums);
  if constexpr (kN > 1) {
    tiles.template store<1>(sums + 256);
  }
  if constexpr (kN > 2) {
    tiles.template store<2>(sums + 512);
  }
  if constexpr (kN > 3) {
    tiles.template store<3>(sums + 768);
  }
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
    const auto products = count > 48   ? block_products<4>
                          : count > 32 ? block_products<3>
                          : count > 16 ? block_products<2>
                                       : block_products<1>;
    products(tiles_, rows, pitch, offsets, weights, n, init, sums);
  }

  // Adds to the sums of `count` taps, (count, 16, 16).
  void reduce(int64_t count, const BlockSeries& series, const int64_t* offsets, float* sums) {
    const auto reduce = count == 4   ? block_reduce<4>
                        : count == 3 ? block_reduce<3>
                        : count == 2 ? block_reduce<2>
                                     : block_reduce<1>;
    reduce(tiles_, series, offsets, sums);
  }

 private:
  Tiles tiles_;
};
