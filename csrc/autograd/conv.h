// A sparse convolution with its gradients where torch just computes: neither Python nor the
// dispatcher is between the layer and the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <optional>

#include "../cpu/plan/conv_plan.h"

namespace sparseconv {

// The three computations alone, of signals (N, C, L). They throw ValueError or TypeError.
at::Tensor fprop_of(const ConvPlan& plan, const at::Tensor& input, const at::Tensor& values);
at::Tensor dgrad_of(const ConvPlan& plan,
                    const at::Tensor& grad,
                    const at::Tensor& values,
                    int64_t input_length);
at::Tensor wgrad_of(const ConvPlan& plan, const at::Tensor& grad, const at::Tensor& input);

// The convolution, of (N, C, L) or (C, L); nothing if something else than computing is asked for,
// or if the arguments do not fit: sparseconv/functional/conv.py does all that, and has the words
// for what is wrong.
std::optional<at::Tensor> plain_conv(pybind11::handle input,
                                     pybind11::handle values,
                                     pybind11::handle bias,
                                     const ConvPlanPtr& plan,
                                     bool relu);

}  // namespace sparseconv
