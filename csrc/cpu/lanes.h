// Tensors in the kernels' own order, (channels, groups, rows, lanes): see lane_order.h.
#pragma once

#include <ATen/core/Tensor.h>

#include "../conv1d.h"

namespace sparseconv {

at::Tensor new_lanes(int64_t channels, const LaneOrder& order, const at::TensorOptions& options);

bool is_finite(const at::Tensor& x);  // every element

}  // namespace sparseconv
