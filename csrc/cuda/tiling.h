// How a launch is cut into blocks, warps and lanes, and how inputs are stored in shared memory. By
// shape alone, and no result of fprop or dgrad depends on it.
#pragma once

#include "problem.h"

namespace sparseconv::cuda {

constexpr int kLanes = 32;
// Warps of a block share the inputs and compute different rows of the pattern.
constexpr int kWarps = 4;
// Inputs loaded together, at most: with it four blocks of 128 threads and up to 128 registers fit
// an SM of any GPU since sm_80. Not measured.
constexpr int64_t kTileBytes = 24 * 1024;
// What a block may take without asking the driver for more, less a KB for the weights of a batch.
constexpr int64_t kSharedBytes = 47 * 1024;

// The work of a launch in tiles. A tile is 32 lanes; a lane is `outputs` neighbouring outputs of
// one series; `pieces` neighbouring lanes share a series, and 32 / pieces series share a tile.
//
// In shared memory each series of a tile has its inputs once, positions that are equal modulo the
// step side by side: [channel][series][residue][row]. So the inputs of neighbouring outputs are
// neighbours whatever the stride, and those of neighbouring lanes are `outputs` words apart. That
// is odd, and continues from series to series (series_rows): 32 lanes meet 32 banks.
struct Tiling {
  int32_t outputs;
  int32_t pieces;
  int32_t residues;
  int32_t residue_rows;
  int32_t series_rows;
  int32_t channel_rows;
  int32_t channels;  // loaded together; 0: not even one fits, inputs are read where they are
  int64_t series_tiles;
  int64_t tiles;
};

// `bytes`: of an element in shared memory; `room`: bytes there. The fewest tiles, and of equals the
// one with the most pieces: the fewest series, and with them the fewest inputs beyond the outputs.
inline Tiling make_tiling(const Window& w,
                          int outputs,
                          int64_t channels,
                          int64_t bytes,
                          int64_t room) {
  Tiling best{};
  const int64_t residues = w.step < w.span + 1 ? w.step : w.span + 1;
  for (int32_t pieces = kLanes; pieces >= 1; pieces /= 2) {
    const int64_t series = kLanes / pieces, series_outputs = int64_t{pieces} * outputs;
    const int64_t residue_rows = series_outputs + w.span / w.step;
    const int64_t rows = residues * residue_rows;
    const int64_t series_rows = rows + ((series_outputs - rows) % kLanes + kLanes) % kLanes;
    const int64_t channel_bytes = series_rows * series * bytes;
    Tiling tiling{};
    tiling.outputs = outputs;
    tiling.pieces = pieces;
    tiling.series_tiles = ceil_div(w.count, series_outputs);
    tiling.tiles = ceil_div(w.batch, series) * tiling.series_tiles;
    if (channel_bytes <= room) {
      const int64_t most = (room < kTileBytes ? room : kTileBytes) / channel_bytes;
      tiling.channels = static_cast<int32_t>(most < 1 ? 1 : most < channels ? most : channels);
      tiling.residues = static_cast<int32_t>(residues);
      tiling.residue_rows = static_cast<int32_t>(residue_rows);
      tiling.series_rows = static_cast<int32_t>(series_rows);
      tiling.channel_rows = static_cast<int32_t>(series_rows * series);
    }
    const bool loads = tiling.channels > 0, loaded = best.channels > 0;
    if (best.pieces == 0 || (loads == loaded ? tiling.tiles < best.tiles : loads)) {
      best = tiling;
    }
  }
  return best;
}

// The lane's series, its first output, and where its inputs begin within a channel.
struct Lane {
  int64_t item;
  int64_t output;
  int32_t row;
};

SPARSECONV_HD inline Lane lane_of(const Tiling& tiling, int64_t tile, int lane) {
  const int series = lane / tiling.pieces, piece = lane % tiling.pieces;
  return {tile / tiling.series_tiles * (kLanes / tiling.pieces) + series,
          (tile % tiling.series_tiles * tiling.pieces + piece) * tiling.outputs,
          series * tiling.series_rows + piece * tiling.outputs};
}

// Where an input `row` positions into the window is stored, from where the lane's inputs begin.
SPARSECONV_HD inline int32_t offset_of(const Tiling& tiling, int64_t step, int32_t row) {
  const int32_t s = static_cast<int32_t>(step);
  return s == 1 ? row : row % s * tiling.residue_rows + row / s;
}

// Warps take kRows rows each, `units` apart, so that a pattern whose rows grow heavier from the
// first to the last (as those of a Dynamic Sparse Network do) gives every warp its share.
struct RowUnits {
  int32_t group_rows;
  int32_t units;         // of a group of the convolution
  int32_t group_blocks;  // blocks that cover one

  SPARSECONV_HD RowUnits(const Pattern& p, int rows_per_warp)
      : group_rows(p.n_rows / p.groups),
        units(static_cast<int32_t>(ceil_div(group_rows, rows_per_warp))),
        group_blocks(static_cast<int32_t>(ceil_div(units, kWarps))) {}
};

// What a warp does: `part` is a tile of outputs, or wgrad's chunk of tiles.
struct Work {
  int64_t part;
  int32_t group;
  int32_t unit;  // >= units: none, but it helps to load
};

SPARSECONV_HD inline Work work_of(const Pattern& p, const RowUnits& u, int64_t block, int warp) {
  const int64_t part_blocks = int64_t{u.group_blocks} * p.groups;
  const int32_t row_block = static_cast<int32_t>(block % part_blocks);
  return {block / part_blocks, row_block / u.group_blocks,
          row_block % u.group_blocks * kWarps + warp};
}

// A warp's row number `index`, or -1.
SPARSECONV_HD inline int32_t row_of(const RowUnits& u, const Work& work, int index) {
  const int64_t row = work.unit + int64_t{index} * u.units;
  return work.unit < u.units && row < u.group_rows
             ? static_cast<int32_t>(work.group * u.group_rows + row)
             : -1;
}

// wgrad's chunk holds the tiles [begin, end): near-equal runs.
struct Run {
  int64_t begin, end;
};
SPARSECONV_HD inline Run chunk_of(int64_t chunk, int64_t chunks, int64_t tiles) {
  return {chunk * tiles / chunks, (chunk + 1) * tiles / chunks};
}

}  // namespace sparseconv::cuda
