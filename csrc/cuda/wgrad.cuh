// The gradient of the active weights: one block's part, and the sum of the parts.
//
// The dual of correlate.cuh: a lane holds gradients instead of sums, and every active weight makes
// one sum per lane. Those of 32 weights are turned round in shared memory, where each lane adds up
// one weight's. Over the tiles of its chunk a block adds in memory that no other one touches; the
// chunks, fixed by shape, are added last. Every order is fixed, and there are no atomics.
#pragma once

#include "instances.cuh"

namespace sparseconv::cuda {

// A lane's neighbouring gradients, brought through `stage`; 0 where there are none.
template <typename T, int kR, typename Block>
SPARSECONV_DEVICE void load_gradients(const WeightGradient& p,
                                      const Tiling& tiling,
                                      int64_t tile,
                                      int64_t row,
                                      T* stage,
                                      const Block& block,
                                      T* gradients) {
  static_assert(kLanes * kR <= kWarpStage);  // gradients pass through it as well
  const Lane first = lane_of(tiling, tile, 0);
  const int outputs = tiling.pieces * kR;
  block.sync_warp();
  for (int s = 0; s < kLanes / tiling.pieces; ++s) {
    const int64_t item = first.item + s;
    const int64_t base = item * p.grad.stride[0] + row * p.grad.stride[1];
    for (int i = block.lane(); i < outputs; i += kLanes) {
      const int64_t output = first.output + i;
      T x = 0;
      if (row >= 0 && item < p.window.batch && output < p.window.count) {
        load(p.grad.data, p.in.element, base + output * p.grad.stride[2], &x);
      }
      stage[s * outputs + i] = x;
    }
  }
  block.sync_warp();
  SPARSECONV_UNROLL
  for (int r = 0; r < kR; ++r) {
    gradients[r] = stage[block.lane() * kR + r];
  }
  block.sync_warp();
}

// What becomes of an entry: a sum per lane, that waits in `stage` until all 32 lanes have one of
// their own to add up.
template <typename T, int kR, typename Block>
struct LaneSums {
  const Block& block;
  T* stage;
  T* partial;
  bool begins;  // the chunk: nothing is there to add to
  int32_t waiting = 0;
  int32_t entry = 0;  // the one whose sums this lane will add up
  const T* gradients = nullptr;

  SPARSECONV_DEVICE void reserve(int32_t n) {
    if (waiting + n > kLanes) {
      flush();
    }
  }
  template <typename X>
  SPARSECONV_DEVICE void operator()(int32_t e, T, X x) {
    constexpr int kChains = 3;  // a single one would wait for each of its multiply-adds
    T sum[kChains] = {};
    SPARSECONV_UNROLL
    for (int r = 0; r < kR; ++r) {
      sum[r % kChains] = fused(gradients[r], x(r), sum[r % kChains]);
    }
    stage[waiting * kStageRow + block.lane()] = sum[0] + sum[1] + sum[2];
    entry = block.lane() == waiting ? e : entry;
    ++waiting;
  }
  SPARSECONV_DEVICE void flush() {
    block.sync_warp();
    if (block.lane() < waiting) {
      T sum = 0;
      SPARSECONV_UNROLL_8
      for (int i = 0; i < kLanes; ++i) {
        sum += stage[block.lane() * kStageRow + i];
      }
      partial[entry] = begins ? sum : partial[entry] + sum;
    }
    waiting = 0;
    block.sync_warp();
  }
};

template <typename Inputs, int kRows, typename Block>
SPARSECONV_DEVICE void wgrad_block(const WeightGradient& p,
                                   const Tiling& tiling,
                                   const Block& block,
                                   typename Inputs::T* shared) {
  using T = typename Inputs::T;
  constexpr int kR = Inputs::kOutputs;
  const Pattern& pattern = p.pattern;
  const RowUnits units(pattern, kRows);
  const Work work = work_of(pattern, units, block.index(), block.warp());
  const Run tiles = chunk_of(work.part, p.chunks, tiling.tiles);
  T* stage = shared + block.warp() * kWarpStage;
  T* tile_memory = shared + kWarps * kWarpStage;
  T* partial = static_cast<T*>(p.partial) + work.part * pattern.nnz;
  const int32_t channels = pattern.channels_per_group;
  const int64_t first_channel = int64_t{work.group} * channels;
  const int32_t together = Inputs::kLoads ? tiling.channels : channels;

  SPARSECONV_NO_UNROLL
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const Site<T> site{p.in, p.window, tiling, lane_of(tiling, tile, block.lane()), tile_memory};
    LaneSums<T, kR, Block> sums{block, stage, partial, tile == tiles.begin};
    T gradients[kRows][kR];
    Cursor<T, false> at[kRows];
    SPARSECONV_UNROLL
    for (int o = 0; o < kRows; ++o) {
      const int32_t row = row_of(units, work, o);
      load_gradients<T, kR>(p, tiling, tile, row, stage, block, gradients[o]);
      at[o].start(pattern, nullptr, row, Inputs::offset(block.lane()));
    }
    SPARSECONV_NO_UNROLL
    for (int32_t c0 = 0; c0 < channels; c0 += together) {
      const int32_t n = channels - c0 < together ? channels - c0 : together;
      if constexpr (Inputs::kLoads) {
        block.sync();
        load_tile(p.in, p.window, tiling, tile, first_channel + c0, n, tile_memory, block);
        block.sync();
      }
      SPARSECONV_NO_UNROLL
      for (int32_t c = 0; c < n; ++c) {
        const Inputs inputs(site, c, first_channel + c0 + c);
        SPARSECONV_UNROLL
        for (int o = 0; o < kRows; ++o) {
          sums.gradients = gradients[o];
          inputs.each(pattern, at[o], at[o].next_channel(pattern), block, sums);
        }
      }
    }
    sums.flush();
  }
}

// One thread's weight: the sum over the chunks, in order.
template <typename T>
SPARSECONV_DEVICE void add_chunks(const T* partial,
                                  int64_t chunks,
                                  int64_t nnz,
                                  void* out,
                                  Element element,
                                  int64_t entry) {
  T sum = partial[entry];
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    sum += partial[chunk * nnz + entry];
  }
  store(out, element, entry, sum);
}

// Calls f with the instance that `v` names.
template <typename F>
void with_wgrad(const Variant& v, Element element, F f) {
  if (v.source == Source::registers) {
    with_reach<kWide>(v.reach, f);
  } else {
    with_simple(v.source, element, f);
  }
}

}  // namespace sparseconv::cuda
