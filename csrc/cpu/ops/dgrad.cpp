// The gradient of the input: fprop on the transposed pattern, which has a row for each channel and
// phase of the stride.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <vector>

#include "../../checks.h"
#include "../conv.h"
#include "../lanes.h"
#include "../launch.h"

namespace sparseconv {
namespace {

template <typename T>
void fold_series(T* series, int64_t n, int64_t length, const Geometry& g) {
  const int64_t padded = g.left + length + g.right;
  at::parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
    for (T* of = series + begin * padded; of < series + end * padded; of += padded) {
      for (int64_t i = 0; i < g.left + g.right; ++i) {
        const int64_t at = i < g.left ? i : length + i;
        of[g.left + fold_position(at - g.left, length, g.mode)] += of[at];
      }
    }
  });
}

// The weights in the order in which the transposed pattern meets them. Reading them through the
// index instead would bring in a cache line for every weight, once per lane group.
Tensor gathered(const Tensor& values, const int32_t* from) {
  Tensor weights = at::empty_like(values);
  const auto gather = [&](auto* out, const auto* in) {
    at::parallel_for(0, values.numel(), 16 * 1024, [out, in, from](int64_t begin, int64_t end) {
// Or its time doubles where the linker happens to put the loop across a cache line.
#pragma GCC unroll 8
      for (int64_t i = begin; i < end; ++i) {
        out[i] = in[from[i]];
      }
    });
  };
  if (values.scalar_type() == at::kDouble) {
    gather(weights.data_ptr<double>(), values.const_data_ptr<double>());
  } else {
    gather(weights.data_ptr<float>(), values.const_data_ptr<float>());
  }
  return weights;
}

// Adds what reaches the replicated samples on the left to the first sample, which they were copied
// from. A tap at `position` of the kernel meets there the outermost padding - position gradients:
// the same correlation once more, for one output, over running sums of the gradients.
void add_left_edge(Tensor& output, Correlation p, const Geometry& g) {
  p.origin = g.left - 1;
  p.prefix_sums = true;
  p.edge = false;
  if (p.in_lanes) {
    run_correlation(p, element_of(output));
    return;
  }
  Tensor edge = at::empty({output.size(0), output.size(1), 1}, output.options());
  p.out = view(edge);
  p.out_length = 1;
  p.first = 0;
  p.order = tile_order(output.size(0), 1, p.order.lanes, Layout());
  run_correlation(p, element_of(output));
  output.select(2, 0).add_(edge.select(2, 0));
}

}  // namespace

Tensor folded(const Tensor& padded, const Geometry& g, at::ScalarType type) {
  const int64_t n = padded.size(0) * padded.size(1), length = padded.size(2) - g.left - g.right;
  if (padded.scalar_type() == at::kDouble) {
    fold_series(padded.mutable_data_ptr<double>(), n, length, g);
  } else {
    fold_series(padded.mutable_data_ptr<float>(), n, length, g);
  }
  return padded.narrow(2, g.left, length)
      .to(type, /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
}

Tensor best_dgrad(const Tensor& grad,
                  const Tensor& values,
                  const ConvPlan& plan,
                  int64_t input_length,
                  const std::optional<Tensor>& bias,
                  const LaneOrder* lanes) {
  const ForkGuard fork_guard;
  if (const ConvPlan* fewer = plan.fewer_taps(input_length)) {
    const Tensor kept = values.index_select(0, fewer->kept);
    return best_dgrad(grad, kept, *fewer, input_length, bias, lanes);
  }
  if (lanes == nullptr && by_blocks(grad, plan)) {
    return block_dgrad(grad, values, plan, input_length, bias);
  }
  const Geometry& g = plan.geometry;
  const DgradPlan& transposed = plan.dgrad();
  const Layout& layout = transposed.phases[0].layout;
  const bool padded = g.mode != PaddingMode::zeros && g.left + g.right > 0;
  const Detour detour(
      lanes, lanes != nullptr && (!takes_lanes(*lanes, layout) || (layout.apart > 1 && padded)));
  const bool in_lanes = detour.lanes != nullptr;
  // Padding other than zeros carries gradient back to the samples it was copied from. What reaches
  // a replicated border is summed on the way (Correlation::edge, add_left_edge), where the scratch
  // holds all positions between the taps; else the gradient of the padding is computed and folded.
  // The sums stay in the accumulation type, and as no kernel reads a half type and writes another,
  // such a gradient is widened.
  const bool edges = padded && (in_lanes || (g.mode == PaddingMode::replicate && g.stride == 1 &&
                                             std::max(g.left, g.right) <= g.reach() - 1 &&
                                             layout.segments.size() == 1 && layout.apart == 1));
  const bool folds = padded && !edges;
  const Tensor signal = detour.leave(grad);
  const Tensor source = padded ? signal.to(acc_type(grad)) : signal;
  const int64_t left = folds ? g.left : 0, right = folds ? g.right : 0;
  Tensor output = in_lanes
                      ? new_lanes(g.in_channels(), *lanes, grad.options())
                      : at::empty({signal.size(0), g.in_channels(), left + input_length + right},
                                  source.options());
  const Tensor weights = gathered(values.to(acc_type(grad)).contiguous(), transposed.index.data());
  const char* value = static_cast<const char*>(weights.const_data_ptr());
  // Padded positions j = stride * u + phase; those outside of [low, high) are not written.
  const int64_t low = g.left - left, high = g.left + input_length + right;
  const int64_t first = low / g.stride, past = ceil_div(high, g.stride);
  int64_t phase = 0;
  for (const CorrelationPlan& part : transposed.phases) {
    Correlation p{};
    p.entries = part.entries.view();
    p.phases = p.entries.n_rows / g.in_channels();
    p.tile = part.layout.shape();
    p.values = value;
    Tensor init;
    if (bias.has_value()) {
      init = bias->to(acc_type(grad)).unsqueeze(1).expand({-1, p.phases}).contiguous();
    }
    value += p.entries.nnz * weights.element_size();
    p.init = init.defined() ? init.const_data_ptr() : nullptr;
    p.in_lanes = in_lanes;
    p.order =
        in_lanes ? *lanes : tile_order(signal.size(0), past - first, lanes_of(grad), part.layout);
    p.in = view(source);
    p.in_length = source.size(2);
    p.mode = PaddingMode::zeros;
    p.origin = first;
    p.out = view(output);
    p.out_length = output.size(2);
    p.first = first * g.stride + phase - low;
    p.out_step = g.stride;
    p.edge = edges && g.right > 0;
    run_correlation(p, element_of(source));
    if (edges && g.left > 0) {
      add_left_edge(output, p, g);
    }
    phase += p.phases;
  }
  return detour.enter(folds ? folded(output, g, grad.scalar_type())
                            : output.to(grad.scalar_type()));
}

}  // namespace sparseconv
