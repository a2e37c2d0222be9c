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

Tensor best_fprop(const Tensor& input,
                  const Tensor& values,
                  const std::optional<Tensor>& bias,
                  const ConvPlan& plan,
                  bool relu,
                  const LaneOrder* lanes) {
  const ForkGuard fork_guard;
  const int64_t length = lanes != nullptr ? lanes->length : input.size(2);
  if (const ConvPlan* fewer = plan.fewer_taps(length)) {
    return best_fprop(input, values.index_select(0, fewer->kept), bias, *fewer, relu, lanes);
  }
  if (lanes == nullptr && by_blocks(input, plan)) {
    return block_fprop(input, values, bias, plan, relu);
  }
  const Geometry& g = plan.geometry;
  const Layout& layout = plan.fprop().layout;
  const Detour detour(lanes, lanes != nullptr && !takes_lanes(*lanes, layout));
  const Tensor signal = detour.leave(input);
  const Tensor weights = values.to(acc_type(input)).contiguous();
  const Tensor init = bias.has_value() ? bias->to(acc_type(input)).contiguous() : Tensor();
  const int64_t outputs = g.output_length(length);
  const Tensor output = detour.lanes != nullptr
                            ? new_lanes(g.out_channels, *lanes, input.options())
                            : at::empty({signal.size(0), g.out_channels, outputs}, input.options());
  Correlation p{};
  p.entries = plan.fprop().entries.view();
  p.tile = layout.shape();
  p.values = weights.const_data_ptr();
  p.init = init.defined() ? init.const_data_ptr() : nullptr;
  p.in_lanes = detour.lanes != nullptr;
  p.order = p.in_lanes ? *lanes : tile_order(signal.size(0), outputs, lanes_of(input), layout);
  p.in = view(signal);
  p.in_length = length;
  p.mode = g.mode;
  p.origin = -g.left;
  p.out = view(output);
  p.out_length = outputs;
  p.relu = relu;
  if (output.numel() > 0) {
    run_correlation(p, element_of(input));
  }
  return detour.enter(output);
}

}  // namespace sparseconv
