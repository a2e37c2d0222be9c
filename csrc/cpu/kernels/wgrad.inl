// wgrad of the active weights. Included once per ISA, after packing.inl.
//
// The order of every sum is fixed by the shape: within a tile of `tile_length` positions the even
// and the odd ones form a chain each; tiles are added in order; then the lanes, in a tree; then the
// lane groups of a split, and last the splits. Neither threads nor the ISA change it.

template <typename V, int kQ>
static inline V tile_sum(const V* grad, const typename V::T* input) {
  constexpr int kN = kLanes<typename V::T>;
  V even = mul(grad[0], V::load(input));
  if constexpr (kQ == 1) {
    return even;
  } else {
    V odd = mul(grad[1], V::load(input + kN));
#pragma GCC unroll 16
    for (int q = 2; q < kQ; q += 2) {
      even = fma(grad[q], V::load(input + q * kN), even);
      if (q + 1 < kQ) {
        odd = fma(grad[q + 1], V::load(input + (q + 1) * kN), odd);
      }
    }
    return add(even, odd);
  }
}

// kTiles tiles of kQ gradients stay in registers while the entries of one row and channel block
// pass by. sums[e] is what entry e collects, lane by lane; the first tile of a piece begins it.
template <typename V, int kQ, int kTiles>
static void wgrad_tile(const typename V::T* grads,
                       const typename V::T* inputs,
                       const int32_t* rows,
                       int64_t n,
                       bool begin,
                       typename V::T* sums) {
  constexpr int kN = kLanes<typename V::T>;
  V grad[kQ * kTiles];
#pragma GCC unroll 32
  for (int q = 0; q < kQ * kTiles; ++q) {
    grad[q] = V::load(grads + q * kN);
  }
  Ahead<typename V::T> ahead(inputs, rows, n);
  for (int64_t e = 0; e < n; ++e) {
    const typename V::T* input = ahead.next(e);
    V sum = tile_sum<V, kQ>(grad, input);
    if constexpr (kTiles == 2) {
      sum = add(sum, tile_sum<V, kQ>(grad + kQ, input + kQ * kN));
    } else if (!begin) {
      sum = add(V::load(sums + e * kN), sum);
    }
    sum.store(sums + e * kN);
  }
}

template <typename V>
using WgradTile = void (*)(const typename V::T*,
                           const typename V::T*,
                           const int32_t*,
                           int64_t,
                           bool,
                           typename V::T*);

template <typename V, int kTiles, int... kQ>
static WgradTile<V> pick_wgrad_tile(int64_t length, std::integer_sequence<int, kQ...>) {
  static constexpr WgradTile<V> kTable[] = {wgrad_tile<V, kQ + 1, kTiles>...};
  return kTable[length - 1];
}

template <typename V, typename S>
static void wgrad(const WeightGradient& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  const Entries& e = p.entries;
  const WgradScratch plan = plan_scratch(p);
  T* inputs = static_cast<T*>(scratch);
  T* grads = inputs + plan.input_rows * kN;
  T* sums = grads + plan.grad_rows * kN;
  T* stage = sums + kWgradBatch * kN;

  const Segment whole = {0, 0, 0};
  const TileShape grad_tile = {&whole, 1, 1, plan.grad_channel_rows, 1};
  // A piece has one tile or two; where the registers hold only one, a second pass adds the other.
  constexpr auto kSizes = std::make_integer_sequence<int, static_cast<int>(kWgradTileMax)>();
  const int64_t n_tiles = p.piece / p.tile_length;
  const bool together = V::kWgradTiles == 2 && n_tiles == 2;
  const WgradTile<V> tile = together ? pick_wgrad_tile<V, V::kWgradTiles>(p.tile_length, kSizes)
                                     : pick_wgrad_tile<V, 1>(p.tile_length, kSizes);
  const int64_t passes = together ? 1 : n_tiles;

  const int64_t group_rows = e.n_rows / e.groups;
  const int64_t lane_groups = ceil_div(p.batch * ceil_div(p.count, p.piece), kN);
  const Share share = share_of(e, p.splits, part, parts);
  for (int64_t split = share.group_begin; split <= share.group_end; ++split) {
    const int64_t row_begin = split == share.group_begin ? share.row_begin : 0;
    const int64_t row_end = split == share.group_end ? share.row_end : e.n_rows;
    T* partial = static_cast<T*>(p.partial) + split * p.nnz;
    const int64_t g_begin = lane_groups * split / p.splits;
    const int64_t g_end = lane_groups * (split + 1) / p.splits;
    for (int64_t g = g_begin; g < g_end; ++g) {
      Lane lanes[kN];
      cut_lanes(lanes, kN, g, p.batch, p.count, p.piece);
      for (int64_t r0 = row_begin, r1; r0 < row_end; r0 = r1) {
        const int64_t conv_group = r0 / group_rows;
        r1 = min_of(min_of(row_end, (conv_group + 1) * group_rows), r0 + plan.row_block);
        pack<T, S>(grad_tile, p.grad, p.count, PaddingMode::zeros, 0, lanes, p.piece, r0, r1, grads,
                   stage);
        // Outputs that two pieces share count in the first.
        for (int l = 0; l < kN; ++l) {
          for (int64_t r = r0; lanes[l].skip > 0 && r < r1; ++r) {
            for (int64_t i = 0; i < lanes[l].skip; ++i) {
              grads[((r - r0) * plan.grad_channel_rows + i) * kN + l] = T(0);
            }
          }
        }
        for (int64_t b = 0; b < e.n_blocks; ++b) {
          const int64_t c0 = conv_group * e.channels_per_group + b * p.tile.block_channels;
          const int64_t c1 =
              min_of((conv_group + 1) * e.channels_per_group, c0 + p.tile.block_channels);
          pack<T, S>(p.tile, p.in, p.in_length, p.mode, p.origin, lanes, p.piece, c0, c1, inputs,
                     stage);
          for (int64_t r = r0; r < r1; ++r) {
            const T* grad = grads + (r - r0) * plan.grad_channel_rows * kN;
            const int64_t last = e.starts[r * e.n_blocks + b + 1];
            for (int64_t e0 = e.starts[r * e.n_blocks + b], n; e0 < last; e0 += n) {
              n = min_of(kWgradBatch, last - e0);
              for (int h = 0; h < kN; h += V::kWidth) {
                for (int64_t t = 0; t < passes; ++t) {
                  const int64_t at = t * p.tile_length * kN + h;
                  tile(grad + at, inputs + at, e.rows + e0, n, t == 0, sums + h);
                }
              }
              // The lanes of kBlock entries at a time; the last ones may be of an earlier batch.
              alignas(kRowBytes) T totals[kWgradBatch];
              for (int64_t i = 0; i < n; i += kBlock<T>) {
                sum_lanes(sums + i * kN, totals + i);
              }
              for (int64_t i = 0; i < n; ++i) {
                partial[e0 + i] += totals[i];
              }
            }
          }
        }
      }
    }
  }
}
