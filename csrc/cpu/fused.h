// The plain structs of the ops around the sparse convolutions: no torch, no STL. Positions of a
// whole batch are numbered consecutively: column j is sample j % length of batch item j / length.
#pragma once

#include "../conv1d.h"

namespace sparseconv {

// out[n, r, l] = sum over k: weight[k, r] * in[n, k, l]. fprop of a 1x1 convolution, and with the
// weight's other dimension first its dgrad. `weight` and `out` are contiguous.
struct Pointwise {
  TensorView in;
  const void* weight;
  void* out;
  int64_t batch;
  int64_t length;
  int64_t depth;  // channels that are summed over
  int64_t rows;   // output channels
};

// partial[s][r][c] = sum over the columns j of split s: row_side[j, r] * lane_side[j, c]. wgrad of
// a 1x1 convolution; which tensor's channels become lanes is the caller's choice.
struct PointwiseGradient {
  TensorView row_side;
  TensorView lane_side;
  int64_t rows;
  int64_t lanes;
  void* partial;           // (splits, rows, partial_stride), 64-byte aligned
  int64_t partial_stride;  // a multiple of a scratch row
  int64_t splits;          // the columns are cut into this many fixed runs
  int64_t batch;
  int64_t length;
};

// Per channel, with the statistics of this batch: z = (x - mean) * (invstd * weight) + bias,
// out = max(z, 0). `out` is contiguous.
struct BatchNormRelu {
  TensorView in;
  void* out;
  const void* weight;  // null: ones
  const void* bias;    // null: zeros
  void* mean;          // (channels,), written
  void* invstd;
  void* running_mean;  // updated, unless null
  void* running_var;
  double momentum;
  double eps;
  int64_t batch;
  int64_t channels;
  int64_t length;
};

// With dz = grad where z > 0, xhat = (x - mean) * invstd and n = batch * length: grad_bias = sum
// dz, grad_weight = sum dz * xhat, grad_in = invstd * weight * (dz - (grad_bias + xhat *
// grad_weight) / n).
struct BatchNormReluGradient {
  TensorView grad;
  TensorView in;
  void* grad_in;  // contiguous
  const void* weight;
  const void* bias;
  const void* mean;
  const void* invstd;
  void* grad_weight;
  void* grad_bias;
  int64_t batch;
  int64_t channels;
  int64_t length;
};

// Averages over bins: bin i of `bins` covers samples floor(i length / bins) up to
// ceil((i + 1) length / bins). Series are contiguous and follow each other.
struct Pool {
  const void* in;  // (series, length); of the gradient (series, bins)
  void* out;       // (series, bins); of the gradient (series, length)
  int64_t series;
  int64_t length;
  int64_t bins;
};

// Columns whose channels wait side by side for the tiles of PointwiseGradient. Time of wgrad over
// that with 128, 141 -> 47, N = 16, one thread of a busy AMD EPYC (Zen 5): with 64 1.03 at L = 128
// and 1.05 at L = 512 and 24, with 256 1.02, 0.99 and 0.96, but 1.10 from 141 to 2 channels (two
// runs of each in turn).
constexpr int64_t kPointDepth = 128;

// Samples of one channel in scratch, rounded up to whole steps of its sums: two scratch rows.
inline int64_t channel_samples(int64_t batch, int64_t length) {
  return (batch * length + 31) / 32 * 32;
}

constexpr int64_t kChannelBlockMax = 16;

// Channels that are gathered together: as many as fit L1 (32 KB of float32 in `arrays` arrays),
// for their samples follow each other in memory and are fetched as one stream. DSN, N = 16, memory
// cold: from one channel at a time 0.068 ms fall to 0.048 at L = 24, 0.184 to 0.171 at L = 128, and
// with the next block asked for ahead to 0.026 and 0.125. Two and four times as many channels take
// 8 % and 24 % longer at L = 128.
inline int64_t channel_block(int64_t batch, int64_t length, int64_t arrays) {
  const int64_t fit = 8192 / (arrays * channel_samples(batch, length));
  return fit < 1 ? 1 : fit > kChannelBlockMax ? kChannelBlockMax : fit;
}

}  // namespace sparseconv
