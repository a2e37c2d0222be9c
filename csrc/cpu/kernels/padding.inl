// What a kernel reads beyond the ends of a series: the padding modes. Blocks read
// single samples by fold_position (blocks.inl), and rows beyond the ends (rows.cpp).

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
