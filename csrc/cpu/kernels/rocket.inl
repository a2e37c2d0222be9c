// Features of ROCKET. A lane is a series ("batch lanes"), or a kernel where there are few
// series ("kernel lanes"). Each output is one chain of fused multiply-adds from the bias on, tap by
// tap and channel by channel, so its bits depend on nothing else.

// Outputs at once: steps of a column, whose sums are in registers with the weights of all taps
// (with 16 registers, some of them); of kernels of several channels, with one weight.
constexpr int kRocketSteps = F32::kTile >= 24 ? 12 : 6;
constexpr int kRocketSums = F32::kTile >= 24 ? 12 : F32::kTile >= 15 ? 10 : 6;
// Kernels and columns that take turns: what they read and find stays in L1.
constexpr int64_t kRocketKernels = 32, kRocketColumns = 16;
constexpr uint32_t kAllLanes = ~0u;
// Where a series is longer, tiles of outputs keep the windows of all taps in L1.
constexpr int64_t kRocketLong = 560, kRocketTileRows = 400;

struct Extremes {
  F32 greatest;
  Counts positive;
  void add(F32 sum) {
    greatest = greater_of(sum, greatest);
    positive = count_greater(sum, F32::splat(0), positive);
  }
};

static inline Extremes no_outputs() {
  return {F32::splat(-__builtin_inff()), Counts{}};
}

// Outputs of n alike kernels, which are a column: kSteps of them, a dilation apart. Tap j of output
// u reads row u + j, so that a row is loaded once for all of them, and a column takes kSteps +
// kTaps - 1 loads instead of kSteps * kTaps. Then the column one sample further, and so on. x: row
// 0, of channel 0; rows outside [first, last) lie outside the series, and nothing is multiplied
// there. kBroadcast: kernels are the lanes, an input is one number for all of them, and `weights`
// (the bias first) holds vectors.
template <int kTaps, int kSteps, bool kBroadcast>
static __attribute__((noinline)) void rocket_column(const float* x,
                                                    int64_t step,
                                                    int64_t first,
                                                    int64_t last,
                                                    int64_t n_columns,
                                                    const float* weights,
                                                    const int32_t* channels,
                                                    int64_t plane,
                                                    int64_t n,
                                                    Extremes* found) {
  constexpr int kRow = kBroadcast ? 1 : F32::kWidth, kNext = kBroadcast ? F32::kWidth : 1;
  const auto vector = [](const float* p, bool one) { return one ? F32::splat(*p) : F32::load(p); };
  for (int64_t q = 0; q < n; ++q, weights += (1 + kTaps) * kNext) {
    const F32 bias = vector(weights, !kBroadcast);
    F32 w[kTaps];
#pragma GCC unroll 16
    for (int j = 0; j < kTaps; ++j) {
      w[j] = vector(weights + (1 + j) * kNext, !kBroadcast);
    }
    const float* column = kBroadcast ? x : x + channels[q] * plane;
    Extremes seen = found[q];
    for (int64_t c = 0; c < n_columns; ++c, column += kRow) {
      const float* p = column;
      F32 sums[kSteps];
#pragma GCC unroll 16
      for (int u = 0; u < kSteps; ++u) {
        sums[u] = bias;
      }
#pragma GCC unroll 32
      for (int k = 0; k < kSteps + kTaps - 1; ++k, p += step) {
        asm("" : "+r"(p));  // or the compiler keeps an address for each row, and spills them
        // Row kTaps - 1 is not before the series, and row kSteps - 1 not behind it: no padding
        // exceeds what a kernel spans.
        if ((k >= kTaps - 1 || k >= first) && (k < kSteps || k < last)) {
          const F32 row = vector(p, kBroadcast);
#pragma GCC unroll 16
          for (int u = k < kTaps ? 0 : k - kTaps + 1; u < kSteps && u <= k; ++u) {
            sums[u] = fma(w[k - u], row, sums[u]);
          }
        }
        if (k >= kTaps - 1) {  // here, not at the end: a chain of maxima would stop all else
          seen.add(sums[k - kTaps + 1]);
        }
      }
    }
    found[q] = seen;
  }
}

static inline int64_t rocket_end(const RocketKernel& k, int64_t length) {
  return length + k.padding - (k.length - 1) * int64_t{k.dilation};
}

// All outputs of n kernels like k: their columns, in pieces of about equal length.
template <bool kBroadcast>
static void rocket_columns(const RocketKernel& k,
                           int64_t length,
                           const float* x,
                           const float* weights,
                           const int32_t* channels,
                           int64_t plane,
                           int64_t n,
                           Extremes* found) {
  constexpr int kRow = kBroadcast ? 1 : F32::kWidth;
  const int64_t d = k.dilation, end = length + k.padding;
  const int64_t outputs = rocket_end(k, length) + k.padding;
  // Columns that begin with one of the first `more` residues are longer by one.
  const int64_t steps = outputs / d, more = outputs % d, residues = min_of(d, outputs);
  const int64_t before = k.padding % d, behind = end % d;
  for (int64_t r = 0, next; r < residues; r = next) {
    next = min_of(residues, r + kRocketColumns);
    for (const int64_t change : {more, before, behind}) {
      next = change > r ? min_of(next, change) : next;
    }
    int64_t left = steps + (r < more), at = r - k.padding;
    int64_t first = k.padding / d + (r < before), last = end / d + (r < behind);
    for (int64_t pieces = ceil_div(left, kRocketSteps), some; pieces > 0; --pieces) {
      some = ceil_div(left, pieces);
      const auto column = pick<3 * kRocketSteps>(  // of 7, 9 or 11 taps
          (k.length - 7) / 2 * kRocketSteps + some - 1, []<int kI>() {
            return rocket_column<7 + kI / kRocketSteps * 2, kI % kRocketSteps + 1, kBroadcast>;
          });
      column(x + at * kRow, d * kRow, first, last, next - r, weights, channels, plane, n, found);
      left -= some;
      first -= some;
      last -= some;
      at += some * d;
    }
  }
}

// Any number of (offset, weight) pairs: kernels of several channels, or of other lengths. Lanes are
// series, or with kPositions neighbouring outputs of one series.
template <int kSums, bool kPositions>
static inline __attribute__((always_inline)) void rocket_entries(const float* x,
                                                                 const int64_t* offsets,
                                                                 const float* weights,
                                                                 int64_t n_entries,
                                                                 F32 bias,
                                                                 uint32_t counted,
                                                                 Extremes& found) {
  F32 sums[kSums];
#pragma GCC unroll 16
  for (int u = 0; u < kSums; ++u) {
    sums[u] = bias;
  }
  for (int64_t e = 0; e < n_entries; ++e) {
    const F32 weight = F32::splat(weights[e]);
    const float* p = x + offsets[e];
#pragma GCC unroll 16
    for (int u = 0; u < kSums; ++u) {
      const float* row = p + u * F32::kWidth;
      sums[u] = fma(weight, kPositions ? F32::loadu(row) : F32::load(row), sums[u]);
    }
  }
#pragma GCC unroll 16
  for (int u = 0; u < kSums; ++u) {
    found.add(counted == kAllLanes ? sums[u]
                                   : choose(counted, sums[u], F32::splat(-__builtin_inff())));
  }
}

template <bool kPositions>
static __attribute__((noinline)) void rocket_run_entries(const float* x,
                                                         const int64_t* offsets,
                                                         const float* weights,
                                                         int64_t n_entries,
                                                         float bias,
                                                         int64_t n,
                                                         Extremes* out) {
  const F32 b = F32::splat(bias);
  Extremes found = *out;
  const int64_t vectors = kPositions ? n / F32::kWidth : n;
  int64_t i = 0;
  for (; i + kRocketSums <= vectors; i += kRocketSums, x += kRocketSums * F32::kWidth) {
    rocket_entries<kRocketSums, kPositions>(x, offsets, weights, n_entries, b, kAllLanes, found);
  }
  for (; i < vectors; ++i, x += F32::kWidth) {
    rocket_entries<1, kPositions>(x, offsets, weights, n_entries, b, kAllLanes, found);
  }
  if (kPositions && n % F32::kWidth != 0) {
    const uint32_t counted = (1u << (n % F32::kWidth)) - 1;
    rocket_entries<1, kPositions>(x, offsets, weights, n_entries, b, counted, found);
  }
  *out = found;
}

// What of an output range [begin, end) has the same taps inside the series: calls
// run(begin, end, first tap, end of taps) for each piece. A kernel whose padding the margin holds
// is one piece with all taps.
template <typename Run>
static inline void rocket_pieces(const RocketKernel& k,
                                 int64_t length,
                                 int64_t begin,
                                 int64_t end,
                                 const Run& run) {
  if (k.padding <= kRocketMargin) {
    run(begin, end, int64_t{0}, int64_t{k.length});
    return;
  }
  const int64_t d = k.dilation;
  while (begin < end) {
    const int64_t first = begin < 0 ? (-begin + d - 1) / d : 0;
    const int64_t last = min_of(k.length, (length - 1 - begin) / d + 1);
    int64_t next = min_of(end, length - (last - 1) * d);
    if (first > 0) {
      next = min_of(next, -(first - 1) * d);
    }
    run(begin, next, first, last);
    begin = next;
  }
}

// Kernels [g, g + n), which are alike, by rocket_run_entries.
template <bool kPositions>
static void rocket_tiles(const RocketFeatures& p,
                         const float* base,
                         int64_t plane,
                         int64_t g,
                         int64_t n,
                         Extremes* found) {
  const RocketKernel& like = p.kernels[g];
  const int64_t d = like.dilation, length = p.series.length, n_channels = like.n_channels;
  constexpr int64_t kRow = kPositions ? 1 : F32::kWidth;
  const int64_t tile = kPositions || length <= kRocketLong
                           ? INT64_MAX / 2
                           : max_of(60, (kRocketTileRows - 10 * d) / kRocketSums * kRocketSums);
  for (int64_t t = -like.padding; t < length; t += tile) {
    for (int64_t q = 0; q < n; ++q) {
      const RocketKernel& k = p.kernels[g + q];
      const float bias = p.weights[k.weights], *weights = p.weights + k.weights + 1;
      const int32_t* channels = p.channels + k.channels;
      int64_t offsets[kRocketTaps * kRocketTaps];
      for (int64_t j = 0; j < k.length; ++j) {
        for (int64_t c = 0; c < n_channels; ++c) {
          offsets[j * n_channels + c] = channels[c] * plane + j * d * kRow;
        }
      }
      rocket_pieces(k, length, t, min_of(rocket_end(k, length), t + tile),
                    [&](int64_t i, int64_t end, int64_t j0, int64_t j1) {
                      rocket_run_entries<kPositions>(
                          base + i * kRow, offsets + j0 * n_channels, weights + j0 * n_channels,
                          (j1 - j0) * n_channels, bias, end - i, &found[q]);
                    });
    }
  }
}

// Kernels [from, to) of a group of series. To `features`, [feature][lane].
static void rocket_batch_lanes(const RocketFeatures& p,
                               const float* rows,
                               int64_t from,
                               int64_t to,
                               float* features) {
  const SeriesBatch& s = p.series;
  const int64_t plane = (s.length + 2 * kRocketMargin) * F32::kWidth;
  const float* base = rows + kRocketMargin * F32::kWidth;
  Extremes found[kRocketKernels];
  for (int64_t g = from, n; g < to; g += n) {
    const RocketKernel& k = p.kernels[g];
    n = 0;
    do {
      found[n++] = no_outputs();
    } while (n < kRocketKernels && g + n < to && alike(k, p.kernels[g + n]));
    if (have_columns(k)) {
      rocket_columns<false>(k, s.length, base, p.weights + k.weights, p.channels + k.channels,
                            plane, n, found);
    } else {
      rocket_tiles<false>(p, base, plane, g, n, found);
    }
    for (int64_t q = 0; q < n; ++q) {
      float* both = features + 2 * int64_t{p.kernels[g + q].kernel} * F32::kWidth;
      shares_of(found[q].positive, rocket_end(k, s.length) + k.padding).store(both);
      found[q].greatest.store(both + F32::kWidth);
    }
  }
}

// Kernels [first, first + n), which are alike, of one series, whose positions are the lanes.
static void rocket_positions(const RocketFeatures& p,
                             const float* rows,
                             int64_t first,
                             int64_t n,
                             float* features) {
  Extremes found[F32::kWidth];
  for (int64_t q = 0; q < n; ++q) {
    found[q] = no_outputs();
  }
  const RocketKernel& like = p.kernels[first];
  const int64_t length = p.series.length;
  rocket_tiles<true>(p, rows + kRocketMargin, length + 2 * kRocketMargin, first, n, found);
  for (int64_t q = 0; q < n; ++q) {
    alignas(kRowBytes) float positive[F32::kWidth], greatest[F32::kWidth];
    shares_of(total_of(found[q].positive), rocket_end(like, length) + like.padding).store(positive);
    found[q].greatest.store(greatest);
    float* out = features + 2 * int64_t{p.kernels[first + q].kernel};
    out[0] = positive[0];
    out[1] = greatest[0];
    for (int64_t lane = 1; lane < F32::kWidth; ++lane) {
      out[1] = greatest[lane] > out[1] ? greatest[lane] : out[1];
    }
  }
}

// Groups [from, to) of kernels of one series.
static void rocket_kernel_lanes(const RocketFeatures& p,
                                const float* x,
                                const float* rows,
                                int64_t from,
                                int64_t to,
                                float* features) {
  Extremes found[kRocketKernels];
  for (int64_t g = from, n; g < to; g += n) {
    const RocketKernel& k = p.kernels[p.lanes[g].first];
    if (p.lanes[g].weights < 0) {
      rocket_positions(p, rows, p.lanes[g].first, p.lanes[g].count, features);
      n = 1;
      continue;
    }
    n = 0;
    do {
      found[n++] = no_outputs();
    } while (n < kRocketKernels && g + n < to && p.lanes[g + n].weights >= 0 &&
             alike(k, p.kernels[p.lanes[g + n].first]));
    rocket_columns<true>(k, p.series.length, x, p.lane_weights + p.lanes[g].weights, nullptr, 0, n,
                         found);
    for (int64_t q = 0; q < n; ++q) {
      alignas(kRowBytes) float positive[F32::kWidth], greatest[F32::kWidth];
      shares_of(found[q].positive, rocket_end(k, p.series.length) + k.padding).store(positive);
      found[q].greatest.store(greatest);
      for (int64_t lane = 0; lane < p.lanes[g + q].count; ++lane) {
        float* out = features + 2 * int64_t{p.kernels[p.lanes[g + q].first + lane].kernel};
        out[0] = positive[lane];
        out[1] = greatest[lane];
      }
    }
  }
}

// Features of ROCKET kernels.
static void rocket_features(const RocketFeatures& p, int64_t part, int64_t parts, void* scratch) {
  const SeriesBatch& s = p.series;
  // A rest of series takes a vector for each kernel, or each of its series goes by p.lanes.
  const auto rest = static_cast<double>(s.batch % F32::kWidth);
  const bool few = rest * p.single_cost < static_cast<double>(p.n_kernels);
  auto* features = static_cast<float*>(scratch);
  auto* rows = features + ceil_div(s.n_features, F32::kWidth) * F32::kWidth * F32::kWidth;
  share_series(s, few, part, parts, [&](int64_t n, bool single, int64_t share, int64_t shares) {
    if (single) {
      const float* x = s.x + n * s.channels * s.length;
      series_with_margins(s, n, kRocketMargin, s.length + 2 * kRocketMargin, rows);
      rocket_kernel_lanes(p, x, rows, p.n_lanes * share / shares, p.n_lanes * (share + 1) / shares,
                          s.features + n * s.n_features);
      return;
    }
    const int64_t from = p.n_kernels * share / shares, to = p.n_kernels * (share + 1) / shares;
    series_to_rows(s, n, kRocketMargin, rows);
    rocket_batch_lanes(p, rows, from, to, features);
    if (shares == 1) {
      store_features(s, n, features);
      return;
    }
    for (int64_t q = from; q < to; ++q) {  // other parts write between them
      for (int64_t f = 2 * p.kernels[q].kernel, end = f + 2; f < end; ++f) {
        for (int64_t lane = 0; lane < min_of(F32::kWidth, s.batch - n); ++lane) {
          s.features[(n + lane) * s.n_features + f] = features[f * F32::kWidth + lane];
        }
      }
    }
  });
}
