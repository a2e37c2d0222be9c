// Dense 1x1 convolution of tensors in lanes: two matrix products, whose columns are all positions
// of a channel; idle ones hold zeros, and nothing but zeros comes of them. Included once per ISA,
// after point_tile.inl.

// out[r, j] = sum over k: weight[k, r] * in[k, j], and what is added to it. One chain per output,
// in the order of the channels. Scratch: a panel of inputs, whose channels would else compete for
// the same places in L1 (they are a power of two apart, or nearly).
template <typename V>
static void pointwise(const Pointwise& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  T* panel = static_cast<T*>(scratch);
  const T* weight = static_cast<const T*>(p.weight);
  const int64_t rows = p.columns / kLanes<T>;
  const int64_t end = rows * (part + 1) / parts * kLanes<T>;
  for (int64_t begin = rows * part / parts * kLanes<T>; begin < end; begin += kPointColumns) {
    const int64_t width = min_of(kPointColumns, end - begin);
    const T* in = static_cast<const T*>(p.in) + begin;
    for (int64_t k = 0; k < p.depth; ++k) {
      for (int64_t j = 0; j < width; j += V::kWidth) {
        __builtin_prefetch(in + k * p.columns + j + width);  // the next panel
        V::load(in + k * p.columns + j).store(panel + k * width + j);
      }
    }
    const T* bias = static_cast<const T*>(p.bias);
    const T* added = p.added == nullptr ? nullptr : static_cast<const T*>(p.added) + begin;
    T* out = static_cast<T*>(p.out) + begin;
    const int64_t n_tiles = ceil_div(p.rows, kPointRows);
    for (int64_t t = 0; t < n_tiles; ++t) {
      const int64_t r = p.rows * t / n_tiles, count = p.rows * (t + 1) / n_tiles - r;
      for (int64_t j = 0; j < width;) {
        const bool two = j + 2 * V::kWidth <= width;
        const auto tile = pick<2 * kPointRows>(
            2 * (count - 1) + two, []<int kI>() { return point_tile<V, kI / 2 + 1, kI % 2 + 1>; });
        tile(weight + r, p.rows, panel + j, width, p.depth, bias == nullptr ? nullptr : bias + r,
             added == nullptr ? nullptr : added + r * p.columns + j, out + r * p.columns + j,
             p.columns);
        j += two ? 2 * V::kWidth : V::kWidth;
      }
    }
  }
}

// Sums over the lanes of kA x kB products of rows, in registers.
template <typename V, int kA, int kB>
static void dot_tile(const typename V::T* a,
                     const typename V::T* b,
                     int64_t columns,
                     int64_t stride,
                     typename V::T* sums,
                     int64_t a_stride,
                     int64_t b_stride) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  constexpr int kRounded = (kA * kB + V::kWidth - 1) / V::kWidth * V::kWidth;
  alignas(kRowBytes) T lanes[kA * kB * kN], totals[kRounded] = {};
  for (int h = 0; h < kN; h += V::kWidth) {
    V sum[kA][kB];
#pragma GCC unroll 8
    for (int i = 0; i < kA; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kB; ++j) {
        sum[i][j] = V::splat(0);
      }
    }
    for (int64_t c = h; c < columns; c += kN) {
      V right[kB];
#pragma GCC unroll 8
      for (int j = 0; j < kB; ++j) {
        right[j] = V::load(b + j * stride + c);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kA; ++i) {
        const V left = V::load(a + i * stride + c);
#pragma GCC unroll 8
        for (int j = 0; j < kB; ++j) {
          sum[i][j] = fma(left, right[j], sum[i][j]);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kA; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kB; ++j) {
        sum[i][j].store(lanes + (i * kB + j) * kN + h);
      }
    }
  }
  // Whole vectors: scalar loads after a masked store wait (AVX2: 4 to 12 % of this kernel).
  add_lane_sums<V, kRounded>(
      [&](int i) { return i < kA * kB ? fold<V>(lanes + i * kN) : V::splat(0); }, totals);
  for (int i = 0; i < kA; ++i) {
    for (int j = 0; j < kB; ++j) {
      sums[i * a_stride + j * b_stride] += totals[i * kB + j];
    }
  }
}

// out[r, k] = sum over the columns j: grad[r, j] * in[k, j]. Lanes run along the columns; sums over
// kDotColumns of them are added in their order.
template <typename V>
static void pointwise_gradient(const PointwiseGradient& p, int64_t part, int64_t parts, void*) {
  using T = typename V::T;
  struct Factor {
    const T* data;
    int64_t rows, out_stride;
  };
  const int64_t begin = p.rows * part / parts, rows = p.rows * (part + 1) / parts - begin;
  if (rows * p.depth == 0) {
    return;
  }
  T* out = static_cast<T*>(p.out) + begin * p.depth;
  for (int64_t i = 0; i < rows * p.depth; ++i) {
    out[i] = T(0);
  }
  const Factor grad = {static_cast<const T*>(p.grad) + begin * p.columns, rows, p.depth};
  const Factor in = {static_cast<const T*>(p.in), p.depth, 1};
  // A tile's rows of the taller one stay in L1 while the other passes, whose columns fit into L2.
  const Factor& a = grad.rows < in.rows ? in : grad;
  const Factor& b = grad.rows < in.rows ? grad : in;
  const Tiles a_tiles(a.rows, kDotA), b_tiles(b.rows, kDotB);
  for (int64_t c = 0; c < p.columns; c += kDotColumns) {
    const int64_t columns = min_of(kDotColumns, p.columns - c);
    for (int64_t t = 0; t < a_tiles.count; ++t) {
      const int64_t i = a_tiles.begin(t);
      for (int64_t u = 0; u < b_tiles.count; ++u) {
        const int64_t j = b_tiles.begin(u);
        const auto tile = pick<kDotA * kDotB>(
            (a_tiles.size(t) - 1) * kDotB + b_tiles.size(u) - 1,
            []<int kI>() { return dot_tile<V, kI / kDotB + 1, kI % kDotB + 1>; });
        tile(a.data + i * p.columns + c, b.data + j * p.columns + c, columns, p.columns,
             out + i * a.out_stride + j * b.out_stride, a.out_stride, b.out_stride);
      }
    }
  }
}
