// How a thread reads: elements, samples beyond the ends, tiles, and the three places from which a
// multiply-add reads its input. Compiles as plain C++ too: `Block` is then a team of host threads.
#pragma once

#include <math.h>

#include "tiling.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define SPARSECONV_DEVICE __device__ __forceinline__
#define SPARSECONV_UNROLL _Pragma("unroll")
#define SPARSECONV_UNROLL_8 _Pragma("unroll 8")
#define SPARSECONV_NO_UNROLL _Pragma("unroll 1")
#else
#define SPARSECONV_DEVICE inline
#define SPARSECONV_UNROLL
#define SPARSECONV_UNROLL_8
#define SPARSECONV_NO_UNROLL
#endif

namespace sparseconv::cuda {

SPARSECONV_DEVICE float fused(float a, float b, float c) {
  return fmaf(a, b, c);
}
SPARSECONV_DEVICE double fused(double a, double b, double c) {
  return fma(a, b, c);
}

union Bits {
  uint32_t bits;
  float value;
};

SPARSECONV_DEVICE float from_half(uint16_t bits) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(bits));
#else
  return static_cast<float>(__builtin_bit_cast(_Float16, bits));
#endif
}
SPARSECONV_DEVICE uint16_t to_half(float x) {
#if defined(__CUDACC__)
  return __half_as_ushort(__float2half_rn(x));
#else
  return __builtin_bit_cast(uint16_t, static_cast<_Float16>(x));
#endif
}
SPARSECONV_DEVICE float from_bf16(uint16_t bits) {
  const Bits x = {static_cast<uint32_t>(bits) << 16};
  return x.value;
}
SPARSECONV_DEVICE uint16_t to_bf16(float x) {
  Bits b;
  b.value = x;
  const bool nan = (b.bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = b.bits + 0x7fffu + ((b.bits >> 16) & 1);  // to nearest, ties to even
  return static_cast<uint16_t>(nan ? (b.bits >> 16) | 0x40u : rounded >> 16);
}

// The element type is known at run time only: a branch that all threads take alike, once for each
// sample that is loaded or stored, instead of a kernel per type.
SPARSECONV_DEVICE void load(const void* data, Element, int64_t at, double* x) {
  *x = static_cast<const double*>(data)[at];
}
SPARSECONV_DEVICE void load(const void* data, Element element, int64_t at, float* x) {
  if (element == Element::f32) {
    *x = static_cast<const float*>(data)[at];
  } else {
    const uint16_t bits = static_cast<const uint16_t*>(data)[at];
    *x = element == Element::bf16 ? from_bf16(bits) : from_half(bits);
  }
}
SPARSECONV_DEVICE void store(void* data, Element, int64_t at, double x) {
  static_cast<double*>(data)[at] = x;
}
SPARSECONV_DEVICE void store(void* data, Element element, int64_t at, float x) {
  if (element == Element::f32) {
    static_cast<float*>(data)[at] = x;
  } else {
    static_cast<uint16_t*>(data)[at] = element == Element::bf16 ? to_bf16(x) : to_half(x);
  }
}

// The sample at `position` of the series that begins at element `base`, padded. What is beyond
// the last position that an output reads is 0: the padding modes are not defined there.
template <typename T>
SPARSECONV_DEVICE T sample(const Signal& in, const Window& w, int64_t base, int64_t position) {
  T x = 0;
  const bool outside = position < 0 || position >= in.length;
  if (position <= w.last() && !(outside && in.mode == PaddingMode::zeros)) {
    const int64_t at = outside ? fold_position(position, in.length, in.mode) : position;
    load(in.view.data, in.element, base + at * in.view.stride[2], &x);
  }
  return x;
}

// Brings channels of a tile into shared memory. A warp takes one series at a time:
// neighbouring lanes read neighbouring samples, and write to different banks.
template <typename T, typename Block>
SPARSECONV_DEVICE void load_tile(const Signal& in,
                                 const Window& w,
                                 const Tiling& tiling,
                                 int64_t tile,
                                 int64_t first_channel,
                                 int32_t channels,
                                 T* shared,
                                 const Block& block) {
  const int series = kLanes / tiling.pieces;
  const Lane first = lane_of(tiling, tile, 0);
  const int64_t origin = w.origin + first.output * w.step;
  for (int i = block.warp(); i < channels * series; i += kWarps) {
    const int channel = i / series, item = i % series;
    const bool idle = first.item + item >= w.batch;
    const int64_t base =
        (first.item + item) * in.view.stride[0] + (first_channel + channel) * in.view.stride[1];
    T* to = shared + channel * tiling.channel_rows + item * tiling.series_rows;
    for (int residue = 0; residue < tiling.residues; ++residue) {
      for (int row = block.lane(); row < tiling.residue_rows; row += kLanes) {
        const int64_t position = origin + residue + row * w.step;
        to[residue * tiling.residue_rows + row] = idle ? T(0) : sample<T>(in, w, base, position);
      }
    }
  }
}

// What a lane needs to find its inputs of one channel.
template <typename T>
struct Site {
  const Signal& in;
  const Window& window;
  const Tiling& tiling;
  Lane lane;
  const T* tile;  // shared memory

  SPARSECONV_DEVICE const T* rows(int channel) const {
    return tile + channel * tiling.channel_rows + lane.row;
  }
};

// Walks the entries of one row of the pattern, channel by channel. Each lane has read ahead what
// is stored `offset` entries further on: the same for all lanes, or a batch of one entry a lane.
template <typename T, bool kWeighted>
struct Cursor {
  static constexpr bool kHasWeights = kWeighted;
  const T* weights = nullptr;
  int32_t offset = 0;
  int32_t kernel = 0;  // where the present channel's entries end, in the pointers
  int32_t entry = 0;
  int32_t row_end = 0;  // 0: there is no such row, or nothing in it
  int32_t row = 0;      // of the window
  T weight = 0;

  SPARSECONV_DEVICE void start(const Pattern& p, const T* of, int32_t pattern_row, int32_t lead) {
    weights = of;
    offset = lead;
    if (pattern_row >= 0) {
      kernel = pattern_row * p.channels_per_group;
      entry = within(p, p.pointers[kernel]);
      row_end = within(p, p.pointers[kernel + p.channels_per_group]);
      if (entry < row_end) {
        advance(p, 0);
      }
    }
  }
  static SPARSECONV_DEVICE int32_t within(const Pattern& p, int32_t e) {
    return e < 0 ? 0 : e > p.nnz ? p.nnz : e;
  }
  // Where the entries of the next channel end.
  SPARSECONV_DEVICE int32_t next_channel(const Pattern& p) {
    const int32_t end = p.pointers[++kernel];
    return end < row_end ? end : row_end;
  }
  // To be called in rows that have entries; beyond the last it reads that one again.
  SPARSECONV_DEVICE void advance(const Pattern& p, int32_t entries) {
    entry += entries;
    const int32_t at = entry + offset < row_end ? entry + offset : row_end - 1;
    row = p.rows[at];
    if constexpr (kWeighted) {
      weight = weights[at];
    }
  }
};

// The inputs of one lane and channel. `each(pattern, cursor, end, block, f)` calls, for the entries
// e from the cursor's to `end` in order, f(e, weight, x); x(r) is what output r of the lane
// multiplies with the weight. Before it calls f.reserve(n): at most n calls of f follow.

// One load from shared memory per multiply-add: any shape whose window fits there. An SM loads 32
// floats a clock and multiplies 128, so this cannot pass a quarter of its peak.
template <typename Number, int kR>
struct Tiled {
  using T = Number;
  static constexpr int kOutputs = kR;
  static constexpr bool kLoads = true;

  const T* rows;
  const Tiling& tiling;
  int64_t step;
  int32_t span;

  SPARSECONV_DEVICE Tiled(const Site<T>& site, int channel, int64_t)
      : rows(site.rows(channel)),
        tiling(site.tiling),
        step(site.window.step),
        span(static_cast<int32_t>(site.window.span)) {}

  static SPARSECONV_DEVICE int32_t offset(int) { return 0; }

  template <typename At, typename Block, typename F>
  SPARSECONV_DEVICE void each(const Pattern& p, At& at, int32_t end, const Block&, F& f) const {
    SPARSECONV_NO_UNROLL
    while (at.entry < end) {
      const int32_t entry = at.entry, row = at.row;
      const T weight = at.weight;
      at.advance(p, 1);
      f.reserve(1);
      const bool wrong = static_cast<uint32_t>(row) > static_cast<uint32_t>(span);
      const T* x = rows + offset_of(tiling, step, wrong ? 0 : row);
      f(entry, weight, [x](int r) { return x[r]; });
    }
  }
};

// Inputs where they are, for windows that no shared memory holds. Slow, and right for every shape.
template <typename Number, int kR>
struct Direct {
  using T = Number;
  static constexpr int kOutputs = kR;
  static constexpr bool kLoads = false;

  const Site<T>& site;
  int64_t base;

  SPARSECONV_DEVICE Direct(const Site<T>& site, int, int64_t channel)
      : site(site),
        base(site.lane.item * site.in.view.stride[0] + channel * site.in.view.stride[1]) {}

  static SPARSECONV_DEVICE int32_t offset(int) { return 0; }

  template <typename At, typename Block, typename F>
  SPARSECONV_DEVICE void each(const Pattern& p, At& at, int32_t end, const Block&, F& f) const {
    const Window& w = site.window;
    const bool idle = site.lane.item >= w.batch;
    SPARSECONV_NO_UNROLL
    while (at.entry < end) {
      const int32_t entry = at.entry, row = at.row;
      const T weight = at.weight;
      at.advance(p, 1);
      f.reserve(1);
      const bool wrong = static_cast<uint32_t>(row) > static_cast<uint32_t>(w.span);
      const int64_t first = w.origin + site.lane.output * w.step + (wrong ? 0 : row);
      f(entry, weight,
        [&](int r) { return idle ? T(0) : sample<T>(site.in, w, base, first + r * w.step); });
    }
  }
};

// The whole window in registers: each input is loaded once and used by every active weight of the
// rows that share it. Registers have no run-time index, so each row of the window has its own code,
// which all threads of a warp run or skip alike: bits tell which. (A switch would look shorter. But
// nvcc 13 makes a tree of comparisons of one with 39 cases, and of what such a loop executes only
// half are multiply-adds.)
template <int kReach, int kR>
struct Registers {
  using T = float;
  static constexpr int kOutputs = kR;
  static constexpr bool kLoads = true;
  static constexpr int kTested = 4;  // rows skipped by one test; 3 and 4 need the fewest at 13 %

  float window[kR + kReach - 1];

  SPARSECONV_DEVICE Registers(const Site<float>& site, int channel, int64_t) {
    const float* rows = site.rows(channel);
    SPARSECONV_UNROLL
    for (int i = 0; i < kR + kReach - 1; ++i) {
      window[i] = rows[i];
    }
  }

  // Each lane looks at an entry of its own.
  static SPARSECONV_DEVICE int32_t offset(int lane) { return lane; }

  template <typename At, typename Block, typename F>
  SPARSECONV_DEVICE void each(const Pattern& p, At& at, int32_t end, const Block& block, F& f)
      const {
    SPARSECONV_NO_UNROLL
    while (at.entry < end) {
      const int32_t n = end - at.entry < kLanes ? end - at.entry : kLanes;
      const uint32_t row = at.offset < n ? static_cast<uint32_t>(at.row) : 64;
      uint32_t bits[2];
      bits[0] = block.any_bits(row < 32 ? 1u << row : 0);
      bits[1] = kReach > 32 ? block.any_bits(row >= 32 && row < 64 ? 1u << (row - 32) : 0) : 0;
      const float* weights = block.batch();
      if constexpr (At::kHasWeights) {
        block.sync_warp();
        block.batch()[block.lane()] = at.weight;
        block.sync_warp();
      }
      float weight = At::kHasWeights ? weights[0] : 0;
      int32_t entry = at.entry;
      at.advance(p, n);
      f.reserve(n);
      SPARSECONV_UNROLL
      for (int first = 0; first < kReach; first += kTested) {
        // Rows [first, first + kTested): they never straddle a word.
        if (bits[first / 32] >> first % 32 & ((1u << kTested) - 1)) {
          SPARSECONV_UNROLL
          for (int k = first; k < first + kTested && k < kReach; ++k) {
            if (bits[k / 32] >> k % 32 & 1) {
              const float present = weight;
              if constexpr (At::kHasWeights) {
                weight = *++weights;  // on its way while this one is used
              }
              f(entry++, present, [&](int r) { return window[k + r]; });
            }
          }
        }
      }
    }
  }
};

}  // namespace sparseconv::cuda
