// The weights' gradient by blocks. Included after blocks.inl.

// Where the packed series of one pair of blocks lie.
struct BlockSeries {
  const char *grads, *rows;
  int64_t grads_pitch, rows_pitch;  // from one series to the next
  int64_t n, steps;                 // products of each
};

// Rows of 16 channels of two neighbouring positions, so that a tile of 32 positions is every second
// row, from whatever row a tap begins at.
static void fill_pairs(const BlockWeightGradient& p,
                       int64_t n,
                       int64_t start,
                       int64_t rows,
                       char* to,
                       Bf16* stage) {
  const int64_t needed = ceil_div(rows, kPairRows) * kPairRows + p.span, width = staged(needed + 1);
  for (int64_t c0 = 0; c0 < p.in_channels; c0 += kBlockSize, to += p.in_pitch()) {
    for (int64_t run = 0; run < p.n_runs; ++run) {
      // The span is that of the longest run.
      const int64_t begin = start + p.phases[run];
      const int64_t samples = min_of(rows + p.span, ceil_div(p.past() - begin, p.step));
      for (int64_t c = 0; c < kBlockSize; ++c) {
        if (c0 + c < p.in_channels) {
          read_lane(stage + c * width, series_of(p.in, n, c0 + c), p.in.stride[2], p.in_length,
                    p.mode, begin, p.step, samples);
          __builtin_memset(stage + c * width + samples, 0, (width - samples) * sizeof(Bf16));
        } else {
          __builtin_memset(stage + c * width, 0, width * sizeof(Bf16));
        }
      }
      char* at = to + run * p.run_rows() * kBlockRowBytes;
      for (int64_t w = 0; w < needed; w += 16) {
        interleave_transposed(stage + w, stage + w + 1, width, at + w * kBlockRowBytes);
      }
    }
  }
}

// Tiles of 16 channels and 32 positions each; beyond the series zeros.
static void fill_gradients(const BlockWeightGradient& p,
                           int64_t n,
                           int64_t from,
                           int64_t rows,
                           char* to) {
  for (int64_t c = 0; c < p.out_blocks * kBlockSize; ++c) {
    char* at = to + c / kBlockSize * p.grad_pitch() + c % kBlockSize * kBlockRowBytes;
    for (int64_t r = 0; r < rows; r += kPairRows, at += kTileBytes) {
      const int64_t here = c < p.out_channels ? min_of(kPairRows, rows - r) : 0;
      __builtin_memset(at, 0, kBlockRowBytes);
      if (here > 0) {
        const int64_t stride = p.grad.stride[2];
        read_lane(reinterpret_cast<Bf16*>(at), series_of(p.grad, n, c) + (from + r) * stride,
                  stride, here, PaddingMode::zeros, 0, 1, here);
      }
    }
  }
}

// The same of a signal in rows; pairs that no gradient needs are zeros, which NaN must not meet.
static void pair_rows(const BlockWeightGradient& p,
                      int64_t n,
                      int64_t start,
                      int64_t rows,
                      char* to) {
  static const Bf16 kNone[kBlockSize] = {};
  const int64_t needed = ceil_div(rows, kPairRows) * kPairRows + p.span;
  for (int64_t block = 0; block < p.in_blocks; ++block, to += p.in_pitch()) {
    const auto at = [&](int64_t w) {
      return w < rows + p.span ? halves(p.in_rows.at(n, block, start + w)) : kNone;
    };
    for (int64_t w = 0; w < needed; ++w) {
      interleave(at(w), at(w + 1), to + w * kBlockRowBytes);
    }
  }
}

static void tile_gradients(const BlockWeightGradient& p,
                           int64_t n,
                           int64_t from,
                           int64_t rows,
                           char* to) {
  constexpr int64_t kStride = kBlockRowBytes / 2;  // halves
  for (int64_t block = 0; block < p.out_blocks; ++block, to += p.grad_pitch()) {
    for (int64_t r = 0; r < rows; r += kPairRows) {
      const Bf16* source = halves(p.grad_rows.at(n, block, from + r));
      Bf16 copy[kPairRows * kStride];
      if (rows - r < kPairRows) {  // zeros follow
        __builtin_memset(copy, 0, sizeof(copy));
        for (int64_t i = 0; i < rows - r; ++i) {
          __builtin_memcpy(copy + i * kStride, source + i * kStride, 32);
        }
        source = copy;
      }
      interleave_transposed(source, source + kStride, 2 * kStride, to + r / kPairRows * kTileBytes);
    }
  }
}

template <typename Products>
static void block_wgrad(const BlockWeightGradient& p, int64_t part, int64_t parts, void* scratch) {
  const int64_t units = p.units();
  BlockSeries series{};
  series.rows_pitch = p.in_pitch() * p.in_blocks;
  series.grads_pitch = p.grad_pitch() * p.out_blocks;
  char* rows = static_cast<char*>(scratch);
  char* grads = rows + series.rows_pitch * p.series();
  Bf16* stage = reinterpret_cast<Bf16*>(grads + series.grads_pitch * p.series());
  Products products(16);
  for (int64_t split = p.splits * part / parts; split < p.splits * (part + 1) / parts; ++split) {
    for (int64_t unit = units * split / p.splits; unit < units * (split + 1) / p.splits; ++unit) {
      const int64_t first = unit / p.chunks() * p.series(), chunk = unit % p.chunks();
      const int64_t from = chunk * kBlockWgradRows, to = min_of(p.rows, from + kBlockWgradRows);
      series.n = min_of(p.series(), p.batch - first);
      series.steps = ceil_div(to - from, kPairRows);
      for (int64_t n = 0; n < series.n; ++n) {
        const int64_t start = p.origin + from * p.step;
        char *pairs = rows + n * series.rows_pitch, *tiles = grads + n * series.grads_pitch;
        if (p.in_rows.data != nullptr) {
          pair_rows(p, first + n, start, to - from, pairs);
          tile_gradients(p, first + n, from, to - from, tiles);
        } else {
          fill_pairs(p, first + n, start, to - from, pairs, stage);
          fill_gradients(p, first + n, from, to - from, tiles);
        }
      }
      for (int64_t t = 0; t < p.n_taps;) {
        const BlockTap& tap = p.taps[t];
        int64_t offsets[kTilesAtOnce], count = 0;
        while (count < kTilesAtOnce && t + count < p.n_taps &&
               p.taps[t + count].in_block == tap.in_block &&
               p.taps[t + count].out_block == tap.out_block) {
          const BlockTap& here = p.taps[t + count];
          offsets[count] = (here.run * p.run_rows() + here.row) * kBlockRowBytes;
          ++count;
        }
        series.grads = grads + tap.out_block * p.grad_pitch();
        series.rows = rows + tap.in_block * p.in_pitch();
        products.reduce(count, series, offsets, p.out + (split * p.n_taps + t) * 256);
        t += count;
      }
    }
  }
}
