// The plain structs between torch and the kernels: pointers and sizes, no torch, no STL. Their
// `scratch_bytes` is the memory, aligned to 64 bytes, that one call of a kernel needs; enough for
// float64 on any ISA. Those without it need none.
#pragma once

#include <cstdint>

#include "cpu/plan/lane_order.h"

// What host and device code share compiles as plain C++ as well.
#if defined(__CUDACC__)
#define SPARSECONV_HD __host__ __device__
#else
#define SPARSECONV_HD
#endif

namespace sparseconv {

enum class Element : int { f32, f64, bf16, f16 };
enum class PaddingMode : int { zeros, replicate, reflect, circular };

SPARSECONV_HD inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Where a position outside the series reads. The caller has checked that one step is enough.
SPARSECONV_HD inline int64_t fold_position(int64_t position, int64_t length, PaddingMode mode) {
  switch (mode) {
    case PaddingMode::replicate:
      return position < 0 ? 0 : length - 1;
    case PaddingMode::reflect:
      return position < 0 ? -position : 2 * length - 2 - position;
    default:
      return position < 0 ? position + length : position - length;
  }
}

// One convolution without its tensors.
struct Geometry {
  int64_t out_channels, channels_per_group, kernel_size;  // channels_per_group = C_in / groups
  int64_t stride, left, right, dilation, groups;
  PaddingMode mode;

  int64_t in_channels() const { return channels_per_group * groups; }
  int64_t n_kernels() const { return out_channels * channels_per_group; }
  int64_t reach() const { return dilation * (kernel_size - 1) + 1; }
  int64_t output_length(int64_t input_length) const {
    return (input_length + left + right - reach()) / stride + 1;
  }
};

// (batch, channel, position); strides in elements, of either sign, 0 allowed.
struct TensorView {
  void* data;
  int64_t stride[3];
};

// One run of scratch rows. Row `row + j` holds, for every lane, the input position
// `position + j * step` relative to where the lane's piece begins.
struct Segment {
  int64_t position;
  int64_t row;
  int64_t span;  // rows beyond those of one tap: last tap's row - first tap's row
};

// Where the taps of one channel find their inputs inside the scratch tile (see layout.h).
struct TileShape {
  const Segment* segments;
  int64_t n_segments;
  int64_t step;            // input positions between neighbouring rows
  int64_t channel_rows;    // scratch rows of one channel
  int64_t block_channels;  // channels that share the scratch
  // Not null if a strided kernel reads every sample: the row of each, from where the piece begins.
  const int32_t* sample_rows;
  int64_t window;  // samples beyond step * outputs that are read then
};

// A kernel finds the scratch rows that it reads this many entries early. So a plan has this many
// more behind its last one, which are looked up and not used.
constexpr int kAhead = 4;

// The entries that one row of a pattern has among the channels of one block: `n` weights from
// values[value] on, whose scratch rows are rows[offset] and the following.
struct RowEntries {
  int32_t row, n, value, offset;
};

// The active weights by block of channels that share the scratch, then by row. Records of rows
// without entries are left out: those of block b from row r on begin at first[b * (n_rows + 1) +
// r].
struct Entries {
  const RowEntries* records;
  const int32_t* first;
  const int32_t* rows;  // scratch rows within the channel block, in the order of the records;
                        // kAhead more behind them
  int64_t n_blocks;
  int64_t channels_per_group;
  int64_t n_rows;
  int64_t groups;
  int64_t nnz;
  const int32_t* row_starts;  // entries before each row, (n_rows + 1,): what threads share by
};

// What the tiles of a kernel are packed from.
struct Source {
  TileShape tile;
  LaneOrder order;  // of the rows of all tiles
  TensorView in;
  int64_t in_length;
  PaddingMode mode;
  int64_t origin;  // input position of the first tap at the first sample of the order
  // The signals of the problem lie in that order (float32 and float64 only): `data` is all that
  // counts of them, the stride is 1, the tile has one segment, the padding is zeros or replicated.
  // The rows of a tile are tile.step apart, in the output as well.
  bool in_lanes = false;
};

// out[n, r, i] = init[r] + sum over the entries e of row r:
//                values[e] * in[n, channel(e), origin + i * step + position(tap(e))]
// for i in [0, order.length), written to position first + i * out_step + r % phases of channel
// r / phases of the output, unless that is outside of it. That is fprop, and with the transposed
// pattern dgrad, whose outputs take turns in the phases of the stride.
struct Correlation : Source {
  Entries entries;
  const void* values;  // accumulation type
  const void* init;    // accumulation type, (n_rows,) or null for zeros
  // The scratch holds, instead of the inputs, their sums from the beginning of the only segment on.
  // In lanes only the first output of each series is computed then, and added to what is there.
  bool prefix_sums;
  // The last output of each series reads, instead of the inputs, their sums from its own on: that
  // is the gradient of a sample which was replicated on the right.
  bool edge;
  TensorView out;
  int64_t out_length;
  int64_t first;
  int64_t out_step = 1;
  int64_t phases = 1;
  bool relu;  // negative outputs become 0; NaN stays; only with one phase

  // Whether the output itself holds the sums from the first channel block on.
  bool in_place() const { return in_lanes && !prefix_sums && tile.step == 1; }
  int64_t row_step() const { return in_lanes ? tile.step : 1; }
  // Of the rows of each piece, those that are computed: all, or the one of the first sample.
  int64_t rows() const { return in_lanes && prefix_sums ? 1 : order.rows; }
  int64_t first_row() const { return in_lanes && prefix_sums ? order.idle : 0; }
  int64_t scratch_bytes() const;
};

// The weights of one row and channel block that are summed at once.
struct WeightBatch {
  int32_t row, first, n;
};

// out[e] = sum over n, i: grad[n, r(e), i] * in[n, channel(e), origin + i * step +
// position(tap(e))]
struct WeightGradient : Source {
  const WeightBatch* batches;   // by block, then by size
  const int32_t* block_starts;  // batches before each block, (n_blocks + 1,)
  const int32_t* rows;          // scratch row of each entry, in the order of `values`
  const int32_t* row_starts;    // entries before each row
  int64_t n_blocks;
  int64_t channels_per_group;
  int64_t n_rows;
  int64_t groups;
  int64_t nnz;
  TensorView grad;
  void* partial;   // accumulation type, (splits, nnz), zeros
  int64_t splits;  // the chunks are cut into this many fixed runs, each with its own sums

  int64_t scratch_bytes() const;
};

// Between a signal of any strides and its copy in lanes, (channels, groups, rows, lanes).
struct Conversion {
  LaneOrder order;
  TensorView signal;
  void* lanes;
  int64_t channels;

  int64_t scratch_bytes() const;
};

}  // namespace sparseconv
