// fprop, and each phase of dgrad: one block's part.
//
// One chain of multiply-adds per output, in entry order, that begins with the bias: the bits are
// those of the CPU kernels, whatever the tiling, the batch or the place the inputs come from.
#pragma once

#include "instances.cuh"

namespace sparseconv::cuda {

template <typename T>
SPARSECONV_DEVICE void store_output(const Correlation& p,
                                    int64_t item,
                                    int32_t row,
                                    int64_t output,
                                    T value) {
  const int64_t position = p.first + output * p.out_step;
  if (p.relu && value < T(0)) {
    value = T(0);
  }
  if (position >= 0 && position < p.out_length) {
    const int64_t at = item * p.out.stride[0] + row * p.out.stride[1] + position * p.out.stride[2];
    store(p.out.data, p.in.element, at, value);
  } else {
    const int64_t width = p.fold_left + p.fold_right;
    const int64_t column =
        position < 0 ? position + p.fold_left : position - p.out_length + p.fold_left;
    static_cast<T*>(p.fold)[(item * p.pattern.n_rows + row) * width + column] = value;
  }
}

// What becomes of an entry: see inputs.cuh.
template <typename T, int kR>
struct Accumulate {
  T* sum;

  SPARSECONV_DEVICE void reserve(int32_t) const {}
  template <typename X>
  SPARSECONV_DEVICE void operator()(int32_t, T weight, X x) const {
    SPARSECONV_UNROLL
    for (int r = 0; r < kR; ++r) {
      sum[r] = fused(weight, x(r), sum[r]);
    }
  }
};

template <typename Inputs, int kRows, typename Block>
SPARSECONV_DEVICE void correlate_block(const Correlation& p,
                                       const Tiling& tiling,
                                       const Block& block,
                                       typename Inputs::T* shared) {
  using T = typename Inputs::T;
  constexpr int kR = Inputs::kOutputs;
  const Pattern& pattern = p.pattern;
  const RowUnits units(pattern, kRows);
  const Work work = work_of(pattern, units, block.index(), block.warp());
  const Site<T> site{p.in, p.window, tiling, lane_of(tiling, work.part, block.lane()), shared};

  T sum[kRows][kR];
  Cursor<T, true> at[kRows];
  SPARSECONV_UNROLL
  for (int o = 0; o < kRows; ++o) {
    const int32_t row = row_of(units, work, o);
    const T init = row >= 0 && p.init != nullptr ? static_cast<const T*>(p.init)[row] : T(0);
    SPARSECONV_UNROLL
    for (int r = 0; r < kR; ++r) {
      sum[o][r] = init;
    }
    at[o].start(pattern, static_cast<const T*>(p.weights), row, Inputs::offset(block.lane()));
  }

  const int32_t channels = pattern.channels_per_group;
  const int64_t first_channel = int64_t{work.group} * channels;
  const int32_t together = Inputs::kLoads ? tiling.channels : channels;
  for (int32_t c0 = 0; c0 < channels; c0 += together) {
    const int32_t n = channels - c0 < together ? channels - c0 : together;
    if constexpr (Inputs::kLoads) {
      block.sync();
      load_tile(p.in, p.window, tiling, work.part, first_channel + c0, n, shared, block);
      block.sync();
    }
    SPARSECONV_NO_UNROLL
    for (int32_t c = 0; c < n; ++c) {
      const Inputs inputs(site, c, first_channel + c0 + c);
      SPARSECONV_UNROLL
      for (int o = 0; o < kRows; ++o) {
        Accumulate<T, kR> accumulate{sum[o]};
        inputs.each(pattern, at[o], at[o].next_channel(pattern), block, accumulate);
      }
    }
  }

  // Through shared memory, so that neighbouring lanes store neighbouring outputs.
  block.sync();
  T* stage = shared + block.warp() * kLanes * kR;
  const Lane first = lane_of(tiling, work.part, 0);
  const int outputs = tiling.pieces * kR;
  SPARSECONV_UNROLL
  for (int o = 0; o < kRows; ++o) {
    block.sync_warp();
    SPARSECONV_UNROLL
    for (int r = 0; r < kR; ++r) {
      stage[block.lane() * kR + r] = sum[o][r];
    }
    block.sync_warp();
    const int32_t row = row_of(units, work, o);
    for (int s = 0; row >= 0 && s < kLanes / tiling.pieces && first.item + s < p.window.batch;
         ++s) {
      for (int i = block.lane(); i < outputs && first.output + i < p.window.count; i += kLanes) {
        store_output(p, first.item + s, row, first.output + i, stage[s * outputs + i]);
      }
    }
  }
}

// One thread's sample: adds what reached its copies in the padding, in ascending order.
template <typename T>
SPARSECONV_DEVICE void add_fold(const Fold& p, int64_t thread) {
  const int64_t series = thread / p.length, at = thread % p.length;
  const T* fold = static_cast<const T*>(p.fold) + series * (p.left + p.right);
  T* out = static_cast<T*>(p.out) + thread;
  const Copies left = copies_of(at, p, true), right = copies_of(at, p, false);
  if (left.begin < left.end || right.begin < right.end) {
    T sum = *out;
    for (int64_t i = left.begin; i < left.end; ++i) {
      sum += fold[i + p.left];
    }
    for (int64_t i = right.begin; i < right.end; ++i) {
      sum += fold[i - p.length + p.left];
    }
    *out = sum;
  }
}

// Calls f with the instance that `v` names.
template <typename F>
void with_correlate(const Variant& v, Element element, F f) {
  if (v.source != Source::registers) {
    with_simple(v.source, element, f);
  } else if (v.outputs == kWide) {
    with_reach<kWide>(v.reach, f);
  } else {
    with_reach<kNarrow>(v.reach, f);
  }
}

}  // namespace sparseconv::cuda
