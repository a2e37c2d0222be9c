// Rows of tensors in the kernels' own order (lane_order.h). Included once per ISA, after lanes.inl.

// What the rows of one group and channel look like from a piece: before it lie the pieces to its
// left, beyond it those to its right, and outside of the series (its idle rows are outside) `fill`
// or the nearer one of its first and last samples.
template <typename V>
struct Neighbourhood {
  using T = typename V::T;
  static constexpr int kN = kLanes<T>;
  int64_t piece_rows = 0;
  int64_t idle = 0;
  int64_t group = 0;
  bool replicate = false;
  T fill = 0;
  uint32_t real = 0;  // lanes that are not idle
  // For pieces s further to the right and to the left: the lanes that have such a neighbour.
  uint32_t right[kN + 1], left[kN + 1];
  // Of each lane, where the first and the last sample of its series lie in the channel.
  int64_t first[kN], last[kN];

  void set(const LaneOrder& y, int64_t which, bool repeat_ends) {
    piece_rows = y.rows;
    idle = y.idle;
    group = which;
    replicate = repeat_ends;
    real = lane_sets(y, group).real;
    for (int s = 0; s <= kN; ++s) {
      right[s] = left[s] = 0;
    }
    for (int l = 0; l < kN; ++l) {
      const int64_t unit = group * kN + l, piece = unit % y.pieces;
      first[l] = last[l] = 0;
      if ((real >> l & 1) == 0) {
        continue;
      }
      const int64_t begin = unit - piece, end = begin + y.pieces - 1;
      first[l] = (begin / kN * y.rows + y.idle) * kN + begin % kN;
      last[l] = ((end / kN + 1) * y.rows - 1) * kN + end % kN;
      for (int64_t s = 0; s < y.pieces; ++s) {
        right[s] |= static_cast<uint32_t>(piece + s < y.pieces) << l;
        left[s] |= static_cast<uint32_t>(piece - s >= 0) << l;
      }
    }
  }

  // The rows begin, begin + step ... below `end`, `channel` being the data of the channel.
  void copy(const T* channel, int64_t begin, int64_t end, T* rows, int64_t step = 1) const {
    const T* here = channel + group * piece_rows * kN;
    alignas(kRowBytes) T outside[kN];
    int64_t j = begin;
    if (j < idle) {
      samples(channel, first, outside);
    }
    for (const int64_t stop = min_of(end, idle); j < stop; j += step, rows += kN) {
      const int64_t s = j < 0 ? ceil_div(-j, piece_rows) : 0, row = j + s * piece_rows;
      const int64_t needed = row < idle ? s + 1 : s;  // idle rows are in the first piece alone
      shifted(here + row * kN, -min_of(s, kN), left[min_of(needed, kN)], outside, rows);
    }
    for (const int64_t stop = min_of(end, piece_rows); j < stop; j += step, rows += kN) {
      for (int h = 0; h < kN; h += V::kWidth) {
        V::load(here + j * kN + h).store(rows + h);
      }
    }
    if (j >= end) {
      return;
    }
    samples(channel, last, outside);
    for (int64_t s = j / piece_rows, row = j % piece_rows; j < end; j += step, rows += kN) {
      shifted(here + row * kN, min_of(s, kN), right[min_of(s, kN)], outside, rows);
      for (row += step; row >= piece_rows; row -= piece_rows) {
        ++s;
      }
    }
  }

 private:
  // What lies outside of the series of each lane, `from` there being its samples next to it.
  void samples(const T* channel, const int64_t* from, T* outside) const {
    for (int l = 0; l < kN; ++l) {
      outside[l] = replicate && (real >> l & 1) != 0 ? channel[from[l]] : fill;
    }
  }

  // The row of the units s further on, in the lanes of the set `have`; `outside` in the others.
  void shifted(const T* row, int64_t s, uint32_t have, const T* outside, T* to) const {
    // Units beyond this group are in the one before or the one after, at the same row.
    const uint32_t all = (1u << kN) - 1;
    const uint32_t inside = s >= 0 ? all >> s : all << -s & all;
    const T* other = row + (s >= 0 ? piece_rows : -piece_rows) * kN + (s >= 0 ? -kN : kN);
    for (int h = 0; h < kN; h += V::kWidth) {
      V x = V::load_where(row + s + h, lanes_from<V>(have & inside, h));
      if ((have & ~inside) != 0) {
        x = choose(lanes_from<V>(inside, h), x,
                   V::load_where(other + s + h, lanes_from<V>(have & ~inside, h)));
      }
      choose(lanes_from<V>(have, h), x, V::load(outside + h)).store(to + h);
    }
  }
};

// Adds a row to the one at `out`, in the lanes of a set.
template <typename V>
static void add_lanes(uint32_t set, const typename V::T* row, typename V::T* out) {
  for (int h = 0; h < kLanes<typename V::T>; h += V::kWidth) {
    const V x = V::load(out + h);
    choose(lanes_from<V>(set, h), add(x, V::load(row + h)), x).store(out + h);
  }
}

// Zeros into what is idle of the `rows` rows at `data`, which are `first`, first + step ...
template <typename V>
static void clear_idle(const LaneOrder& y,
                       const LaneSets& sets,
                       int64_t first,
                       int64_t rows,
                       int64_t step,
                       typename V::T* data) {
  constexpr int kN = kLanes<typename V::T>;
  const uint32_t idle = ~sets.real & ((1u << kN) - 1);
  const int64_t some = idle != 0         ? rows
                       : sets.first != 0 ? min_of(rows, ceil_div(y.idle - first, step))
                                         : 0;
  for (int64_t r = 0; r < some; ++r) {
    const uint32_t zeros = idle | (first + r * step < y.idle ? sets.first : 0);
    for (int h = 0; h < kN; h += V::kWidth) {
      V::splat(0).store_where(data + r * step * kN + h, lanes_from<V>(zeros, h));
    }
  }
}
