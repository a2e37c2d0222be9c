// Convolutions whose blocks of 16 x 16 channels share their taps, in bfloat16: every active
// (block, tap) is a product of 16 x 16 weights. Plain structs: no torch, no STL.
#pragma once

#include "../conv1d.h"

namespace sparseconv {

// Channels: outputs of a tile, and half of a scratch row's inputs.
constexpr int64_t kBlockSize = 16;
// Rows of one product, and of the products that share a load of weights.
constexpr int64_t kTileRowCount = 16, kTilesAtOnce = 4;
constexpr int64_t kStripRows = kTileRowCount * kTilesAtOnce;
constexpr int64_t kPairRows = 32;  // rows that one product of wgrad sums over
// Outputs of a series that a thread computes from one scratch window at most.
constexpr int64_t kBlockRows = 128, kBlockWgradRows = 256;
// A scratch row holds 32 channels of one position, or 16 of two: 64 bytes, as a tile's row.
constexpr int64_t kBlockRowBytes = 64;
constexpr int64_t kTileBytes = 1024, kWeightTileBytes = 512;

// Samples of a staging buffer for this many: 16 are read at a time, from one further on too.
inline int64_t staged(int64_t samples) {
  return ceil_div(samples, 16) * 16 + 32;
}

// Signals as the products read them: a row of 32 channels for each position, one panel of rows
// after the other, channels that do not exist as zeros. `data` is the row of position 0 of the
// first panel of the first series.
struct Rows {
  char* data;
  int64_t series, panel;  // bytes from one to the next

  char* at(int64_t n, int64_t block, int64_t position) const {
    return data + n * series + block / 2 * panel + block % 2 * 32 + position * kBlockRowBytes;
  }
};

// A tile of weights: where the weight of its row r and column c is in `values`,
// pointers[(out_channel + r) * channels_per_group + in_channel + c] + rank.
struct BlockWeights {
  int32_t out_channel, in_channel, rank;  // the input channel within its group
  int32_t rows, columns;                  // below 16 in the last blocks
};

// Between values, float, and tiles. Packed, bfloat16, each is (8, 16, 2): pairs of the channels
// that are summed over, of 16 outputs; in dgrad (`transposed`) rows are summed over. Sums of wgrad
// are float, (splits, n, 16, 16).
struct BlockPacking {
  float* values;
  const BlockWeights* tiles;
  int64_t n;
  const int32_t* pointers;
  int64_t channels_per_group;
  bool transposed;
  void* packed;
  const float* sums;
  int64_t splits;
};

// One active (block, tap): 16 inputs from channel 16 * in_block on, `position` inputs further on.
struct BlockEntry {
  int32_t in_block, position;
};

// out[n, r, first + i * out_step] = init[r] + sum over the entries e of r's block, and c < 16:
//     weight[e][c][r % 16] * in[n, 16 * in_block(e) + c, origin + i * step + position(e)],
// for i in [0, rows). Signals are bfloat16; the output may be float32. A signal is a view, or rows
// if these have data: then of the input, the padding too.
struct BlockCorrelation {
  const BlockEntry* entries;  // by block of outputs, then by position
  const int32_t* first;       // entry at which each block of outputs begins, (out_blocks + 1,)
  int64_t out_blocks, in_blocks;
  int64_t low, high;    // the least and the greatest position of an entry
  const void* weights;  // (entries, 8, 16, 2), bfloat16: pairs of inputs of 16 outputs
  const float* init;    // (16 * out_blocks,) or null for zeros
  int64_t step;
  int64_t batch, in_channels, out_channels;
  TensorView in;
  Rows in_rows;
  int64_t in_length;
  PaddingMode mode;
  int64_t origin;
  TensorView out;
  Rows out_rows;
  bool out_float;
  int64_t rows, first_out, out_step;
  bool relu;

  int64_t chunks() const { return ceil_div(rows, kBlockRows); }
  // Positions of a chunk's window.
  int64_t window() const {
    return ((rows < kBlockRows ? rows : kBlockRows) - 1) * step + 1 + high - low;
  }
  // Bytes of the scratch of 32 channels. A strip's last tile may read rows that no output needs.
  int64_t pitch() const { return (window() + kStripRows * step + 1) * kBlockRowBytes; }
  int64_t scratch_bytes() const {
    const int64_t offsets = ceil_div(int64_t{first[out_blocks]}, 8) * 8;
    return pitch() * ceil_div(in_blocks, 2) + 4 * kTilesAtOnce * kTileBytes + offsets * 8 +
           2 * kBlockSize * staged(window()) * 2;
  }
};

// A tile of weights: its blocks, and the row of the input's scratch that its tap reads first. Rows
// lie in runs, one for each phase of the stride that taps have: row q of run r is for the input at
// phases[r] + q * step.
struct BlockTap {
  int32_t out_block, in_block, run, row;
};

// out[split][t][r][c] = sum over n, i: grad[n, 16 * out_block(t) + r, i] *
//                       in[n, 16 * in_block(t) + c, origin + i * step + tap's position]
struct BlockWeightGradient {
  const BlockTap* taps;  // by block of inputs, then of outputs
  int64_t n_taps;
  const int32_t* phases;
  int64_t n_runs;
  int64_t reach;  // of a kernel, in inputs
  int64_t span;   // rows of a run beyond those of one tap
  int64_t out_blocks, in_blocks;
  int64_t step;
  int64_t batch, in_channels, out_channels, rows;
  TensorView grad, in;  // or, for a stride of 1, rows
  Rows grad_rows, in_rows;
  int64_t in_length;
  PaddingMode mode;
  int64_t origin;
  float* out;  // (splits, n_taps, 16, 16), zeros
  int64_t splits;

  // The first position that no gradient needs.
  int64_t past() const { return origin + (rows - 1) * step + reach; }
  int64_t chunks() const { return ceil_div(rows, kBlockWgradRows); }
  // Gradients of a chunk, whole products of them.
  int64_t chunk_rows() const {
    return ceil_div(rows < kBlockWgradRows ? rows : kBlockWgradRows, kPairRows) * kPairRows;
  }
  int64_t run_rows() const { return chunk_rows() + span; }
  // Bytes of the scratch of 16 input channels, which is written 16 rows at a time, and of 16 output
  // channels.
  int64_t in_pitch() const { return (n_runs * run_rows() + 16) * kBlockRowBytes; }
  int64_t grad_pitch() const { return chunk_rows() / kPairRows * kTileBytes; }
  // Short series are packed together, so that their sums are loaded and stored once.
  int64_t series() const { return run_rows() < kBlockWgradRows ? kBlockWgradRows / run_rows() : 1; }
  int64_t units() const { return ceil_div(batch, series()) * chunks(); }
  int64_t scratch_bytes() const {
    return (in_pitch() * in_blocks + grad_pitch() * out_blocks) * series() +
           kBlockSize * staged(run_rows() + 1) * 2;
  }
};

// Between (N, C, L) and rows; `length` is L.
struct RowConversion {
  TensorView signal;
  Rows rows;
  int64_t batch, channels, length;

  int64_t scratch_bytes() const { return 2 * kBlockSize * staged(length) * 2 + kTileBytes; }
};

// out[n][i] = sum over j <= i: in[n, first + j * step], for i in [0, count), of all panels; rows
// outside of [0, length) are zeros. Row i of the output is at position i * step.
struct BorderSums {
  Rows in, out;
  int64_t batch, length, panels, first, count, step;
};

// Statistics of some rows of a panel: a number near them, and the sums of their distances from it
// and of the squares of these, of 32 channels each.
constexpr int64_t kStatistics = 96;

// BatchNorm and ReLU on rows: z = (x - centre) * scale + shift + added and dz = grad where z > 0,
// or everywhere without `relu`. With gradients, `added` is the output, which is positive where z
// is. Vectors are of 32 channels for each panel.
struct RowNorm {
  Rows in, out;
  Rows grad;               // without data: grads are not read
  Rows added, grad_added;  // without data: nothing is added, and its gradient dz is not written
  bool relu;
  int64_t batch, length, panels;
  const float *centre, *scale, *shift, *slope, *offset;
  // For each series and panel statistics of the input, or with gradients 32 sums of dz and of
  // dz * (x - centre).
  double* sums;
};

// As MaxPool in fused.h; `grad` without data: none.
struct RowPool {
  Rows in, grad, out;
  int64_t batch, length, pooled, panels, size, stride;
};

}  // namespace sparseconv
