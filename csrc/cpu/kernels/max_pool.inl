// Max pooling with stride 1 that keeps the length, of tensors in lanes. Included once per ISA,
// after lane_rows.inl.

// Whether a sample replaces the largest one before it, as in torch's loop: a NaN replaces all.
template <typename V>
static inline auto replaces(V x, V largest) {
  return (x.v > largest.v) | (x.v != x.v);
}

// x where the mask is set, else zeros.
template <typename V, typename Mask>
static inline V only(Mask mask, V x) {
  return {(decltype(V::v))((Mask)x.v & mask)};
}

// Row r of the output is the largest of the rows r to r + 2 * radius of x.
template <typename V>
static void pool_rows(const typename V::T* x, int64_t radius, int64_t n, typename V::T* out) {
  constexpr int kN = kLanes<typename V::T>;
  for (int64_t h = 0; h < kN * n; h += V::kWidth) {
    V largest = V::load(x + h);
    for (int64_t j = 1; j <= 2 * radius; ++j) {
      const V next = V::load(x + j * kN + h);
      const auto mask = replaces(next, largest);
      largest = {(decltype(V::v))((decltype(mask))only(mask, next).v |
                                  (decltype(mask))only(~mask, largest).v)};
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

// Scratch: the rows at the ends of a piece, with their neighbours.
template <typename V>
static void max_pool(const MaxPool& p, int64_t part, int64_t parts, void* scratch) {
  using T = typename V::T;
  constexpr int kN = kLanes<T>;
  const LaneOrder& y = p.order;
  T* xs = static_cast<T*>(scratch);
  T* gs = xs + (y.idle + 6 * p.radius) * kN;
  // What rows between these read lies in the piece.
  const int64_t head = min_of(y.rows, y.idle + 2 * p.radius);
  const int64_t tail = max_of(head, y.rows - 2 * p.radius);
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
        const int64_t reach = grad ? 2 * p.radius : p.radius;
        samples.copy(in, begin - reach, end + reach, xs);
        if (grad) {
          gradients.copy(grad, begin - p.radius, end + p.radius, gs);
          unpool<V>(xs, gs, p.radius, end - begin, out + begin * kN);
        } else {
          pool_rows<V>(xs, p.radius, end - begin, out + begin * kN);
        }
      };
      end_rows(0, head);
      if (grad) {
        unpool<V>(in + begins + (head - 2 * p.radius) * kN, grad + begins + (head - p.radius) * kN,
                  p.radius, tail - head, out + head * kN);
      } else {
        pool_rows<V>(in + begins + (head - p.radius) * kN, p.radius, tail - head, out + head * kN);
      }
      if (tail < y.rows) {
        end_rows(tail, y.rows);
      }
      clear_idle<V>(y, sets, 0, y.rows, 1, out);
    }
  }
}
