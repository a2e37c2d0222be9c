// How a tile of the input is stored in the scratch memory, and how long a lane's piece of a series
// is. Never depends on the ISA or the dtype: a scratch row is 64 bytes on all of them.
#pragma once

#include <cstdint>
#include <vector>

#include "../conv1d.h"

namespace sparseconv {

constexpr int64_t kRowBytes = 64;
// Outputs per lane at most: one register tile of AVX-512, two of AVX2. Shorter pieces pack more
// overlapping inputs, longer ones leave room for fewer channels in L1. GFLOP/s of fprop at DSN's
// layer, L = 128 and 512, one thread of an AMD EPYC (Zen 5), AVX-512: 182 and 190 with 20, 177 and
// 186 with 24, 191 and 198 with 28, 185 and 188 with 40.
constexpr int64_t kPieceMax = 28;
// Positions of wgrad's tile: 13 gradients and two sums fit AVX2's 16 registers. A piece has two at
// most, which fit those of AVX-512. GFLOP/s of wgrad there, L = 128: 160 with 8, 163 with 10, 175
// with 12, 184 with 13.
constexpr int64_t kWgradTileMax = 13;

// By which work is shared among threads, in multiply-adds of a scratch row (0.12 ns there): storing
// one of a row's outputs (measured: 47 to 53, N = 16, L = 128), packing a row (2 ns).
constexpr int64_t kStoreCost = 48;
constexpr int64_t kPackCost = 16;

struct Layout {
  std::vector<Segment> segments;
  std::vector<int32_t> tap_rows;  // scratch row of each given tap position
  int64_t step = 1;
  int64_t channel_rows = 0;
  int64_t block_channels = 1;

  // Rows of a channel beyond those that one tap per segment would take.
  int64_t span() const { return channel_rows - kPieceMax * static_cast<int64_t>(segments.size()); }
  TileShape shape() const {
    return {segments.data(), static_cast<int64_t>(segments.size()), step, channel_rows,
            block_channels};
  }
};

Layout fprop_layout(const Geometry& g);

// The taps that reach input phase `phase` (padded input position mod stride); `taps` names them.
Layout dgrad_layout(const Geometry& g, int64_t phase, std::vector<int64_t>* taps);

// The entries of a pattern by row and channel block, from where those of each kernel start; they
// point into `starts`.
Entries block_entries(const int32_t* pointers,
                      const int32_t* rows,
                      int64_t n_rows,
                      int64_t channels_per_group,
                      int64_t groups,
                      const Layout& layout,
                      std::vector<int32_t>* starts);

// The piece length that wastes least: pieces x lanes should just cover batch x count, and where
// threads cannot share a lane group, lane groups the threads.
int64_t correlate_piece(int64_t batch,
                        int64_t count,
                        int64_t lanes,
                        int64_t span,
                        int64_t threads = 1);

struct WgradPiece {
  int64_t length;
  int64_t tile_length;
};
WgradPiece wgrad_piece(int64_t batch, int64_t count, int64_t lanes, int64_t span);

// wgrad's lane groups are cut into so many fixed runs, that many threads need not all pack the same
// inputs. By shape alone: the sums must not depend on the number of threads.
int64_t wgrad_splits(int64_t lane_groups);

// Stage entries per lane for `rows` rows: transposes read whole blocks of at most 16.
inline int64_t stage_stride(int64_t rows) {
  return (rows + 15) / 16 * 16;
}

}  // namespace sparseconv
