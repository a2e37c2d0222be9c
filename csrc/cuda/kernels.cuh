// One block's part of each computation. Compiles as plain C++ too: `Block` is then a team of host
// threads (tests/kernels/cuda).
#pragma once

#include <math.h>

#include "problem.h"

#if defined(__CUDACC__)
#define SPARSECONV_DEVICE __device__ __forceinline__
#define SPARSECONV_UNROLL _Pragma("unroll")
#define SPARSECONV_NO_UNROLL _Pragma("unroll 1")
#else
#define SPARSECONV_DEVICE inline
#define SPARSECONV_UNROLL
#define SPARSECONV_NO_UNROLL
#endif

namespace sparseconv::cuda {

SPARSECONV_DEVICE int32_t within(int32_t i, int32_t least, int32_t most) {
  return i < least ? least : i > most ? most : i;
}

// One thread's position of every step-th channel, from the first on; and its weights to their
// slots.
SPARSECONV_DEVICE void pack(const Packing& p, int32_t at, int32_t first, int32_t step) {
  if (at >= p.stride) {
    return;
  }
  const int32_t positions = p.batch * p.period, from = p.backwards ? positions - 1 - at : at;
  int64_t l = at < positions ? from % p.period - p.left : p.length;
  const bool outside = l < 0 || l >= p.length;
  const bool zero = at >= positions || (outside && p.mode == PaddingMode::zeros);
  l = zero ? 0 : outside ? fold_position(l, p.length, p.mode) : l;
  const int64_t item = zero ? 0 : from / p.period;
  const float* in =
      static_cast<const float*>(p.in.data) + item * p.in.stride[0] + l * p.in.stride[2];
  for (int32_t channel = first; channel < p.channels; channel += step) {
    p.out[channel * p.stride + at] = zero ? 0 : in[channel * p.in.stride[1]];
  }
  for (int64_t e = first * p.stride + at; e < p.nnz; e += step * p.stride) {
    p.weights[within(p.slots[e], 0, p.n_slots - 1)] = p.values[e];
  }
}

// A row of the pattern as its warp walks it.
struct Row {
  int32_t row = -1;  // there is none, but its warp helps to load
  int32_t begin = 0;
  const int64_t* kernels = nullptr;

  SPARSECONV_DEVICE Row(const Pattern& p, int32_t index) {
    if (index < p.n_rows) {
      kernels = p.rows + index * (p.channels + int64_t{1}) + 1;
      row = within(static_cast<int32_t>(kernels[-1]), 0, p.n_rows - 1);
      begin = within(static_cast<int32_t>(kernels[-1] >> 32), 0, p.nnz);
    }
  }
};

// Two buffers of a chunk of channels each: while one is computed, the other is on its way.
template <int kR, bool kWeighted, typename Block>
struct Buffers {
  static constexpr int kChannels = chunk_channels(kR, kWeighted), kWarps = warps_of(kR);
  static constexpr int kRow = row_floats(kR);
  static constexpr int kFloats = kChannels * channel_floats(kR, kWeighted) + 4;

  const Pattern& pattern;
  const Packed& in;
  const float* weights;
  const Block& block;
  float* shared;
  const Row& row;
  int32_t first;  // position of the tile

  SPARSECONV_DEVICE float* inputs(int chunk) const { return shared + chunk % 2 * kFloats; }
  SPARSECONV_DEVICE int64_t* kernels(int chunk) const {
    return reinterpret_cast<int64_t*>(inputs(chunk) + kChannels * kRow) + block.warp() * kChannels;
  }
  SPARSECONV_DEVICE float* weights_of(int chunk) const {
    return inputs(chunk) + kChannels * (kRow + 2 * kWarps + block.warp() * kReach);
  }

  SPARSECONV_DEVICE int32_t channels(int chunk) const {
    const int32_t left = pattern.channels - chunk * kChannels;
    return left < kChannels ? left : kChannels;
  }
  SPARSECONV_DEVICE void load(int chunk) const {
    const int32_t n = channels(chunk);
    float* to = inputs(chunk) + 4 * block.thread();
    const float* from =
        in.data + int64_t{chunk} * kChannels * in.stride + first + 4 * block.thread();
    SPARSECONV_NO_UNROLL
    for (int c = 0; c < n; ++c, to += kRow, from += in.stride) {
      SPARSECONV_UNROLL
      for (int i = 0; i < kRow; i += 4 * kWarps * kLanes) {
        if (i + 4 * block.thread() < kRow) {
          block.template copy<16>(to + i, from + i);
        }
      }
    }
    if (row.row >= 0) {
      for (int i = block.lane(); i < n; i += kLanes) {
        block.template copy<8>(kernels(chunk) + i, row.kernels + chunk * kChannels + i);
      }
      if constexpr (kWeighted) {
        const float* of_row =
            weights + (int64_t{row.row} * pattern.channels + chunk * kChannels) * kReach;
        SPARSECONV_NO_UNROLL
        for (int i = 4 * block.lane(); i < n * kReach; i += 4 * kLanes) {
          block.template copy<16>(weights_of(chunk) + i, of_row + i);
        }
      }
    }
    block.commit();
  }
};

// Calls f(weight, x) for the set bits of a kernel's mask, in ascending order: output r of the lane
// multiplies x[r]. `in` are the inputs of the lane's first output. Registers have no run-time
// index, so each tap has its own code, which all threads of a warp run or skip alike. Of the window
// only what the next taps need is in registers.
template <int kR, bool kWeighted, typename Block, typename F>
SPARSECONV_DEVICE void each_tap(int64_t kernel,
                                const float* in,
                                const float* weights,
                                const Block& block,
                                F& f) {
  const uint32_t bits[2] = {block.uniform(static_cast<uint32_t>(kernel)),
                            block.uniform(static_cast<uint32_t>(kernel >> 32) & 0xff)};
  float window[kR + kReach + 4];
  const auto fetch = [&](int quad) { block.fetch(window + 4 * quad, in + 4 * quad); };
  SPARSECONV_UNROLL
  for (int quad = 0; quad <= kR / 4; ++quad) {
    fetch(quad);
  }
  SPARSECONV_UNROLL
  for (int first = 0; first < kReach; first += 4) {
    // The branches of a Dynamic Sparse Network have windows of up to 13, 26 and 39 samples.
    if ((first == 16 || first == 28) && ((bits[0] >> first) | bits[1]) == 0) {
      break;
    }
    if (first + 4 < kReach) {
      fetch(first / 4 + 1 + kR / 4);
    }
    if (bits[first / 32] >> first % 32 & 15) {
      float weight[4] = {};
      if constexpr (kWeighted) {
        block.fetch(weight, weights + first);
      }
      SPARSECONV_UNROLL
      for (int k = 0; k < 4; ++k) {
        if (bits[first / 32] >> (first % 32 + k) & 1) {
          f(weight[k], window + first + k);
        }
      }
    }
  }
}

// Calls f as above for every channel of the row, and begin(kernel) before.
template <int kR, bool kWeighted, typename Block, typename B, typename F>
SPARSECONV_DEVICE void each_channel(const Buffers<kR, kWeighted, Block>& buffers, B& begin, F& f) {
  using Of = Buffers<kR, kWeighted, Block>;
  const Block& block = buffers.block;
  const int chunks = (buffers.pattern.channels + Of::kChannels - 1) / Of::kChannels;
  buffers.load(0);
  SPARSECONV_NO_UNROLL
  for (int chunk = 0; chunk < chunks; ++chunk) {
    block.wait();  // for the chunk
    block.sync();  // ... of all threads, and until the other buffer's last read
    if (chunk + 1 < chunks) {
      buffers.load(chunk + 1);
    }
    if (buffers.row.row >= 0) {
      const int64_t* kernels = buffers.kernels(chunk);
      const float* x = buffers.inputs(chunk) + block.lane() * kR;
      const float* weights = kWeighted ? buffers.weights_of(chunk) : nullptr;
      const int32_t n = buffers.channels(chunk);
      int64_t next = kernels[0];
      SPARSECONV_NO_UNROLL
      for (int c = 0; c < n; ++c, x += Of::kRow, weights += kReach) {
        const int64_t kernel = next;
        next = kernels[c + 1];  // on its way while this one is used
        begin(kernel);
        each_tap<kR, kWeighted>(kernel, x, weights, block, f);
      }
    }
  }
}

// fprop, and dgrad. One chain of multiply-adds per output, in entry order, that begins with the
// bias: its bits depend on neither the tile nor the batch.
template <int kR, typename Block>
SPARSECONV_DEVICE void correlate_block(const Correlation& p,
                                       int32_t tiles,
                                       const Block& block,
                                       float* shared) {
  const Row row(p.pattern, block.index() / tiles * warps_of(kR) + block.warp());
  const int32_t first = block.index() % tiles * (kLanes * kR);
  Buffers<kR, true, Block> buffers{p.pattern, p.in, p.weights, block, shared, row, first};
  float sum[kR];
  const float init = row.row >= 0 && p.bias != nullptr ? p.bias[row.row] : 0;
  SPARSECONV_UNROLL
  for (int r = 0; r < kR; ++r) {
    sum[r] = init;
  }
  const auto begin = [](int64_t) {};
  const auto multiply = [&](float weight, const float* x) {
    SPARSECONV_UNROLL
    for (int r = 0; r < kR; ++r) {
      sum[r] = fmaf(weight, x[r], sum[r]);
    }
  };
  each_channel(buffers, begin, multiply);

  // Through shared memory, so that neighbouring lanes store neighbouring outputs.
  block.sync();
  if (row.row < 0) {
    return;
  }
  float* stage = shared + block.warp() * kLanes * kR;
  SPARSECONV_UNROLL
  for (int r = 0; r < kR; ++r) {
    stage[block.lane() * kR + r] = sum[r];
  }
  block.sync_warp();
  int32_t item = (first + block.lane()) / p.period, at = (first + block.lane()) % p.period;
  SPARSECONV_NO_UNROLL
  for (int r = 0; r < kR; ++r) {
    const int32_t l = (p.backwards ? p.period - 1 - at : at) - p.left;
    if (item < p.batch && l >= 0 && l < p.length) {
      const int64_t n = p.backwards ? p.batch - 1 - item : item;
      const float x = stage[r * kLanes + block.lane()];
      p.out[(n * p.pattern.n_rows + row.row) * p.length + l] = p.relu && x < 0 ? 0 : x;
    }
    for (at += kLanes; at >= p.period; at -= p.period) {
      ++item;
    }
  }
}

// The sum of one weight over the positions of its tiles that belong to a series.
template <int kR>
SPARSECONV_DEVICE float wgrad_of(const WeightGradient& p,
                                 int32_t row,
                                 int32_t entry,
                                 int32_t tile,
                                 int32_t tiles) {
  const int32_t step = partials_of(tiles);
  const int32_t n_slots = p.pattern.n_rows * p.pattern.channels * kReach;
  const int32_t slot = within(p.slots[entry], 0, n_slots - 1);
  const float* x = p.in.data + slot / kReach % p.pattern.channels * p.in.stride + slot % kReach;
  const float* dy = p.grad.data + row * p.grad.stride;
  float sum = 0;
  constexpr int32_t kTile = kLanes * kR;
  for (; tile < tiles; tile += step) {
    SPARSECONV_NO_UNROLL
    for (int32_t at = tile * kTile; at < (tile + 1) * kTile; ++at) {
      if (at % p.period < p.length) {
        sum = fmaf(dy[at], x[at], sum);
      }
    }
  }
  return sum;
}

// The dual: a lane holds gradients instead of sums, and every active weight makes one sum per lane.
// Those of up to 40 weights are turned round in shared memory, where each lane adds up one
// weight's. Every order is fixed, and there are no atomics.
template <int kR, typename Block>
SPARSECONV_DEVICE void wgrad_block(const WeightGradient& p,
                                   int32_t tiles,
                                   const Block& block,
                                   float* shared) {
  const int32_t partials = partials_of(tiles), partial = block.index() % partials;
  const Row row(p.pattern, block.index() / partials * warps_of(kR) + block.warp());
  float* stage = shared + block.warp() * kStage;
  float* tile_memory = shared + warps_of(kR) * kStage;
  float* out = p.partial + int64_t{partial} * p.pattern.nnz + row.begin;
  int32_t done = 0;
  SPARSECONV_NO_UNROLL
  for (int32_t tile = partial; tile < tiles; tile += partials) {
    const int32_t first = tile * (kLanes * kR);
    Buffers<kR, false, Block> buffers{p.pattern, p.in, nullptr, block, tile_memory, row, first};
    float gradients[kR];
    const float* from = p.grad.data + (row.row < 0 ? 0 : row.row) * p.grad.stride + first;
    SPARSECONV_UNROLL
    for (int r = 0; r < kR; ++r) {
      gradients[r] = from[block.lane() * kR + r];
    }
    int32_t waiting = 0;
    done = 0;
    const auto flush = [&] {
      block.sync_warp();
      for (int i = block.lane(); i < waiting; i += kLanes) {
        float sum = 0;
        SPARSECONV_UNROLL
        for (int lane = 0; lane < kLanes; ++lane) {
          sum += stage[i * kStageRow + lane];
        }
        if (done + i < p.pattern.nnz - row.begin) {
          out[done + i] = tile == partial ? sum : out[done + i] + sum;
        }
      }
      done += waiting;
      waiting = 0;
      block.sync_warp();
    };
    const auto multiply = [&](float, const float* x) {
      constexpr int kChains = 4;  // a single one would wait for each of its multiply-adds
      float sum[kChains] = {};
      SPARSECONV_UNROLL
      for (int r = 0; r < kR; ++r) {
        sum[r % kChains] = fmaf(gradients[r], x[r], sum[r % kChains]);
      }
      stage[waiting++ * kStageRow + block.lane()] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    };
    const auto begin = [&](int64_t kernel) {
      const int taps = block.count(static_cast<uint32_t>(kernel)) +
                       block.count(static_cast<uint32_t>(kernel >> 32) & 0xff);
      if (waiting + taps > kLanes) {
        flush();
      }
    };
    each_channel(buffers, begin, multiply);
    if (row.row >= 0) {
      flush();
    }
    block.sync();  // the buffers are no longer read
  }
  // What is not finite may be so because of an input times a zero between the series.
  for (int32_t i = block.lane(); i < done; i += kLanes) {
    if (i < p.pattern.nnz - row.begin && out[i] - out[i] != 0) {
      out[i] = wgrad_of<kR>(p, row.row, row.begin + i, partial, tiles);
    }
  }
}

}  // namespace sparseconv::cuda
