// fprop, and dgrad on the transposed pattern. Included once per ISA, after lane_rows.inl.

// Of a tile with so few sums the multiply-adds of one row of the pattern wait for each other, four
// cycles each: this many rows pass by at once.
template <int kR>
constexpr int kAtOnce = kR <= 2   ? 4
                        : kR <= 5 ? 2
                                  : 1;

// As correlate_tile, for those of the rows that make up whole steps of kAtOnce; returns how many.
template <typename V, int kR, bool kFirst, bool kEdge>
static int64_t correlate_at_once(const typename V::T* inputs,
                                 int64_t edge,
                                 const typename V::T* values,
                                 const int32_t* offsets,
                                 int64_t width,
                                 const RowEntries* rows,
                                 int64_t n_rows,
                                 const typename V::T* init,
                                 typename V::T* acc,
                                 int64_t stride) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>, kW = V::kWidth, kRows = kAtOnce<kR>;
  int64_t done = 0;
  for (; done + kRows <= n_rows; done += kRows, rows += kRows) {
    V sum[kRows][kR];
    int64_t common = rows[0].n;
    for (int q = 0; q < kRows; ++q) {
      common = min_of(common, rows[q].n);
      for (int r = 0; r < kR; ++r) {
        sum[q][r] = kFirst ? V::splat(init != nullptr ? init[rows[q].row] : T(0))
                           : V::load(acc + rows[q].row * stride + r * kW);
      }
    }
    const auto add_entry = [&](int q, int64_t entry) {
      const V weight = V::splat(values[rows[q].value + entry]);
      const T* input = inputs + offsets[rows[q].offset + entry] * width;
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) {
        const T* from = input + r * kW + (kEdge && r >= kR - kN / kW ? edge : 0);
        sum[q][r] = fma(weight, V::load(from), sum[q][r]);
      }
    };
    for (int64_t entry = 0; entry < common; ++entry) {
#pragma GCC unroll 8
      for (int q = 0; q < kRows; ++q) {
        add_entry(q, entry);
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < kRows; ++q) {
      for (int64_t entry = common; entry < rows[q].n; ++entry) {
        add_entry(q, entry);
      }
      for (int r = 0; r < kR; ++r) {
        sum[q][r].store(acc + rows[q].row * stride + r * kW);
      }
    }
  }
  return done;
}

// The kR vectors of sums of a tile (where a vector is half a scratch row, two make a row of the
// tile) stay in registers while the entries of one row and channel block pass by: per entry one
// broadcast and kR multiply-adds, each with an aligned load. One chain per output, in entry order:
// the bits depend on nothing but the problem.
//
// One call takes all rows of a channel block. The last entry of a row stores each sum as soon as it
// is complete, and loads that of the next row into the register that has just become free. With
// kEdge the vectors of the last row read `edge` elements further on.
template <typename V, int kR, bool kFirst, bool kEdge>
static void correlate_tile(const typename V::T* inputs,
                           int64_t edge,
                           const typename V::T* values,
                           const int32_t* offsets,
                           int64_t width,
                           const RowEntries* rows,
                           int64_t n_rows,
                           const typename V::T* init,
                           typename V::T* acc,
                           int64_t stride) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>, kW = V::kWidth;
  if constexpr (kAtOnce<kR> > 1) {
    const int64_t done = correlate_at_once<V, kR, kFirst, kEdge>(
        inputs, edge, values, offsets, width, rows, n_rows, init, acc, stride);
    rows += done;
    n_rows -= done;
    if (n_rows == 0) {
      return;
    }
  }
  V sum[kR];
  T* out = acc + rows[0].row * stride;
  const V start = V::splat(kFirst && init != nullptr ? init[rows[0].row] : T(0));
#pragma GCC unroll 32
  for (int r = 0; r < kR; ++r) {
    sum[r] = kFirst ? start : V::load(out + r * kW);
  }
  Ahead<T> ahead(inputs, offsets + rows[0].offset, width);
  for (int64_t i = 0; i < n_rows; ++i) {
    const T* value = values + rows[i].value;
    const T* const last = value + rows[i].n - 1;
    for (; value < last; ++value) {
      const V weight = V::splat(*value);
      const T* input = ahead.next();
#pragma GCC unroll 32
      for (int r = 0; r < kR; ++r) {
        const T* from = input + r * kW + (kEdge && r >= kR - kN / kW ? edge : 0);
        sum[r] = fma(weight, V::load(from), sum[r]);
      }
    }
    const int64_t next_row = rows[i + 1 < n_rows ? i + 1 : i].row;
    T* const next = acc + next_row * stride;
    const V begin = V::splat(kFirst && init != nullptr ? init[next_row] : T(0));
    const V weight = V::splat(*value);
    const T* input = ahead.next();
#pragma GCC unroll 32
    for (int r = 0; r < kR; ++r) {
      const T* from = input + r * kW + (kEdge && r >= kR - kN / kW ? edge : 0);
      fma(weight, V::load(from), sum[r]).store(out + r * kW);
      sum[r] = kFirst ? begin : V::load(next + r * kW);
    }
    out = next;
  }
}

// Turns the packed inputs of some channels into their prefix sums.
template <typename V>
static void sum_rows(const Correlation& p, int64_t rows, int64_t channels, typename V::T* inputs) {
  constexpr int kN = kLanes<typename V::T>;
  for (int64_t c = 0; c < channels; ++c) {
    for (int h = 0; h < kN; h += V::kWidth) {
      typename V::T* row = inputs + c * p.tile.channel_rows * kN + h;
      V sum = V::load(row);
      for (int64_t i = 1; i < rows; ++i) {
        row += kN;
        sum = add(sum, V::load(row));
        sum.store(row);
      }
    }
  }
}

// What the last output of each series reads in the place of a packed channel: at the row of a tap,
// the sum of the inputs from that row on, up to the last one of the series. The last row of the
// tile reads this; in lanes whose piece does not end the series it finds the inputs themselves.
template <typename V>
static void edge_rows(const typename V::T* rows,
                      int64_t tile_rows,
                      int64_t span,
                      uint32_t last,
                      typename V::T* sums) {
  constexpr int kN = kLanes<typename V::T>;
  for (int h = 0; h < kN; h += V::kWidth) {
    V sum = V::splat(0);
    for (int64_t j = span; j >= 0; --j) {
      const V x = V::load(rows + (tile_rows - 1 + j) * kN + h);
      sum = add(sum, x);
      choose(lanes_from<V>(last, h), sum, x).store(sums + j * kN + h);
    }
  }
}

// The tiles of `total` rows, or vectors, that follow each other: near-equal, none longer than
// `most`.
struct Tiles {
  int64_t count, each, longer;

  Tiles(int64_t total, int64_t most)
      : count(ceil_div(total, most)), each(total / count), longer(total % count) {}
  int64_t size(int64_t t) const { return each + (t < longer); }
  int64_t begin(int64_t t) const { return t * each + min_of(t, longer); }
};

// Every entry of the rows [r0, r1) in channel block b, for `tile_rows` vectors of lanes.
template <typename V>
static void correlate_block(const Correlation& p,
                            int64_t b,
                            int64_t r0,
                            int64_t r1,
                            int64_t tile_rows,
                            const typename V::T* inputs,
                            int64_t edge,
                            typename V::T* acc,
                            int64_t stride) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  const Entries& e = p.entries;
  const int32_t* first = e.first + b * (e.n_rows + 1);
  const T* init = static_cast<const T*>(p.init);
  if (b == 0) {
    // Rows without an entry here begin all the same.
    const RowEntries* record = e.records + first[r0];
    for (int64_t r = r0; first[r1] - first[r0] < r1 - r0 && r < r1; ++r) {
      if (record < e.records + first[r1] && record->row == r) {
        ++record;
        continue;
      }
      const V start = V::splat(init != nullptr ? init[r] : T(0));
      for (int64_t i = 0; i < tile_rows * kN; i += V::kWidth) {
        start.store(acc + r * stride + i);
      }
    }
  }
  if (first[r0] == first[r1]) {
    return;
  }
  // Cut by vectors, not by rows: half the rows with both halves of each use whole lines of L1, all
  // rows with one half only halves (AVX2, L = 128: fprop and dgrad of DSN 2 to 6 % faster). All
  // tiles run the same code: with separate code for the last, dgrad at N = 2, L = 70 took 10 %
  // longer, presumably since the branch predictor learns in one tile where the rows end.
  const Tiles tiles(tile_rows * (kN / V::kWidth), V::kTile);
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t at = tiles.begin(t) * V::kWidth, own = t + 1 == tiles.count ? edge : 0;
    const auto tile = pick<4 * V::kTile>(
        4 * tiles.size(t) + 2 * (b == 0) + (edge != 0) - 4,
        []<int kI>() { return correlate_tile<V, kI / 4 + 1, kI / 2 % 2 != 0, kI % 2 != 0>; });
    tile(inputs + at, own, static_cast<const T*>(p.values), e.rows, kN * p.order.wide,
         e.records + first[r0], first[r1] - first[r0], init, acc + at, stride);
  }
}

// From the sums of a row of the pattern to its outputs, which are those of a channel. `out`: where
// they are in lanes.
template <typename V, typename S>
static void finish_row(const Correlation& p,
                       const TileLanes<typename V::T>& lanes,
                       const Targets<typename V::T, S>& targets,
                       const LaneSets& sets,
                       int64_t row,
                       int64_t rows,
                       int64_t channel,
                       typename V::T* sums,
                       int64_t stride,
                       typename V::T* out,
                       typename V::T* stage) {
  constexpr int kN = kLanes<typename V::T>;
  const LaneOrder& y = p.order;
  for (int64_t i = 0; p.relu && i < rows * y.wide * kN; i += V::kWidth) {  // with one phase
    relu(V::load(sums + i)).store(sums + i);
  }
  if (p.in_lanes && p.prefix_sums) {
    add_lanes<V>(sets.first, sums, out);
  } else if (p.in_lanes) {
    const int64_t apart = p.row_step();
    for (int64_t i = 0; !p.in_place() && i < rows * kN; i += V::kWidth) {
      V::load(sums + i).store(out + i + i / kN * (apart - 1) * kN);
    }
    clear_idle<V>(y, sets, row, rows, apart, out);
  } else if (y.apart > 1) {
    unpack_runs<V, S>(p, lanes.lane, channel, rows, sums);
  } else if (p.phases == 1) {
    unpack<false, V, S>(p, lanes, targets, channel, rows, sums, stride, stage);
  } else {
    unpack<true, V, S>(p, lanes, targets, channel, rows, sums, stride, stage);
  }
}

template <typename V, typename S>
static void correlate(const Correlation& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  const Entries& e = p.entries;
  const CorrelateScratch plan = plan_scratch(p);
  T* inputs = static_cast<T*>(scratch);
  T* edges = inputs + plan.input_rows * kN;
  T* acc = edges + plan.edge_rows * kN;
  T* stage = acc + plan.acc_rows * kN;
  const LaneOrder& y = p.order;
  // Between the rows of a tile; tiles that begin at neighbouring rows follow each other.
  const int64_t apart = p.row_step(), turns = min_of(apart, p.rows());
  const Tiles tiles(ceil_div(p.rows(), apart), kTileRows / y.wide);
  const bool in_place = p.in_place();
  const int64_t group_rows = e.n_rows / e.groups;
  const Share share = share_of(e.row_starts, e.n_rows, y.groups * tiles.count * turns, part, parts);
  Neighbourhood<V> near;
  for (int64_t at = share.tile_begin; at <= share.tile_end; ++at) {
    const int64_t group = at / turns / tiles.count, turn = at % turns;
    const int64_t t = at / turns % tiles.count, offset = tiles.begin(t) * apart + turn;
    const int64_t row = p.first_row() + offset;
    const int64_t rows = min_of(tiles.size(t), ceil_div(p.rows() - offset, apart));
    const LaneSets sets = lane_sets(y, group);
    if (p.in_lanes && (at == share.tile_begin || offset == 0)) {
      near.set(y, group, p.mode == PaddingMode::replicate);
    }
    const bool edge = p.edge && t + 1 == tiles.count;
    const int64_t vectors = rows * y.wide;  // as long as a row of a tensor
    const TileLanes<T> lanes(y, group, row);
    const Targets<T, S> targets = targets_of<T, S>(p, lanes, rows);
    const int64_t row_begin = at == share.tile_begin ? share.row_begin / p.phases * p.phases : 0;
    const int64_t row_end = at == share.tile_end ? share.row_end / p.phases * p.phases : e.n_rows;
    for (int64_t r0 = row_begin, r1; r0 < row_end; r0 = r1) {
      const int64_t conv_group = r0 / group_rows;
      r1 = min_of(min_of(row_end, (conv_group + 1) * group_rows), r0 + plan.row_block);
      const int64_t stride = in_place ? y.channel() : plan.acc_stride * kN;
      for (int64_t b = 0; b < e.n_blocks; ++b) {
        const int64_t c0 = conv_group * e.channels_per_group + b * p.tile.block_channels;
        const int64_t c1 =
            min_of((conv_group + 1) * e.channels_per_group, c0 + p.tile.block_channels);
        pack_tile<V, S>(p, near, lanes, row, rows, apart, c0, c1, inputs, stage);
        if (p.prefix_sums) {
          sum_rows<V>(p, rows + p.tile.segments[0].span, c1 - c0, inputs);
        }
        for (int64_t c = 0; edge && c < c1 - c0; ++c) {
          const int64_t channel = c * p.tile.channel_rows * kN;
          edge_rows<V>(inputs + channel, rows, p.tile.segments[0].span, sets.last, edges + channel);
        }
        // Of the tile's last row, relative to where it would read else.
        const int64_t distance = edge ? edges - inputs - (rows - 1) * kN : 0;
        const bool last = b + 1 == e.n_blocks;
        const int64_t step = last && !in_place ? plan.stored : r1 - r0;
        for (int64_t s0 = r0, s1; s0 < r1; s0 = s1) {
          s1 = min_of(r1, s0 + step);
          const int64_t channel = p.phases == 1 ? s0 : s0 / p.phases;  // dividing is slow
          for (int64_t r = s0, c = channel; last && !p.in_lanes && y.apart == 1 && r < s1;
               r += p.phases, ++c) {
            expect_unpack(p, targets, c);
          }
          // With one block no sum waits for the next, and a few slots serve all rows.
          T* out = static_cast<T*>(p.out.data) + (group * y.rows + row) * kN;  // if in lanes
          T* sums = in_place ? out : acc - (e.n_blocks == 1 ? s0 : r0) * stride;
          correlate_block<V>(p, b, s0, s1, vectors, inputs, distance, sums, stride);
          for (int64_t r = s0, c = channel; last && r < s1; r += p.phases, ++c) {
            finish_row<V, S>(p, lanes, targets, sets, row, rows, c, sums + r * stride, stride,
                             out + r * y.channel(), stage);
          }
        }
      }
    }
  }
}
