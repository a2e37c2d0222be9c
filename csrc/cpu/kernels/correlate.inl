// fprop, and dgrad on the transposed pattern. Included once per ISA, after packing.inl.

// The kR sums of a tile stay in registers while the entries of one row and channel block pass by:
// per entry one broadcast and kR multiply-adds, each with an aligned load. One chain per output, in
// entry order: the bits depend on nothing but the problem.
template <typename V, int kR>
static void correlate_tile(const typename V::T* inputs,
                           const typename V::T* values,
                           const int32_t* rows,
                           int64_t n,
                           typename V::T* acc) {
  constexpr int kN = kLanes<typename V::T>;
  V sum[kR];
#pragma GCC unroll 32
  for (int r = 0; r < kR; ++r) {
    sum[r] = V::load(acc + r * kN);
  }
  Ahead<typename V::T> ahead(inputs, rows, n);
  for (int64_t e = 0; e < n; ++e) {
    const V weight = V::splat(values[e]);
    const typename V::T* input = ahead.next(e);
#pragma GCC unroll 32
    for (int r = 0; r < kR; ++r) {
      sum[r] = fma(weight, V::load(input + r * kN), sum[r]);
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < kR; ++r) {
    sum[r].store(acc + r * kN);
  }
}

template <typename V>
using CorrelateTile =
    void (*)(const typename V::T*, const typename V::T*, const int32_t*, int64_t, typename V::T*);

template <typename V, int... kR>
static CorrelateTile<V> pick_correlate_tile(int64_t rows, std::integer_sequence<int, kR...>) {
  static constexpr CorrelateTile<V> kTiles[] = {correlate_tile<V, kR + 1>...};
  return kTiles[rows - 1];
}

// Turns the packed inputs of some channels into their prefix or suffix sums.
template <typename V>
static void scan_rows(const Correlation& p, int64_t channels, typename V::T* inputs) {
  constexpr int kN = kLanes<typename V::T>;
  const int64_t rows = p.piece + p.tile.segments[0].span;
  const int64_t step = p.scan == Scan::prefix ? kN : -kN;
  for (int64_t c = 0; c < channels; ++c) {
    typename V::T* first = inputs + (c * p.tile.channel_rows + (step > 0 ? 0 : rows - 1)) * kN;
    for (int h = 0; h < kN; h += V::kWidth) {
      typename V::T* row = first + h;
      V sum = V::load(row);
      for (int64_t i = 1; i < rows; ++i) {
        row += step;
        sum = add(sum, V::load(row));
        sum.store(row);
      }
    }
  }
}

// Writes the 1x1 convolution of a tile's rows, which are `stride` elements apart.
template <typename V>
static void pointwise_epilogue(const Correlation& p,
                               const Lane* lanes,
                               const Targets<typename V::T, typename V::T>& targets,
                               const typename V::T* rows,
                               int64_t stride,
                               typename V::T* outputs,
                               typename V::T* stage) {
  using T = typename V::T;
  constexpr int64_t kPanel = 2 * V::kWidth;
  const int64_t width = p.piece * kLanes<T>;
  const T* weight = static_cast<const T*>(p.epilogue_weight);
  for (int64_t m = 0; p.epilogue_bias != nullptr && m < p.epilogue_channels; ++m) {
    const V start = V::splat(static_cast<const T*>(p.epilogue_bias)[m]);
    for (int64_t i = 0; i < width; i += V::kWidth) {
      start.store(outputs + m * width + i);
    }
  }
  for (int64_t i = 0; i < width; i += kPanel) {
    (width - i >= kPanel ? point_panel<V, 2>
                         : point_panel<V, 1>)(weight, p.epilogue_channels, p.epilogue_channels,
                                              rows + i, stride, p.entries.n_rows,
                                              p.epilogue_bias != nullptr, outputs + i, width);
  }
  for (int64_t m = 0; m < p.epilogue_channels; ++m) {
    unpack(p, lanes, targets, m, outputs + m * width, stage);
  }
}

template <typename V, typename S>
static void correlate(const Correlation& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  const Entries& e = p.entries;
  const CorrelateScratch plan = plan_scratch(p);
  T* inputs = static_cast<T*>(scratch);
  T* acc = inputs + plan.input_rows * kN;
  T* outputs = acc + plan.acc_rows * kN;
  T* stage = outputs + plan.epilogue_rows * kN;
  const T* values = static_cast<const T*>(p.values);

  // The piece in near-equal tiles that fit the registers.
  constexpr auto kSizes = std::make_integer_sequence<int, V::kTile>();
  const int64_t n_tiles = ceil_div(p.piece, V::kTile);
  const int64_t tile_rows = p.piece / n_tiles, longer = p.piece % n_tiles;
  const CorrelateTile<V> tiles[2] = {
      pick_correlate_tile<V>(tile_rows, kSizes),
      longer == 0 ? nullptr : pick_correlate_tile<V>(tile_rows + 1, kSizes)};

  const int64_t group_rows = e.n_rows / e.groups;
  const int64_t lane_groups = ceil_div(p.batch * ceil_div(p.count, p.piece), kN);
  const Share share = p.epilogue_weight == nullptr ? share_of(e, lane_groups, part, parts)
                                                   : share_of_groups(e, lane_groups, part, parts);
  for (int64_t g = share.group_begin; g <= share.group_end; ++g) {
    Lane lanes[kN];
    cut_lanes(lanes, kN, g, p.batch, p.count, p.piece);
    const Targets<T, S> targets = targets_of<T, S>(p, lanes);
    const int64_t row_begin = g == share.group_begin ? share.row_begin : 0;
    const int64_t row_end = g == share.group_end ? share.row_end : e.n_rows;
    for (int64_t r0 = row_begin, r1; r0 < row_end; r0 = r1) {
      const int64_t conv_group = r0 / group_rows;
      r1 = min_of(min_of(row_end, (conv_group + 1) * group_rows), r0 + plan.row_block);
      T* sums0 = acc - (p.epilogue_weight == nullptr ? r0 : 0) * plan.acc_stride * kN;
      for (int64_t b = 0; b < e.n_blocks; ++b) {
        const int64_t c0 = conv_group * e.channels_per_group + b * p.tile.block_channels;
        const int64_t c1 =
            min_of((conv_group + 1) * e.channels_per_group, c0 + p.tile.block_channels);
        pack<T, S>(p.tile, p.in, p.in_length, p.mode, p.origin, lanes, p.piece, c0, c1, inputs,
                   stage);
        if (p.scan != Scan::none) {
          scan_rows<V>(p, c1 - c0, inputs);
        }
        for (int64_t r = r0; r < r1; ++r) {
          T* sums = sums0 + r * plan.acc_stride * kN;
          if (b == 0) {
            const V start = V::splat(p.init ? static_cast<const T*>(p.init)[r] : T(0));
            for (int64_t i = 0; i < p.piece * kN; i += V::kWidth) {
              start.store(sums + i);
            }
          }
          const bool last = b + 1 == e.n_blocks;
          if (last && p.epilogue_weight == nullptr) {
            expect_unpack(p, targets, r);
          }
          const int64_t first = e.starts[r * e.n_blocks + b];
          const int64_t n = e.starts[r * e.n_blocks + b + 1] - first;
          for (int h = 0; n > 0 && h < kN; h += V::kWidth) {
            int64_t at = h;
            for (int64_t t = 0; t < n_tiles; ++t) {
              const bool extra = t < longer;
              tiles[extra](inputs + at, values + first, e.rows + first, n, sums + at);
              at += (tile_rows + extra) * kN;
            }
          }
          for (int64_t i = 0; last && p.relu && i < p.piece * kN; i += V::kWidth) {
            relu(V::load(sums + i)).store(sums + i);
          }
          if (last && p.epilogue_weight == nullptr) {
            unpack(p, lanes, targets, r, sums, stage);
          }
        }
      }
    }
    if constexpr (kSame<T, S>) {
      if (p.epilogue_weight != nullptr) {
        pointwise_epilogue<V>(p, lanes, targets, acc, plan.acc_stride * kN, outputs, stage);
      }
    }
  }
}
