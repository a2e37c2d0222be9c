// Columns of a batch: moving runs of samples, and turning channels into lanes. Included once per
// ISA, after packing.inl and vec_*.h.

// A run of neighbouring samples of one series.
struct Run {
  int64_t item;
  int64_t start;
  int64_t count;
};

// The run that begins at column j and ends with its series or before column `end`.
static inline Run run_at(int64_t j, int64_t end, int64_t length) {
  const int64_t item = j / length, start = j % length;
  return {item, start, min_of(length - start, end - j)};
}

// Asks for the n neighbours at p: what comes next lies a whole channel or series further, where
// the processor's own prefetching does not look. Any address will do.
template <typename T>
static inline void prefetch(const T* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    __builtin_prefetch(p + i);
  }
}

template <typename V>
static inline void copy_run(typename V::T* to, const typename V::T* from, int64_t n) {
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) {
    V::loadu(from + i).storeu(to + i);
  }
  if (i < n) {
    V::load_part(from + i, n - i).store_part(to + i, n - i);
  }
}

template <typename V>
static inline void copy_run(typename V::T* to,
                            const typename V::T* from,
                            int64_t stride,
                            int64_t n) {
  if (stride == 1) {
    copy_run<V>(to, from, n);
  } else {
    for (int64_t i = 0; i < n; ++i) {
      to[i] = from[i * stride];
    }
  }
}

// lanes[(j - begin) * stride + c] = x[n, first + c, l] for the columns j in [begin, end) and c in
// [0, width), zeros for channels that x does not have; width is a multiple of a transpose's block.
template <typename T>
static void channels_to_lanes(const TensorView& x,
                              int64_t length,
                              int64_t channels,
                              int64_t first,
                              int64_t width,
                              int64_t begin,
                              int64_t end,
                              T* lanes,
                              int64_t stride) {
  constexpr int kB = kBlock<T>;
  static constexpr T kZeros[kB] = {};
  Run run;
  for (int64_t j = begin; j < end; j += run.count) {
    run = run_at(j, end, length);
    T* rows = lanes + (j - begin) * stride;
    const T* item =
        static_cast<const T*>(x.data) + run.item * x.stride[0] + run.start * x.stride[2];
    const bool whole = x.stride[2] == 1 && run.count >= kB;
    for (int64_t c0 = 0; c0 < width; c0 += kB) {
      const T* series[kB];
      int64_t step[kB];
      for (int i = 0; i < kB; ++i) {
        const bool exists = first + c0 + i < channels;
        series[i] = exists ? item + (first + c0 + i) * x.stride[1] : kZeros;
        step[i] = exists ? x.stride[2] : 0;
      }
      for (int64_t l = 0; whole && l < run.count; l += kB) {
        const int64_t at = min_of(l, run.count - kB);  // the last block ends with the run
        const T* from[kB];
        T* to[kB];
        for (int i = 0; i < kB; ++i) {
          from[i] = series[i] + at * step[i];
          to[i] = rows + (at + i) * stride + c0;
          __builtin_prefetch(from[i] + width * x.stride[1]);  // the next panel
        }
        transpose(from, to);
      }
      for (int64_t l = 0; !whole && l < run.count; ++l) {
        for (int i = 0; i < kB; ++i) {
          rows[l * stride + c0 + i] = series[i][l * step[i]];
        }
      }
    }
  }
}
