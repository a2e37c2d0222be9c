// Products of blocks by vectors: `pair_dot` multiplies the pairs of bfloat16 of 16 lanes by one
// pair and adds both products to each lane. The methods are those of TileProducts, in steps of 8
// rows. Sums stay in registers over all taps, and the inputs are read in place. Included after
// block_wgrad.inl.

class PairProducts {
 public:
  explicit PairProducts(int) {}

  void correlate(int64_t count,
                 const char* rows,
                 int64_t pitch,
                 const int64_t* offsets,
                 const char* weights,
                 int64_t n,
                 const float* init,
                 float* sums) {
    for (int64_t r = 0; r < count; r += 16, rows += 16 * pitch, sums += 256) {
      const auto products = count - r > 8 ? correlate_rows<16> : correlate_rows<8>;
      products(rows, pitch, offsets, weights, n, init, sums);
    }
  }

  void reduce(int64_t count, const BlockSeries& series, const int64_t* offsets, float* sums) {
    for (int64_t tap = 0; tap < count; ++tap) {
      reduce_tap(series, offsets[tap], sums + 256 * tap);
    }
  }

 private:
  template <int kRows>
  static void correlate_rows(const char* rows,
                             int64_t pitch,
                             const int64_t* offsets,
                             const char* weights,
                             int64_t n,
                             const float* init,
                             float* to) {
    PairSums sums[kRows];
    for (int r = 0; r < kRows; ++r) {
      __builtin_memcpy(&sums[r], init, sizeof(PairSums));
    }
    for (int64_t e = 0; e < n; ++e) {
      const char* from = rows + offsets[e];
      for (int pair = 0; pair < kBlockSize / 2; ++pair, weights += 64, from += 4) {
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          sums[r] = pair_dot(sums[r], weights, from + r * pitch);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      __builtin_memcpy(to + kBlockSize * r, &sums[r], sizeof(PairSums));
    }
  }

  static void reduce_tap(const BlockSeries& series, int64_t offset, float* to) {
    PairSums sums[kBlockSize] = {};  // of one call: a chain over all of them loses digits
    for (int64_t n = 0; n < series.n; ++n) {
      const char* grads = series.grads + n * series.grads_pitch;
      const char* rows = series.rows + n * series.rows_pitch + offset;
      for (int64_t i = 0; i < series.steps; ++i, grads += kTileBytes) {
        for (int pair = 0; pair < kPairRows / 2; ++pair, rows += 2 * kBlockRowBytes) {
#pragma GCC unroll 16
          for (int r = 0; r < kBlockSize; ++r) {
            sums[r] = pair_dot(sums[r], rows, grads + r * kBlockRowBytes + 4 * pair);
          }
        }
      }
    }
    float lanes[kBlockSize * kBlockSize];
    __builtin_memcpy(lanes, sums, sizeof(sums));
    for (int i = 0; i < kBlockSize * kBlockSize; ++i) {
      to[i] += lanes[i];
    }
  }
};
