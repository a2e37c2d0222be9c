// Convolutions of blocks of channels that share their taps. Included once per target, after its
// vectors. `Products` multiplies: TileProducts of a matrix unit, or PairProducts of vectors.
//
// Rows of scratch are positions, so a tap is an offset of rows and no input is copied per tap. They
// have 64 bytes: a tile whose rows straddle cache lines loads six times slower.

constexpr int64_t kStripSums = kTilesAtOnce * 256;  // of one block

typedef float Lanes16 __attribute__((vector_size(64)));
typedef uint32_t Words16 __attribute__((vector_size(64)));

static const Bf16* halves(const char* rows) {
  return reinterpret_cast<const Bf16*>(rows);
}

static const Bf16* series_of(const TensorView& view, int64_t n, int64_t channel) {
  return static_cast<const Bf16*>(view.data) + n * view.stride[0] + channel * view.stride[1];
}

// Rows of 32 channels: row w is for position begin + w. Whole tiles of rows are written.
static void fill_rows(const TensorView& in,
                      int64_t in_channels,
                      int64_t length,
                      PaddingMode mode,
                      int64_t n,
                      int64_t begin,
                      int64_t window,
                      int64_t pitch,
                      char* rows,
                      Bf16* stage) {
  const int64_t width = staged(window);
  for (int64_t c0 = 0; c0 < in_channels; c0 += 2 * kBlockSize, rows += pitch) {
    const int64_t channels = min_of(2 * kBlockSize, in_channels - c0);
    for (int64_t c = 0; c < 2 * kBlockSize; ++c) {
      if (c < channels) {
        read_lane(stage + c * width, series_of(in, n, c0 + c), in.stride[2], length, mode, begin, 1,
                  window);
      } else {
        __builtin_memset(stage + c * width, 0, width * sizeof(Bf16));
      }
    }
    for (int64_t w = 0; w < window; w += 16) {
      interleave_transposed(stage + w, stage + width + w, 2 * width, rows + w * kBlockRowBytes);
    }
  }
}

// Sums that wait to be written: of one block of outputs, into rows of two.
struct Strip {
  int64_t n, block, row, rows;
  float* sums;
};

// Writes the outputs of the tile of sums, (16 positions, 16 channels), that begins at row r.
template <typename Out>
static void write_block(const BlockCorrelation& p, const Strip& s, int64_t r) {
  float* sums = s.sums + r * 16;
  transpose_tile(sums);
  const int64_t first = s.block * kBlockSize, channels = min_of(kBlockSize, p.out_channels - first);
  Out* out = static_cast<Out*>(p.out.data) + s.n * p.out.stride[0] + first * p.out.stride[1] +
             (p.first_out + (s.row + r) * p.out_step) * p.out.stride[2];
  const int64_t rows = min_of(int64_t{16}, s.rows - r), step = p.out_step * p.out.stride[2];
  for (int64_t c = 0; c < channels; ++c, out += p.out.stride[1], sums += 16) {
    if (p.relu) {
      for (int64_t i = 0; i < 16; ++i) {
        sums[i] = sums[i] < 0 ? 0 : sums[i];
      }
    }
    write_samples(sums, rows, out, step);
  }
}

// The same into rows: 32 channels, of which those that do not exist are zeros.
static void write_rows(const BlockCorrelation& p, const Strip& s) {
  char* to = p.out_rows.at(s.n, s.block, s.row);
  const int64_t channels = p.out_channels - s.block * kBlockSize;
  for (int64_t r = 0; r < s.rows; ++r, to += kBlockRowBytes) {
    float *low = s.sums + r * kBlockSize, *high = low + kStripSums;
    for (int64_t c = channels; c < 2 * kBlockSize; ++c) {
      low[c / kBlockSize * kStripSums + c % kBlockSize] = 0;  // gcc 12's UBSan breaks a choice
    }
    write_row(low, high, p.relu, to);
  }
}

static void write_strip(const BlockCorrelation& p, const Strip& s) {
  if (p.out_rows.data != nullptr) {
    write_rows(p, s);
    return;
  }
  const auto write = p.out_float ? write_block<float> : write_block<Bf16>;
  for (int64_t r = 0; r < s.rows; r += 16) {
    write(p, s, r);
  }
}

constexpr int kRowVectors = 2;
constexpr int64_t kSumRows = kStripRows;  // that are summed in float

static inline __attribute__((always_inline)) void load_row(const char* row, Lanes16* x) {
  typedef uint16_t Halves16 __attribute__((vector_size(32)));
  for (int i = 0; i < kRowVectors; ++i) {
    Halves16 halves;
    __builtin_memcpy(&halves, row + 32 * i, sizeof(halves));
    const Words16 words = __builtin_convertvector(halves, Words16) << 16;
    __builtin_memcpy(&x[i], &words, sizeof(words));
  }
}

// Adds two sums of 32 channels.
static inline void add_to(const Lanes16* found, double* sums) {
  float lanes[64];
  __builtin_memcpy(lanes, found, sizeof(lanes));
  for (int i = 0; i < 64; ++i) {
    sums[i] += static_cast<double>(lanes[i]);
  }
}

// Of up to kSumRows rows of one panel; the first ones of all begin the statistics.
static void add_statistics(const char* rows, int64_t n, bool first, double* statistics) {
  float lanes[2 * kBlockSize];
  Lanes16 centre[kRowVectors], found[2 * kRowVectors] = {};
  if (first) {
    load_row(rows, centre);
    for (int i = 0; i < kRowVectors; ++i) {  // an infinity stays one
      centre[i] = centre[i] - centre[i] == 0.0f ? centre[i] : Lanes16{};
    }
    __builtin_memcpy(lanes, centre, sizeof(lanes));
    for (int64_t i = 0; i < kStatistics; ++i) {
      statistics[i] = i < 2 * kBlockSize ? static_cast<double>(lanes[i]) : 0;
    }
  } else {
    for (int64_t i = 0; i < 2 * kBlockSize; ++i) {
      lanes[i] = static_cast<float>(statistics[i]);
    }
    __builtin_memcpy(centre, lanes, sizeof(lanes));
  }
  for (int64_t r = 0; r < n; ++r) {
    Lanes16 x[kRowVectors];
    load_row(rows + r * kBlockRowBytes, x);
    for (int i = 0; i < kRowVectors; ++i) {
      x[i] -= centre[i];
      found[i] += x[i];
      found[kRowVectors + i] += x[i] * x[i];
    }
  }
  add_to(found, statistics + 2 * kBlockSize);
}

template <typename Products>
static void correlate_blocks(const BlockCorrelation& p,
                             int64_t part,
                             int64_t parts,
                             void* scratch) {
  const bool to_rows = p.out_rows.data != nullptr;
  const int64_t together = to_rows ? 2 : 1, groups = ceil_div(p.out_blocks, together);
  const int64_t units = p.batch * p.chunks(), all = units * groups;
  const int64_t begin = all * part / parts, end = all * (part + 1) / parts;
  const bool fills = p.in_rows.data == nullptr;
  const int64_t entries = p.first[p.out_blocks], pitch = fills ? p.pitch() : p.in_rows.panel;
  char* rows = static_cast<char*>(scratch);
  float* sums = reinterpret_cast<float*>(fills ? rows + pitch * ceil_div(p.in_blocks, 2) : rows);
  auto* offsets = reinterpret_cast<int64_t*>(sums + 4 * kStripSums);
  Bf16* stage = reinterpret_cast<Bf16*>(offsets + ceil_div(entries, 8) * 8);
  for (int64_t e = 0; e < entries; ++e) {
    const BlockEntry& entry = p.entries[e];
    offsets[e] = entry.in_block / 2 * pitch + entry.in_block % 2 * 32 +
                 (entry.position - p.low) * kBlockRowBytes;
  }
  static const float kZeros[16] = {};
  Products products(8);
  int64_t filled = -1;
  Strip waiting{};  // is written while the next one's products run
  for (int64_t at = begin; at < end; ++at) {
    const int64_t unit = at / groups, first = at % groups * together;
    const int64_t past = min_of(first + together, p.out_blocks);
    const int64_t n = unit / p.chunks(), chunk = unit % p.chunks();
    // Near-equal chunks.
    const int64_t from = p.rows * chunk / p.chunks(), to = p.rows * (chunk + 1) / p.chunks();
    const int64_t start = p.origin + from * p.step;
    if (fills && unit != filled) {
      fill_rows(p.in, p.in_channels, p.in_length, p.mode, n, start + p.low,
                (to - from - 1) * p.step + 1 + p.high - p.low, pitch, rows, stage);
      filled = unit;
    }
    const char* window = fills ? rows : p.in_rows.at(n, 0, start + p.low);
    for (int64_t row = from; row < to; row += kStripRows) {
      const int64_t count = min_of(kStripRows, to - row);
      const char* at_rows = window + (row - from) * p.step * kBlockRowBytes;
      float* own = waiting.sums == sums ? sums + 2 * kStripSums : sums;
      for (int64_t block = first; block < past; ++block) {
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
        const char* weights = static_cast<const char*>(p.weights) + e0 * kWeightTileBytes;
        const float* init = p.init != nullptr ? p.init + block * kBlockSize : kZeros;
        products.correlate(count, at_rows, p.step * kBlockRowBytes, offsets + e0, weights, e1 - e0,
                           init, own + (block - first) * kStripSums);
      }
      write_strip(p, waiting);
      waiting = {n, first, row, count, own};
    }
  }
  write_strip(p, waiting);
}
