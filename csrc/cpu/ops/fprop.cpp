// The convolution itself.

#include <ATen/ops/empty.h>

#include "../../checks.h"
#include "../conv.h"
#include "../lanes.h"
#include "../launch.h"

namespace sparseconv {

bool fits_lanes(const Geometry& g) {
  return g.stride == 1 && g.left + g.right == g.reach() - 1 &&
         (g.mode == PaddingMode::zeros || g.mode == PaddingMode::replicate);
}

bool takes_lanes(const LaneOrder& order, const Layout& layout) {
  constexpr int64_t kLeastRows = 4;
  return layout.apart == 1 || order.rows >= kLeastRows * layout.apart;
}

Tensor run_fprop(const Tensor& input,
                 const Tensor& values,
                 const std::optional<Tensor>& bias,
                 const Geometry& g,
                 const CorrelationPlan& plan,
                 bool relu,
                 const LaneOrder* lanes) {
  const ForkGuard fork_guard;
  if (lanes != nullptr && !takes_lanes(*lanes, plan.layout)) {
    const auto order = lanes_for(*lanes);
    return order->enter(run_fprop(order->leave(input, 0), values, bias, g, plan, relu));
  }
  const Tensor weights = values.to(acc_type(input)).contiguous();
  const Tensor init = bias.has_value() ? bias->to(acc_type(input)).contiguous() : Tensor();
  Correlation p{};
  p.entries = plan.entries.view();
  p.tile = plan.layout.shape();
  p.values = weights.const_data_ptr();
  p.init = init.defined() ? init.const_data_ptr() : nullptr;
  p.mode = g.mode;
  p.origin = -g.left;
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
    p.order = tile_order(input.size(0), p.out_length, lanes_of(input), plan.layout);
  }
  if (output.numel() > 0) {
    run_correlation(p, element_of(input));
  }
  return output;
}

}  // namespace sparseconv
