// The order of samples in the kernels: series, or pieces of them, side by side in vectors. No
// torch, no STL.
#pragma once

#include <cstdint>

namespace sparseconv {

struct Layout;
constexpr int64_t kWideMost = 16;

// A series of `length` samples, with `idle` rows before it, is cut into `pieces` of `rows` rows:
// its last sample is the last row of its last piece, whatever its length. Piece p of batch item n
// is unit u = n * pieces + p, which is lane u % lanes of group u / lanes. With q = l + idle, sample
// (n, c, l) of a tensor in this order is
//
//   data[((c * groups + u / lanes) * rows + q % rows) * lanes + u % lanes],
//   u = n * pieces + q / rows,
//
// and its idle rows (the first `idle` ones of first pieces) and idle lanes (beyond the last unit)
// hold zeros. `lanes` fill a scratch row of 64 bytes, so neighbours in a series are neighbouring
// rows: a tap only changes the row that is read, and every load is aligned. With 16 series of
// float32 each is one piece; fewer are cut, so that lanes are rarely idle.
//
// In an order with `apart` > 1, which no tensor has, neighbouring rows are `apart` samples apart,
// and neighbours in a series are neighbouring lanes: unit u = (n * pieces + p) * apart + phase
// holds q = (p * rows + row) * apart + phase. A group has wide * lanes lanes then, so that short
// series do not make short tiles.
struct LaneOrder {
  int64_t batch, length, lanes;
  int64_t pieces, rows, groups, idle;
  int64_t apart = 1, wide = 1;

  int64_t channel() const { return groups * rows * lanes; }  // elements of one channel
};

// The order of tensors, and of wgrad's sums whatever the order of its tensors is: at most one
// piece a lane.
LaneOrder lane_order(int64_t batch, int64_t length, int64_t lanes);

// The length after max pooling: windows with stride 1 keep it, others do not overlap.
inline int64_t pooled_length(int64_t length, int64_t size, int64_t stride) {
  return stride == 1 ? length : (length - size) / stride + 1;
}

// Whether windows of `stride` rows of a tensor are rows of one in the other order.
bool fits_pooling(const LaneOrder& order, const LaneOrder& pooled, int64_t stride);

// For signals (N, C, L), whose tiles are packed one by one: pieces of one tile, so that the lanes
// of a group read neighbours in memory. fprop and dgrad, whose bits depend on no order, always have
// it, and wgrad where rows are apart.
LaneOrder tile_order(int64_t batch, int64_t length, int64_t lanes, const Layout& layout);

}  // namespace sparseconv
