// Series as rows of lanes for the kernels of random features, and the features back.

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

// One series, zeros before and behind each channel; and behind the last a vector may begin.
static void series_with_margins(const SeriesBatch& s,
                                int64_t n,
                                int64_t margin,
                                int64_t plane,
                                float* rows) {
  const float* x = s.x + n * s.channels * s.length - margin;
  for (int64_t c = 0; c < s.channels; ++c, x += s.length) {
    for (int64_t t = 0; t < plane; ++t) {
      *rows++ = t >= margin && t < margin + s.length ? x[t] : 0;
    }
  }
  for (int64_t i = 0; i < F32::kWidth; ++i) {
    *rows++ = 0;
  }
}

// From [feature][lane] to the series' own rows of features.
static void store_features(const SeriesBatch& s, int64_t first, const float* from) {
  const int64_t lanes = min_of(F32::kWidth, s.batch - first);
  alignas(kRowBytes) float spare[F32::kWidth * F32::kWidth];
  for (int64_t f = 0; f < s.n_features; f += F32::kWidth) {
    const int64_t n = min_of(F32::kWidth, s.n_features - f);
    const float* src[F32::kWidth];
    float* dst[F32::kWidth];
    for (int64_t i = 0; i < F32::kWidth; ++i) {
      src[i] = from + (f + i) * F32::kWidth;
      dst[i] = n == F32::kWidth && i < lanes ? s.features + (first + i) * s.n_features + f
                                             : spare + i * F32::kWidth;
    }
    transpose(src, dst);
    for (int64_t i = 0; n < F32::kWidth && i < lanes; ++i) {
      F32::load(dst[i]).store_where(s.features + (first + i) * s.n_features + f, (1u << n) - 1);
    }
  }
}

// Shares out the series, as groups whose lanes they are; with `few`, the rest of them one by one.
// If these are fewer than parts, each is done in shares of its kernels. Calls run(first series,
// whether it is one alone, share, shares).
template <typename Run>
static inline void share_series(const SeriesBatch& s,
                                bool few,
                                int64_t part,
                                int64_t parts,
                                const Run& run) {
  const int64_t groups = few ? s.batch / F32::kWidth : ceil_div(s.batch, F32::kWidth);
  const int64_t singles = few ? s.batch % F32::kWidth : 0;
  const int64_t shares = groups + singles >= parts ? 1 : parts;
  const int64_t units = (groups + singles) * shares;
  for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
    const int64_t group = unit / shares, single = max_of(0, group - groups);
    run((group - single) * F32::kWidth + single, group >= groups, unit % shares, shares);
  }
}
