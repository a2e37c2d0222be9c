// Packing inputs into the rows of scratch memory, and unpacking the outputs.

// Copies the lanes of a set, side by side in a vector, of each of some rows.
template <typename V>
static inline void copy_run(uint32_t own,
                            int64_t rows,
                            const typename V::T* from,
                            int64_t from_step,
                            typename V::T* to,
                            int64_t to_step) {
  for (; own == (1u << V::kWidth) - 1 && rows > 0; --rows, from += from_step, to += to_step) {
    V::loadu(from).storeu(to);
  }
  for (; rows > 0; --rows, from += from_step, to += to_step) {
    V::load_where(from, own).store_where(to, own);
  }
}

// `pack` of rows that are apart: the samples of a run are neighbours in memory.
template <typename V, typename S>
static void pack_runs(const Source& p,
                      const Lane* lanes,
                      int64_t count,
                      int64_t c0,
                      int64_t c1,
                      typename V::T* rows) {
  using T = typename V::T;
  const int64_t width = kLanes<T> * p.order.wide, stride = p.tile.channel_rows * width;
  const int64_t channel = p.in.stride[1], step = p.tile.step;
  const bool adjacent = kSame<T, S> && p.in.stride[2] == 1, zeros = p.mode == PaddingMode::zeros;
  for (int64_t l = 0, n; l < width; l += n) {
    const Lane& lane = lanes[l];
    const int64_t before = l % V::kWidth;  // lanes of the vector, whose stores are aligned
    n = min_of(lane.run, V::kWidth - before);
    const uint32_t own = ((1u << n) - 1) << before;
    const int64_t first = p.origin + p.tile.segments[0].position + lane.start;
    const auto row_at = [&](int64_t position) {
      return first >= position ? 0 : min_of(count, ceil_div(position - first, step));
    };
    // The rows [begin, end) lie inside of the series.
    const int64_t begin = adjacent && lane.item >= 0 ? row_at(0) : count;
    const int64_t end = max_of(begin, row_at(p.in_length - n + 1));
    const S* series = static_cast<const S*>(p.in.data) + max_of(lane.item, 0) * p.in.stride[0];
    for (int64_t j = begin > 0 ? 0 : end; j < count; j = j + 1 == begin ? end : j + 1) {
      const int64_t at = first + j * step;
      const auto lane_at = [&](int64_t position) { return max_of(0, min_of(n, position - at)); };
      // Idle ones may be too far outside for the padding.
      const int64_t idle = lane.item < 0 ? n : max_of(0, min_of(n, -lane.start - j * step));
      const uint32_t inside =
          lane.item < 0 ? 0 : ((1u << lane_at(p.in_length)) - (1u << lane_at(0))) << before;
      T* to = rows + j * width + l;
      int64_t c = c0;
      for (; zeros && inside == 0 && c < c1; ++c, to += stride) {
        V::splat(0).store_where(to - before, own);
      }
      for (const S* from = series + c0 * channel; c < c1; ++c, to += stride, from += channel) {
        if constexpr (kSame<T, S>) {
          if (zeros && adjacent) {
            V::load_where(from + at - before, inside).store_where(to - before, own);
            continue;
          }
        }
        V::splat(0).store_where(to - before, own);
        read_lane(to + idle, from, p.in.stride[2], p.in_length, p.mode, at + idle, 1, n - idle);
      }
    }
    for (int64_t c = c0; c < c1; ++c) {
      if constexpr (kSame<T, S>) {
        copy_run<V>(own, end - begin, series + c * channel + first + begin * step - before, step,
                    rows + (c - c0) * stride + begin * width + l - before, width);
      }
    }
  }
}

// Copies the inputs of channels [c0, c1) of a tile of `piece` rows into
// rows[(c - c0) * channel_rows + row][lane]: padding, stride, conversion and the transpose from
// (n, c, l) happen here and nowhere else.
template <typename V, typename S>
static void pack(const Source& p,
                 const TileLanes<typename V::T>& tile_lanes,
                 int64_t piece,
                 int64_t c0,
                 int64_t c1,
                 typename V::T* rows,
                 typename V::T* stage) {
  using T = typename V::T;
  const TileShape& tile = p.tile;
  const Lane* lanes = tile_lanes.lane;
  if (p.order.apart > 1) {
    pack_runs<V, S>(p, lanes, piece + tile.segments[0].span, c0, c1, rows);
    return;
  }
  constexpr int kN = kLanes<T>;
  constexpr int kB = kBlock<T>;
  const S* data = static_cast<const S*>(p.in.data);
  // A batch item of this size is not in L2 any more when the next piece of it comes: asking for the
  // next channel early makes dgrad 8 % faster at 141 x 2709 and 4 % at 141 x 512.
  const bool far = p.in.stride[0] * static_cast<int64_t>(sizeof(S)) > 128 * 1024;
  const bool in_order = tile.sample_rows != nullptr;
  const int64_t step = in_order ? 1 : tile.step, samples = tile.step / step;  // of an output
  for (int64_t s = 0; s < (in_order ? 1 : tile.n_segments); ++s) {
    const Segment& segment = tile.segments[s];
    const int64_t count = in_order ? piece * samples + tile.window : piece + segment.span;
    const int64_t staged = stage_stride(count);
    // Samples that a lane does not share with the next piece of its series.
    const int64_t own = min_of(count, p.order.rows * samples);
    int64_t first[kN];
    bool direct[kN];  // read in place
    bool shares[kN];  // reads what the lane before it has staged
    const T* src[kN];
    for (int l = 0; l < kN; ++l) {
      first[l] = p.origin + lanes[l].start * tile.step + (in_order ? 0 : segment.position);
      direct[l] = kSame<T, S> && lanes[l].item >= 0 && lanes[l].skip == 0 &&
                  p.in.stride[2] * step == 1 && count >= kB && first[l] >= 0 &&
                  first[l] + count <= p.in_length;
      shares[l] = own < count && l > 0 && lanes[l].item >= 0 && !direct[l] &&
                  lanes[l].item == lanes[l - 1].item && !direct[l - 1];
      src[l] = shares[l] ? src[l - 1] + own : stage + l * staged;
      // Rows that only idle outputs read.
      for (int64_t j = 0, n = lanes[l].item < 0 ? staged : lanes[l].skip * samples;
           j < min_of(n, staged); ++j) {
        stage[l * staged + j] = T(0);
      }
    }
    for (int64_t c = c0; c < c1; ++c) {
      for (int l = 0; l < kN; ++l) {
        if (lanes[l].item < 0) {
          continue;
        }
        const S* series = data + lanes[l].item * p.in.stride[0] + c * p.in.stride[1];
        if (direct[l]) {
          src[l] = reinterpret_cast<const T*>(series) + first[l];
          for (int64_t j = 0; far && j < count; j += kN) {
            __builtin_prefetch(src[l] + p.in.stride[1] + j);
          }
        } else {
          const int64_t skip = shares[l] ? count - own : min_of(count, lanes[l].skip * samples);
          read_lane(const_cast<T*>(src[l]) + skip, series, p.in.stride[2], p.in_length, p.mode,
                    first[l] + skip * step, step, count - skip);
        }
      }
      T* target = rows + (c - c0) * tile.channel_rows * kN;
      for (int64_t j = 0; j < count; j += kB) {
        const int64_t at = min_of(j, max_of(count - kB, 0));  // the last block ends with the rows
        for (int l = 0; l < kN; l += kB) {
          const T* from[kB];
          T* to[kB];
          for (int i = 0; i < kB; ++i) {
            from[i] = src[l + i] + at;
          }
          // Two calls, for in the first the compiler knows how far apart the rows are.
          if (!in_order) {
            for (int i = 0; i < kB; ++i) {
              to[i] = target + (segment.row + at + i) * kN + l;
            }
            transpose(from, to);
            continue;
          }
          for (int i = 0; i < kB; ++i) {
            to[i] = target + tile.sample_rows[at + i] * kN + l;
          }
          transpose(from, to);
        }
      }
    }
  }
}

// Where the outputs of channel 0 of each lane go; the other channels are a stride apart.
template <typename T, typename S>
struct Targets {
  S* first[kLanes<T>];     // first output of the lane that is written, after the idle ones
  bool inside[kLanes<T>];  // they are adjacent, none of them outside of the series
  bool direct[kLanes<T>];  // and all that the lane computes can be written as it is
};

template <typename T, typename S>
static Targets<T, S> targets_of(const Correlation& p, const TileLanes<T>& lanes, int64_t rows) {
  Targets<T, S> targets;
  for (int l = 0; l < kLanes<T>; ++l) {
    const Lane& lane = lanes.lane[l];
    const int64_t begin = p.first + (lane.start + lane.skip) * p.out_step;
    targets.first[l] = static_cast<S*>(p.out.data) + max_of(lane.item, 0) * p.out.stride[0] +
                       begin * p.out.stride[2];
    const int64_t count = (rows - lane.skip) * p.phases;
    targets.inside[l] = p.out.stride[2] == 1 && p.out_step == p.phases && begin >= 0 &&
                        begin + count <= p.out_length;
    targets.direct[l] =
        kSame<T, S> && targets.inside[l] && lane.item >= 0 && lane.skip == 0 && count >= kBlock<T>;
  }
  return targets;
}

// Asks for the memory that `unpack` will write to, while the last entries of the row are summed:
// 4 % of a training step at L = 512, whose activations are not in L2.
template <typename T, typename S>
static void expect_unpack(const Correlation& p, const Targets<T, S>& targets, int64_t channel) {
  for (int l = 0; l < kLanes<T>; ++l) {
    if (targets.direct[l]) {
      const S* series = targets.first[l] + channel * p.out.stride[1];
      __builtin_prefetch(series, 1);
      __builtin_prefetch(series + kRowBytes / sizeof(S), 1);
    }
  }
}

// Writes an output that is in its series.
template <typename T, typename S>
static inline void write_output(const Correlation& p, int64_t position, T x, S* series) {
  if (position >= 0 && position < p.out_length) {
    from_acc(x, series + position * p.out.stride[2]);
  }
}

// `unpack` of rows that are apart.
template <typename V, typename S>
static void unpack_runs(const Correlation& p,
                        const Lane* lanes,
                        int64_t channel,
                        int64_t rows,
                        const typename V::T* acc) {
  using T = typename V::T;
  const LaneOrder& y = p.order;
  const int64_t width = kLanes<T> * y.wide;
  for (int64_t l = 0, n; l < width && lanes[l].item >= 0; l += n) {
    const Lane& lane = lanes[l];
    const int64_t before = l % V::kWidth;
    n = min_of(lane.run, V::kWidth - before);
    S* series =
        static_cast<S*>(p.out.data) + lane.item * p.out.stride[0] + channel * p.out.stride[1];
    const int64_t at = p.first + lane.start, end = at + (rows - 1) * y.apart + n;
    int64_t written = rows;  // from this row on
    if constexpr (kSame<T, S>) {
      if (p.out.stride[2] == 1 && at + lane.skip * y.apart >= 0 && end <= p.out_length) {
        written = min_of(lane.skip, rows);
        copy_run<V>(((1u << n) - 1) << before, rows - written, acc + written * width + l - before,
                    width, series + at + written * y.apart - before, y.apart);
      }
    }
    for (int64_t j = max_of(lane.skip - 1, 0); j < written; ++j) {
      for (int64_t i = max_of(0, -lane.start - j * y.apart); i < n; ++i) {
        write_output(p, at + j * y.apart + i, acc[j * width + l + i], series);
      }
    }
  }
}

// Writes the outputs of one channel from acc[position][lane], and the same of further phases
// `stride` numbers apart, to where they belong. Without phases the compiler knows how far apart the
// rows are: the first layer of a DSN would take 1.4 times as long.
template <bool kPhased, typename V, typename S>
static inline void unpack(const Correlation& p,
                          const TileLanes<typename V::T>& lanes,
                          const Targets<typename V::T, S>& targets,
                          int64_t channel,
                          int64_t rows,
                          typename V::T* acc,
                          int64_t stride,
                          typename V::T* stage) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  constexpr int kB = kBlock<T>;
  const int64_t phases = kPhased ? p.phases : 1;
  const int64_t total = rows * phases, staged = stage_stride(total);
  T* target[kN];
  for (int l = 0; l < kN; ++l) {
    target[l] = targets.direct[l]
                    ? reinterpret_cast<T*>(targets.first[l] + channel * p.out.stride[1])
                    : stage + l * staged;
  }
  for (int64_t j = 0; j < total; j += kB) {
    const int64_t at = min_of(j, max_of(total - kB, 0));  // the last block ends with the tile
    for (int l = 0; l < kN; l += kB) {
      const T* from[kB];
      T* to[kB];
      for (int i = 0; i < kB; ++i) {
        to[i] = target[l + i] + at;
      }
      for (int64_t i = 0, row = at / phases, phase = at % phases; i < kB; ++i) {
        from[i] = acc + phase * stride + row * kN + l;
        if (++phase == phases) {
          phase = 0;
          ++row;
        }
      }
      transpose(from, to);
    }
  }
  for (int l = 0; l < kN; ++l) {
    const Lane& lane = lanes.lane[l];
    if (targets.direct[l] || lane.item < 0) {
      continue;
    }
    S* first = targets.first[l] + channel * p.out.stride[1];
    const T* from = target[l] + lane.skip * phases;
    const int64_t count = (rows - lane.skip) * phases;
    if (targets.inside[l]) {
      for (int64_t j = 0; j < count; ++j) {
        from_acc(from[j], first + j);
      }
      continue;
    }
    const int64_t begin = p.first + (lane.start + lane.skip) * p.out_step;
    S* series = first - begin * p.out.stride[2];
    for (int64_t j = 0, phase = 0, step = 0; j < count; ++j) {
      write_output(p, begin + step + phase, from[j], series);
      if (++phase == phases) {
        phase = 0;
        step += p.out_step;
      }
    }
  }
}
