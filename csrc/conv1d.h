// The plain structs between torch and the kernels: pointers and sizes, no torch, no STL.
#pragma once

#include <cstdint>

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
};

// The active weights, row by row: row r of the pattern owns, for each block b of channels that
// share the scratch, the entries starts[r * n_blocks + b] .. starts[r * n_blocks + b + 1].
struct Entries {
  const int32_t* starts;
  const int32_t* rows;  // scratch row of each entry, within its channel block
  int64_t n_blocks;
  int64_t channels_per_group;
  int64_t n_rows;
  int64_t groups;
};

// What the scratch holds for an input position: the input, or an inclusive scan of the tile's only
// segment, from its beginning (prefix sums) or from its end (suffix sums).
enum class Scan : int { none, prefix, suffix };

// out[n, r, i] = init[r] + sum over the entries e of row r:
//                values[e] * in[n, channel(e), origin + i * step + position(tap(e))]
// for i in [0, count), written to position first + i * out_step of the output. That is fprop, and
// with the transposed pattern each phase of dgrad.
struct Correlation {
  Entries entries;
  TileShape tile;
  const void* values;  // accumulation type
  const void* init;    // accumulation type, (n_rows,) or null for zeros
  TensorView in;
  int64_t in_length;
  PaddingMode mode;
  int64_t origin;
  Scan scan;
  TensorView out;
  int64_t out_length;
  int64_t first;
  int64_t out_step;
  // Outputs that fall left of position 0 or right of out_length - 1 go here, accumulation type:
  // (batch, row, fold_left + fold_right). Null: there are none.
  void* fold;
  int64_t fold_left;
  int64_t fold_right;
  bool relu;  // negative outputs become 0; NaN stays
  // Pointwise epilogue, unless null: instead of the rows, which never leave the scratch, a 1x1
  // convolution of them is written: out[n, m, i] = epilogue_bias[m] + sum over r:
  // epilogue_weight[r, m] * row r. The tensors' dtype must be that of the accumulation.
  const void* epilogue_weight;  // (n_rows, epilogue_channels), contiguous
  const void* epilogue_bias;    // (epilogue_channels,) or null for zeros
  int64_t epilogue_channels;
  int64_t batch;
  int64_t count;  // outputs per series
  int64_t piece;  // outputs per lane, <= count
};

// out[e] = sum over n, i: grad[n, r(e), i] * in[n, channel(e), origin + i * step +
// position(tap(e))]
struct WeightGradient {
  Entries entries;
  TileShape tile;
  TensorView grad;
  TensorView in;
  int64_t in_length;
  PaddingMode mode;
  int64_t origin;
  void* partial;  // accumulation type, (splits, nnz), zeros
  int64_t nnz;
  int64_t splits;  // the chunks are cut into this many fixed runs, each with its own sums
  int64_t batch;
  int64_t count;
  int64_t piece;  // outputs per lane, <= count, a multiple of `tile_length` unless count is less
  int64_t tile_length;
};

}  // namespace sparseconv
