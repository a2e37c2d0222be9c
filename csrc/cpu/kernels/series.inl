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
static void series_with_margins(const SeriesBatch& s, const float* x, float* rows) {
  for (int64_t c = 0; c < s.channels; ++c) {
    for (int64_t t = -kRocketMargin; t < s.length + kRocketMargin; ++t) {
      *rows++ = t >= 0 && t < s.length ? x[c * s.length + t] : 0;
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
