// Averages over bins, and their gradient: one series per lane, so that bins of any size are sums of
// whole vectors. Included once per ISA, after columns.inl.

// x[series][j] = lanes[j * kLanes + i] for series [first, first + count) of a (series, length)
// matrix.
template <typename T>
static void lanes_to_series(const T* lanes, int64_t count, int64_t length, T* x) {
  constexpr int kN = kLanes<T>;
  constexpr int kB = kBlock<T>;
  if (count < kN || length < kB) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < length; ++j) {
        x[i * length + j] = lanes[j * kN + i];
      }
    }
    return;
  }
  for (int64_t j = 0; j < length; j += kB) {
    const int64_t at = min_of(j, length - kB);  // the last block ends with the series
    for (int l = 0; l < kN; l += kB) {
      const T* from[kB];
      T* to[kB];
      for (int i = 0; i < kB; ++i) {
        from[i] = lanes + (at + i) * kN + l;
        to[i] = x + (l + i) * length + at;
      }
      transpose(from, to);
    }
  }
}

// Scratch: the inputs and the outputs of one vector row of series.
template <typename V, bool kGradient>
static void pool(const Pool& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  constexpr int64_t kN = kLanes<T>;
  const int64_t in_length = kGradient ? p.bins : p.length;
  const int64_t out_length = kGradient ? p.length : p.bins;
  T* in = static_cast<T*>(scratch);
  T* out = in + in_length * kN;
  const int64_t groups = ceil_div(p.series, kN);
  for (int64_t g = groups * part / parts; g < groups * (part + 1) / parts; ++g) {
    const int64_t first = g * kN, count = min_of(kN, p.series - first);
    const TensorView x = {static_cast<T*>(const_cast<void*>(p.in)) + first * in_length,
                          {0, in_length, 1}};
    channels_to_lanes(x, in_length, count, 0, kN, 0, in_length, in, kN);
    for (int64_t i = 0; kGradient && i < out_length * kN; i += V::kWidth) {
      V::splat(0).store(out + i);
    }
    for (int64_t bin = 0; bin < p.bins; ++bin) {
      const int64_t begin = bin * p.length / p.bins;
      const int64_t end = ceil_div((bin + 1) * p.length, p.bins);
      const V share = V::splat(static_cast<T>(1 / static_cast<double>(end - begin)));
      for (int64_t h = 0; h < kN; h += V::kWidth) {
        if (kGradient) {
          const V grad = mul(V::load(in + bin * kN + h), share);
          for (int64_t l = begin; l < end; ++l) {
            add(V::load(out + l * kN + h), grad).store(out + l * kN + h);
          }
        } else {
          V sum = V::load(in + begin * kN + h);
          for (int64_t l = begin + 1; l < end; ++l) {
            sum = add(sum, V::load(in + l * kN + h));
          }
          mul(sum, share).store(out + bin * kN + h);
        }
      }
    }
    lanes_to_series(out, count, out_length, static_cast<T*>(p.out) + first * out_length);
  }
}
