// BatchNorm and ReLU in one pass over memory each way. Included once per ISA, after columns.inl.
//
// The samples of a few channels are first copied into scratch, where all passes over a channel meet
// aligned vectors side by side, whatever the length and the strides. Every sum of kSumSteps steps
// runs over kSumRows interleaved scratch rows of lanes; longer ones continue in double. Neither the
// ISA nor the threads, which share out channels, change a bit.

constexpr int kSumRows = 2;
constexpr int64_t kSumSteps = 64;  // bounds rounding; 32 and 128 take -2 to +4 % on one thread

template <typename V>
struct LaneSums {
  static constexpr int kVectors = kSumRows * kLanes<typename V::T> / V::kWidth;
  static constexpr int kStep = kVectors * V::kWidth;
  V sum[kVectors];

  void clear() {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
      sum[i] = V::splat(0);
    }
  }
  double total() const {
    alignas(64) typename V::T row[kLanes<typename V::T>];
    for (int i = 0; i < kVectors / kSumRows; ++i) {
      add(sum[i], sum[i + kVectors / kSumRows]).store(row + i * V::kWidth);
    }
    for (int half = kLanes<typename V::T> / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) {
        row[i] += row[i + half];
      }
    }
    return static_cast<double>(row[0]);
  }
};

// Channels [c0, c1) of x: samples[((c - c0) * step) + n * length + l] = x[n, c, l]. Asks for the
// places in `out`, contiguous or null, that the caller is going to write.
template <typename V>
static void gather_channels(const TensorView& x,
                            int64_t c0,
                            int64_t c1,
                            int64_t batch,
                            int64_t channels,
                            int64_t length,
                            int64_t step,
                            typename V::T* samples,
                            const void* out) {
  for (int64_t n = 0; n < batch; ++n) {
    const auto* from = static_cast<const typename V::T*>(x.data) + n * x.stride[0];
    for (int64_t c = c0; c < c1; ++c) {
      copy_run<V>(samples + (c - c0) * step + n * length, from + c * x.stride[1], x.stride[2],
                  length);
    }
    if (out) {
      prefetch(static_cast<const typename V::T*>(out) + (n * channels + c0) * length,
               (c1 - c0) * length);
    }
  }
}

// Asks for the samples of one series of the channels that are gathered next.
template <typename T>
static inline void prefetch_series(const TensorView& x, int64_t item, int64_t c, int64_t length) {
  prefetch(static_cast<const T*>(x.data) + item * x.stride[0] + c * x.stride[1], length);
}

template <typename T>
static void fill(T* from, T* to, T value) {
  for (; from < to; ++from) {
    *from = value;
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

template <typename T>
static double sum_of(const T* samples, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += static_cast<double>(samples[i]);
  }
  return sum;
}

// In two passes, the second of which also corrects the mean (Chan, Golub and LeVeque, "Algorithms
// for computing the sample variance", 1983). Overwrites the padding behind the n samples.
template <typename V>
static Statistics<typename V::T> statistics(typename V::T* samples, int64_t n, int64_t size) {
  using T = typename V::T;
  using Sums = LaneSums<V>;
  fill(samples + n, samples + size, T(0));
  double total = 0;
  for (int64_t i = 0; i < size;) {
    Sums sums;
    sums.clear();
    for (const int64_t end = min_of(size, i + kSumSteps * Sums::kStep); i < end; i += Sums::kStep) {
#pragma GCC unroll 16
      for (int j = 0; j < Sums::kVectors; ++j) {
        sums.sum[j] = add(sums.sum[j], V::load(samples + i + j * V::kWidth));
      }
    }
    total += sums.total();
  }
  // Sums of the largest floats leave their range, and only then: such a channel is summed in
  // double.
  const bool wide = !(total - total == 0);
  const T first = static_cast<T>((wide ? sum_of(samples, n) : total) / static_cast<double>(n));
  if (!(first - first == 0)) {  // an infinite sample, or a NaN
    return {first, static_cast<double>(first - first)};
  }
  fill(samples + n, samples + size, first);
  double shift = 0, squares = 0;
  const V centre = V::splat(first);
  for (int64_t i = 0; i < size;) {
    Sums sums, products;
    sums.clear();
    products.clear();
    for (const int64_t end = min_of(size, i + kSumSteps * Sums::kStep); i < end; i += Sums::kStep) {
#pragma GCC unroll 16
      for (int j = 0; j < Sums::kVectors; ++j) {
        const V x = sub(V::load(samples + i + j * V::kWidth), centre);
        sums.sum[j] = add(sums.sum[j], x);
        products.sum[j] = fma(x, x, products.sum[j]);
      }
    }
    shift += sums.total();
    squares += products.total();
  }
  if (!(shift - shift == 0 && squares - squares == 0)) {
    const double mean = static_cast<double>(first);
    shift = squares = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double x = static_cast<double>(samples[i]) - mean;
      shift += x;
      squares += x * x;
    }
  }
  shift /= static_cast<double>(n);
  squares -= shift * shift * static_cast<double>(n);
  // Rounding must not make a variance negative; a NaN stays.
  return {static_cast<T>(static_cast<double>(first) + shift), squares < 0 ? 0 : squares};
}

// Statistics of one channel, and what follows from them.
template <typename V>
static void train_channel(const BatchNormRelu& p, int64_t c, typename V::T* samples) {
  using T = typename V::T;
  const double n = static_cast<double>(p.batch * p.length);
  const Statistics<T> found =
      statistics<V>(samples, p.batch * p.length, channel_samples(p.batch, p.length));
  static_cast<T*>(p.mean)[c] = found.mean;
  static_cast<T*>(p.invstd)[c] = static_cast<T>(1 / __builtin_sqrt(found.squares / n + p.eps));
  if (p.running_mean) {
    T& mean = static_cast<T*>(p.running_mean)[c];
    mean = static_cast<T>(p.momentum * static_cast<double>(found.mean) +
                          (1 - p.momentum) * static_cast<double>(mean));
  }
  if (p.running_var) {
    T& var = static_cast<T*>(p.running_var)[c];
    var = static_cast<T>(p.momentum * (found.squares / (n - 1)) +
                         (1 - p.momentum) * static_cast<double>(var));
  }
}

template <typename V>
static inline V normalised(V x, V mean, V scale, V shift) {
  return fma(sub(x, mean), scale, shift);
}

template <typename V>
static void batch_norm_relu(const BatchNormRelu& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  T* samples = static_cast<T*>(scratch);
  const int64_t step = channel_samples(p.batch, p.length);
  const int64_t block = channel_block(p.batch, p.length, 1);
  const int64_t last = p.channels * (part + 1) / parts;
  for (int64_t c0 = p.channels * part / parts, c1; c0 < last; c0 = c1) {
    c1 = min_of(last, c0 + block);
    gather_channels<V>(p.in, c0, c1, p.batch, p.channels, p.length, step, samples, p.out);
    for (int64_t c = c0; c < c1; ++c) {
      train_channel<V>(p, c, samples + (c - c0) * step);
    }
    for (int64_t item = 0; item < p.batch; ++item) {
      for (int64_t c = c0; c < c1; ++c) {
        const V mean = V::splat(static_cast<const T*>(p.mean)[c]);
        const V shift = V::splat(entry<T>(p.bias, c, T(0)));
        const V scale = V::splat(static_cast<const T*>(p.invstd)[c] * entry<T>(p.weight, c, T(1)));
        const T* x = samples + (c - c0) * step + item * p.length;
        T* y = static_cast<T*>(p.out) + (item * p.channels + c) * p.length;
        prefetch_series<T>(p.in, item, c + block, p.length);
        int64_t l = 0;
        for (; l + V::kWidth <= p.length; l += V::kWidth) {
          relu(normalised(V::loadu(x + l), mean, scale, shift)).storeu(y + l);
        }
        if (const int64_t rest = p.length - l; rest > 0) {
          const V input = V::load_part(x + l, rest);
          relu(normalised(input, mean, scale, shift)).store_part(y + l, rest);
        }
      }
    }
  }
}

// grad_in = scale * dz + (offset + slope * (x - mean)).
template <typename T>
struct Correction {
  T offset;
  T slope;
};

// The gradients of weight and bias. Zeroes the entries of `grads` that ReLU does not let through.
template <typename V>
static Correction<typename V::T> channel_gradient(const BatchNormReluGradient& p,
                                                  int64_t c,
                                                  typename V::T* samples,
                                                  typename V::T* grads) {
  using T = typename V::T;
  using Sums = LaneSums<V>;
  const int64_t n = p.batch * p.length;
  const int64_t size = channel_samples(p.batch, p.length);
  const T invstd = static_cast<const T*>(p.invstd)[c], centre = static_cast<const T*>(p.mean)[c];
  const T factor = invstd * entry<T>(p.weight, c, T(1));
  const V mean = V::splat(centre), shift = V::splat(entry<T>(p.bias, c, T(0)));
  const V scale = V::splat(factor);
  fill(samples + n, samples + size, centre);
  fill(grads + n, grads + size, T(0));
  double sum = 0, product = 0;
  for (int64_t i = 0; i < size;) {
    Sums sums, products;
    sums.clear();
    products.clear();
    for (const int64_t end = min_of(size, i + kSumSteps * Sums::kStep); i < end; i += Sums::kStep) {
#pragma GCC unroll 16
      for (int j = 0; j < Sums::kVectors; ++j) {
        const int64_t at = i + j * V::kWidth;
        const V x = sub(V::load(samples + at), mean);
        const V grad = relu_gradient(fma(x, scale, shift), V::load(grads + at));
        grad.store(grads + at);
        sums.sum[j] = add(sums.sum[j], grad);
        products.sum[j] = fma(x, grad, products.sum[j]);
      }
    }
    sum += sums.total();
    product += products.total();
  }
  product *= static_cast<double>(invstd);
  static_cast<T*>(p.grad_bias)[c] = static_cast<T>(sum);
  static_cast<T*>(p.grad_weight)[c] = static_cast<T>(product);
  const double each = static_cast<double>(factor) / static_cast<double>(n);
  return {static_cast<T>(-each * sum),
          static_cast<T>(-each * product * static_cast<double>(invstd))};
}

template <typename V>
static inline V input_gradient(V grad, V x, V mean, V scale, V slope, V offset) {
  return fma(grad, scale, fma(sub(x, mean), slope, offset));
}

template <typename V>
static void batch_norm_relu_gradient(const BatchNormReluGradient& p,
                                     int64_t part,
                                     int64_t parts,
                                     void* scratch) {
  using T = typename V::T;
  const int64_t step = channel_samples(p.batch, p.length);
  const int64_t block = channel_block(p.batch, p.length, 2);
  T* samples = static_cast<T*>(scratch);
  T* grads = samples + block * step;
  Correction<T> corrections[kChannelBlockMax];
  const int64_t last = p.channels * (part + 1) / parts;
  for (int64_t c0 = p.channels * part / parts, c1; c0 < last; c0 = c1) {
    c1 = min_of(last, c0 + block);
    gather_channels<V>(p.in, c0, c1, p.batch, p.channels, p.length, step, samples, p.grad_in);
    gather_channels<V>(p.grad, c0, c1, p.batch, p.channels, p.length, step, grads, nullptr);
    for (int64_t c = c0; c < c1; ++c) {
      corrections[c - c0] =
          channel_gradient<V>(p, c, samples + (c - c0) * step, grads + (c - c0) * step);
    }
    for (int64_t item = 0; item < p.batch; ++item) {
      for (int64_t c = c0; c < c1; ++c) {
        const V mean = V::splat(static_cast<const T*>(p.mean)[c]);
        const V scale = V::splat(static_cast<const T*>(p.invstd)[c] * entry<T>(p.weight, c, T(1)));
        const V slope = V::splat(corrections[c - c0].slope);
        const V offset = V::splat(corrections[c - c0].offset);
        const T* x = samples + (c - c0) * step + item * p.length;
        const T* grad = grads + (c - c0) * step + item * p.length;
        T* out = static_cast<T*>(p.grad_in) + (item * p.channels + c) * p.length;
        prefetch_series<T>(p.in, item, c + block, p.length);
        prefetch_series<T>(p.grad, item, c + block, p.length);
        int64_t l = 0;
        for (; l + V::kWidth <= p.length; l += V::kWidth) {
          input_gradient(V::loadu(grad + l), V::loadu(x + l), mean, scale, slope, offset)
              .storeu(out + l);
        }
        if (const int64_t rest = p.length - l; rest > 0) {
          const V dz = V::load_part(grad + l, rest), input = V::load_part(x + l, rest);
          input_gradient(dz, input, mean, scale, slope, offset).store_part(out + l, rest);
        }
      }
    }
  }
}
