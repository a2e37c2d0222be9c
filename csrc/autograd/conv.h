// A sparse convolution with its gradients where torch just computes: neither Python nor the
// dispatcher is between the layer and the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <optional>

namespace sparseconv {

// The function by which the convolution is differentiated where torch does more than compute:
// `gradients` of sparseconv/functional/gradients.py, which sets it, so that C++ imports no Python.
void set_gradients(const pybind11::function& gradients);

// The convolution, of (N, C, L) or (C, L). Nothing if torch is asked for more than computing, if
// another backend is, or if the arguments do not fit: sparseconv/functional/conv.py does all that,
// and raises the errors. geometry: a core.geometry.Geometry.
std::optional<at::Tensor> eager_conv(pybind11::handle input,
                                     pybind11::handle values,
                                     pybind11::handle bias,
                                     const at::Tensor& crow,
                                     const at::Tensor& col,
                                     pybind11::handle geometry,
                                     pybind11::handle backend,
                                     bool relu);

}  // namespace sparseconv
