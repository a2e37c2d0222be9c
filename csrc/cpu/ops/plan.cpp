// The ops that do the index work of a pattern (plan/indices.h).

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "../../checks.h"
#include "../plan/conv_plan.h"
#include "../plan/indices.h"

namespace sparseconv {
namespace {

Tensor fprop_indices(const Tensor& crow, const Tensor& col, at::IntArrayRef geometry) {
  const Geometry g = check_geometry(geometry);
  check_pattern(g, crow, col);
  Tensor rows = at::empty({col.numel() + kAhead}, col.options());
  plan_fprop(g, crow.const_data_ptr<int32_t>(), col.const_data_ptr<int32_t>(),
             rows.data_ptr<int32_t>());
  return rows;
}

std::tuple<Tensor, Tensor, Tensor> dgrad_indices(const Tensor& crow,
                                                 const Tensor& col,
                                                 at::IntArrayRef geometry) {
  const Geometry g = check_geometry(geometry);
  check_pattern(g, crow, col);
  check_phases(g);
  Tensor pointers = at::empty({g.stride * g.n_kernels() + 1}, col.options());
  Tensor rows = at::empty({col.numel() + kAhead}, col.options());
  Tensor index = at::empty({col.numel()}, col.options());
  plan_dgrad(g, crow.const_data_ptr<int32_t>(), col.const_data_ptr<int32_t>(),
             pointers.data_ptr<int32_t>(), rows.data_ptr<int32_t>(), index.data_ptr<int32_t>());
  return {pointers, rows, index};
}

std::tuple<Tensor, Tensor> wgrad_indices(const Tensor& crow,
                                         const Tensor& col,
                                         at::IntArrayRef geometry) {
  const Geometry g = check_geometry(geometry);
  check_pattern(g, crow, col);
  Tensor rows = at::empty({col.numel()}, col.options());
  Tensor batches = at::empty({batches_size(g, col.numel())}, col.options());
  plan_wgrad(g, crow.const_data_ptr<int32_t>(), col.const_data_ptr<int32_t>(),
             rows.data_ptr<int32_t>(), batches.data_ptr<int32_t>());
  return {rows, batches};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("plan_fprop", fprop_indices);
  m.impl("plan_dgrad", dgrad_indices);
  m.impl("plan_wgrad", wgrad_indices);
}

}  // namespace sparseconv
