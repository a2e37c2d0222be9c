// Dense 1x1 convolution: three matrix products. Included once per ISA, after columns.inl and
// point_tile.inl. One chain per output, in the order of the depth: for fprop and dgrad that is the
// channels, so the bits depend on nothing but the problem.

// lanes[k][i] = in[column begin + i, channel k] for the columns [begin, end) of one panel of
// `width`; zeros beyond them.
template <typename V>
static void pack_panel(const Pointwise& p,
                       int64_t begin,
                       int64_t end,
                       int64_t width,
                       typename V::T* lanes) {
  using T = typename V::T;
  for (int64_t k = 0; end - begin < width && k < p.depth; ++k) {
    for (int64_t i = end - begin; i < width; ++i) {
      lanes[k * width + i] = T(0);
    }
  }
  Run run;
  for (int64_t j = begin; j < end; j += run.count) {
    run = run_at(j, end, p.length);
    T* to = lanes + (j - begin);
    const T* from =
        static_cast<const T*>(p.in.data) + run.item * p.in.stride[0] + run.start * p.in.stride[2];
    if (run.count == 2 * V::kWidth && p.in.stride[2] == 1) {
      for (int64_t k = 0; k < p.depth; ++k) {
        prefetch(from + k * p.in.stride[1] + width, width);  // the next panel
        V::loadu(from + k * p.in.stride[1]).store(to + k * width);
        V::loadu(from + k * p.in.stride[1] + V::kWidth).store(to + k * width + V::kWidth);
      }
    } else {
      for (int64_t k = 0; k < p.depth; ++k) {
        copy_run<V>(to + k * width, from + k * p.in.stride[1], p.in.stride[2], run.count);
      }
    }
  }
}

// Scratch: one panel of inputs and one of outputs.
template <typename V>
static void pointwise(const Pointwise& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  constexpr int64_t kPanel = 2 * V::kWidth;
  T* lanes = static_cast<T*>(scratch);
  T* sums = lanes + p.depth * kPanel;
  const T* weight = static_cast<const T*>(p.weight);
  const int64_t columns = p.batch * p.length;
  const int64_t panels = ceil_div(columns, kPanel);
  for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; ++panel) {
    const int64_t begin = panel * kPanel, end = min_of(columns, begin + kPanel);
    pack_panel<V>(p, begin, end, kPanel, lanes);
    Run run = run_at(begin, end, p.length);
    if (run.count == kPanel) {  // straight to where the outputs belong
      T* out = static_cast<T*>(p.out) + run.item * p.rows * p.length + run.start;
      for (int64_t r = 0; r < p.rows; ++r) {
        prefetch(out + r * p.length, kPanel);
      }
      point_panel<V, 2>(weight, p.rows, p.rows, lanes, kPanel, p.depth, false, out, p.length);
      continue;
    }
    point_panel<V, 2>(weight, p.rows, p.rows, lanes, kPanel, p.depth, false, sums, kPanel);
    for (int64_t j = begin; j < end; j += run.count) {
      run = run_at(j, end, p.length);
      T* out = static_cast<T*>(p.out) + run.item * p.rows * p.length + run.start;
      for (int64_t r = 0; r < p.rows; ++r) {
        copy_run<V>(out + r * p.length, sums + r * kPanel + (j - begin), run.count);
      }
    }
  }
}

// Scratch: kPointDepth columns of the row side and of one panel of the lane side, both with their
// channels side by side. One chain per weight and split, in the order of the columns.
template <typename V>
static void pointwise_gradient(const PointwiseGradient& p,
                               int64_t part,
                               int64_t parts,
                               void* scratch) {
  using T = typename V::T;
  constexpr int64_t kPanel = 2 * V::kWidth;
  const int64_t row_stride = ceil_div(p.rows, kLanes<T>) * kLanes<T>;
  T* rows = static_cast<T*>(scratch);
  T* lanes = rows + kPointDepth * row_stride;
  const int64_t columns = p.batch * p.length;
  const int64_t panels = ceil_div(p.lanes, kPanel);
  const int64_t first = p.splits * panels * part / parts;
  const int64_t last = p.splits * panels * (part + 1) / parts;
  for (int64_t split = first / panels; split * panels < last; ++split) {
    const int64_t panel_begin = max_of(first - split * panels, 0);
    const int64_t panel_end = min_of(last - split * panels, panels);
    const int64_t begin = columns * split / p.splits, end = columns * (split + 1) / p.splits;
    T* partial = static_cast<T*>(p.partial) + split * p.rows * p.partial_stride;
    for (int64_t j = begin; j < end; j += kPointDepth) {
      const int64_t stop = min_of(end, j + kPointDepth);
      channels_to_lanes(p.row_side, p.length, p.rows, 0, row_stride, j, stop, rows, row_stride);
      for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        const int64_t c = panel * kPanel;
        const int64_t width = min_of(kPanel, ceil_div(p.lanes - c, V::kWidth) * V::kWidth);
        channels_to_lanes(p.lane_side, p.length, p.lanes, c, width, j, stop, lanes, width);
        (width == kPanel ? point_panel<V, 2> : point_panel<V, 1>)(rows, row_stride, p.rows, lanes,
                                                                  width, stop - j, j > begin,
                                                                  partial + c, p.partial_stride);
      }
    }
  }
}
