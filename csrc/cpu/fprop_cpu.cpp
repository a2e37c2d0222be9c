
#include <torch/library.h>

#include <vector>

#include "checks.h"
#include "launch.h"
#include "layout.h"

namespace sparseconv {
namespace {

Tensor fprop(const Tensor& input,
             const Tensor& values,
             const std::optional<Tensor>& bias,
             const Tensor& crow,
             const Tensor& rows,
             at::IntArrayRef shape,
             int64_t stride,
             at::IntArrayRef padding,
             int64_t dilation,
             int64_t groups,
             c10::string_view mode,
             bool relu) {
  const Geometry g = check_geometry(shape, stride, padding, dilation, groups, mode);
  check_signal(input, "input", g.in_channels());
  const int64_t length = input.size(2);
  check_lengths(g, length);
  const Element element = element_of(input);
  check_same_type(input, values, "values");
  const int64_t nnz = values.numel();
  TORCH_CHECK_VALUE(values.dim() == 1, "expected values of shape (nnz,), but got ", values.sizes());
  check_pointers(crow, "crow_indices", g.out_channels * g.row_channels, nnz);
  const Layout layout = fprop_layout(g.kernel_size, stride, dilation);
  check_rows(rows, nnz, layout, g.row_channels);
  const Tensor weights = values.to(acc_type(input)).contiguous();
  Tensor init;
  if (bias.has_value()) {
    check_same_type(input, *bias, "bias");
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->numel() == g.out_channels,
                      "expected bias of shape (", g.out_channels, ",), but got ", bias->sizes());
    init = bias->to(acc_type(input)).contiguous();
  }

  const int64_t out_length = g.output_length(length);
  Tensor output = at::empty({input.size(0), g.out_channels, out_length}, input.options());
  Correlation p{};
  const std::vector<int32_t> starts = block_starts(crow.const_data_ptr<int32_t>(), g.out_channels,
                                                   g.row_channels, layout.block_channels);
  p.entries = {starts.data(),
               rows.const_data_ptr<int32_t>(),
               layout.blocks(g.row_channels),
               g.row_channels,
               g.out_channels,
               groups};
  p.tile = layout.shape();
  p.values = weights.const_data_ptr();
  p.init = init.defined() ? init.const_data_ptr() : nullptr;
  p.in = view(input);
  p.in_length = length;
  p.mode = g.mode;
  p.origin = -g.left;
  p.out = view(output);
  p.out_length = out_length;
  p.out_step = 1;
  p.relu = relu;
  p.batch = input.size(0);
  p.count = out_length;
  run_correlation(p, element, lanes_of(input), layout.span());
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("fprop", fprop);
}

}  // namespace sparseconv
