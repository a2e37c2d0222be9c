// The ops that make plans (plan.h) of a pattern's index tensors.

#include "../plan.h"

#include <torch/library.h>

#include <tuple>

#include "../../checks.h"

namespace sparseconv {
namespace {

Geometry check_pattern(const Tensor& crow, const Tensor& col, at::IntArrayRef geometry) {
  const Geometry g = check_geometry(geometry);
  check_indices(col, "col_indices", col.numel());
  check_below(col, "col_indices", g.kernel_size);
  check_pointers(crow, "crow_indices", g.n_kernels(), col.numel());
  return g;
}

Tensor fprop_plan(const Tensor& crow, const Tensor& col, at::IntArrayRef geometry) {
  const Geometry g = check_pattern(crow, col, geometry);
  Tensor rows = at::empty({col.numel() + kAhead}, col.options());
  plan_fprop(g, crow.const_data_ptr<int32_t>(), col.const_data_ptr<int32_t>(),
             rows.data_ptr<int32_t>());
  return rows;
}

std::tuple<Tensor, Tensor, Tensor> dgrad_plan(const Tensor& crow,
                                              const Tensor& col,
                                              at::IntArrayRef geometry) {
  const Geometry g = check_pattern(crow, col, geometry);
  check_phases(g);
  Tensor pointers = at::empty({g.stride * g.n_kernels() + 1}, col.options());
  Tensor rows = at::empty({col.numel() + kAhead}, col.options());
  Tensor index = at::empty({col.numel()}, col.options());
  plan_dgrad(g, crow.const_data_ptr<int32_t>(), col.const_data_ptr<int32_t>(),
             pointers.data_ptr<int32_t>(), rows.data_ptr<int32_t>(), index.data_ptr<int32_t>());
  return {pointers, rows, index};
}

std::tuple<Tensor, Tensor> wgrad_plan(const Tensor& crow,
                                      const Tensor& col,
                                      at::IntArrayRef geometry) {
  const Geometry g = check_pattern(crow, col, geometry);
  Tensor rows = at::empty({col.numel()}, col.options());
  Tensor batches = at::empty({batches_size(g, col.numel())}, col.options());
  plan_wgrad(g, crow.const_data_ptr<int32_t>(), col.const_data_ptr<int32_t>(),
             rows.data_ptr<int32_t>(), batches.data_ptr<int32_t>());
  return {rows, batches};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("plan_fprop", fprop_plan);
  m.impl("plan_dgrad", dgrad_plan);
  m.impl("plan_wgrad", wgrad_plan);
}

}  // namespace sparseconv
