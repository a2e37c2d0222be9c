// Whether torch merely computes: then neither Python nor the dispatcher has to be between a layer
// and the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <array>
#include <functional>
#include <optional>
#include <vector>

namespace sparseconv {

// Whether torch only computes, and perhaps records gradients: nothing traces, casts, transforms,
// watches calls or operations, or differentiates in forward mode; autocast is allowed on demand.
bool runs_plainly(bool may_cast = false);

// The same, and x is an ordinary CPU tensor.
bool computes_plainly(const at::Tensor& x, bool may_cast = false);

// The tensor or parameter, if it is an ordinary one on the CPU that kernels can read.
std::optional<at::Tensor> plain_tensor(pybind11::handle x);

// The tensor as it is now. While the GIL is held, no parameter's data is replaced; later, another
// thread could do so between the checks and the kernels.
at::Tensor detached_snapshot(const at::Tensor& x);

// What defines the functions of Python that call ops; see `implement` in lanes.h.
std::vector<std::function<void(pybind11::module_&)>>& direct_calls();

// A core.geometry.Geometry, which is what check_geometry takes. The numbers are not checked.
constexpr int64_t kGeometryNumbers = 11;
using GeometryNumbers = std::array<int64_t, kGeometryNumbers>;
GeometryNumbers geometry_numbers(pybind11::handle geometry);

}  // namespace sparseconv
