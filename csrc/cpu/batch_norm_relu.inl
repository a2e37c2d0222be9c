// BatchNorm and ReLU in one pass over memory each way. Included once per ISA, after columns.inl.
//
// A channel's samples are first copied side by side into scratch, where all passes over them meet
// aligned vectors, whatever the length and the strides. Every sum runs over kSumRows interleaved
// scratch rows of lanes, which are added in double in a fixed order: neither the ISA nor the
// threads, which share out channels, change a bit.

constexpr int kSumRows = 2;

template <typename V>
struct LaneSums {
  static constexpr int kVectors = kSumRows * kLanes<typename V::T> / V::kWidth;
  V sum[kVectors];

  void clear() {
    for (int i = 0; i < kVectors; ++i) {
      sum[i] = V::splat(0);
    }
  }
  double total() const {
    constexpr int kSums = kVectors * V::kWidth;
    typename V::T lanes[kSums];
    double total[kSums];
    for (int i = 0; i < kVectors; ++i) {
      storeu(lanes + i * V::kWidth, sum[i]);
    }
    for (int i = 0; i < kSums; ++i) {
      total[i] = static_cast<double>(lanes[i]);
    }
    for (int half = kSums / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) {
        total[i] = total[i] + total[i + half];
      }
    }
    return total[0];
  }
};

// Entries of a channel of n samples in scratch: whole steps of LaneSums.
template <typename T>
static inline int64_t padded_size(int64_t n) {
  return ceil_div(n, kSumRows * kLanes<T>) * kSumRows * kLanes<T>;
}

// samples[n * length + l] = x[n, channel, l].
template <typename V>
static void gather_channel(const TensorView& x,
                           int64_t channel,
                           int64_t batch,
                           int64_t length,
                           typename V::T* samples) {
  const auto* from = static_cast<const typename V::T*>(x.data) + channel * x.stride[1];
  for (int64_t n = 0; n < batch; ++n) {
    copy_run<V>(samples + n * length, from + n * x.stride[0], x.stride[2], length);
  }
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

// In two passes, the second of which also corrects the mean (Chan, Golub and LeVeque, "Algorithms
// for computing the sample variance", 1983). Overwrites the padding behind the samples.
template <typename V>
static Statistics<typename V::T> statistics(typename V::T* samples, int64_t n) {
  using T = typename V::T;
  const int64_t size = padded_size<T>(n);
  LaneSums<V> sums, squares;
  sums.clear();
  fill(samples + n, samples + size, T(0));
  for (int64_t i = 0; i < size;) {
#pragma GCC unroll 16
    for (int j = 0; j < LaneSums<V>::kVectors; ++j, i += V::kWidth) {
      sums.sum[j] = add(sums.sum[j], V::load(samples + i));
    }
  }
  const T first = static_cast<T>(sums.total() / static_cast<double>(n));
  fill(samples + n, samples + size, first);
  sums.clear();
  squares.clear();
  const V centre = V::splat(first);
  for (int64_t i = 0; i < size;) {
#pragma GCC unroll 16
    for (int j = 0; j < LaneSums<V>::kVectors; ++j, i += V::kWidth) {
      const V x = sub(V::load(samples + i), centre);
      sums.sum[j] = add(sums.sum[j], x);
      squares.sum[j] = fma(x, x, squares.sum[j]);
    }
  }
  const double shift = sums.total() / static_cast<double>(n);
  const T mean = static_cast<T>(static_cast<double>(first) + shift);
  const double about_zero = squares.total() - shift * shift * static_cast<double>(n);
  // Rounding, or an infinity, must not make a variance below zero; a NaN stays.
  return {mean, about_zero < 0 ? 0 : about_zero};
}

template <typename V>
static inline V normalised(V x, V mean, V scale, V shift) {
  return fma(sub(x, mean), scale, shift);
}

template <typename V>
static void batch_norm_relu(const BatchNormRelu& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  T* samples = static_cast<T*>(scratch);
  const int64_t n = p.batch * p.length;
  T* means = static_cast<T*>(p.mean);
  T* invstds = static_cast<T*>(p.invstd);
  for (int64_t c = p.channels * part / parts; c < p.channels * (part + 1) / parts; ++c) {
    gather_channel<V>(p.in, c, p.batch, p.length, samples);
    if (p.training) {
      const Statistics<T> found = statistics<V>(samples, n);
      const double size = static_cast<double>(n);
      means[c] = found.mean;
      invstds[c] = static_cast<T>(1 / __builtin_sqrt(found.squares / size + p.eps));
      if (p.running_mean) {
        T& mean = static_cast<T*>(p.running_mean)[c];
        mean = static_cast<T>(p.momentum * static_cast<double>(found.mean) +
                              (1 - p.momentum) * static_cast<double>(mean));
      }
      if (p.running_var) {
        T& var = static_cast<T*>(p.running_var)[c];
        var = static_cast<T>(p.momentum * (found.squares / (size - 1)) +
                             (1 - p.momentum) * static_cast<double>(var));
      }
    }
    const V mean = V::splat(means[c]), shift = V::splat(entry<T>(p.bias, c, T(0)));
    const V scale = V::splat(invstds[c] * entry<T>(p.weight, c, T(1)));
    for (int64_t item = 0; item < p.batch; ++item) {
      const T* x = samples + item * p.length;
      T* y = static_cast<T*>(p.out) + (item * p.channels + c) * p.length;
      int64_t l = 0;
      for (; l + V::kWidth <= p.length; l += V::kWidth) {
        storeu(y + l, relu(normalised(loadu(x + l), mean, scale, shift)));
      }
      if (l < p.length) {
        const int64_t rest = p.length - l;
        store_part(y + l, relu(normalised(load_part(x + l, rest), mean, scale, shift)), rest);
      }
    }
  }
}

template <typename V>
static inline V correct(V grad, V x, V mean, V slope, V offset) {
  return add(fma(sub(x, mean), slope, offset), grad);
}

template <typename V>
static void batch_norm_relu_gradient(const BatchNormReluGradient& p,
                                     int64_t part,
                                     int64_t parts,
                                     void* scratch) {
  using T = typename V::T;
  const int64_t n = p.batch * p.length;
  const int64_t size = padded_size<T>(n);
  T* samples = static_cast<T*>(scratch);
  T* grads = samples + size;
  for (int64_t c = p.channels * part / parts; c < p.channels * (part + 1) / parts; ++c) {
    gather_channel<V>(p.in, c, p.batch, p.length, samples);
    gather_channel<V>(p.grad, c, p.batch, p.length, grads);
    const T invstd = static_cast<const T*>(p.invstd)[c];
    const T centre = static_cast<const T*>(p.mean)[c];
    const T weight = entry<T>(p.weight, c, T(1));
    const V mean = V::splat(centre), shift = V::splat(entry<T>(p.bias, c, T(0)));
    const V scale = V::splat(invstd * weight);
    fill(samples + n, samples + size, centre);
    fill(grads + n, grads + size, T(0));
    LaneSums<V> sums, products;
    sums.clear();
    products.clear();
    for (int64_t i = 0; i < size;) {
#pragma GCC unroll 16
      for (int j = 0; j < LaneSums<V>::kVectors; ++j, i += V::kWidth) {
        const V x = sub(V::load(samples + i), mean);
        const V grad = relu_gradient(fma(x, scale, shift), V::load(grads + i));
        grad.store(grads + i);
        sums.sum[j] = add(sums.sum[j], grad);
        products.sum[j] = fma(x, grad, products.sum[j]);
      }
    }
    const double sum = sums.total(), product = products.total() * static_cast<double>(invstd);
    static_cast<T*>(p.grad_bias)[c] = static_cast<T>(sum);
    static_cast<T*>(p.grad_weight)[c] = static_cast<T>(product);
    // grad_in = scale * grad + (offset + slope * (x - mean)); given statistics have no gradient.
    const double each = static_cast<double>(invstd * weight) / static_cast<double>(n);
    const V offset = V::splat(static_cast<T>(-each * sum));
    const V slope = V::splat(static_cast<T>(-each * product * static_cast<double>(invstd)));
    for (int64_t item = 0; item < p.batch; ++item) {
      const T* x = samples + item * p.length;
      const T* grad = grads + item * p.length;
      T* out = static_cast<T*>(p.grad_in) + (item * p.channels + c) * p.length;
      int64_t l = 0;
      for (; l + V::kWidth <= p.length; l += V::kWidth) {
        const V scaled = mul(loadu(grad + l), scale);
        storeu(out + l, p.training ? correct(scaled, loadu(x + l), mean, slope, offset) : scaled);
      }
      if (l < p.length) {
        const int64_t rest = p.length - l;
        const V scaled = mul(load_part(grad + l, rest), scale);
        const V centred = load_part(x + l, rest);
        store_part(out + l, p.training ? correct(scaled, centred, mean, slope, offset) : scaled,
                   rest);
      }
    }
  }
}
