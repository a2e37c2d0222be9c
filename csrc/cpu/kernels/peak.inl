// The most that the machine reaches: multiply-adds of operands in registers, over a vector type V
// of vec_*.h. They are the kernels' own, so that a share of this peak is a share of what the
// kernels could reach.

// Of 32 registers with AVX-512 and NEON, and 16 elsewhere; more than latency x throughput (4 cycles
// x 2) asks for.
constexpr int kPeakSums = F32::kTile >= 24 ? 24 : 12;

// Each pass is kPeakPass multiply-adds. All sums differ, and the result depends on each: a compiler
// may not drop any.
template <typename V>
static double peak(double operand, int64_t passes) {
  const V x = V::splat(static_cast<typename V::T>(operand));
  V sums[kPeakSums];
#pragma GCC unroll 24
  for (int i = 0; i < kPeakSums; ++i) {
    sums[i] = V::splat(static_cast<typename V::T>(operand * i));
  }
  for (int64_t n = 0; n < passes * (kPeakPass / (kPeakSums * V::kWidth)); ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < kPeakSums; ++i) {
      sums[i] = fma(x, x, sums[i]);
    }
  }
  V total = sums[0];
#pragma GCC unroll 24
  for (int i = 1; i < kPeakSums; ++i) {
    total = add(total, sums[i]);
  }
  alignas(kRowBytes) typename V::T lanes[V::kWidth];
  total.store(lanes);
  return static_cast<double>(lanes[0]);
}
