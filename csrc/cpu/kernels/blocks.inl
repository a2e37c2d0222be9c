// Convolutions of blocks of channels that share their taps. Included once per kind of tile, after
// its tiles_*.h: `Tiles` are eight tiles of 16 rows of 64 bytes, `dot` multiplies pairs of
// bfloat16.
//
// Rows of scratch are positions, so a tap is an offset of rows and no input is copied per tap. They
// have 64 bytes: a tile whose rows straddle cache lines loads six times slower.

// The samples [begin, begin + n * step) of one channel, padded, as neighbours.
static void stage_samples(const Bf16* series,
                          int64_t stride,
                          int64_t length,
                          PaddingMode mode,
                          int64_t begin,
                          int64_t step,
                          int64_t n,
                          Bf16* to) {
  const auto at = [&](int64_t i) {
    const int64_t position = begin + i * step;
    if (position >= 0 && position < length) {
      return series[position * stride];
    }
    return mode == PaddingMode::zeros ? Bf16{0}
                                      : series[fold_position(position, length, mode) * stride];
  };
  const int64_t inside_from = begin >= 0 ? 0 : min_of(n, ceil_div(-begin, step));
  const int64_t inside_to = begin >= length
                                ? inside_from
                                : max_of(inside_from, min_of(n, ceil_div(length - begin, step)));
  for (int64_t i = 0; i < inside_from; ++i) {
    to[i] = at(i);
  }
  if (stride * step == 1) {
    __builtin_memcpy(to + inside_from, series + begin + inside_from,
                     (inside_to - inside_from) * sizeof(Bf16));
  } else {
    for (int64_t i = inside_from; i < inside_to; ++i) {
      to[i] = series[(begin + i * step) * stride];
    }
  }
  for (int64_t i = inside_to; i < n; ++i) {
    to[i] = at(i);
  }
}

static const Bf16* series_of(const TensorView& view, int64_t n, int64_t channel) {
  return static_cast<const Bf16*>(view.data) + n * view.stride[0] + channel * view.stride[1];
}

// Rows of 32 channels: row w of pair p of blocks is for position begin + w.
static void fill_rows(const BlockCorrelation& p,
                      int64_t n,
                      int64_t begin,
                      int64_t window,
                      int64_t pitch,
                      char* rows,
                      Bf16* stage) {
  const int64_t width = staged(window);
  for (int64_t c0 = 0; c0 < p.in_channels; c0 += 2 * kBlockSize, rows += pitch) {
    const int64_t channels = min_of(2 * kBlockSize, p.in_channels - c0);
    for (int64_t c = 0; c < 2 * kBlockSize; ++c) {
      if (c < channels) {
        stage_samples(series_of(p.in, n, c0 + c), p.in.stride[2], p.in_length, p.mode, begin, 1,
                      window, stage + c * width);
      } else {
        __builtin_memset(stage + c * width, 0, width * sizeof(Bf16));
      }
    }
    for (int64_t w = 0; w < window; w += 16) {
      interleave_transposed(stage + w, stage + width + w, 2 * width, rows + w * kBlockRowBytes);
    }
  }
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

// Writes the outputs of one tile of sums, (16 positions, 16 channels).
template <typename Out>
static void write_block(const BlockCorrelation& p,
                        int64_t n,
                        int64_t channel,
                        int64_t row,
                        int64_t rows,
                        float* sums) {
  transpose_tile(sums);
  const int64_t channels = min_of(kBlockSize, p.out_channels - channel);
  Out* out = static_cast<Out*>(p.out.data) + n * p.out.stride[0] + channel * p.out.stride[1] +
             (p.first_out + row * p.out_step) * p.out.stride[2];
  const int64_t step = p.out_step * p.out.stride[2];
  for (int64_t c = 0; c < channels; ++c, out += p.out.stride[1], sums += 16) {
    if (p.relu) {
      for (int64_t i = 0; i < 16; ++i) {
        sums[i] = sums[i] < 0 ? 0 : sums[i];
      }
    }
    write_samples(sums, rows, out, step);
  }
}

static void correlate_blocks(const BlockCorrelation& p,
                             int64_t part,
                             int64_t parts,
                             void* scratch) {
  const int64_t units = p.batch * p.chunks(), all = units * p.out_blocks;
  const int64_t begin = all * part / parts, end = all * (part + 1) / parts;
  const int64_t entries = p.first[p.out_blocks], pitch = p.pitch();
  char* rows = static_cast<char*>(scratch);
  float* sums = reinterpret_cast<float*>(rows + pitch * ceil_div(p.in_blocks, 2));
  auto* offsets = reinterpret_cast<int64_t*>(sums + kTilesAtOnce * 256);
  Bf16* stage = reinterpret_cast<Bf16*>(offsets + ceil_div(entries, 8) * 8);
  for (int64_t e = 0; e < entries; ++e) {
    const BlockEntry& entry = p.entries[e];
    offsets[e] = entry.in_block / 2 * pitch + entry.in_block % 2 * 32 +
                 (entry.position - p.low) * kBlockRowBytes;
  }
  static const float kZeros[16] = {};
  Tiles tiles(8);
  int64_t filled = -1;
  for (int64_t at = begin; at < end; ++at) {
    const int64_t unit = at / p.out_blocks, block = at % p.out_blocks;
    const int64_t n = unit / p.chunks(), chunk = unit % p.chunks();
    // Near-equal chunks.
    const int64_t from = p.rows * chunk / p.chunks(), to = p.rows * (chunk + 1) / p.chunks();
    const int64_t start = p.origin + from * p.step;
    if (unit != filled) {
      fill_rows(p, n, start + p.low, (to - from - 1) * p.step + 1 + p.high - p.low, pitch, rows,
                stage);
      filled = unit;
    }
    const int64_t channel = block * kBlockSize;
    for (int64_t row = from; row < to; row += kStripRows) {
      const int64_t count = min_of(kStripRows, to - row);
      int64_t e0 = p.first[block], e1 = p.first[block + 1];
      if (p.mode == PaddingMode::zeros) {  // entries that meet only padding
        const int64_t head = p.origin + row * p.step, last = head + (count - 1) * p.step;
        while (e0 < e1 && last + p.entries[e0].position < 0) {
          ++e0;
        }
        while (e1 > e0 && head + p.entries[e1 - 1].position >= p.in_length) {
          --e1;
        }
      }
      const char* at_rows = rows + (row - from) * p.step * kBlockRowBytes;
      const char* weights = static_cast<const char*>(p.weights) + e0 * kWeightTileBytes;
      const float* init = p.init != nullptr ? p.init + channel : kZeros;
      const auto products = count > 48   ? block_products<4>
                            : count > 32 ? block_products<3>
                            : count > 16 ? block_products<2>
                                         : block_products<1>;
      products(tiles, at_rows, p.step * kBlockRowBytes, offsets + e0, weights, e1 - e0, init, sums);
      for (int64_t r = 0; r < count; r += 16) {
        const auto write = p.out_float ? write_block<float> : write_block<Bf16>;
        write(p, n, channel, row + r, min_of(int64_t{16}, count - r), sums + r * 16);
      }
    }
  }
}

// Where the packed series of one pair of blocks lie.
struct BlockSeries {
  const char *grads, *rows;
  int64_t grads_pitch, rows_pitch;  // from one series to the next
  int64_t n, steps;                 // products of each
};

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

// Rows of 16 channels of two neighbouring positions, so that a tile of 32 positions is every second
// row, from whatever row a tap begins at.
static void fill_pairs(const BlockWeightGradient& p,
                       int64_t n,
                       int64_t start,
                       int64_t rows,
                       int64_t block_pitch,
                       char* to,
                       Bf16* stage) {
  const int64_t needed = ceil_div(rows, kPairRows) * kPairRows + p.span, width = staged(needed + 1);
  for (int64_t c0 = 0; c0 < p.in_channels; c0 += kBlockSize, to += block_pitch) {
    for (int64_t run = 0; run < p.n_runs; ++run) {
      for (int64_t c = 0; c < kBlockSize; ++c) {
        if (c0 + c < p.in_channels) {
          stage_samples(series_of(p.in, n, c0 + c), p.in.stride[2], p.in_length, p.mode,
                        start + p.phases[run], p.step, rows + p.span, stage + c * width);
          __builtin_memset(stage + c * width + rows + p.span, 0,
                           (width - rows - p.span) * sizeof(Bf16));
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
                           int64_t block_pitch,
                           char* to) {
  for (int64_t c = 0; c < p.out_blocks * kBlockSize; ++c) {
    char* at = to + c / kBlockSize * block_pitch + c % kBlockSize * kBlockRowBytes;
    for (int64_t r = 0; r < rows; r += kPairRows, at += kTileBytes) {
      const int64_t here = c < p.out_channels ? min_of(kPairRows, rows - r) : 0;
      __builtin_memset(at, 0, kBlockRowBytes);
      if (here > 0) {
        const int64_t stride = p.grad.stride[2];
        stage_samples(series_of(p.grad, n, c) + (from + r) * stride, stride, here,
                      PaddingMode::zeros, 0, 1, here, reinterpret_cast<Bf16*>(at));
      }
    }
  }
}

static void block_wgrad(const BlockWeightGradient& p, int64_t part, int64_t parts, void* scratch) {
  const int64_t units = p.units();
  BlockSeries series{};
  series.rows_pitch = p.in_pitch() * p.in_blocks;
  series.grads_pitch = p.grad_pitch() * p.out_blocks;
  char* rows = static_cast<char*>(scratch);
  char* grads = rows + series.rows_pitch * p.series();
  Bf16* stage = reinterpret_cast<Bf16*>(grads + series.grads_pitch * p.series());
  Tiles tiles(16);
  for (int64_t split = p.splits * part / parts; split < p.splits * (part + 1) / parts; ++split) {
    for (int64_t unit = units * split / p.splits; unit < units * (split + 1) / p.splits; ++unit) {
      const int64_t first = unit / p.chunks() * p.series(), chunk = unit % p.chunks();
      const int64_t from = chunk * kBlockWgradRows, to = min_of(p.rows, from + kBlockWgradRows);
      series.n = min_of(p.series(), p.batch - first);
      series.steps = ceil_div(to - from, kPairRows);
      for (int64_t n = 0; n < series.n; ++n) {
        fill_pairs(p, first + n, p.origin + from * p.step, to - from, p.in_pitch(),
                   rows + n * series.rows_pitch, stage);
        fill_gradients(p, first + n, from, to - from, p.grad_pitch(),
                       grads + n * series.grads_pitch);
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
        const auto reduce = count == 4   ? block_reduce<4>
                            : count == 3 ? block_reduce<3>
                            : count == 2 ? block_reduce<2>
                                         : block_reduce<1>;
        reduce(tiles, series, offsets, p.out + (split * p.n_taps + t) * 256);
        t += count;
      }
    }
  }
}
