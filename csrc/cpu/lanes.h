// Tensors in the kernels' own order, (channels, groups, rows, lanes): see lane_order.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "kernel_order.h"

namespace sparseconv {

at::Tensor new_lanes(int64_t channels, const LaneOrder& order, const at::TensorOptions& options);

// The computations on tensors in this order.
std::unique_ptr<KernelOrder> lanes_for(const LaneOrder& order);

bool is_finite(const at::Tensor& x);  // every element

}  // namespace sparseconv
