// Features of MiniROCKET. Additions are in aeon's order and nothing is fused, so that the features
// are equal to the last bit: biases are values of the very sums that they are compared with.

constexpr int kMiniBiases = F32::kTile >= 24 ? 12 : F32::kTile >= 15 ? 6 : 4;

// counts[i] += how many of n sums are above bias i, for kCount biases.
template <int kCount>
static __attribute__((noinline)) void mini_count(const float* sums,
                                                 int64_t n,
                                                 const float* biases,
                                                 float* counts) {
  F32 bias[kCount];
  Counts found[kCount];
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
    bias[i] = F32::splat(biases[i]);
    found[i] = load_counts(counts + i * F32::kWidth);
  }
  for (int64_t t = 0; t < n; ++t) {
    const F32 sum = F32::load(sums + t * F32::kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
      found[i] = count_greater(sum, bias[i], found[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
    store_counts(found[i], counts + i * F32::kWidth);
  }
}

// Positions of a tile: the windows of nine taps of x and 3x stay in L1 or L2.
template <bool kPositions>
static inline int64_t mini_tile(int64_t channels, int64_t dilation) {
  if (kPositions) {
    return (kMiniTile - 1) * F32::kWidth;
  }
  return channels == 1 ? max_of(64, kMiniTile - 3 * dilation) : 48;
}

// Kernels [from, to) of a group of series ("batch lanes": a row is a position of all of them), or
// of one series, whose neighbouring positions are the lanes. `triple` is three times `rows`.
template <bool kPositions>
static void mini_kernels(const MiniRocketFeatures& p,
                         const float* rows,
                         const float* triple,
                         int64_t margin,
                         int64_t plane,
                         int64_t from,
                         int64_t to,
                         float* all_taps,
                         float* sums,
                         float* counts) {
  const SeriesBatch& s = p.series;
  constexpr int64_t kW = F32::kWidth;
  constexpr int64_t kRow = kPositions ? 1 : kW;   // floats from a position to the next
  constexpr int64_t kStep = kPositions ? kW : 1;  // positions of a vector
  const auto load = [](const float* x) { return kPositions ? F32::loadu(x) : F32::load(x); };
  for (int64_t g = from, end_of_group; g < to; g = end_of_group) {
    const int64_t d = p.kernels[g].dilation, tile = mini_tile<kPositions>(s.channels, d);
    const int64_t shared_plane = kMiniTile * kW;
    end_of_group = g;
    while (end_of_group < to && p.kernels[end_of_group].dilation == d) {
      ++end_of_group;
    }
    for (int64_t t0 = 0; t0 < s.length; t0 += tile) {
      const int64_t t1 = min_of(s.length, t0 + tile);
      // What all kernels share: minus the sum of all taps.
      for (int64_t c = 0; c < s.channels; ++c) {
        for (int64_t t = t0; t < t1; t += kStep) {
          const float* row = rows + c * plane + (margin + t) * kRow;
          F32 sum = sub(F32::splat(0), load(row));
#pragma GCC unroll 9
          for (int j = 0; j < 9; ++j) {
            if (j != 4) {
              sum = sub(sum, load(row + (j - 4) * d * kRow));
            }
          }
          sum.storeu(all_taps + c * shared_plane + (t - t0) * kRow);
        }
      }
      for (int64_t q = g; q < end_of_group; ++q) {
        const MiniRocketKernel& k = p.kernels[q];
        const int64_t begin = k.padded != 0 ? t0 : max_of(t0, 4 * d);
        const int64_t end = k.padded != 0 ? t1 : min_of(t1, s.length - 4 * d);
        if (begin >= end) {
          continue;
        }
        for (int64_t c = 0; c < k.n_channels; ++c) {
          const int64_t channel = p.channels[k.channels + c];
          const float* base = triple + channel * plane + margin * kRow;
          const float* shared = all_taps + channel * shared_plane - t0 * kRow;
          const float* taps[3];
          for (int i = 0; i < 3; ++i) {
            taps[i] = base + (k.taps[i] - 4) * d * kRow;
          }
          for (int64_t t = begin; t < end; t += kStep) {
            F32 sum = load(shared + t * kRow);
            sum = add(sum, load(taps[0] + t * kRow));
            sum = add(sum, load(taps[1] + t * kRow));
            sum = add(sum, load(taps[2] + t * kRow));
            float* total = sums + (t - begin) * kRow;
            (c == 0 ? sum : add(F32::load(total), sum)).store(total);
          }
        }
        const int64_t n = ceil_div(end - begin, kStep);
        for (int64_t t = end - begin; kPositions && t < n * kW; ++t) {
          sums[t] = -__builtin_inff();  // behind the end: above no bias
        }
        for (int64_t i = 0; i < k.n_biases;) {
          const int64_t left = k.n_biases - i, passes = ceil_div(left, kMiniBiases);
          const int64_t now = ceil_div(left, passes);
          const auto count =
              pick<kMiniBiases>(now - 1, []<int kI>() { return mini_count<kI + 1>; });
          count(sums, n, p.biases + k.bias + i, counts + (k.bias + i) * kW);
          i += now;
        }
      }
    }
  }
}

static void mini_unit(const MiniRocketFeatures& p,
                      int64_t first,
                      bool positions,
                      int64_t from,
                      int64_t to,
                      void* scratch) {
  const SeriesBatch& s = p.series;
  constexpr int64_t kW = F32::kWidth;
  const int64_t margin = 4 * p.max_dilation;
  // One series: vectors that begin at its last position end kW behind it.
  const int64_t plane =
      positions ? ceil_div(s.length + 2 * margin + 2 * kW, kW) * kW : (s.length + 2 * margin) * kW;
  auto* rows = static_cast<float*>(scratch);
  float* triple = rows + s.channels * plane;
  float* all_taps = triple + s.channels * plane;
  float* sums = all_taps + s.channels * kMiniTile * kW;
  float* counts = sums + kMiniTile * kW;
  if (positions) {
    series_with_margins(s, first, margin, plane, rows);
  } else {
    series_to_rows(s, first, margin, rows);
  }
  const F32 three = F32::splat(3);
  for (int64_t i = 0; i < s.channels * plane; i += kW) {
    mul(three, F32::load(rows + i)).store(triple + i);
  }
  const int64_t begin = p.kernels[from].bias;
  const int64_t end = p.kernels[to - 1].bias + p.kernels[to - 1].n_biases;
  for (int64_t f = begin; f < end; ++f) {
    store_counts(Counts{}, counts + f * kW);
  }
  (positions ? mini_kernels<true> : mini_kernels<false>)(p, rows, triple, margin, plane, from, to,
                                                         all_taps, sums, counts);
  const int64_t lanes = positions ? 1 : min_of(kW, s.batch - first);
  for (int64_t q = from; q < to; ++q) {
    const MiniRocketKernel& k = p.kernels[q];
    const int64_t n = k.padded != 0 ? s.length : s.length - 8 * int64_t{k.dilation};
    for (int64_t f = k.bias; f < k.bias + k.n_biases; ++f) {
      Counts found = load_counts(counts + f * kW);
      if (positions) {
        found = total_of(found);
      }
      alignas(kRowBytes) float share_above[kW];
      shares_of(found, n).store(share_above);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        s.features[(first + lane) * s.n_features + f] = share_above[lane];
      }
    }
  }
}

static void minirocket_features(const MiniRocketFeatures& p,
                                int64_t part,
                                int64_t parts,
                                void* scratch) {
  const bool few = p.series.batch % F32::kWidth < kMiniFew;
  share_series(p.series, few, part, parts,
               [&](int64_t first, bool single, int64_t share, int64_t shares) {
                 const int64_t from = p.n_kernels * share / shares;
                 const int64_t to = p.n_kernels * (share + 1) / shares;
                 if (from < to) {
                   mini_unit(p, first, single, from, to, scratch);
                 }
               });
}
