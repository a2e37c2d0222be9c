#include "layout.h"

#if defined(__unix__)
#include <unistd.h>
#endif

#include <algorithm>
#include <numeric>

namespace sparseconv {

namespace {

// What the packed inputs of the channels that share the scratch may take: three quarters of this
// machine's L1 data cache, which leaves room for the sums, weights and rows that pass by. No result
// depends on it. Measured on 48 KB at DSN's layer: 32, 36 and 40 KB come within 2 % of each other,
// 24 KB is 5 % slower.
int64_t l1_input_budget() {
  int64_t l1 = 0;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#endif
  return (l1 > 0 ? l1 : 32 * 1024) / 4 * 3;
}

// Rows for taps at the given input positions, when neighbouring outputs are `step` inputs apart.
// Taps whose rows would overlap share a segment, so a dense kernel packs each input once, and a
// widely dilated one packs no sample that no tap reads.
Layout make_layout(const std::vector<int64_t>& positions, int64_t step) {
  Layout layout;
  layout.step = step;
  layout.tap_rows.resize(positions.size());
  auto residue = [&](size_t i) { return ((positions[i] % step) + step) % step; };
  auto quotient = [&](size_t i) { return (positions[i] - residue(i)) / step; };
  std::vector<size_t> order(positions.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return residue(a) != residue(b) ? residue(a) < residue(b) : quotient(a) < quotient(b);
  });
  int64_t rows = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t tap = order[i];
    const bool joins = i > 0 && residue(order[i - 1]) == residue(tap) &&
                       quotient(tap) - quotient(order[i - 1]) <= kPieceMax;
    if (!joins) {
      layout.segments.push_back({positions[tap], rows, 0});
      rows += kPieceMax;
    } else {
      Segment& segment = layout.segments.back();
      const int64_t span = (positions[tap] - segment.position) / step;
      rows += span - segment.span;
      segment.span = span;
    }
    const Segment& segment = layout.segments.back();
    layout.tap_rows[tap] = static_cast<int32_t>(segment.row + segment.span);
  }
  layout.channel_rows = rows;
  static const int64_t bytes = l1_input_budget();
  layout.block_channels = std::max<int64_t>(1, bytes / (std::max<int64_t>(rows, 1) * kRowBytes));
  return layout;
}

}  // namespace

Entries block_entries(const int32_t* pointers,
                      const int32_t* rows,
                      int64_t n_rows,
                      int64_t channels_per_group,
                      int64_t groups,
                      const Layout& layout,
                      std::vector<int32_t>* starts) {
  const int64_t blocks = ceil_div(channels_per_group, layout.block_channels);
  starts->clear();
  starts->reserve(n_rows * blocks + 1);
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int64_t channel = 0; channel < channels_per_group; channel += layout.block_channels) {
      starts->push_back(pointers[row * channels_per_group + channel]);
    }
  }
  starts->push_back(pointers[n_rows * channels_per_group]);
  return {starts->data(), rows, blocks, channels_per_group, n_rows, groups};
}

Layout fprop_layout(const Geometry& g) {
  std::vector<int64_t> positions(g.kernel_size);
  for (int64_t tap = 0; tap < g.kernel_size; ++tap) {
    positions[tap] = tap * g.dilation;
  }
  return make_layout(positions, g.stride);
}

Layout dgrad_layout(const Geometry& g, int64_t phase, std::vector<int64_t>* taps) {
  taps->clear();
  std::vector<int64_t> positions;
  for (int64_t tap = 0; tap < g.kernel_size; ++tap) {
    if ((tap * g.dilation) % g.stride == phase) {
      taps->push_back(tap);
      positions.push_back(-(tap * g.dilation - phase) / g.stride);
    }
  }
  return make_layout(positions, 1);
}

int64_t wgrad_splits(int64_t lane_groups) {
  constexpr int64_t kSplitsMax = 8, kGroupsPerSplit = 4;
  return std::clamp<int64_t>(lane_groups / kGroupsPerSplit, 1, kSplitsMax);
}

namespace {

// Lane groups that cover every series when it is cut into `pieces`.
int64_t lane_groups(int64_t batch, int64_t pieces, int64_t lanes) {
  return ceil_div(batch * pieces, lanes);
}

// What packing one row is taken to cost, as a share of one row's products at DSN's shape. It only
// ranks piece lengths: with 0 DSN's layer takes 7 to 10 % longer at L = 128, with 0.2 about as
// long.
constexpr double kPackShare = 0.05;
// Below about 8 outputs the latency of a multiply-add shows: the tile takes as long as one of 8.
constexpr int64_t kLatencyRows = 8;

}  // namespace

int64_t correlate_piece(int64_t batch,
                        int64_t count,
                        int64_t lanes,
                        int64_t span,
                        int64_t threads) {
  int64_t best_piece = 0;
  double best_cost = 0;
  for (int64_t most = std::min(count, kPieceMax); most >= std::min(count, kLatencyRows); --most) {
    const int64_t pieces = ceil_div(count, most);
    const int64_t piece = ceil_div(count, pieces);  // as short as so many pieces can be
    const int64_t most_groups = ceil_div(lane_groups(batch, pieces, lanes), threads);
    const double cost =
        static_cast<double>(most_groups) * (static_cast<double>(std::max(piece, kLatencyRows)) +
                                            kPackShare * static_cast<double>(piece + span));
    if (best_piece == 0 || cost < best_cost) {
      best_cost = cost;
      best_piece = piece;
    }
  }
  return best_piece;
}

WgradPiece wgrad_piece(int64_t batch, int64_t count, int64_t lanes, int64_t span) {
  WgradPiece best{0, 0};
  double best_cost = 0;
  const int64_t longest = std::min(count, 2 * kWgradTileMax);
  for (int64_t most = longest; most >= std::min(count, kLatencyRows); --most) {
    const int64_t pieces = ceil_div(count, most);
    const int64_t tiles = ceil_div(ceil_div(count, pieces), kWgradTileMax);
    const int64_t tile = ceil_div(ceil_div(count, pieces), tiles);
    const int64_t piece = tile * tiles;
    if (piece > longest) {
      continue;
    }
    // Each weight pays, per lane group, for the sum over lanes.
    const double cost =
        static_cast<double>(lane_groups(batch, pieces, lanes)) *
        (static_cast<double>(piece + 4) + kPackShare * static_cast<double>(2 * piece + span));
    if (best.length == 0 || cost < best_cost) {
      best_cost = cost;
      best = {piece, tile};
    }
  }
  return best;
}

}  // namespace sparseconv
