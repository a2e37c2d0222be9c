// How a tile of the input is stored in the scratch memory, and how long a lane's piece of a series
// is. Never depends on the ISA or the dtype: a scratch row is 64 bytes on all of them.
#pragma once

#include <cstdint>
#include <vector>

#include "../../conv1d.h"

namespace sparseconv {

constexpr int64_t kRowBytes = 64;
// Rows of a tile at most: one register tile of AVX-512, four of AVX2. Shorter tiles pack more
// overlapping inputs, longer ones leave room for fewer channels in L1.
constexpr int64_t kTileRows = 30;
// The same for wgrad, whose registers hold weights while the rows pass by.
constexpr int64_t kWgradRows = 64;
// Weights whose sums stay in registers: 12 of AVX-512 with their 12 addresses, two times 6 of AVX2.
constexpr int64_t kBatchWeights = 12;

// By which work is shared among threads, in multiply-adds of a scratch row (0.12 ns there): storing
// one of a row's outputs (measured: 47 to 53, N = 16, L = 128), packing a row (2 ns).
constexpr int64_t kStoreCost = 48;
constexpr int64_t kPackCost = 16;

struct Layout {
  std::vector<Segment> segments;
  std::vector<int32_t> tap_rows;  // scratch row of each tap
  int64_t step = 1;
  int64_t apart = 1;  // see LaneOrder
  int64_t channel_rows = 0;
  int64_t block_channels = 1;
  std::vector<int32_t> sample_rows;  // see TileShape
  int64_t window = 0;

  int64_t tile_rows = kTileRows;

  // Rows of a channel beyond those that one tap per segment would take.
  int64_t span() const { return channel_rows - tile_rows * static_cast<int64_t>(segments.size()); }
  TileShape shape() const {
    return {segments.data(),
            static_cast<int64_t>(segments.size()),
            step,
            channel_rows,
            block_channels,
            sample_rows.empty() ? nullptr : sample_rows.data(),
            window};
  }
};

// The rows of a tile may be a dilation `apart`; if not, taps that are far from each other have
// segments.
Layout fprop_layout(const Geometry& g, bool apart);
Layout wgrad_layout(const Geometry& g, bool apart);

// Phases of the input (padded position mod stride) that dgrad computes from the same packed
// gradients. More would need too much memory for their sums.
constexpr int64_t kPhases = 16;
// Of the taps that reach the phases [first, past); the others have no row.
Layout dgrad_layout(const Geometry& g, int64_t first, int64_t past, bool apart);

// wgrad's chunks of rows are cut into this many fixed runs, so that many threads need not all pack
// the same inputs. By shape alone: the sums must not depend on the number of threads.
int64_t wgrad_splits(int64_t chunks);

template <typename... Vectors>
int64_t bytes_of(const Vectors&... vectors) {
  return static_cast<int64_t>((... + (vectors.size() * sizeof(vectors[0]))));
}

// Stage entries per lane for `rows` rows: transposes read whole blocks of at most 16.
inline int64_t stage_stride(int64_t rows) {
  return (rows + 15) / 16 * 16;
}

}  // namespace sparseconv
