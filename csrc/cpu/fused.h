// The plain structs of the ops around the sparse convolutions, on tensors in lanes (lane_order.h):
// no torch, no STL. All tensors are contiguous.
#pragma once

#include "../conv1d.h"

namespace sparseconv {

// Columns of the panel that a 1x1 convolution copies: 128 of them at 141 channels are 72 KB, of
// which L1 holds a tile's share.
constexpr int64_t kPointColumns = 128;

// out[r, j] = sum over k: weight[k, r] * in[k, j], + bias[r] + added[r, j], for the columns j of a
// channel. fprop of a 1x1 convolution, and with the weight's other dimension first its dgrad.
struct Pointwise {
  const void* in;
  const void* weight;
  const void* bias;   // null: none
  const void* added;  // null: nothing
  void* out;
  int64_t columns;
  int64_t depth;  // channels that are summed over
  int64_t rows;   // output channels

  int64_t scratch_bytes() const { return depth * kPointColumns * 8; }
};

// out[r, k] = sum over the columns j: grad[r, j] * in[k, j].
struct PointwiseGradient {
  const void* grad;
  const void* in;
  void* out;
  int64_t columns;
  int64_t depth;
  int64_t rows;
};

// What BatchNorm of tensors in lanes and its gradient have in common: vectors of the channels.
struct LaneNorm {
  LaneOrder order;
  const void* in;
  const void* weight;  // null: ones
  const void* bias;    // null: zeros
  int64_t channels;
  bool training;
  bool relu;

  int64_t scratch_bytes() const { return order.groups * 64; }
};

// Per channel, with the statistics of this batch or the running ones: z = (x - mean) * (invstd *
// weight) + bias + added, out = max(z, 0), or z without `relu`.
struct BatchNormRelu : LaneNorm {
  const void* added;  // null: nothing; else with `relu`
  void* out;
  void* mean;  // (channels,), written
  void* invstd;
  void* running_mean;  // in training updated, unless null; else read
  void* running_var;
  double momentum;
  double eps;
};

// With dz = grad where z > 0 (everywhere without `relu`; z is `output`, if something was added),
// xhat = (x - mean) * invstd and n = batch
// * length: grad_bias = sum dz, grad_weight = sum dz * xhat, grad_in = invstd * weight * (dz -
// (grad_bias + xhat * grad_weight) / n) in training, else invstd * weight * dz.
struct BatchNormReluGradient : LaneNorm {
  const void* grad;
  void* grad_in;       // may be `grad`
  void* grad_added;    // dz, if something was added
  const void* output;  // else null
  const void* mean;
  const void* invstd;
  void* grad_weight;
  void* grad_bias;
};

// The longest window that a pooling kernel takes has this many samples on either side.
constexpr int64_t kPoolRadius = 7;

// The largest samples of windows. With stride 1, a window has a sample in its middle, and outputs
// are as long as inputs; else it is at most as long as the stride (fits_pooling).
struct MaxPool {
  LaneOrder order, pooled;
  const void* in;
  const void* grad;  // of the output, or null
  void* out;         // the output, or with `grad` the gradient of the input
  int64_t channels;
  int64_t size;
  int64_t stride;

  int64_t radius() const { return size / 2; }
  // The rows at the beginning of a piece with those that they read, and the gradients of the same.
  int64_t scratch_bytes() const { return (2 * order.idle + 10 * radius()) * 64; }
};

// A random number of 31 bits for each position: the finalizer of MurmurHash3 (Appleby 2011) over a
// random line of odd slope.
struct Draws {
  uint32_t factor, offset;
  uint32_t limit;
};
constexpr uint32_t kDrawsEnd = uint32_t{1} << 31;  // above every number

// out[i] = in[i] * scale where the number of position i is below the limit, else 0.
struct Dropout {
  const void* in;
  void* out;
  int64_t n;
  Draws draws;
  double scale;
};

// elu: x, or exp(x) - 1 if x is negative. The last two multiply the first half of the channels, or
// its tanh, by the sigmoid of the second half.
enum class ActivationKind { elu, tanh, glu, gated_tanh };

// Of tensors in lanes: whole vectors.
struct Activation {
  const void* in;
  const void* grad;  // of the output, or null
  void* out;         // the output, or with `grad` the gradient of the input
  int64_t n;         // elements of the output
  ActivationKind kind;
};

// x, or weight * x where that is not positive, of rows of `length` samples. Row r has weight
// number r % channels.
struct Prelu {
  const void* in;
  const void* weight;
  const void* grad;  // of the output, or null
  void* out;         // the output, or with `grad` the gradient of the input
  void* sums;        // with `grad`: for each row kLanes sums, which add up to the weight's gradient
  int64_t rows, length, channels;
};

// Columns that a 1x1 wgrad sums before it adds: 512 take as long, 2048 half as long again, since a
// tile's rows leave L1 (N = 16, L = 128 to 512, one thread of an AMD EPYC, Zen 3).
constexpr int64_t kDotColumns = 1024;

}  // namespace sparseconv
