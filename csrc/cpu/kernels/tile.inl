// Lanes, packing and unpacking. Included once per ISA, after its vec_*.h.
//
// A lane is a piece of one series: `piece` neighbouring outputs of one batch item. Lanes are
// independent sequences, so a tap, a stride or a dilation only changes the scratch row that is
// read, every load is aligned, and one long series fills a vector as well as 16 short ones.

template <typename T>
constexpr int kLanes = static_cast<int>(kRowBytes / sizeof(T));
template <typename T>
constexpr int kBlock = sizeof(T) == 4 ? kBlockF32 : kBlockF64;

template <typename A, typename B>
constexpr bool kSame = false;
template <typename A>
constexpr bool kSame<A, A> = true;

static inline int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline int64_t max_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static inline float to_acc(float x) {
  return x;
}
static inline double to_acc(double x) {
  return x;
}
static inline float to_acc(Half x) {
  return half_to_float(x.bits);
}
static inline float to_acc(Bf16 x) {
  union {
    uint32_t bits;
    float value;
  } y = {static_cast<uint32_t>(x.bits) << 16};
  return y.value;
}
static inline void from_acc(float x, float* y) {
  *y = x;
}
static inline void from_acc(double x, double* y) {
  *y = x;
}
static inline void from_acc(float x, Half* y) {
  y->bits = float_to_half(x);
}
static inline void from_acc(float x, Bf16* y) {
  union {
    float value;
    uint32_t bits;
  } b = {x};
  const bool nan = (b.bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = b.bits + 0x7fffu + ((b.bits >> 16) & 1);  // to nearest, ties to even
  y->bits = static_cast<uint16_t>(nan ? (b.bits >> 16) | 0x40u : rounded >> 16);
}

struct Lane {
  int64_t item;   // batch item, or -1: the lane is idle
  int64_t start;  // first output of the piece
  int64_t skip;   // outputs at its beginning that the piece before computes too
};

// The last piece of a series is moved back to end with it: no lane ever reads or writes past it.
static void cut_lanes(Lane* lanes,
                      int n_lanes,
                      int64_t group,
                      int64_t batch,
                      int64_t count,
                      int64_t piece) {
  const int64_t pieces = ceil_div(count, piece);
  for (int l = 0; l < n_lanes; ++l) {
    const int64_t unit = group * n_lanes + l;
    if (unit >= batch * pieces) {
      lanes[l] = {-1, 0, 0};
      continue;
    }
    const int64_t first = (unit % pieces) * piece;
    const int64_t start = min_of(first, count - piece);
    lanes[l] = {unit / pieces, start, first - start};
  }
}

template <typename T, typename S>
static void read_outside(T* out,
                         const S* series,
                         int64_t stride,
                         int64_t length,
                         PaddingMode mode,
                         int64_t first,
                         int64_t step,
                         int64_t begin,
                         int64_t end) {
  if (begin < end && (mode == PaddingMode::zeros || mode == PaddingMode::replicate)) {
    const bool zeros = mode == PaddingMode::zeros;
    const T value =
        zeros ? T(0) : to_acc(series[(first + begin * step < 0 ? 0 : length - 1) * stride]);
    for (int64_t j = begin; j < end; ++j) {
      out[j] = value;
    }
    return;
  }
  for (int64_t j = begin; j < end; ++j) {
    out[j] = to_acc(series[fold_position(first + j * step, length, mode) * stride]);
  }
}

// out[j] = series[first + j * step] for j in [0, count), padded.
template <typename T, typename S>
static void read_lane(T* out,
                      const S* series,
                      int64_t stride,
                      int64_t length,
                      PaddingMode mode,
                      int64_t first,
                      int64_t step,
                      int64_t count) {
  const int64_t begin = first >= 0 ? 0 : min_of(count, ceil_div(-first, step));
  const int64_t past = first >= length ? 0 : min_of(count, ceil_div(length - first, step));
  const int64_t end = max_of(begin, past);
  read_outside(out, series, stride, length, mode, first, step, 0, begin);
  if (stride * step == 1) {  // the usual case, which the compiler turns into vectors
    for (int64_t j = begin; j < end; ++j) {
      out[j] = to_acc(series[first + j]);
    }
  } else {
    for (int64_t j = begin; j < end; ++j) {
      out[j] = to_acc(series[(first + j * step) * stride]);
    }
  }
  read_outside(out, series, stride, length, mode, first, step, end, count);
}

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
  for (int64_t s = 0; s < tile.n_segments; ++s) {
    const Segment& segment = tile.segments[s];
    const int64_t count = piece + segment.span;
    const int64_t staged = stage_stride(count);
    int64_t first[kN];
    bool direct[kN];  // read in place
    const T* src[kN];
    for (int l = 0; l < kN; ++l) {
      first[l] = origin + lanes[l].start * tile.step + segment.position;
      direct[l] = kSame<T, S> && lanes[l].item >= 0 && in.stride[2] * tile.step == 1 &&
                  count >= kB && first[l] >= 0 && first[l] + count <= length;
      src[l] = stage + l * staged;
      if (lanes[l].item < 0) {
        for (int64_t j = 0; j < staged; ++j) {
          stage[l * staged + j] = T(0);
        }
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
          read_lane(stage + l * staged, series, in.stride[2], length, mode, first[l], tile.step,
                    count);
        }
      }
      T* target = rows + ((c - c0) * tile.channel_rows + segment.row) * kN;
      for (int64_t j = 0; j < count; j += kB) {
        const int64_t at = min_of(j, max_of(count - kB, 0));  // the last block ends with the rows
        for (int l = 0; l < kN; l += kB) {
          const T* from[kB];
          T* to[kB];
          for (int i = 0; i < kB; ++i) {
            from[i] = src[l + i] + at;
            to[i] = target + (at + i) * kN + l;
          }
          transpose(from, to);
        }
      }
    }
  }
}

// Where the outputs of row 0 of each lane go; the other rows are a stride apart.
template <typename T, typename S>
struct Targets {
  S* first[kLanes<T>];     // output of the lane that is written first, after those it skips
  bool inside[kLanes<T>];  // they are adjacent, none of them outside of the series
  bool direct[kLanes<T>];  // and all that the lane computes can be written as it is
};

template <typename T, typename S>
static Targets<T, S> targets_of(const Correlation& p, const Lane* lanes) {
  Targets<T, S> targets;
  for (int l = 0; l < kLanes<T>; ++l) {
    const Lane& lane = lanes[l];
    const int64_t begin = p.first + (lane.start + lane.skip) * p.out_step;
    targets.first[l] = static_cast<S*>(p.out.data) + max_of(lane.item, 0) * p.out.stride[0] +
                       begin * p.out.stride[2];
    targets.inside[l] = p.out.stride[2] * p.out_step == 1 && begin >= 0 &&
                        begin + p.piece - lane.skip <= p.out_length;
    targets.direct[l] = kSame<T, S> && targets.inside[l] && lane.item >= 0 && lane.skip == 0 &&
                        p.piece >= kBlock<T>;
  }
  return targets;
}

// Asks for the memory that `unpack` will write to, while the last entries of the row are summed:
// 4 % of a training step at L = 512, whose activations are not in L2.
template <typename T, typename S>
static void expect_unpack(const Correlation& p, const Targets<T, S>& targets, int64_t row) {
  for (int l = 0; l < kLanes<T>; ++l) {
    if (targets.direct[l]) {
      const S* series = targets.first[l] + row * p.out.stride[1];
      __builtin_prefetch(series, 1);
      __builtin_prefetch(series + kRowBytes / sizeof(S), 1);
    }
  }
}

// Writes the outputs of one row from acc[position][lane] to where they belong.
template <typename T, typename S>
static void unpack(const Correlation& p,
                   const Lane* lanes,
                   const Targets<T, S>& targets,
                   int64_t row,
                   T* acc,
                   T* stage) {
  constexpr int kN = kLanes<T>;
  constexpr int kB = kBlock<T>;
  const int64_t staged = stage_stride(p.piece);
  T* target[kN];
  for (int l = 0; l < kN; ++l) {
    target[l] = targets.direct[l] ? reinterpret_cast<T*>(targets.first[l] + row * p.out.stride[1])
                                  : stage + l * staged;
  }
  for (int64_t j = 0; j < p.piece; j += kB) {
    const int64_t at = min_of(j, max_of(p.piece - kB, 0));  // the last block ends with the piece
    for (int l = 0; l < kN; l += kB) {
      const T* from[kB];
      T* to[kB];
      for (int i = 0; i < kB; ++i) {
        from[i] = acc + (at + i) * kN + l;
        to[i] = target[l + i] + at;
      }
      transpose(from, to);
    }
  }
  for (int l = 0; l < kN; ++l) {
    const Lane& lane = lanes[l];
    if (targets.direct[l] || lane.item < 0) {
      continue;
    }
    S* series = targets.first[l] + row * p.out.stride[1];
    const T* from = target[l] + lane.skip;
    const int64_t count = p.piece - lane.skip;
    if (targets.inside[l]) {
      for (int64_t j = 0; j < count; ++j) {
        from_acc(from[j], series + j);
      }
      continue;
    }
    T* fold = p.fold == nullptr ? nullptr
                                : static_cast<T*>(p.fold) + (lane.item * p.entries.n_rows + row) *
                                                                (p.fold_left + p.fold_right);
    const int64_t begin = p.first + (lane.start + lane.skip) * p.out_step;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t position = begin + j * p.out_step;
      if (position < 0) {
        fold[p.fold_left + position] = from[j];
      } else if (position >= p.out_length) {
        fold[p.fold_left + position - p.out_length] = from[j];
      } else {
        from_acc(from[j], series + j * p.out_step * p.out.stride[2]);
      }
    }
  }
}

// The inputs of the entries that follow, found kAhead entries early: with the row loaded right
// before its use, the multiply-adds that wait for their address keep the ones behind them waiting
// (212 instead of 262 GFLOP/s from L1 on Zen 5; 242, 250 and 254 with 2, 3 and 4 ahead).
template <typename T>
struct Ahead {
  static constexpr int kAhead = 4;
  const T* inputs;
  const int32_t* rows;
  int64_t last;
  const T* at[kAhead];

  Ahead(const T* inputs, const int32_t* rows, int64_t n) : inputs(inputs), rows(rows), last(n - 1) {
#pragma GCC unroll 4
    for (int i = 0; i < kAhead; ++i) {
      at[i] = input_of(i);
    }
  }
  const T* input_of(int64_t e) const {
    return inputs + static_cast<int64_t>(rows[min_of(e, last)]) * kLanes<T>;
  }
  // The inputs of entry e; to be called for 0, 1, 2, ... in turn.
  const T* next(int64_t e) {
    const T* now = at[0];
#pragma GCC unroll 4
    for (int i = 1; i < kAhead; ++i) {
      at[i - 1] = at[i];
    }
    at[kAhead - 1] = input_of(e + kAhead);
    return now;
  }
};

// One thread's share of groups x rows of equal cost (a row costs its entries and its outputs).
struct Share {
  int64_t group_begin;
  int64_t row_begin;  // in the first group
  int64_t group_end;  // inclusive
  int64_t row_end;    // in the last group
};

static inline int64_t rows_cost(const Entries& e, int64_t row) {
  return e.starts[row * e.n_blocks] - e.starts[0] + kStoreCost * row;
}

// The first row before which at least `cost` has been spent.
static int64_t row_at_cost(const Entries& e, int64_t cost) {
  int64_t low = 0, high = e.n_rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (rows_cost(e, middle) < cost) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The same where all rows of a group must be computed by one thread.
static Share share_of_groups(const Entries& e, int64_t groups, int64_t part, int64_t parts) {
  return {groups * part / parts, 0, groups * (part + 1) / parts - 1, e.n_rows};
}

static Share share_of(const Entries& e, int64_t groups, int64_t part, int64_t parts) {
  const int64_t each = rows_cost(e, e.n_rows);
  const int64_t total = groups * each;
  const int64_t begin = total / parts * part + min_of(part, total % parts);
  const int64_t end = begin + total / parts + (part < total % parts ? 1 : 0);
  if (begin == end) {
    return {0, 0, 0, 0};
  }
  // A row belongs to the part that holds the cost at which it begins, so every row has one owner.
  const int64_t last = (end - 1) / each;
  return {begin / each, row_at_cost(e, begin % each), last, row_at_cost(e, end - last * each)};
}
