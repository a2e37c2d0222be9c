// Which entries come next, which rows a thread computes, and the inputs of a tile.

// The inputs of the entries that follow, found kAhead entries early: with the row loaded right
// before its use, the multiply-adds that wait for their address keep the ones behind them waiting
// (212 instead of 262 GFLOP/s from L1 on Zen 5; 242, 250 and 254 with 2, 3 and 4 ahead). That many
// rows behind the last one are read, and not used.
template <typename T>
struct Ahead {
  const T* inputs;
  const int32_t* rows;
  const int64_t width;  // numbers in a row
  const T* at[kAhead];

  Ahead(const T* inputs, const int32_t* rows, int64_t width)
      : inputs(inputs), rows(rows), width(width) {
#pragma GCC unroll 4
    for (int i = 0; i < kAhead; ++i) {
      at[i] = input_of_next();
    }
  }
  const T* input_of_next() { return inputs + *rows++ * width; }
  // The inputs of the next entry.
  const T* next() {
    const T* now = at[0];
#pragma GCC unroll 4
    for (int i = 1; i < kAhead; ++i) {
      at[i - 1] = at[i];
    }
    at[kAhead - 1] = input_of_next();
    return now;
  }
};

// One thread's share of tiles x rows of equal cost (a row costs its entries and its outputs).
struct Share {
  int64_t tile_begin;
  int64_t row_begin;  // in the first tile
  int64_t tile_end;   // inclusive
  int64_t row_end;    // in the last tile
};

// The first i in [low, high) of which `is` is true, as it is of all that follow; else high.
template <typename Is>
static int64_t first_where(int64_t low, int64_t high, Is is) {
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (is(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

static Share share_of(const int32_t* row_starts,
                      int64_t n_rows,
                      int64_t tiles,
                      int64_t part,
                      int64_t parts) {
  const auto cost_before = [&](int64_t row) { return row_starts[row] + kStoreCost * row; };
  const auto row_at = [&](int64_t cost) {
    return first_where(0, n_rows, [&](int64_t row) { return cost_before(row) >= cost; });
  };
  const int64_t each = cost_before(n_rows);
  const int64_t total = tiles * each;
  const int64_t begin = total / parts * part + min_of(part, total % parts);
  const int64_t end = begin + total / parts + (part < total % parts ? 1 : 0);
  if (begin == end) {
    return {0, 0, -1, 0};
  }
  // A row belongs to the part that holds the cost at which it begins, so every row has one owner.
  const int64_t last = (end - 1) / each;
  return {begin / each, row_at(begin % each), last, row_at(end - last * each)};
}

// The inputs of channels [c0, c1) that a tile of `rows` rows from `row` on reads, `apart` rows from
// one to the next: packed, or in lanes with those of neighbouring pieces.
template <typename V, typename S>
static void pack_tile(const Source& p,
                      const Neighbourhood<V>& near,
                      const TileLanes<typename V::T>& lanes,
                      int64_t row,
                      int64_t rows,
                      int64_t apart,
                      int64_t c0,
                      int64_t c1,
                      typename V::T* inputs,
                      typename V::T* stage) {
  using T = typename V::T;
  if (!p.in_lanes) {
    pack<V, S>(p, lanes, rows, c0, c1, inputs, stage);
    return;
  }
  for (int64_t c = c0; c < c1; ++c, inputs += p.tile.channel_rows * kLanes<T>) {
    for (int64_t s = 0; s < p.tile.n_segments; ++s) {
      const Segment& segment = p.tile.segments[s];
      const int64_t begin = row + p.origin + segment.position;
      near.copy(static_cast<const T*>(p.in.data) + c * p.order.channel(), begin,
                begin + (rows + segment.span) * apart, inputs + segment.row * kLanes<T>, apart);
    }
  }
}
