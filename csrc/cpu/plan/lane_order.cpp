#include "lane_order.h"

#include <algorithm>

#include "layout.h"

namespace sparseconv {

LaneOrder lane_order(int64_t batch, int64_t length, int64_t lanes) {
  // What a row costs, plus what a tile costs beyond its rows. The rule found the best of five
  // lengths of pieces, or one within 3 % of it, at ten of ten shapes (sum of the three kernels).
  constexpr int64_t kTileCost = 3;
  LaneOrder best{};
  int64_t best_cost = 0;
  for (int64_t most = 1; most <= std::min(lanes, length); ++most) {
    const int64_t rows = ceil_div(length, most);
    const int64_t pieces = ceil_div(length, rows);  // no piece may be empty
    const int64_t groups = ceil_div(batch * pieces, lanes);
    const int64_t cost = groups * (rows + kTileCost * ceil_div(rows, kTileRows));
    if (best_cost == 0 || cost < best_cost) {
      best_cost = cost;
      best = {batch, length, lanes, pieces, rows, groups, pieces * rows - length};
    }
  }
  return best;
}

bool fits_pooling(const LaneOrder& order, const LaneOrder& pooled, int64_t stride) {
  return order.pieces == pooled.pieces &&
         (order.pieces == 1 ||
          (order.rows == stride * pooled.rows && order.idle == stride * pooled.idle));
}

LaneOrder tile_order(int64_t batch, int64_t length, int64_t lanes, const Layout& layout) {
  // What packing one row is taken to cost, as a share of one row's products at DSN's shape. It only
  // ranks lengths: with 0 DSN's layer takes 7 to 10 % longer at L = 128, with 0.2 about as long.
  constexpr double kPackShare = 0.05;
  // wgrad's sums over the lanes of a tile, in rows.
  const int64_t sums = layout.tile_rows == kWgradRows ? 8 : 0;
  const int64_t span = layout.span();
  // Below about 8 outputs the latency of a multiply-add shows: the tile takes as long as one of 8.
  constexpr int64_t kLatencyRows = 8;
  LaneOrder best{};
  if (length <= 0) {
    return best;
  }
  double best_cost = 0;
  const int64_t apart = std::min(layout.apart, length), all = ceil_div(length, apart);
  for (int64_t most = std::min(all, layout.tile_rows); most >= std::min(all, kLatencyRows);
       --most) {
    const int64_t pieces = ceil_div(all, most);
    const int64_t rows = ceil_div(all, pieces);  // as short as these pieces can be
    // A wide tile takes no more memory than a long one.
    const int64_t widest = apart == 1 ? 1 : (layout.tile_rows + span) / (rows + span);
    for (int64_t wide = 1; wide <= std::clamp<int64_t>(widest, 1, kWideMost); ++wide) {
      const int64_t groups = ceil_div(batch * pieces * apart, lanes * wide);
      const double cost = static_cast<double>(groups) *
                          (static_cast<double>(std::max(rows * wide, kLatencyRows) + sums) +
                           kPackShare * static_cast<double>((rows + span) * wide));
      if (best.pieces == 0 || cost < best_cost) {
        best_cost = cost;
        best = {batch, length, lanes, pieces, rows, groups, pieces * rows * apart - length,
                apart, wide};
      }
    }
  }
  return best;
}

}  // namespace sparseconv
