// The gradient of the active weights.

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "../../checks.h"
#include "../conv.h"
#include "../lanes.h"
#include "../launch.h"

namespace sparseconv {
namespace {

constexpr int64_t kPart = 32 * 1024;  // weights; fewer are not worth waking a thread for

// Adds the other splits to the first one, in their order.
template <typename T>
void add_up(T* partial, int64_t splits, int64_t nnz) {
  at::parallel_for(0, nnz, kPart, [&](int64_t begin, int64_t end) {
    for (int64_t split = 1; split < splits; ++split) {
      for (int64_t i = begin; i < end; ++i) {
        partial[i] += partial[split * nnz + i];
      }
    }
  });
}

}  // namespace

Tensor run_wgrad(const Tensor& grad,
                 const Tensor& input,
                 const Geometry& g,
                 const WgradPlan& plan,
                 const LaneOrder* lanes) {
  const ForkGuard fork_guard;
  if (lanes != nullptr && plan.layout.apart > 1) {
    const auto order = lanes_for(*lanes);
    return run_wgrad(order->leave(grad, 0), order->leave(input, 0), g, plan);
  }
  const int64_t batch = grad.size(0), length = grad.size(2);
  const LaneOrder order = lanes != nullptr ? *lanes
                          : plan.layout.apart == 1
                              ? lane_order(batch, length, lanes_of(input))
                              : tile_order(batch, length, lanes_of(input), plan.layout);
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
    if (lanes != nullptr) {
      p.in_lanes = true;
      p.grad.data = grad.data_ptr();
      p.in.data = input.data_ptr();
    } else {
      p.grad = view(grad);
      p.in = view(input);
      p.in_length = input.size(2);
    }
    const int64_t outputs = order.groups * order.rows * order.wide;
    const int64_t spans = chunks * plan.layout.span() * order.wide;
    const int64_t packed = outputs * g.out_channels + (outputs + spans) * g.in_channels();
    run_kernel(p, &KernelTable::wgrad, element_of(input),
               outputs * plan.nnz() + packed * kPackCost);
  }
  if (partial.scalar_type() == at::kDouble) {
    add_up(partial.data_ptr<double>(), splits, plan.nnz());
  } else {
    add_up(partial.data_ptr<float>(), splits, plan.nnz());
  }
  // Without the other splits, whose memory a row of theirs would keep.
  return partial[0].to(input.scalar_type(), /*non_blocking=*/false, /*copy=*/splits > 1);
}

}  // namespace sparseconv
