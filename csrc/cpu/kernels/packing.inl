// Packing inputs into the rows of scratch memory, and unpacking the outputs.

// Copies the inputs of channels [c0, c1) into rows[(c - c0) * channel_rows + row][lane]: padding,
// stride, conversion and the transpose from (n, c, l) happen here and nowhere else.
template <typename T, typename S>
static void pack(const TileShape& tile,
                 const TensorView& in,
                 int64_t length,
                 PaddingMode mode,
                 int64_t origin,
                 const Lane* lanes,
                 int64_t piece,
                 int64_t c0,
                 int64_t c1,
                 T* rows,
                 T* stage) {
  constexpr int kN = kLanes<T>;
  constexpr int kB = kBlock<T>;
  const S* data = static_cast<const S*>(in.data);
  // A batch item of this size is not in L2 any more when the next piece of it comes: asking for the
  // next channel early makes dgrad 8 % faster at 141 x 2709 and 4 % at 141 x 512.
  const bool far = in.stride[0] * static_cast<int64_t>(sizeof(S)) > 128 * 1024;
  const bool in_order = tile.sample_rows != nullptr;
  const int64_t step = in_order ? 1 : tile.step, samples = tile.step / step;  // of an output
  for (int64_t s = 0; s < (in_order ? 1 : tile.n_segments); ++s) {
    const Segment& segment = tile.segments[s];
    const int64_t count = in_order ? piece * samples + tile.window : piece + segment.span;
    const int64_t staged = stage_stride(count);
    int64_t first[kN];
    bool direct[kN];  // read in place
    const T* src[kN];
    for (int l = 0; l < kN; ++l) {
      first[l] = origin + lanes[l].start * tile.step + (in_order ? 0 : segment.position);
      direct[l] = kSame<T, S> && lanes[l].item >= 0 && lanes[l].skip == 0 &&
                  in.stride[2] * step == 1 && count >= kB && first[l] >= 0 &&
                  first[l] + count <= length;
      src[l] = stage + l * staged;
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
        const S* series = data + lanes[l].item * in.stride[0] + c * in.stride[1];
        if (direct[l]) {
          src[l] = reinterpret_cast<const T*>(series) + first[l];
          for (int64_t j = 0; far && j < count; j += kN) {
            __builtin_prefetch(src[l] + in.stride[1] + j);
          }
        } else {
          const int64_t skip = min_of(count, lanes[l].skip * samples);
          read_lane(stage + l * staged + skip, series, in.stride[2], length, mode,
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
static Targets<T, S> targets_of(const Correlation& p, const Lane* lanes, int64_t rows) {
  Targets<T, S> targets;
  for (int l = 0; l < kLanes<T>; ++l) {
    const Lane& lane = lanes[l];
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

// Writes the outputs of one channel from acc[position][lane], and the same of further phases
// `stride` numbers apart, to where they belong. Without phases the compiler knows how far apart the
// rows are: the first layer of a DSN would take 1.4 times as long.
template <bool kPhased, typename T, typename S>
static inline void unpack(const Correlation& p,
                   const Lane* lanes,
                   const Targets<T, S>& targets,
                   int64_t channel,
                   int64_t rows,
                   T* acc,
                   int64_t stride,
                   T* stage) {
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
    const Lane& lane = lanes[l];
    if (targets.direct[l] || lane.item < 0) {
      continue;
    }
    S* series = targets.first[l] + channel * p.out.stride[1];
    const T* from = target[l] + lane.skip * phases;
    const int64_t count = (rows - lane.skip) * phases;
    if (targets.inside[l]) {
      for (int64_t j = 0; j < count; ++j) {
        from_acc(from[j], series + j);
      }
      continue;
    }
    T* fold = p.fold == nullptr ? nullptr
                                : static_cast<T*>(p.fold) +
                                      (lane.item * (p.entries.n_rows / phases) + channel) *
                                          (p.fold_left + p.fold_right);
    const int64_t begin = p.first + (lane.start + lane.skip) * p.out_step;
    for (int64_t j = 0, phase = 0, step = 0; j < count; ++j) {
      const int64_t position = begin + step + phase;
      if (position >= 0 && position < p.out_length) {
        from_acc(from[j], series + (step + phase) * p.out.stride[2]);
      } else if (fold != nullptr && position >= -p.fold_left &&
                 position < p.out_length + p.fold_right) {
        fold[p.fold_left + position - (position < 0 ? 0 : p.out_length)] = from[j];
      }
      if (++phase == phases) {
        phase = 0;
        step += p.out_step;
      }
    }
  }
}
