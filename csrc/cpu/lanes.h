// Tensors in the kernels' own order, (channels, groups, rows, lanes): see lane_order.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "chain_order.h"

namespace sparseconv {

at::Tensor new_lanes(int64_t channels, const LaneOrder& order, const at::TensorOptions& options);

// The computations on tensors in this order.
std::unique_ptr<ChainOrder> lanes_for(const LaneOrder& order);

// BatchNorm of the channels of `parts`, one part after the other. An undefined `output` is made.
// `added`: undefined, or what is added before ReLU.
NormOutput run_norm(const std::vector<at::Tensor>& parts,
                    const LaneOrder& order,
                    const Norm& norm,
                    const at::Tensor& added,
                    bool relu,
                    at::Tensor output);

// The gradients of the same; that of the parts is one tensor, and may be `grad`.
struct NormGradients {
  at::Tensor input, added, weight, bias;
};
NormGradients run_norm_gradient(const at::Tensor& grad,
                                const std::vector<at::Tensor>& parts,
                                const LaneOrder& order,
                                const Norm& norm,
                                const at::Tensor& added,
                                bool relu,
                                const at::Tensor& mean,
                                const at::Tensor& invstd,
                                bool in_place);

bool is_finite(const at::Tensor& x);  // every element

}  // namespace sparseconv
