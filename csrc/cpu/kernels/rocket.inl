// Features of ROCKET. A lane is a series ("batch lanes"), or a kernel where there are few
// series ("kernel lanes"). Each output is one chain of fused multiply-adds from the bias on, tap by
// tap and channel by channel, so its bits depend on nothing else.

// Outputs at once: sums in registers beside the weights (AVX-512), or beside one weight.
constexpr int kRocketSums = F32::kTile >= 30 ? 12 : F32::kTile >= 15 ? 10 : 6;
// Where a series is longer, tiles of outputs keep the windows of all taps in L1.
constexpr int64_t kRocketLong = 560, kRocketTileRows = 400;

struct Extremes {
  F32 greatest;
  Counts positive;
};

static inline Extremes no_outputs() {
  return {F32::splat(-__builtin_inff()), no_counts()};
}

// Sums of kSums outputs. Input row of tap j and output u: x + j * step + u * kNext; kBroadcast: an
// input is one number for all lanes.
template <int kTaps, int kSums, bool kBroadcast>
static inline __attribute__((always_inline)) void rocket_block(const float* x,
                                                               int64_t step,
                                                               const F32 (&weights)[kTaps],
                                                               F32 bias,
                                                               Extremes& found) {
  constexpr int kNext = kBroadcast ? 1 : F32::kWidth;
  F32 sums[kSums];
#pragma GCC unroll 16
  for (int u = 0; u < kSums; ++u) {
    sums[u] = bias;
  }
  const float* p = x;
#pragma GCC unroll 16
  for (int j = 0; j < kTaps; ++j) {
#pragma GCC unroll 16
    for (int u = 0; u < kSums; ++u) {
      const F32 input = kBroadcast ? F32::splat(p[u * kNext]) : F32::load(p + u * kNext);
      sums[u] = fma(weights[j], input, sums[u]);
    }
    p += step;
    asm("" : "+r"(p));  // or the compiler keeps kTaps * kSums addresses, and spills them
  }
#pragma GCC unroll 16
  for (int u = 0; u < kSums; ++u) {
    found.greatest = greater_of(sums[u], found.greatest);
    found.positive = count_greater(sums[u], F32::splat(0), found.positive);
  }
}

template <int kTaps, int kSums, bool kBroadcast>
static inline __attribute__((always_inline)) void rocket_rest(int64_t n,
                                                              const float* x,
                                                              int64_t step,
                                                              const F32 (&weights)[kTaps],
                                                              F32 bias,
                                                              Extremes& found) {
  if constexpr (kSums > 0) {
    if (n == kSums) {
      rocket_block<kTaps, kSums, kBroadcast>(x, step, weights, bias, found);
    } else {
      rocket_rest<kTaps, kSums - 1, kBroadcast>(n, x, step, weights, bias, found);
    }
  }
}

// n outputs of a kernel of kTaps taps. Weight rows: one number a tap, or a vector of them.
template <int kTaps, bool kBroadcast>
static __attribute__((noinline)) void rocket_run(const float* x,
                                                 int64_t step,
                                                 const float* weights,
                                                 const float* bias,
                                                 int64_t n,
                                                 Extremes* out) {
  F32 w[kTaps];
#pragma GCC unroll 16
  for (int j = 0; j < kTaps; ++j) {
    w[j] = kBroadcast ? F32::load(weights + j * F32::kWidth) : F32::splat(weights[j]);
  }
  const F32 b = kBroadcast ? F32::load(bias) : F32::splat(*bias);
  constexpr int kNext = kBroadcast ? 1 : F32::kWidth;
  Extremes found = *out;
  int64_t i = 0;
  for (; i + kRocketSums <= n; i += kRocketSums, x += kRocketSums * kNext) {
    rocket_block<kTaps, kRocketSums, kBroadcast>(x, step, w, b, found);
  }
  rocket_rest<kTaps, kRocketSums - 1, kBroadcast>(n - i, x, step, w, b, found);
  *out = found;
}

using RocketRun = void (*)(const float*, int64_t, const float*, const float*, int64_t, Extremes*);
template <bool kBroadcast>
constexpr RocketRun kRocketRuns[kRocketTaps + 1] = {
    nullptr,
    rocket_run<1, kBroadcast>,
    rocket_run<2, kBroadcast>,
    rocket_run<3, kBroadcast>,
    rocket_run<4, kBroadcast>,
    rocket_run<5, kBroadcast>,
    rocket_run<6, kBroadcast>,
    rocket_run<7, kBroadcast>,
    rocket_run<8, kBroadcast>,
    rocket_run<9, kBroadcast>,
    rocket_run<10, kBroadcast>,
    rocket_run<11, kBroadcast>,
};

// Any number of (offset, weight) pairs: kernels of several channels.
template <int kSums>
static inline __attribute__((always_inline)) void rocket_entries(const float* x,
                                                                 const int64_t* offsets,
                                                                 const float* weights,
                                                                 int64_t n_entries,
                                                                 F32 bias,
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
      sums[u] = fma(weight, F32::load(p + u * F32::kWidth), sums[u]);
    }
  }
#pragma GCC unroll 16
  for (int u = 0; u < kSums; ++u) {
    found.greatest = greater_of(sums[u], found.greatest);
    found.positive = count_greater(sums[u], F32::splat(0), found.positive);
  }
}

static __attribute__((noinline)) void rocket_run_entries(const float* x,
                                                         const int64_t* offsets,
                                                         const float* weights,
                                                         int64_t n_entries,
                                                         float bias,
                                                         int64_t n,
                                                         Extremes* out) {
  const F32 b = F32::splat(bias);
  Extremes found = *out;
  int64_t i = 0;
  for (; i + kRocketSums <= n; i += kRocketSums, x += kRocketSums * F32::kWidth) {
    rocket_entries<kRocketSums>(x, offsets, weights, n_entries, b, found);
  }
  for (; i < n; ++i, x += F32::kWidth) {
    rocket_entries<1>(x, offsets, weights, n_entries, b, found);
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

static inline int64_t rocket_end(const RocketKernel& k, int64_t length) {
  return length + k.padding - (k.length - 1) * int64_t{k.dilation};
}

// Up to kWidth series as rows of lanes, `margin` rows of zeros before and behind each channel.
static void series_to_rows(const SeriesBatch& s, int64_t first, int64_t margin, float* rows) {
  const int64_t lanes = min_of(F32::kWidth, s.batch - first);
  const int64_t plane = (s.length + 2 * margin) * F32::kWidth;
  const F32 zero = F32::splat(0);
  for (int64_t c = 0; c < s.channels; ++c) {
    float* row = rows + c * plane;
    for (int64_t i = 0; i < plane; i += F32::kWidth) {
      zero.store(row + i);
    }
    row += margin * F32::kWidth;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const float* x = s.x + ((first + lane) * s.channels + c) * s.length;
      for (int64_t t = 0; t < s.length; ++t) {
        row[t * F32::kWidth + lane] = x[t];
      }
    }
  }
}

// Kernels [from, to) of a group of series.
static void rocket_batch_lanes(const RocketFeatures& p,
                               const float* rows,
                               int64_t first,
                               int64_t from,
                               int64_t to,
                               Extremes* found) {
  const SeriesBatch& s = p.series;
  const int64_t plane = (s.length + 2 * kRocketMargin) * F32::kWidth;
  const int64_t lanes = min_of(F32::kWidth, s.batch - first);
  for (int64_t g = from, end_of_group; g < to; g = end_of_group) {
    const int64_t d = p.kernels[g].dilation;
    end_of_group = g;
    int64_t begin = 0;
    while (end_of_group < to && p.kernels[end_of_group].dilation == d) {
      found[end_of_group - g] = no_outputs();
      begin = min_of(begin, -p.kernels[end_of_group].padding);
      ++end_of_group;
    }
    const int64_t tile = s.length <= kRocketLong
                             ? INT64_MAX / 2
                             : max_of(60, (kRocketTileRows - 10 * d) / kRocketSums * kRocketSums);
    for (int64_t t = begin; t < s.length; t += tile) {
      for (int64_t q = g; q < end_of_group; ++q) {
        const RocketKernel& k = p.kernels[q];
        const float* weights = p.weights + k.weights;
        const int32_t* channels = p.channels + k.channels;
        const float* base = rows + kRocketMargin * F32::kWidth;
        Extremes* extremes = &found[q - g];
        int64_t offsets[kRocketTaps * 16];
        // Kernels have at most as many channels as taps.
        for (int64_t j = 0; k.n_channels > 1 && j < k.length; ++j) {
          for (int64_t c = 0; c < k.n_channels; ++c) {
            offsets[j * k.n_channels + c] = channels[c] * plane + j * d * F32::kWidth;
          }
        }
        rocket_pieces(k, s.length, max_of(-k.padding, t), min_of(rocket_end(k, s.length), t + tile),
                      [&](int64_t i, int64_t end, int64_t j0, int64_t j1) {
                        if (end <= i) {
                          return;
                        }
                        if (k.n_channels == 1) {
                          kRocketRuns<false>[j1 - j0](
                              base + channels[0]* plane + (i + j0* d)* F32::kWidth, d* F32::kWidth,
                              weights + j0, & k.bias, end - i, extremes);
                        } else {
                          rocket_run_entries(base + i * F32::kWidth, offsets + j0 * k.n_channels,
                                             weights + j0 * k.n_channels, (j1 - j0) * k.n_channels,
                                             k.bias, end - i, extremes);
                        }
                      });
      }
    }
    for (int64_t q = g; q < end_of_group; ++q) {
      const RocketKernel& k = p.kernels[q];
      const F32 share = shares_of(found[q - g].positive, rocket_end(k, s.length) + k.padding);
      alignas(kRowBytes) float positive[F32::kWidth], greatest[F32::kWidth];
      share.store(positive);
      found[q - g].greatest.store(greatest);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        float* features = s.features + (first + lane) * s.n_features + 2 * int64_t{k.kernel};
        features[0] = positive[lane];
        features[1] = greatest[lane];
      }
    }
  }
}

// Vectors of kernels [from, to) of one series, which begins at x and has margins of zeros.
static void rocket_kernel_lanes(const RocketFeatures& p,
                                const float* x,
                                float* features,
                                int64_t from,
                                int64_t to) {
  for (int64_t g = from; g < to; ++g) {
    const RocketLanes& lanes = p.lanes[g];
    const RocketKernel& k = p.kernels[lanes.first];
    const float* bias = p.lane_weights + lanes.weights;
    const float* weights = bias + F32::kWidth;
    Extremes found = no_outputs();
    rocket_pieces(k, p.series.length, -k.padding, rocket_end(k, p.series.length),
                  [&](int64_t i, int64_t end, int64_t j0, int64_t j1) {
                    kRocketRuns<true>[j1 - j0](x + i + j0* k.dilation, k.dilation,
                                               weights + j0* F32::kWidth, bias, end - i, & found);
                  });
    alignas(kRowBytes) float positive[F32::kWidth], greatest[F32::kWidth];
    shares_of(found.positive, rocket_end(k, p.series.length) + k.padding).store(positive);
    found.greatest.store(greatest);
    for (int64_t lane = 0; lane < lanes.count; ++lane) {
      float* out = features + 2 * int64_t{p.kernels[lanes.first + lane].kernel};
      out[0] = positive[lane];
      out[1] = greatest[lane];
    }
  }
}

// Features of ROCKET kernels: groups of series, and shares of the kernels where there are fewer
// groups than parts.
static void rocket_features(const RocketFeatures& p, int64_t part, int64_t parts, void* scratch) {
  const SeriesBatch& s = p.series;
  const bool few = p.n_lanes > 0 && s.batch % F32::kWidth < kRocketFew;
  const int64_t groups = few ? s.batch / F32::kWidth : ceil_div(s.batch, F32::kWidth);
  const int64_t singles = few ? s.batch % F32::kWidth : 0;
  const int64_t shares = groups + singles >= parts ? 1 : parts;
  const int64_t units = (groups + singles) * shares;
  auto* found = static_cast<Extremes*>(scratch);
  auto* rows = reinterpret_cast<float*>(found + p.n_kernels);
  for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
    const int64_t group = unit / shares, share = unit % shares;
    if (group < groups) {
      const int64_t first = group * F32::kWidth;
      series_to_rows(s, first, kRocketMargin, rows);
      rocket_batch_lanes(p, rows, first, p.n_kernels * share / shares,
                         p.n_kernels * (share + 1) / shares, found);
      continue;
    }
    const int64_t n = groups * F32::kWidth + group - groups;
    const float* x = s.x + n * s.length;
    for (int64_t t = 0; t < s.length + 2 * kRocketMargin; ++t) {
      const int64_t at = t - kRocketMargin;
      rows[t] = at >= 0 && at < s.length ? x[at] : 0;
    }
    rocket_kernel_lanes(p, rows + kRocketMargin, s.features + n * s.n_features,
                        p.n_lanes * share / shares, p.n_lanes * (share + 1) / shares);
  }
}
