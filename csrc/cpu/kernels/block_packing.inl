// Weights of blocks to tiles, and sums of tiles to gradients of weights. Included after blocks.inl.

// Rounded to bfloat16, to nearest and ties to even, in the lower halves of words.
static inline __attribute__((always_inline)) Words16 rounded(Lanes16 x) {
  Words16 bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const Words16 nan = (bits >> 16) | 0x40u;
  const Words16 number = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? nan : number;
}

// Every step-th of n numbers; lanes beyond are zeros.
static inline __attribute__((always_inline)) Lanes16 gathered(const float* from,
                                                              int64_t step,
                                                              int64_t n) {
  Lanes16 x = {};
  if (n == 16) {  // a number that the compiler knows: one instruction
    for (int i = 0; i < 16; ++i) {
      x[i] = from[i * step];
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      x[i] = from[i * step];
    }
  }
  return x;
}

// Of a tile: its first weight among the values, and how many lie from row to row and from column
// to column, since all kernels of a block share their taps.
struct TilePlace {
  float* first;
  int64_t row, column;

  TilePlace(const BlockPacking& p, const BlockWeights& tile) {
    const int32_t* kernels = p.pointers + tile.out_channel * p.channels_per_group + tile.in_channel;
    first = p.values + kernels[0] + tile.rank;
    row = tile.rows > 1 ? kernels[p.channels_per_group] - kernels[0] : 0;
    column = kernels[1] - kernels[0];
  }
};

static void pack_blocks(const BlockPacking& p, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const BlockWeights& tile = p.tiles[t];
    const TilePlace at(p, tile);
    const int64_t summed = p.transposed ? tile.rows : tile.columns;
    const int64_t step = p.transposed ? at.row : at.column;
    const int64_t lanes = p.transposed ? tile.columns : tile.rows;
    const int64_t lane = p.transposed ? at.column : at.row;
    char* to = static_cast<char*>(p.packed) + t * kWeightTileBytes;
    for (int64_t i = 0; i < kBlockSize; i += 2, to += sizeof(Words16)) {
      const float* from = at.first + i * step;
      const Words16 low = rounded(gathered(from, lane, i < summed ? lanes : 0));
      const Words16 high = rounded(gathered(from + step, lane, i + 1 < summed ? lanes : 0));
      const Words16 pairs = low | high << 16;
      __builtin_memcpy(to, &pairs, sizeof(pairs));
    }
  }
}

static bool unpack_sums(const BlockPacking& p, int64_t begin, int64_t end) {
  Lanes16 spread = {};  // NaN if a sum is not finite
  for (int64_t t = begin; t < end; ++t) {
    const BlockWeights& tile = p.tiles[t];
    const TilePlace at(p, tile);
    for (int64_t r = 0; r < tile.rows; ++r) {
      Lanes16 sum = {};
      for (int64_t split = 0; split < p.splits; ++split) {
        Lanes16 part;
        __builtin_memcpy(&part, p.sums + ((split * p.n + t) * kBlockSize + r) * kBlockSize,
                         sizeof(part));
        sum += part;
      }
      float* row = at.first + r * at.row;
      if (tile.columns == kBlockSize) {  // as in gathered
        for (int c = 0; c < kBlockSize; ++c) {
          row[c * at.column] = sum[c];
        }
      } else {
        for (int64_t c = 0; c < tile.columns; ++c) {
          row[c * at.column] = sum[c];
        }
      }
      spread += sum * 0.0f;
    }
  }
  bool finite = true;
  for (int i = 0; i < 16; ++i) {
    finite = finite && spread[i] == 0;
  }
  return finite;
}
