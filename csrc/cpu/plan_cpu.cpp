// Index work, done once per pattern: the scratch row of every active weight, and the transposed
// pattern with the place of each weight in `values`.

#include <torch/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "checks.h"
#include "launch.h"
#include "layout.h"

namespace sparseconv {
namespace {

Tensor plan_fprop(const Tensor& crow,
                  const Tensor& col,
                  at::IntArrayRef shape,
                  int64_t stride,
                  int64_t dilation) {
  const Geometry g = check_geometry(shape, stride, {0, 0}, dilation, 1, "zeros");
  const int64_t nnz = col.numel();
  check_indices(col, "col_indices", nnz);
  check_below(col, "col_indices", g.kernel_size);
  const int64_t n_kernels = g.out_channels * g.row_channels;
  check_pointers(crow, "crow_indices", n_kernels, nnz);
  const Layout layout = fprop_layout(g.kernel_size, stride, dilation);
  Tensor rows = at::empty({nnz}, col.options());
  const int32_t* pointers = crow.const_data_ptr<int32_t>();
  const int32_t* taps = col.const_data_ptr<int32_t>();
  int32_t* out = rows.data_ptr<int32_t>();
  for (int64_t kernel = 0; kernel < n_kernels; ++kernel) {
    const int64_t channel = kernel % g.row_channels;
    const int64_t base = channel % layout.block_channels * layout.channel_rows;
    for (int64_t e = pointers[kernel]; e < pointers[kernel + 1]; ++e) {
      out[e] = static_cast<int32_t>(base + layout.tap_rows[taps[e]]);
    }
  }
  return rows;
}

std::tuple<Tensor, Tensor, Tensor> plan_dgrad(const Tensor& crow,
                                              const Tensor& col,
                                              at::IntArrayRef shape,
                                              int64_t stride,
                                              int64_t dilation,
                                              int64_t groups) {
  const Geometry g = check_geometry(shape, stride, {0, 0}, dilation, groups, "zeros");
  const int64_t nnz = col.numel();
  check_indices(col, "col_indices", nnz);
  check_below(col, "col_indices", g.kernel_size);
  check_pointers(crow, "crow_indices", g.out_channels * g.row_channels, nnz);
  const int64_t group_rows = g.out_channels / groups;
  const int64_t n_kernels = g.in_channels() * group_rows;
  TORCH_CHECK_VALUE(stride <= std::numeric_limits<int32_t>::max() / n_kernels,
                    "stride x kernels must be below 2**31, but got ", stride, " x ", n_kernels);
  Tensor pointers = at::empty({stride * n_kernels + 1}, col.options());
  Tensor rows = at::empty({nnz}, col.options());
  Tensor index = at::empty({nnz}, col.options());
  const int32_t* from = crow.const_data_ptr<int32_t>();
  const int32_t* taps = col.const_data_ptr<int32_t>();
  int32_t* to = pointers.data_ptr<int32_t>();
  int32_t* row = rows.data_ptr<int32_t>();
  int32_t* at = index.data_ptr<int32_t>();
  int32_t entry = 0;
  *to++ = 0;
  std::vector<int64_t> phase_taps;
  for (int64_t phase = 0; phase < stride; ++phase) {
    const Layout layout = dgrad_layout(g.kernel_size, stride, dilation, phase, &phase_taps);
    std::vector<int32_t> tap_rows(g.kernel_size, -1);
    for (size_t i = 0; i < phase_taps.size(); ++i) {
      tap_rows[phase_taps[i]] = layout.tap_rows[i];
    }
    for (int64_t channel = 0; channel < g.in_channels(); ++channel) {
      const int64_t group = channel / g.row_channels;
      for (int64_t o = 0; o < group_rows; ++o) {
        const int64_t kernel = (group * group_rows + o) * g.row_channels + channel % g.row_channels;
        const int64_t base = o % layout.block_channels * layout.channel_rows;
        for (int32_t e = from[kernel]; e < from[kernel + 1]; ++e) {
          if (tap_rows[taps[e]] >= 0) {
            row[entry] = static_cast<int32_t>(base + tap_rows[taps[e]]);
            at[entry++] = e;
          }
        }
        *to++ = entry;
      }
    }
  }
  return {pointers, rows, index};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("plan_fprop", plan_fprop);
  m.impl("plan_dgrad", plan_dgrad);
}

}  // namespace sparseconv
