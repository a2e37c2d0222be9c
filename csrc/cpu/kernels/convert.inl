// Between (N, C, L) and the kernels' own order. Included once per ISA, after packing.inl.

// The conversion as a correlation with one tap: `in` to `out`, one of them in lanes.
template <typename T>
static Correlation identity(const Conversion& p) {
  Correlation whole{};
  whole.in = whole.out = p.signal;
  whole.out_length = p.order.length;
  return whole;
}

// Scratch: what `pack` stages, and the rows of one channel where a transpose's block is longer.
template <typename V, bool kToLanes>
static void convert(const Conversion& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  const LaneOrder& y = p.order;
  const Segment whole = {0, 0, 0};
  const Source source = {{&whole, 1, 1, 0, 1}, y, p.signal, y.length, PaddingMode::zeros, 0};
  const Correlation target = identity<T>(p);
  T* block = static_cast<T*>(scratch);
  T* stage = block + kBlock<T> * kN;
  const bool direct = y.rows >= kBlock<T>;
  const int64_t first = y.groups * p.channels * part / parts;
  const int64_t last = y.groups * p.channels * (part + 1) / parts;
  for (int64_t at = first; at < last; ++at) {
    const int64_t group = at / p.channels, c = at % p.channels;
    const TileLanes<T> lanes(y, group, 0);
    T* rows = static_cast<T*>(p.lanes) + (c * y.groups + group) * y.rows * kN;
    T* through = direct ? rows : block;
    if constexpr (kToLanes) {
      pack<V, T>(source, lanes, y.rows, c, c + 1, through, stage);
      for (int64_t i = 0; !direct && i < y.rows * kN; i += V::kWidth) {
        V::load(block + i).store(rows + i);
      }
    } else {
      for (int64_t i = 0; !direct && i < y.rows * kN; i += V::kWidth) {
        V::load(rows + i).store(block + i);
      }
      const Targets<T, T> targets = targets_of<T, T>(target, lanes, y.rows);
      unpack<false, V, T>(target, lanes, targets, c, y.rows, through, 0, stage);
    }
  }
}
