// Tensors in the kernels' own order, (channels, groups, rows, lanes): see lane_order.h. What the
// functions are given has been checked: contiguous, float32 or float64, of the order they name.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "../conv1d.h"

namespace sparseconv {

at::Tensor new_lanes(int64_t channels, const LaneOrder& order, const at::TensorOptions& options);

// From and to (N, C, L), the former with any strides.
at::Tensor to_lanes(const at::Tensor& signal, const LaneOrder& order);
at::Tensor from_lanes(const at::Tensor& lanes, const LaneOrder& order);

// Dense 1x1 convolutions; weight: (C_out, C_in, 1).
at::Tensor pointwise_fprop(const at::Tensor& input, const at::Tensor& weight);
at::Tensor pointwise_dgrad(const at::Tensor& grad, const at::Tensor& weight);
at::Tensor pointwise_wgrad(const at::Tensor& grad, const at::Tensor& input);

bool is_finite(const at::Tensor& x);  // every element

// (C,), in an order that does not depend on threads as torch's own sum does.
at::Tensor sum_of_channels(const at::Tensor& x);

// What BatchNorm1d and ReLU compute. Tensors that are undefined do not exist.
struct Norm {
  at::Tensor weight, bias, running_mean, running_var;
  double momentum, eps;
  bool training;  // else the running statistics are read
};
// Output, mean and 1 / standard deviation; `in_place`, the output takes the memory of the input.
std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_relu(const at::Tensor& input,
                                                         const LaneOrder& order,
                                                         const Norm& norm,
                                                         bool in_place);
// Gradients of weight and bias; that of the input takes the memory of `grad`.
std::tuple<at::Tensor, at::Tensor> norm_relu_gradient(const at::Tensor& grad,
                                                      const at::Tensor& input,
                                                      const LaneOrder& order,
                                                      const Norm& norm,
                                                      const at::Tensor& mean,
                                                      const at::Tensor& invstd);

}  // namespace sparseconv
