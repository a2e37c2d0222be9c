// The gradient of the active weights.

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../../checks.h"
#include "../conv.h"
#include "../launch.h"
#include "../plan/indices.h"

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

// Whether plan_wgrad could have made its batches.
void check_batches(const WgradPlan& plan, const Geometry& g) {
  const int32_t* starts = plan.block_starts;
  bool fits = starts[0] == 0 && starts[plan.n_blocks] <= plan.nnz;
  for (int64_t b = 0; b < plan.n_blocks; ++b) {
    fits = fits && starts[b] <= starts[b + 1];
  }
  const WeightBatch* batch = plan.batches;
  for (int64_t i = 0; fits && i < starts[plan.n_blocks]; ++i, ++batch) {
    fits = batch->row >= 0 && batch->row < g.out_channels && batch->n >= 1 &&
           batch->n <= kBatchWeights && batch->first >= 0 && batch->first <= plan.nnz - batch->n;
  }
  // The kernel finds rows by bisection among the batches of one size.
  for (int64_t b = 0; fits && b < plan.n_blocks; ++b) {
    fits = std::is_sorted(plan.batches + starts[b], plan.batches + starts[b + 1],
                          [](const WeightBatch& x, const WeightBatch& y) {
                            return x.n != y.n ? x.n > y.n : x.row < y.row;
                          });
  }
  TORCH_CHECK_VALUE(fits, "expected batches that plan_wgrad made for this pattern");
}

}  // namespace

Tensor run_wgrad(const Tensor& grad,
                 const Tensor& input,
                 const Geometry& g,
                 const WgradPlan& plan,
                 const LaneOrder* lanes) {
  const ForkGuard fork_guard;
  const LaneOrder order =
      lanes != nullptr ? *lanes : lane_order(grad.size(0), grad.size(2), lanes_of(input));
  const int64_t chunks = order.groups * ceil_div(order.rows, kWgradRows);
  const int64_t splits = wgrad_splits(chunks);
  Tensor partial = at::zeros({splits, plan.nnz}, input.options().dtype(acc_type(input)));
  if (chunks > 0 && plan.nnz > 0) {
    WeightGradient p{};
    p.block_starts = plan.block_starts;
    p.batches = plan.batches;
    p.rows = plan.rows;
    p.row_starts = plan.row_starts.data();
    p.n_blocks = plan.n_blocks;
    p.channels_per_group = g.channels_per_group;
    p.n_rows = g.out_channels;
    p.groups = g.groups;
    p.nnz = plan.nnz;
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
    const int64_t outputs = order.groups * order.rows;
    const int64_t packed =
        outputs * g.out_channels + (outputs + chunks * plan.layout.span()) * g.in_channels();
    run_kernel(p, &KernelTable::wgrad, element_of(input), outputs * plan.nnz + packed * kPackCost);
  }
  if (partial.scalar_type() == at::kDouble) {
    add_up(partial.data_ptr<double>(), splits, plan.nnz);
  } else {
    add_up(partial.data_ptr<float>(), splits, plan.nnz);
  }
  // Without the other splits, whose memory a row of theirs would keep.
  return partial[0].to(input.scalar_type(), /*non_blocking=*/false, /*copy=*/splits > 1);
}

namespace {

Tensor wgrad(const Tensor& grad,
             const Tensor& input,
             const Tensor& crow,
             const Tensor& rows,
             at::IntArrayRef geometry,
             const std::optional<Tensor>& batches) {
  const Geometry g = check_geometry(geometry);
  check_signal(input, "input", g.in_channels());
  check_signal(grad, "grad_output", g.out_channels);
  check_same_type(input, grad, "grad_output");
  check_lengths(g, input.size(2));
  check_gradient(grad, g, input.size(0), input.size(2));
  const int64_t nnz = rows.numel();
  check_pointers(crow, "crow_indices", g.n_kernels(), nnz);
  TORCH_CHECK_TYPE(batches.has_value(), "expected batches to be a tensor, but got None");
  check_indices(rows, "rows", nnz);
  check_indices(*batches, "batches", batches_size(g, nnz));
  const WgradPlan plan =
      wgrad_plan(g, crow.const_data_ptr<int32_t>(), rows.const_data_ptr<int32_t>(),
                 batches->const_data_ptr<int32_t>());
  check_rows(rows, plan.layout, g.channels_per_group);
  check_batches(plan, g);
  return run_wgrad(grad, input, g, plan);
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("wgrad", wgrad);
}

}  // namespace sparseconv
