// wgrad of the active weights. Included once per ISA, after lane_rows.inl.
//
// The order of every sum is fixed by the shape: lane by lane over the rows of a chunk, one chain
// per weight; then the lanes, in a tree; then the chunks of a split in their order, and last the
// splits. Neither threads, the ISA nor the order of the tensors change it.

// Runs `count` batches of kB weights of one row each, whose sums stay in registers while the
// chunk's rows pass by: one load of the gradient serves kB multiply-adds, each with an aligned load
// of the inputs. In the first `idle` rows the lanes of the sets `without` do not count: what they
// hold of the inputs may belong to other pieces, and a NaN there must not meet their zeros.
template <typename V, int kB>
static void weight_batches(const WeightBatch* batches,
                           int64_t count,
                           const typename V::T* grads,
                           int64_t stride,
                           const typename V::T* inputs,
                           const int32_t* rows,
                           int64_t width,
                           int64_t n_rows,
                           int64_t idle,
                           const uint32_t* without,
                           typename V::T* partial) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  constexpr bool kWhole = V::kWidth == kN;  // a vector is a whole row
  alignas(kRowBytes) T sums[kWhole ? 1 : kB * kN];
  const int64_t end = n_rows * kN;
  for (const WeightBatch* batch = batches; batch < batches + count; ++batch) {
    const T* const gradient = grads + batch->row * stride;
    const int32_t* const own_rows = rows + batch->first;
    T* const out = partial + batch->first;
    for (int h = 0; h < kN; h += V::kWidth) {
      const T* const g = gradient + h;
      const T* input[kB];
      V sum[kB];
#pragma GCC unroll 16
      for (int i = 0; i < kB; ++i) {
        input[i] = inputs + own_rows[i] * width + h;
        sum[i] = V::splat(0);
      }
      int64_t r = 0;
      for (; r < idle * kN; r += kN) {
        const uint32_t within = lanes_from<V>(~without[r / kN], h);
        if (within == 0) {
          continue;
        }
        const V x = V::load(g + r);
#pragma GCC unroll 16
        for (int i = 0; i < kB; ++i) {
          sum[i] = choose(within, fma(x, V::load(input[i] + r), sum[i]), sum[i]);
        }
      }
      for (; r + 4 * kN <= end; r += 4 * kN) {
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) {
          const V x = V::load(g + r + u * kN);
#pragma GCC unroll 16
          for (int i = 0; i < kB; ++i) {
            sum[i] = fma(x, V::load(input[i] + r + u * kN), sum[i]);
          }
        }
      }
      for (; r < end; r += kN) {
        const V x = V::load(g + r);
#pragma GCC unroll 16
        for (int i = 0; i < kB; ++i) {
          sum[i] = fma(x, V::load(input[i] + r), sum[i]);
        }
      }
      if constexpr (kWhole) {
        add_lane_sums<V, kB>([&](int i) { return sum[i]; }, out);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < kB; ++i) {
          sum[i].store(sums + i * kN + h);
        }
      }
    }
    if constexpr (!kWhole) {
      add_lane_sums<V, kB>([&](int i) { return fold<V>(sums + i * kN); }, out);
    }
  }
}

template <typename V, typename S>
static void wgrad(const WeightGradient& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  const WgradScratch plan = plan_scratch(p);
  T* inputs = static_cast<T*>(scratch);
  T* packed = inputs + plan.input_rows * kN;
  T* stage = packed + plan.grad_rows * kN;
  const Segment whole = {0, 0, 0};
  const LaneOrder& y = p.order;
  const Source gradients = {
      {&whole, 1, y.apart, plan.grad_channel_rows, 1}, y, p.grad, y.length, PaddingMode::zeros, 0};
  const int64_t width = kN * y.wide;
  const Tiles tiles(y.rows, kWgradRows / y.wide);
  const int64_t chunks = y.groups * tiles.count;
  const int64_t group_rows = p.n_rows / p.groups;
  const Share share = share_of(p.row_starts, p.n_rows, p.splits, part, parts);
  Neighbourhood<V> near;
  for (int64_t split = share.tile_begin; split <= share.tile_end; ++split) {
    const int64_t row_begin = split == share.tile_begin ? share.row_begin : 0;
    const int64_t row_end = split == share.tile_end ? share.row_end : p.n_rows;
    T* partial = static_cast<T*>(p.partial) + split * p.nnz;
    const int64_t begin = chunks * split / p.splits, end = chunks * (split + 1) / p.splits;
    for (int64_t at = begin; at < end; ++at) {
      const int64_t group = at / tiles.count, t = at % tiles.count;
      const int64_t row = tiles.begin(t), rows = tiles.size(t);
      if (p.in_lanes && (at == begin || t == 0)) {
        near.set(y, group, p.mode == PaddingMode::replicate);
      }
      const TileLanes<T> lanes(y, group, row);
      uint32_t without[kWgradRows];
      const int64_t idle = lanes.idle(y, rows, without);
      for (int64_t r0 = row_begin, r1; r0 < row_end; r0 = r1) {
        const int64_t conv_group = r0 / group_rows;
        r1 = min_of(min_of(row_end, (conv_group + 1) * group_rows), r0 + plan.row_block);
        const int64_t stride = p.in_lanes ? y.channel() : plan.grad_channel_rows * width;
        const T* grads = p.in_lanes
                             ? static_cast<const T*>(p.grad.data) + (group * y.rows + row) * kN
                             : packed - r0 * stride;
        if (!p.in_lanes) {
          pack<V, S>(gradients, lanes, rows, r0, r1, packed, stage);
        }
        for (int64_t b = 0; b < p.n_blocks; ++b) {
          const int64_t c0 = conv_group * p.channels_per_group + b * p.tile.block_channels;
          const int64_t c1 =
              min_of((conv_group + 1) * p.channels_per_group, c0 + p.tile.block_channels);
          pack_tile<V, S>(p, near, lanes, row, rows, 1, c0, c1, inputs, stage);
          const WeightBatch* const last = p.batches + p.block_starts[b + 1];
          for (const WeightBatch* from = p.batches + p.block_starts[b]; from < last;) {
            const WeightBatch* to = from;  // past those of this size
            while (to < last && to->n == from->n) {
              ++to;
            }
            const auto before = [&](int64_t end) {  // batches of rows before this one
              return first_where(0, to - from, [&](int64_t i) { return from[i].row >= end; });
            };
            const int64_t first = before(r0);
            const auto run = pick<kBatchWeights>(
                from->n - 1, []<int kI>() { return weight_batches<V, kI + 1>; });
            run(from + first, before(r1) - first, grads, stride, inputs, p.rows, width,
                rows * y.wide, idle, without, partial);
            from = to;
          }
        }
      }
    }
  }
}
