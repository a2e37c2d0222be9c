// BatchNorm with or without ReLU, of tensors in lanes. Included once per ISA, after lane_rows.inl.
//
// A channel is one run of rows. Every sum of kSumSteps steps runs over kSumRows interleaved rows of
// lanes; longer ones continue in double. Neither the ISA nor the threads, which share out channels,
// change a bit. Idle rows and lanes hold zeros: sums of samples need not leave them out, sums of
// distances from the mean do, and outputs are zeros there.

constexpr int kSumRows = 2;
constexpr int64_t kSumSteps = 64;  // bounds rounding; 32 and 128 take -2 to +4 % on one thread

template <typename V>
struct LaneSums {
  static constexpr int kPerRow = kLanes<typename V::T> / V::kWidth;
  static constexpr int kVectors = kSumRows * kPerRow;
  V sum[kVectors];

  void clear() {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
      sum[i] = V::splat(0);
    }
  }
  double total() const {
    alignas(kRowBytes) typename V::T row[kLanes<typename V::T>];
    for (int i = 0; i < kPerRow; ++i) {
      add(sum[i], sum[i + kPerRow]).store(row + i * V::kWidth);
    }
    for (int half = kLanes<typename V::T> / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) {
        row[i] += row[i + half];
      }
    }
    return static_cast<double>(row[0]);
  }
};

// Sums of samples, and of products with them.
template <typename V>
struct TwoSums {
  LaneSums<V> sums, products;
  double sum = 0, product = 0;

  TwoSums() { clear(); }
  void clear() {
    sums.clear();
    products.clear();
  }
  void add_sample(int i, V x, V with) {
    sums.sum[i] = add(sums.sum[i], x);
    products.sum[i] = fma(with, x, products.sum[i]);
  }
  void flush() {
    sum += sums.total();
    product += products.total();
    clear();
  }
};

// Rows that follow each other in a channel, in which the same lanes hold samples.
struct RowSpan {
  int64_t begin, end;
  uint32_t real;
};

// The spans of all groups: at most two each.
static int64_t row_spans(const LaneOrder& y, RowSpan* spans) {
  int64_t count = 0;
  for (int64_t g = 0; g < y.groups; ++g) {
    const LaneSets sets = lane_sets(y, g);
    const int64_t begin = g * y.rows, idle = sets.first != 0 ? y.idle : 0;
    if (idle > 0) {
      spans[count++] = {begin, begin + idle, sets.real & ~sets.first};
    }
    spans[count++] = {begin + idle, begin + y.rows, sets.real};
  }
  return count;
}

// Calls visit(vector's offset, its sum's number, its real lanes) for each vector of a channel, and
// flush() after at most kSumSteps steps of each sum.
template <typename V, typename Visit, typename Flush>
static inline void visit_rows(const RowSpan* spans, int64_t n_spans, Visit visit, Flush flush) {
  constexpr int kN = kLanes<typename V::T>;
  constexpr int kPerRow = kN / V::kWidth;
  for (int64_t s = 0; s < n_spans; ++s) {
    uint32_t real[kPerRow];
    for (int i = 0; i < kPerRow; ++i) {
      real[i] = lanes_from<V>(spans[s].real, i * V::kWidth);
    }
    for (int64_t r = spans[s].begin; r < spans[s].end;) {
      const int64_t stop = min_of(spans[s].end, r + kSumSteps * kSumRows);
      for (; r + kSumRows <= stop; r += kSumRows) {
#pragma GCC unroll 16
        for (int i = 0; i < kSumRows * kPerRow; ++i) {
          visit(r * kN + i * V::kWidth, i, real[i % kPerRow]);
        }
      }
      for (; r < stop; ++r) {
#pragma GCC unroll 16
        for (int i = 0; i < kPerRow; ++i) {
          visit(r * kN + i * V::kWidth, i, real[i]);
        }
      }
      flush();
    }
  }
}

template <typename T>
static inline T entry(const void* vector, int64_t i, T otherwise) {
  return vector ? static_cast<const T*>(vector)[i] : otherwise;
}

template <typename T>
struct Statistics {
  T mean;
  double squares;  // sum of the squared distances from the mean
};

// In two passes, the second of which also corrects the mean (Chan, Golub and LeVeque, "Algorithms
// for computing the sample variance", 1983).
template <typename V>
static Statistics<typename V::T> statistics(const typename V::T* samples,
                                            const RowSpan* spans,
                                            int64_t n_spans,
                                            double n) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  LaneSums<V> sums;
  sums.clear();
  double total = 0;
  visit_rows<V>(
      spans, n_spans,
      [&](int64_t at, int i, uint32_t) { sums.sum[i] = add(sums.sum[i], V::load(samples + at)); },
      [&] {
        total += sums.total();
        sums.clear();
      });
  // Sums of the largest floats leave their range, and only then: such a channel is summed in
  // double.
  const auto in_double = [&](auto term) {
    double sum = 0;
    for (int64_t s = 0; s < n_spans; ++s) {
      for (int64_t at = spans[s].begin * kN; at < spans[s].end * kN; ++at) {
        sum += (spans[s].real >> (at % kN) & 1) != 0 ? term(static_cast<double>(samples[at])) : 0;
      }
    }
    return sum;
  };
  const bool wide = !(total - total == 0);
  const T first = static_cast<T>((wide ? in_double([](double x) { return x; }) : total) / n);
  if (!(first - first == 0)) {  // an infinite sample, or a NaN
    return {first, static_cast<double>(first - first)};
  }
  TwoSums<V> distances;
  const V centre = V::splat(first), zero = V::splat(0);
  visit_rows<V>(
      spans, n_spans,
      [&](int64_t at, int i, uint32_t real) {
        const V x = choose(real, sub(V::load(samples + at), centre), zero);
        distances.add_sample(i, x, x);
      },
      [&] { distances.flush(); });
  double shift = distances.sum, squares = distances.product;
  const double mean = static_cast<double>(first);
  if (!(shift - shift == 0 && squares - squares == 0)) {
    shift = in_double([mean](double x) { return x - mean; });
    squares = in_double([mean](double x) { return (x - mean) * (x - mean); });
  }
  shift /= n;
  squares -= shift * shift * n;
  // Rounding must not make a variance negative; a NaN stays.
  return {static_cast<T>(mean + shift), squares < 0 ? 0 : squares};
}

// One channel's outputs.
template <typename V, bool kRelu, bool kAdds>
static void norm_channel(const BatchNormRelu& p,
                         int64_t c,
                         V mean,
                         V scale,
                         const RowSpan* spans,
                         int64_t n_spans) {
  using T = typename V::T;
  const int64_t first = c * p.order.channel();
  const T* x = static_cast<const T*>(p.in) + first;
  const T* added = kAdds ? static_cast<const T*>(p.added) + first : nullptr;
  T* y = static_cast<T*>(p.out) + first;
  const V shift = V::splat(entry<T>(p.bias, c, T(0))), zero = V::splat(0);
  visit_rows<V>(
      spans, n_spans,
      [&](int64_t at, int, uint32_t real) {
        V z = fma(sub(V::load(x + at), mean), scale, shift);
        if constexpr (kAdds) {
          z = add(z, V::load(added + at));
        }
        choose(real, kRelu ? relu(z) : z, zero).store(y + at);
      },
      [] {});
}

// Scratch: the row spans.
template <typename V>
static void batch_norm_relu(const BatchNormRelu& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  auto* spans = static_cast<RowSpan*>(scratch);
  const int64_t n_spans = row_spans(p.order, spans);
  const double n = static_cast<double>(p.order.batch * p.order.length);
  for (int64_t c = p.channels * part / parts; c < p.channels * (part + 1) / parts; ++c) {
    const T* x = static_cast<const T*>(p.in) + c * p.order.channel();
    const Statistics<T> found =
        p.training
            ? statistics<V>(x, spans, n_spans, n)
            : Statistics<T>{static_cast<const T*>(p.running_mean)[c],
                            static_cast<double>(static_cast<const T*>(p.running_var)[c]) * n};
    const T invstd = static_cast<T>(1 / __builtin_sqrt(found.squares / n + p.eps));
    static_cast<T*>(p.mean)[c] = found.mean;
    static_cast<T*>(p.invstd)[c] = invstd;
    if (p.training && p.running_mean) {
      T& mean = static_cast<T*>(p.running_mean)[c];
      mean = static_cast<T>(p.momentum * static_cast<double>(found.mean) +
                            (1 - p.momentum) * static_cast<double>(mean));
    }
    if (p.training && p.running_var) {
      T& var = static_cast<T*>(p.running_var)[c];
      var = static_cast<T>(p.momentum * (found.squares / (n - 1)) +
                           (1 - p.momentum) * static_cast<double>(var));
    }
    const V mean = V::splat(found.mean);
    const V scale = V::splat(invstd * entry<T>(p.weight, c, T(1)));
    const auto norm = p.added != nullptr ? norm_channel<V, true, true>
                      : p.relu           ? norm_channel<V, true, false>
                                         : norm_channel<V, false, false>;
    norm(p, c, mean, scale, spans, n_spans);
  }
}

template <typename V, bool kRelu, bool kAdds>
static void norm_gradients(const BatchNormReluGradient& p,
                           int64_t part,
                           int64_t parts,
                           void* scratch) {
  using T = typename V::T;
  auto* spans = static_cast<RowSpan*>(scratch);
  const int64_t n_spans = row_spans(p.order, spans);
  const double n = static_cast<double>(p.order.batch * p.order.length);
  for (int64_t c = p.channels * part / parts; c < p.channels * (part + 1) / parts; ++c) {
    const int64_t first = c * p.order.channel();
    const T* samples = static_cast<const T*>(p.in) + first;
    const T* output = kAdds ? static_cast<const T*>(p.output) + first : nullptr;
    const T* grads = static_cast<const T*>(p.grad) + first;
    T* out = static_cast<T*>(p.grad_in) + first;
    T* of_added = kAdds ? static_cast<T*>(p.grad_added) + first : nullptr;
    const T invstd = static_cast<const T*>(p.invstd)[c];
    const T factor = invstd * entry<T>(p.weight, c, T(1));
    const V mean = V::splat(static_cast<const T*>(p.mean)[c]), scale = V::splat(factor);
    const V shift = V::splat(entry<T>(p.bias, c, T(0))), zero = V::splat(0);
    TwoSums<V> sums;
    visit_rows<V>(
        spans, n_spans,
        [&](int64_t at, int i, uint32_t) {
          const V x = sub(V::load(samples + at), mean);
          V grad = V::load(grads + at);
          if constexpr (kAdds) {
            grad = relu_gradient(V::load(output + at), grad);
            grad.store(of_added + at);
          } else if constexpr (kRelu) {
            grad = relu_gradient(fma(x, scale, shift), grad);
          }
          sums.add_sample(i, grad, x);
        },
        [&] { sums.flush(); });
    const double sum = sums.sum, product = sums.product * static_cast<double>(invstd);
    static_cast<T*>(p.grad_bias)[c] = static_cast<T>(sum);
    static_cast<T*>(p.grad_weight)[c] = static_cast<T>(product);
    // grad_in = scale * dz + (offset + slope * (x - mean))
    const double each = p.training ? static_cast<double>(factor) / n : 0;
    const V offset = V::splat(static_cast<T>(-each * sum));
    const V slope = V::splat(static_cast<T>(-each * product * static_cast<double>(invstd)));
    visit_rows<V>(
        spans, n_spans,
        [&](int64_t at, int, uint32_t real) {
          const V x = sub(V::load(samples + at), mean);
          V grad = V::load((kAdds ? of_added : grads) + at);
          if constexpr (kRelu && !kAdds) {
            grad = relu_gradient(fma(x, scale, shift), grad);
          }
          const V rest = p.training ? fma(x, slope, offset) : zero;  // x may be infinite
          choose(real, fma(grad, scale, rest), zero).store(out + at);
        },
        [] {});
  }
}

template <typename V>
static void batch_norm_relu_gradient(const BatchNormReluGradient& p,
                                     int64_t part,
                                     int64_t parts,
                                     void* scratch) {
  const auto gradients = p.output != nullptr ? norm_gradients<V, true, true>
                         : p.relu            ? norm_gradients<V, true, false>
                                             : norm_gradients<V, false, false>;
  gradients(p, part, parts, scratch);
}
