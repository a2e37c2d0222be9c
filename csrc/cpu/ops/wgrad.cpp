// The gradient of the active weights.

#include <ATen/ops/zeros.h>

#include "../../checks.h"
#include "../conv.h"
#include "../lanes.h"
#include "../launch.h"

namespace sparseconv {

Tensor best_wgrad(const Tensor& grad,
                  const Tensor& input,
                  const ConvPlan& convolution,
                  const LaneOrder* lanes) {
  const ForkGuard fork_guard;
  const int64_t length = lanes != nullptr ? lanes->length : input.size(2);
  if (const ConvPlan* fewer = convolution.fewer_taps(length)) {
    const Tensor found = best_wgrad(grad, input, *fewer, lanes);
    return at::zeros({convolution.nnz}, found.options()).index_copy_(0, fewer->kept, found);
  }
  if (lanes == nullptr && by_blocks(input, convolution)) {
    if (const std::optional<Tensor> found = block_wgrad(grad, input, convolution)) {
      return *found;
    }
  }
  const Geometry& g = convolution.geometry;
  const WgradPlan& plan = convolution.wgrad();
  const Detour detour(lanes, lanes != nullptr && plan.layout.apart > 1);
  const Tensor dy = detour.leave(grad), x = detour.leave(input);
  const int64_t batch = dy.size(0), outputs_of_series = dy.size(2);
  const LaneOrder order = detour.lanes != nullptr ? *lanes
                          : plan.layout.apart == 1
                              ? lane_order(batch, outputs_of_series, lanes_of(input))
                              : tile_order(batch, outputs_of_series, lanes_of(input), plan.layout);
  const int64_t chunks = order.groups * ceil_div(order.rows, kWgradRows / order.wide);
  const int64_t splits = wgrad_splits(chunks);
  Tensor partial = at::zeros({splits, plan.nnz()}, input.options().dtype(acc_type(input)));
  if (chunks > 0 && plan.nnz() > 0) {
    WeightGradient p{};
    p.block_starts = plan.block_starts.data();
    p.batches = plan.batches.data();
    p.rows = plan.rows.data();
    p.row_starts = plan.row_starts.data();
    p.n_blocks = static_cast<int64_t>(plan.block_starts.size()) - 1;
    p.channels_per_group = g.channels_per_group;
    p.n_rows = g.out_channels;
    p.groups = g.groups;
    p.nnz = plan.nnz();
    p.tile = plan.layout.shape();
    p.order = order;
    p.mode = g.mode;
    p.origin = -g.left;
    p.partial = partial.data_ptr();
    p.splits = splits;
    p.in_lanes = detour.lanes != nullptr;
    p.grad = view(dy);
    p.in = view(x);
    p.in_length = length;
    const int64_t outputs = order.groups * order.rows * order.wide;
    const int64_t spans = chunks * plan.layout.span() * order.wide;
    const int64_t packed = outputs * g.out_channels + (outputs + spans) * g.in_channels();
    run_kernel(p, &KernelTable::wgrad, element_of(input),
               outputs * plan.nnz() + packed * kPackCost);
  }
  const Tensor sum = partial[0];
  for (int64_t split = 1; split < splits; ++split) {
    sum.add_(partial[split]);
  }
  // Without the other splits, whose memory a row of theirs would keep.
  return sum.to(input.scalar_type(), /*non_blocking=*/false, /*copy=*/splits > 1);
}

}  // namespace sparseconv
