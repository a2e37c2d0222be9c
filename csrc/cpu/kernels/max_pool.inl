// Max pooling of tensors in lanes. Included once per ISA, after lane_rows.inl.

// Whether a sample replaces the largest one before it, as in torch's loop: a NaN replaces all.
template <typename V>
static inline auto replaces(V x, V largest) {
  return (x.v > largest.v) | (x.v != x.v);
}

// x where the mask is set, else zeros.
template <typename V, typename Mask>
static inline V only(Mask mask, V x) {
  return {mask ? x.v : V::splat(0).v};
}

// Row r of the output is the largest of the rows r to r + 2 * radius of x.
template <typename V>
static void pool_rows(const typename V::T* x, int64_t radius, int64_t n, typename V::T* out) {
  constexpr int kN = kLanes<typename V::T>;
  for (int64_t h = 0; h < kN * n; h += V::kWidth) {
    V largest = V::load(x + h);
    for (int64_t j = 1; j <= 2 * radius; ++j) {
      const V next = V::load(x + j * kN + h);
      largest = {replaces(next, largest) ? next.v : largest.v};
    }
    largest.store(out + h);
  }
}

// Row r of the output is the sum of those rows r to r + 2 * radius of g whose largest sample is row
// r + 2 * radius of x. x has 2 * radius rows before and after the output's, g `radius`.
template <typename V>
__attribute__((always_inline)) static inline void unpool_rows(const typename V::T* x,
                                                              const typename V::T* g,
                                                              int64_t radius,
                                                              int64_t n,
                                                              typename V::T* out) {
  constexpr int kN = kLanes<typename V::T>;
  for (int64_t h = 0; h < kN * n; h += V::kWidth) {
    const typename V::T* at = x + 2 * radius * kN + h;
    const V own = V::load(at);
    // Whether the sample is the largest of the j samples before it, and of the j after it.
    decltype(replaces(own, own)) wins[2 * kPoolRadius + 1], keeps[2 * kPoolRadius + 1];
    wins[0] = keeps[0] = (own.v == own.v) | (own.v != own.v);
    for (int64_t j = 1; j <= 2 * radius; ++j) {
      wins[j] = wins[j - 1] & replaces(own, V::load(at - j * kN));
      keeps[j] = keeps[j - 1] & ~replaces(V::load(at + j * kN), own);
    }
    V sum = V::splat(0);
    for (int64_t j = 0; j <= 2 * radius; ++j) {
      sum = add(sum, only(wins[2 * radius - j] & keeps[j], V::load(g + j * kN + h)));
    }
    sum.store(out + h);
  }
}

// For the usual radius, the loops over neighbours are unrolled.
template <typename V>
static void unpool(const typename V::T* x,
                   const typename V::T* g,
                   int64_t radius,
                   int64_t n,
                   typename V::T* out) {
  if (radius == 1) {
    unpool_rows<V>(x, g, 1, n, out);
  } else {
    unpool_rows<V>(x, g, radius, n, out);
  }
}

// Of windows that do not overlap.
template <typename V>
static void pool_apart(const MaxPool& p, int64_t part, int64_t parts) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  const int64_t rows = p.order.rows, pooled = p.pooled.rows, all = p.channels * p.order.groups;
  for (int64_t unit = all * part / parts; unit < all * (part + 1) / parts; ++unit) {
    const T* in = static_cast<const T*>(p.in) + unit * rows * kN;
    const T* grad = p.grad ? static_cast<const T*>(p.grad) + unit * pooled * kN : nullptr;
    T* out = static_cast<T*>(p.out) + unit * (grad ? rows : pooled) * kN;
    for (int64_t i = 0; i < pooled; ++i) {
      const int64_t first = i * p.stride, end = i + 1 < pooled ? first + p.stride : rows;
      for (int h = 0; h < kN; h += V::kWidth) {
        V largest = V::load(in + first * kN + h), place = V::splat(0);
        for (int64_t j = 1; j < p.size; ++j) {
          const V next = V::load(in + (first + j) * kN + h);
          const auto larger = replaces(next, largest);
          largest = {larger ? next.v : largest.v};
          place = {larger ? V::splat(T(j)).v : place.v};
        }
        if (grad == nullptr) {
          largest.store(out + i * kN + h);
          continue;
        }
        const V g = V::load(grad + i * kN + h);
        for (int64_t row = first; row < end; ++row) {
          V{place.v == T(row - first) ? g.v : V::splat(0).v}.store(out + row * kN + h);
        }
      }
    }
  }
}

// Scratch: the rows at the ends of a piece, with their neighbours.
template <typename V>
static void max_pool(const MaxPool& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  const LaneOrder& y = p.order;
  if (p.stride > 1) {
    return pool_apart<V>(p, part, parts);
  }
  const int64_t radius = p.radius();
  T* xs = static_cast<T*>(scratch);
  T* gs = xs + (y.idle + 6 * radius) * kN;
  // What rows between these read lies in the piece.
  const int64_t head = min_of(y.rows, y.idle + 2 * radius);
  const int64_t tail = max_of(head, y.rows - 2 * radius);
  for (int64_t group = 0; group < y.groups; ++group) {
    Neighbourhood<V> samples, gradients;
    samples.set(y, group, false);
    samples.fill = static_cast<T>(-__builtin_inf());
    gradients.set(y, group, false);
    const LaneSets sets = lane_sets(y, group);
    for (int64_t c = p.channels * part / parts; c < p.channels * (part + 1) / parts; ++c) {
      const T* in = static_cast<const T*>(p.in) + c * y.channel();
      const T* grad = p.grad ? static_cast<const T*>(p.grad) + c * y.channel() : nullptr;
      const int64_t begins = group * y.rows * kN;
      T* out = static_cast<T*>(p.out) + c * y.channel() + begins;
      const auto end_rows = [&](int64_t begin, int64_t end) {
        const int64_t reach = grad ? 2 * radius : radius;
        samples.copy(in, begin - reach, end + reach, xs);
        if (grad) {
          gradients.copy(grad, begin - radius, end + radius, gs);
          unpool<V>(xs, gs, radius, end - begin, out + begin * kN);
        } else {
          pool_rows<V>(xs, radius, end - begin, out + begin * kN);
        }
      };
      end_rows(0, head);
      if (grad) {
        unpool<V>(in + begins + (head - 2 * radius) * kN, grad + begins + (head - radius) * kN,
                  radius, tail - head, out + head * kN);
      } else {
        pool_rows<V>(in + begins + (head - radius) * kN, radius, tail - head, out + head * kN);
      }
      if (tail < y.rows) {
        end_rows(tail, y.rows);
      }
      clear_idle<V>(y, sets, 0, y.rows, 1, out);
    }
  }
}
