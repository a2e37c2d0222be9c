// The convolution itself.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../../checks.h"
#include "../conv.h"
#include "../lanes.h"
#include "../launch.h"

namespace sparseconv {

bool fits_lanes(const Geometry& g) {
  return g.stride == 1 && g.left + g.right == g.reach() - 1 &&
         (g.mode == PaddingMode::zeros || g.mode == PaddingMode::replicate) &&
         fprop_layout(g).segments.size() == 1;
}

Tensor run_fprop(const Tensor& input,
                 const Tensor& values,
                 const std::optional<Tensor>& bias,
                 const Geometry& g,
                 const CorrelationPlan& plan,
                 bool relu,
                 const LaneOrder* lanes) {
  const ForkGuard fork_guard;
  const Tensor weights = values.to(acc_type(input)).contiguous();
  const Tensor init = bias.has_value() ? bias->to(acc_type(input)).contiguous() : Tensor();
  Correlation p{};
  p.entries = plan.entries.view();
  p.tile = plan.layout.shape();
  p.values = weights.const_data_ptr();
  p.init = init.defined() ? init.const_data_ptr() : nullptr;
  p.mode = g.mode;
  p.origin = -g.left;
  p.out_step = 1;
  p.relu = relu;
  Tensor output;
  if (lanes != nullptr) {
    output = new_lanes(g.out_channels, *lanes, input.options());
    p.order = *lanes;
    p.in_lanes = true;
    p.in.data = input.data_ptr();
    p.out.data = output.data_ptr();
  } else {
    p.in = view(input);
    p.in_length = input.size(2);
    p.out_length = g.output_length(p.in_length);
    output = at::empty({input.size(0), g.out_channels, p.out_length}, input.options());
    p.out = view(output);
    p.order = tile_order(input.size(0), p.out_length, lanes_of(input), plan.layout.span());
  }
  if (output.numel() > 0) {
    run_correlation(p, element_of(input));
  }
  return output;
}

namespace {

Tensor fprop(const Tensor& input,
             const Tensor& values,
             const std::optional<Tensor>& bias,
             const Tensor& crow,
             const Tensor& rows,
             at::IntArrayRef geometry,
             bool relu) {
  const Geometry g = check_geometry(geometry);
  check_signal(input, "input", g.in_channels());
  check_lengths(g, input.size(2));
  check_values(values, input);
  const int64_t nnz = values.numel();
  check_pointers(crow, "crow_indices", g.n_kernels(), nnz);
  check_indices(rows, "rows", nnz + kAhead);
  const CorrelationPlan plan =
      fprop_plan(g, crow.const_data_ptr<int32_t>(), rows.const_data_ptr<int32_t>());
  check_rows(rows, plan.layout, g.channels_per_group);
  if (bias.has_value()) {
    check_vector(*bias, "bias", input, g.out_channels);
  }
  return run_fprop(input, values, bias, g, plan, relu);
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("fprop", fprop);
}

}  // namespace sparseconv
