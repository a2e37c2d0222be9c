// The ops that make plans (plan.h) of a pattern's index tensors.

#include <torch/library.h>

#include <tuple>

#include "../../checks.h"
#include "../plan.h"

namespace sparseconv {
namespace {

Tensor fprop_plan(const Tensor& crow,
                  const Tensor& col,
                  at::IntArrayRef shape,
                  int64_t stride,
                  int64_t dilation) {
  const Geometry g = check_geometry(shape, stride, {0, 0}, dilation, 1, "zeros");
  const int64_t nnz = col.numel();
  check_indices(col, "col_indices", nnz);
  check_below(col, "col_indices", g.kernel_size);
  const PlanShape sizes{g.out_channels, g.channels_per_group, g.kernel_size, stride, dilation, 1};
  check_pointers(crow, "crow_indices", sizes.n_kernels(), nnz);
  Tensor rows = at::empty({nnz}, col.options());
  plan_fprop(sizes, crow.const_data_ptr<int32_t>(), col.const_data_ptr<int32_t>(),
             rows.data_ptr<int32_t>());
  return rows;
}

std::tuple<Tensor, Tensor, Tensor> dgrad_plan(const Tensor& crow,
                                              const Tensor& col,
                                              at::IntArrayRef shape,
                                              int64_t stride,
                                              int64_t dilation,
                                              int64_t groups) {
  const Geometry g = check_geometry(shape, stride, {0, 0}, dilation, groups, "zeros");
  const int64_t nnz = col.numel();
  check_indices(col, "col_indices", nnz);
  check_below(col, "col_indices", g.kernel_size);
  check_pointers(crow, "crow_indices", g.out_channels * g.channels_per_group, nnz);
  const PlanShape sizes{g.out_channels, g.channels_per_group, g.kernel_size, stride, dilation,
                        groups};
  const int64_t n_kernels = sizes.n_kernels();
  check_phases(g);
  Tensor pointers = at::empty({stride * n_kernels + 1}, col.options());
  Tensor rows = at::empty({nnz}, col.options());
  Tensor index = at::empty({nnz}, col.options());
  plan_dgrad(sizes, crow.const_data_ptr<int32_t>(), col.const_data_ptr<int32_t>(),
             pointers.data_ptr<int32_t>(), rows.data_ptr<int32_t>(), index.data_ptr<int32_t>());
  return {pointers, rows, index};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("plan_fprop", fprop_plan);
  m.impl("plan_dgrad", dgrad_plan);
}

}  // namespace sparseconv
