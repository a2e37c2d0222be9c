// Tensors in the kernels' own order, (channels, groups, rows, lanes): see lane_order.h.
#pragma once

#include <memory>

#include "kernel_order.h"

namespace sparseconv {

Tensor new_lanes(int64_t channels, const LaneOrder& order, const at::TensorOptions& options);

// The computations on tensors in this order.
std::unique_ptr<KernelOrder> lanes_for(const LaneOrder& order);

// Whether fprop and dgrad take tiles of this layout from tensors in lanes. If pieces are short and
// rows far apart, nearly all rows that a tile needs belong to other pieces.
bool takes_lanes(const LaneOrder& order, const Layout& layout);

// A computation that takes and gives tensors in lanes, or (N, C, L) if there are none. If it
// `leaves` the order, it computes with (N, C, L) all the same.
struct Detour {
  const LaneOrder* lanes;  // of the computation itself
  const std::unique_ptr<KernelOrder> order;

  Detour(const LaneOrder* lanes, bool leaves)
      : lanes(leaves ? nullptr : lanes), order(leaves ? lanes_for(*lanes) : nullptr) {}
  Tensor leave(const Tensor& x) const { return order ? order->leave(x, 0) : x; }
  Tensor enter(const Tensor& x) const { return order ? order->enter(x) : x; }
};

}  // namespace sparseconv
