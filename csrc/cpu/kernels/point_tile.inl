// The register tile of dense matrix products. Included once per ISA, after vec_*.h.

// kR x kC vectors of sums stay in registers; per step of the depth the tile takes kC loads and kR
// broadcasts for kR * kC multiply-adds. One chain per output, in the order of the depth; then
// `bias`, of each row, and `added`, as `out`, are added, unless null.
template <typename V, int kR, int kC>
static void point_tile(const typename V::T* rows,
                       int64_t row_stride,
                       const typename V::T* lanes,
                       int64_t lane_stride,
                       int64_t depth,
                       const typename V::T* bias,
                       const typename V::T* added,
                       typename V::T* out,
                       int64_t out_stride) {
  V sum[kR][kC];
#pragma GCC unroll 12
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < kC; ++c) {
      sum[r][c] = V::splat(0);
      // The output may have left the cache since it was freed.
      __builtin_prefetch(out + r * out_stride + c * V::kWidth, 1);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    V lane[kC];
#pragma GCC unroll 2
    for (int c = 0; c < kC; ++c) {
      lane[c] = V::load(lanes + c * V::kWidth);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kR; ++r) {
      const V weight = V::splat(rows[r]);
#pragma GCC unroll 2
      for (int c = 0; c < kC; ++c) {
        sum[r][c] = fma(weight, lane[c], sum[r][c]);
      }
    }
    rows += row_stride;
    lanes += lane_stride;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < kC; ++c) {
      if (bias != nullptr) {
        sum[r][c] = add(sum[r][c], V::splat(bias[r]));
      }
      if (added != nullptr) {
        sum[r][c] = add(sum[r][c], V::load(added + r * out_stride + c * V::kWidth));
      }
      sum[r][c].store(out + r * out_stride + c * V::kWidth);
    }
  }
}
