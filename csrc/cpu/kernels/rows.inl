// What layers compute on rows between convolutions. Included once per kind of tile, after
// blocks.inl. Channels are the lanes of a vector, so sums over positions need no last step; each
// sum runs over kSumRows rows in float, longer ones continue in double.

static inline __attribute__((always_inline)) void store_row(const Lanes16* x, char* row) {
  alignas(64) float lanes[32];
  __builtin_memcpy(lanes, x, sizeof(lanes));
  write_row(lanes, lanes + 16, false, row);
}

// The 32 channels of one panel of a vector; without it zeros.
struct RowVector {
  Lanes16 lanes[kRowVectors];
  RowVector(const float* vector, int64_t panel) : lanes{} {
    if (vector != nullptr) {
      __builtin_memcpy(lanes, vector + 32 * panel, sizeof(lanes));
    }
  }
};

static void to_rows(const RowConversion& p, int64_t part, int64_t parts, void* scratch) {
  for (int64_t n = p.batch * part / parts; n < p.batch * (part + 1) / parts; ++n) {
    fill_rows(p.signal, p.channels, p.length, PaddingMode::zeros, n, 0, p.length, p.rows.panel,
              p.rows.at(n, 0, 0), static_cast<Bf16*>(scratch));
  }
}

static void from_rows(const RowConversion& p, int64_t part, int64_t parts, void* scratch) {
  const auto* tile = static_cast<const Bf16*>(scratch);
  constexpr int64_t kStride = kBlockRowBytes / 2;  // halves
  for (int64_t n = p.batch * part / parts; n < p.batch * (part + 1) / parts; ++n) {
    for (int64_t c0 = 0; c0 < p.channels; c0 += kBlockSize) {
      for (int64_t r = 0; r < p.length; r += kPairRows) {
        const Bf16* rows = halves(p.rows.at(n, c0 / kBlockSize, r));
        interleave_transposed(rows, rows + kStride, 2 * kStride, static_cast<char*>(scratch));
        for (int64_t c = 0; c < min_of(kBlockSize, p.channels - c0); ++c) {
          Bf16* to = static_cast<Bf16*>(p.signal.data) + n * p.signal.stride[0] +
                     (c0 + c) * p.signal.stride[1] + r;
          __builtin_memcpy(to, tile + c * kStride, min_of(kPairRows, p.length - r) * sizeof(Bf16));
        }
      }
    }
  }
}

static void border_sums(const BorderSums& p, int64_t part, int64_t parts, void*) {
  const int64_t units = p.batch * p.panels;
  for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
    const int64_t n = unit / p.panels, panel = unit % p.panels;
    Lanes16 sum[kRowVectors] = {};
    for (int64_t i = 0; i < p.count; ++i) {
      const int64_t position = p.first + i * p.step;
      if (position >= 0 && position < p.length) {
        Lanes16 x[kRowVectors];
        load_row(p.in.at(n, 2 * panel, position), x);
        for (int j = 0; j < kRowVectors; ++j) {
          sum[j] += x[j];
        }
      }
      store_row(sum, p.out.at(n, 2 * panel, i * p.step));
    }
  }
}

// What the rows of one panel of a series are normed with.
struct NormedPanel {
  const RowNorm& p;
  int64_t n, panel;
  RowVector centre{p.centre, panel}, scale{p.scale, panel}, shift{p.shift, panel};

  // Of one row x - centre and z, and dz if there are gradients.
  template <bool kRelu, bool kAdds>
  __attribute__((always_inline)) void load(int64_t r, Lanes16* x, Lanes16* z, Lanes16* grad) const {
    Lanes16 more[kRowVectors] = {};
    load_row(p.in.at(n, 2 * panel, r), x);
    if constexpr (kAdds) {
      load_row(p.added.at(n, 2 * panel, r), more);
    }
    if (p.grad.data != nullptr) {
      load_row(p.grad.at(n, 2 * panel, r), grad);
    }
    for (int i = 0; i < kRowVectors; ++i) {
      const Lanes16 zero = {};
      x[i] -= centre.lanes[i];
      z[i] = x[i] * scale.lanes[i] + shift.lanes[i];
      if (p.grad.data == nullptr) {
        z[i] = kAdds ? z[i] + more[i] : z[i];
      } else if (kRelu) {
        z[i] = kAdds ? more[i] : z[i];
        grad[i] = z[i] <= 0.0f ? zero : grad[i];
      }
    }
  }
};

static void row_statistics(const RowNorm& p, int64_t part, int64_t parts, void*) {
  const int64_t chunks = ceil_div(p.length, kBlockRows), units = p.batch * chunks * p.panels;
  for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
    const int64_t panel = unit % p.panels, chunk = unit / p.panels % chunks;
    const int64_t from = p.length * chunk / chunks, to = p.length * (chunk + 1) / chunks;
    for (int64_t r = from; r < to; r += kSumRows) {
      add_statistics(p.in.at(unit / p.panels / chunks, 2 * panel, r), min_of(kSumRows, to - r),
                     r == from, p.sums + unit * kStatistics);
    }
  }
}

template <bool kRelu, bool kAdds>
static void sum_rows(const RowNorm& p, int64_t part, int64_t parts) {
  const int64_t units = p.batch * p.panels;
  for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
    const NormedPanel rows{p, unit / p.panels, unit % p.panels};
    double* sums = p.sums + unit * 64;
    __builtin_memset(sums, 0, 64 * sizeof(double));
    for (int64_t begin = 0; begin < p.length; begin += kSumRows) {
      Lanes16 found[2 * kRowVectors] = {};
      for (int64_t r = begin; r < min_of(p.length, begin + kSumRows); ++r) {
        Lanes16 x[kRowVectors], z[kRowVectors], grad[kRowVectors] = {};
        rows.load<kRelu, kAdds>(r, x, z, grad);
        for (int i = 0; i < kRowVectors; ++i) {
          found[i] += grad[i];
          found[kRowVectors + i] += grad[i] * x[i];
        }
      }
      add_to(found, sums);
    }
  }
}

template <bool kRelu, bool kAdds>
static void write_normed(const RowNorm& p, int64_t part, int64_t parts) {
  const int64_t units = p.batch * p.panels;
  for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
    const int64_t n = unit / p.panels, panel = unit % p.panels;
    const NormedPanel rows{p, n, panel};
    const RowVector slope(p.slope, panel), offset(p.offset, panel);
    for (int64_t r = 0; r < p.length; ++r) {
      Lanes16 x[kRowVectors], z[kRowVectors], y[kRowVectors] = {};
      rows.load<kRelu, kAdds>(r, x, z, y);
      if (kAdds && p.grad.data != nullptr) {
        store_row(y, p.grad_added.at(n, 2 * panel, r));
      }
      for (int i = 0; i < kRowVectors; ++i) {
        const Lanes16 zero = {};
        if constexpr (kRelu) {
          z[i] = z[i] < 0.0f ? zero : z[i];
        }
        y[i] = p.grad.data == nullptr
                   ? z[i]
                   : y[i] * rows.scale.lanes[i] + (x[i] * slope.lanes[i] + offset.lanes[i]);
      }
      store_row(y, p.out.at(n, 2 * panel, r));
    }
  }
}

static void row_sums(const RowNorm& p, int64_t part, int64_t parts, void*) {
  const auto sums = p.added.data != nullptr ? sum_rows<true, true>
                    : p.relu                ? sum_rows<true, false>
                                            : sum_rows<false, false>;
  sums(p, part, parts);
}

static void norm_rows(const RowNorm& p, int64_t part, int64_t parts, void*) {
  const auto write = p.added.data != nullptr ? write_normed<true, true>
                     : p.relu                ? write_normed<true, false>
                                             : write_normed<false, false>;
  write(p, part, parts);
}

// Whether samples replace the largest ones before them, as in torch's loop: a NaN replaces all.
static inline auto replaces_row(Lanes16 x, Lanes16 largest) {
  return (x > largest) | (x != x);
}

static void largest_row(const RowPool& p, int64_t n, int64_t panel, int64_t r) {
  const int64_t first = max_of(0, r - p.size / 2), last = min_of(p.length - 1, r + p.size / 2);
  Lanes16 largest[kRowVectors], next[kRowVectors];
  load_row(p.in.at(n, 2 * panel, first), largest);
  for (int64_t i = first + 1; i <= last; ++i) {
    load_row(p.in.at(n, 2 * panel, i), next);
    for (int v = 0; v < kRowVectors; ++v) {
      largest[v] = replaces_row(next[v], largest[v]) ? next[v] : largest[v];
    }
  }
  store_row(largest, p.out.at(n, 2 * panel, r));
}

// The sum of the gradients of those windows in which row r is the largest.
static void largest_row_gradient(const RowPool& p, int64_t n, int64_t panel, int64_t r) {
  const int64_t first = max_of(0, r - (p.size - 1));
  const int64_t last = min_of(p.length - 1, r + (p.size - 1));
  Lanes16 own[kRowVectors], next[kRowVectors];
  load_row(p.in.at(n, 2 * panel, r), own);
  // Whether the row is the largest of the j rows before it, and of the j after it.
  typedef decltype(replaces_row(own[0], own[0])) Mask;
  Mask wins[2 * kPoolRadius + 1][kRowVectors], keeps[2 * kPoolRadius + 1][kRowVectors];
  for (int v = 0; v < kRowVectors; ++v) {
    wins[0][v] = keeps[0][v] = (own[v] == own[v]) | (own[v] != own[v]);
  }
  for (int64_t j = 1; j <= r - first; ++j) {
    load_row(p.in.at(n, 2 * panel, r - j), next);
    for (int v = 0; v < kRowVectors; ++v) {
      wins[j][v] = wins[j - 1][v] & replaces_row(own[v], next[v]);
    }
  }
  for (int64_t j = 1; j <= last - r; ++j) {
    load_row(p.in.at(n, 2 * panel, r + j), next);
    for (int v = 0; v < kRowVectors; ++v) {
      keeps[j][v] = keeps[j - 1][v] & ~replaces_row(next[v], own[v]);
    }
  }
  Lanes16 sum[kRowVectors] = {};
  const Lanes16 zero = {};
  for (int64_t q = max_of(first, r - p.size / 2); q <= min_of(last, r + p.size / 2); ++q) {
    const int64_t before = r - max_of(first, q - p.size / 2);
    const int64_t after = min_of(last, q + p.size / 2) - r;
    load_row(p.grad.at(n, 2 * panel, q), next);
    for (int v = 0; v < kRowVectors; ++v) {
      sum[v] += (wins[before][v] & keeps[after][v]) != 0 ? next[v] : zero;
    }
  }
  store_row(sum, p.out.at(n, 2 * panel, r));
}

// One of windows that do not overlap.
static void pool_window(const RowPool& p, int64_t n, int64_t panel, int64_t i) {
  const int64_t first = i * p.stride, end = i + 1 < p.pooled ? first + p.stride : p.length;
  Lanes16 largest[kRowVectors], place[kRowVectors] = {}, next[kRowVectors];
  load_row(p.in.at(n, 2 * panel, first), largest);
  for (int64_t j = 1; j < p.size; ++j) {
    load_row(p.in.at(n, 2 * panel, first + j), next);
    for (int v = 0; v < kRowVectors; ++v) {
      const auto larger = replaces_row(next[v], largest[v]);
      largest[v] = larger ? next[v] : largest[v];
      place[v] = larger ? Lanes16{} + static_cast<float>(j) : place[v];
    }
  }
  if (p.grad.data == nullptr) {
    return store_row(largest, p.out.at(n, 2 * panel, i));
  }
  load_row(p.grad.at(n, 2 * panel, i), next);
  for (int64_t row = first; row < end; ++row) {
    for (int v = 0; v < kRowVectors; ++v) {
      largest[v] = place[v] == static_cast<float>(row - first) ? next[v] : Lanes16{};
    }
    store_row(largest, p.out.at(n, 2 * panel, row));
  }
}

static void pool_rows(const RowPool& p, int64_t part, int64_t parts, void*) {
  const int64_t units = p.batch * p.panels;
  for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
    for (int64_t r = 0; r < p.pooled; ++r) {
      const auto pool = p.stride > 1             ? pool_window
                        : p.grad.data != nullptr ? largest_row_gradient
                                                 : largest_row;
      pool(p, unit / p.panels, unit % p.panels, r);
    }
  }
}
