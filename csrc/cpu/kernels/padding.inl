// What a kernel reads beyond the ends of a series: the padding modes. Rows hold their padding
// (rows.cpp). Included once per ISA and kind of tile, after numbers.inl.

// A sample of a signal as the kernel's type.
template <typename T, typename S>
static inline T number_of(S x) {
  if constexpr (kSame<T, S>) {
    return x;
  } else {
    return to_acc(x);
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
  const auto read_outside = [&](int64_t j, int64_t stop) {
    const bool same = mode == PaddingMode::zeros || mode == PaddingMode::replicate;
    if (same && j < stop) {
      const int64_t nearest = first + j * step < 0 ? 0 : length - 1;
      const T value = mode == PaddingMode::zeros ? T{0} : number_of<T>(series[nearest * stride]);
      for (; j < stop; ++j) {
        out[j] = value;
      }
    }
    for (; j < stop; ++j) {
      out[j] = number_of<T>(series[fold_position(first + j * step, length, mode) * stride]);
    }
  };
  read_outside(0, begin);
  if (stride * step == 1) {  // the usual case, which the compiler turns into vectors
    for (int64_t j = begin; j < end; ++j) {
      out[j] = number_of<T>(series[first + j]);
    }
  } else {
    for (int64_t j = begin; j < end; ++j) {
      out[j] = number_of<T>(series[(first + j * step) * stride]);
    }
  }
  read_outside(end, count);
}
