// The loops of peaks.cpp, over a vector type V of vec_*.h: the kernels' own multiply-add, so that a
// share of these peaks is a share of what the kernels could reach. Included once per ISA. Every
// loop leaves a result in `sink`: a compiler may not drop it.

// Of 32 registers with AVX-512 and 16 elsewhere; more than latency x throughput (4 cycles x 2) asks
// for.
constexpr int kPeakSums = sizeof(F32) == 64 ? 24 : 12;

template <typename V>
static inline void leave(const V* sums, void* sink) {
  V total = sums[0];
#pragma GCC unroll 24
  for (int i = 1; i < kPeakSums; ++i) {
    total = add(total, sums[i]);
  }
  total.store(static_cast<typename V::T*>(sink));
}

template <typename V>
static void peak_registers(void* memory, int64_t bytes, int64_t passes, void* sink) {
  const auto* data = static_cast<const typename V::T*>(memory);
  const V w = V::splat(data[0]);
  const V x = V::load(data);
  V sums[kPeakSums];
#pragma GCC unroll 24
  for (int i = 0; i < kPeakSums; ++i) {
    sums[i] = V::splat(data[i]);
  }
  const int64_t tiles = bytes / (kPeakSums * static_cast<int64_t>(sizeof(V)));
  for (int64_t n = 0; n < tiles * passes; ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < kPeakSums; ++i) {
      sums[i] = fma(w, x, sums[i]);
    }
  }
  leave(sums, sink);
}

template <typename V>
static void peak_loads(void* memory, int64_t bytes, int64_t passes, void* sink) {
  const auto* data = static_cast<const typename V::T*>(memory);
  const V w = V::splat(data[0]);
  V sums[kPeakSums];
#pragma GCC unroll 24
  for (int i = 0; i < kPeakSums; ++i) {
    sums[i] = V::splat(data[i]);
  }
  const int64_t tiles = bytes / (kPeakSums * static_cast<int64_t>(sizeof(V)));
  for (int64_t pass = 0; pass < passes; ++pass) {
    const typename V::T* row = data;
    for (int64_t n = 0; n < tiles; ++n, row += kPeakSums * V::kWidth) {
#pragma GCC unroll 24
      for (int i = 0; i < kPeakSums; ++i) {
        sums[i] = fma(w, V::load(row + i * V::kWidth), sums[i]);
      }
    }
  }
  leave(sums, sink);
}

template <typename V>
static void peak_triad(void* memory, int64_t bytes, int64_t passes, void* sink) {
  const int64_t length = bytes / (3 * static_cast<int64_t>(sizeof(V))) * V::kWidth;
  auto* a = static_cast<typename V::T*>(memory);
  const auto* b = a + length;
  const auto* c = b + length;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const V s = V::splat(b[pass % length]);
    for (int64_t i = 0; i < length; i += V::kWidth) {
      add(V::load(b + i), mul(s, V::load(c + i))).store(a + i);  // imitated, an fma takes longer
    }
  }
  V::load(a).store(static_cast<typename V::T*>(sink));
}
