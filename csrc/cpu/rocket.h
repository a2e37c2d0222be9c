// Features of random convolution kernels, of many series: what ROCKET and MiniROCKET keep of
// convolutions whose outputs are not read. Plain structs, which every instruction set sees.
#pragma once

#include "../conv1d.h"

namespace sparseconv {

struct SeriesBatch {
  const float* x;  // (batch, channels, length)
  int64_t batch, channels, length;
  float* features;  // (batch, n_features)
  int64_t n_features;
};

// Kernels have up to this many taps.
constexpr int64_t kRocketTaps = 11;
// Zero samples on both sides of a series: kernels whose padding they hold need no other care.
constexpr int64_t kRocketMargin = 48;
// A rest of fewer series than this has, for MiniROCKET, positions of one series in the lanes.
constexpr int64_t kMiniFew = 6;
// Positions of a tile of MiniROCKET, at most.
constexpr int64_t kMiniTile = 240;
constexpr int64_t kMaxLanes = 16;  // of float, on any instruction set

// A dilated convolution of one or a few channels: outputs from -padding on, samples outside the
// series are 0.
struct RocketKernel {
  int32_t length, dilation, padding, n_channels;
  int32_t weights;   // where its bias stands, and then [tap][channel]
  int32_t channels;  // of its channels' numbers
  int32_t kernel;    // its two features are 2 * kernel and the one after
};

// Kernels for which there is code that loads an input once for several outputs; others take any
// list of taps and channels.
inline bool have_columns(const RocketKernel& k) {
  return k.n_channels == 1 && (k.length == 7 || k.length == 9 || k.length == 11);
}
inline bool alike(const RocketKernel& a, const RocketKernel& b) {
  return a.dilation == b.dilation && a.length == b.length && a.padding == b.padding &&
         a.n_channels == b.n_channels;
}

// Neighbouring kernels that are alike, for few series.
struct RocketLanes {
  int32_t first, count;
  // Kernels are the lanes, and here stand [bias, tap 0, tap 1, ...][lane]; or -1: positions of the
  // series are the lanes, for one kernel after the other.
  int64_t weights;
};

struct RocketFeatures {
  SeriesBatch series;
  // Alike ones together, and so are their weights and channels.
  const RocketKernel* kernels;
  int64_t n_kernels;
  const float* weights;
  const int32_t* channels;
  const RocketLanes* lanes;
  int64_t n_lanes;
  const float* lane_weights;
  double single_cost;  // of a series by `lanes`; that of a vector of series is n_kernels

  int64_t scratch_bytes() const {
    const int64_t features = ceil_div(series.n_features, kMaxLanes) * kMaxLanes;
    const int64_t rows = series.channels * (series.length + 2 * kRocketMargin);
    return (features * kMaxLanes + rows * kMaxLanes) * static_cast<int64_t>(sizeof(float));
  }
};

// One of the 84 kernels of MiniROCKET at one dilation, with some of its biases.
struct MiniRocketKernel {
  int32_t taps[3];  // ascending; weight 2, the six others -1
  int32_t dilation, padded, n_channels;
  int32_t channels;  // of its channels' numbers
  int32_t bias;      // its first one, which is its first feature too
  int32_t n_biases;
};

struct MiniRocketFeatures {
  SeriesBatch series;
  const MiniRocketKernel* kernels;  // by dilation
  int64_t n_kernels;
  const int32_t* channels;
  const float* biases;
  int64_t max_dilation;

  int64_t scratch_bytes() const {
    const int64_t plane = series.length + 8 * max_dilation + 4;  // and vectors behind the end
    const int64_t rows = series.channels * (2 * plane + kMiniTile) + kMiniTile;
    return (rows + series.n_features) * kMaxLanes * static_cast<int64_t>(sizeof(float));
  }
};

}  // namespace sparseconv
