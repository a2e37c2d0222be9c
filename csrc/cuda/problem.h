// What one launch computes, and where its data is: plain C++ without torch, shared by kernels,
// launchers and tests. float32, stride 1, one group, and windows of up to 40 samples.
//
// One long series. A batch is packed series after series, each padded to the same `period`:
//   fprop    the inputs with their padding. Outputs that reach into the next series are not stored.
//   dgrad    the gradients of the outputs, and a zero for each sample of a window beyond one;
//            backwards, which makes it fprop on the transposed pattern.
//   wgrad    both, forwards: position p of the gradient meets positions p + k of the input.
// So a tile is 32 * R neighbouring positions, whatever the batch, the lengths, the padding or the
// strides of the tensors, it is copied 16 bytes at a time, and no kernel asks where a series ends.
#pragma once

#include "../conv1d.h"

namespace sparseconv::cuda {

constexpr int kLanes = 32;
constexpr int kReach = 40;  // samples of a window, and bits of a kernel's mask

// Neighbouring positions of a lane: odd multiples of 4, with which 32 lanes that read 16 bytes each
// meet 32 banks. The more, the more multiply-adds for each test of a bit: 36 sums and 44 inputs fit
// 128 registers, with which 16 warps share a multiprocessor. Fewer make more warps.
constexpr int kLarge = 36;
constexpr int kSmall = 12;
constexpr int kTiny = 4;  // of a correlation that is less than one small block a multiprocessor
// Warps of a block share the inputs in shared memory; each computes a row of the pattern.
SPARSECONV_HD constexpr int warps_of(int positions) {
  return positions == kLarge ? 8 : 4;
}
// Shared memory of a block: two large ones fit a multiprocessor of an A100 or H100, or three
// others.
SPARSECONV_HD constexpr int shared_bytes(int positions) {
  return (positions == kLarge ? 80 : 48) * 1024;
}

SPARSECONV_HD constexpr int row_floats(int positions) {  // of a channel of a tile
  return kLanes * positions + kReach;
}
// wgrad: sums of a lane's positions for up to 40 weights; a row is one word longer than a warp, so
// that reading down a column meets 32 banks.
constexpr int kStageRow = kLanes + 1;
constexpr int kStage = kReach * kStageRow;

// Channels loaded together, into one of two buffers: inputs, and for each warp the kernels and, but
// for wgrad, the most weights that they can have. Behind them is one kernel that is read in vain.
SPARSECONV_HD constexpr int channel_floats(int positions, bool weights) {
  return row_floats(positions) + warps_of(positions) * (2 + (weights ? kReach : 0));
}
SPARSECONV_HD constexpr int chunk_channels(int positions, bool weights) {
  const int stage = weights ? 0 : warps_of(positions) * kStage;
  return ((shared_bytes(positions) / 4 - stage) / 2 - 4) / channel_floats(positions, weights);
}

// For each row of the pattern, heaviest first: its number, in the upper half its first entry; then
// of each channel the mask of its kernel, whose bit k is that of row k of the window. What it says
// is brought within bounds where it is read, so that a wrong pattern gives wrong numbers but
// touches no memory outside the buffers: checking it would need a synchronisation.
struct Pattern {
  const int64_t* rows;  // (n_rows, 1 + channels)
  int32_t n_rows, channels, nnz;
};

// (channels, stride): a batch as one series, zeros behind it; stride is a multiple of 4.
struct Packed {
  const float* data;
  int64_t stride;
};

// Packs a signal, and spreads the weights: 40 slots a kernel, of which only active ones are
// written, and read.
struct Packing {
  TensorView in;
  float* out;
  int64_t channels, stride;
  int32_t batch, length, period, left;
  PaddingMode mode;
  bool backwards;
  const float* values;   // (nnz,)
  const int32_t* slots;  // (nnz,): (row * channels + channel) * 40 + row of the window
  float* weights;
  int32_t nnz, n_slots;
};

// out[n, row, l - left] = bias[row] + sum over the entries of the row:
//                         weights[slot] * in[channel, n * period + l + row of the window]
struct Correlation {
  Pattern pattern;
  Packed in;
  const float* weights;
  const float* bias;  // (n_rows,), or null for zeros
  float* out;         // (batch, n_rows, length), contiguous
  int32_t batch, length, period, left;
  bool backwards, relu;
};

// partial[i, entry] = sum over the positions p of tiles i, i + partials_of(tiles), ...:
//                     grad[row, p] * in[channel, p + row of the window]
struct WeightGradient {
  Pattern pattern;
  Packed in, grad;
  float* partial;
  const int32_t* slots;    // (nnz,), as above
  int32_t period, length;  // of the gradient; what is between is not a position of a series
};
SPARSECONV_HD constexpr int32_t partials_of(int32_t tiles) {
  constexpr int32_t kPartials = 64;  // more would be memory and work for adding them up
  return tiles < kPartials ? tiles : kPartials;
}

// How many positions a lane takes, and what that makes of the work.
struct Cut {
  int positions;
  int32_t tiles;
  int64_t blocks;
};
inline Cut cut_of(const Pattern& pattern, int64_t positions, int of_lane) {
  const int64_t tiles = ceil_div(positions, kLanes * of_lane);
  return {of_lane, static_cast<int32_t>(tiles),
          tiles * ceil_div(pattern.n_rows, warps_of(of_lane))};
}
// Whichever is sooner done: on a multiprocessor a large block takes 3.6 times as long as a small
// one. On an H100 nothing else was more than 13 % faster, at 24 to 2709 samples of 16 series. For
// its 132 multiprocessors: sums must not depend on the GPU.
inline Cut cut_of(const Pattern& pattern, int64_t positions, bool correlates) {
  constexpr int64_t kProcessors = 132;
  const Cut large = cut_of(pattern, positions, kLarge), small = cut_of(pattern, positions, kSmall);
  const bool sooner =
      18 * ceil_div(large.blocks, kProcessors) <= 5 * ceil_div(small.blocks, kProcessors);
  if (correlates) {
    return sooner ? large : small.blocks >= kProcessors ? small : cut_of(pattern, positions, kTiny);
  }
  Cut cut = sooner ? large : small;
  cut.blocks = cut.tiles == 0 ? 0 : cut.blocks / cut.tiles * partials_of(cut.tiles);
  return cut;
}

}  // namespace sparseconv::cuda
