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

// Adds what reached the padding to the samples that it was copied from, in ascending order.
template <typename T>
void add_fold(Tensor& output, const Tensor& fold, const Geometry& g) {
  const int64_t length = output.size(2), width = g.left + g.right;
  T* out = output.data_ptr<T>();
  const T* extra = fold.const_data_ptr<T>();
  at::parallel_for(0, output.size(0) * output.size(1), 64, [&](int64_t begin, int64_t end) {
    for (int64_t series = begin; series < end; ++series) {
      for (int64_t i = 0; i < width; ++i) {
        const int64_t position = i < g.left ? i - g.left : length + i - g.left;
        const int64_t source = fold_position(position, length, g.mode);
        out[series * length + source] += extra[series * width + i];
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

Tensor run_dgrad(const Tensor& grad,
                 const Tensor& values,
                 const Geometry& g,
                 const DgradPlan& plan,
                 int64_t input_length,
                 const std::optional<Tensor>& bias,
                 const LaneOrder* lanes) {
  const ForkGuard fork_guard;
  const Layout& layout = plan.phases[0].layout;
  if (lanes != nullptr &&
      (!takes_lanes(*lanes, layout) || (layout.apart > 1 && g.mode == PaddingMode::replicate))) {
    const auto order = lanes_for(*lanes);
    return order->enter(run_dgrad(order->leave(grad, 0), values, g, plan, input_length));
  }
  const Tensor weights = gathered(values.to(acc_type(grad)).contiguous(), plan.index.data());
  if (lanes != nullptr) {
    Tensor output = new_lanes(g.in_channels(), *lanes, grad.options());
    Correlation p{};
    p.entries = plan.phases[0].entries.view();
    p.tile = plan.phases[0].layout.shape();
    p.values = weights.const_data_ptr();
    p.order = *lanes;
    p.in_lanes = true;
    p.in.data = grad.data_ptr();
    p.out.data = output.data_ptr();
    p.mode = PaddingMode::zeros;
    p.origin = g.left;
    p.edge = g.mode == PaddingMode::replicate && g.right > 0;
    run_correlation(p, element_of(grad));
    if (g.mode == PaddingMode::replicate && g.left > 0) {
      add_left_edge(output, p, g);
    }
    return output;
  }
  // Padding other than zeros carries gradient back to the samples it was copied from. What reaches
  // a replicated border is summed on the way (Correlation::edge, add_left_edge), where the scratch
  // holds all positions between the taps; else the gradient of the padding is computed and folded.
  // The sums stay in the accumulation type, and as no kernel reads a half type and writes another,
  // such a gradient is widened.
  const bool padded = g.mode != PaddingMode::zeros && g.left + g.right > 0;
  const bool edges = padded && g.mode == PaddingMode::replicate && g.stride == 1 &&
                     std::max(g.left, g.right) <= g.reach() - 1 && layout.segments.size() == 1 &&
                     layout.apart == 1;
  const bool folds = padded && !edges;
  const Tensor source = padded ? grad.to(acc_type(grad)) : grad;
  Tensor output = at::empty({grad.size(0), g.in_channels(), input_length}, source.options());
  Tensor fold;
  if (folds) {
    fold = at::empty({grad.size(0), g.in_channels(), g.left + g.right}, source.options());
  }
  const char* value = static_cast<const char*>(weights.const_data_ptr());
  // Padded positions j = stride * u + phase; those outside of [low, high) are not written.
  const int64_t low = folds ? 0 : g.left;
  const int64_t high = folds ? input_length + g.left + g.right : g.left + input_length;
  const int64_t first = low / g.stride, past = ceil_div(high, g.stride);
  int64_t phase = 0;
  for (const CorrelationPlan& part : plan.phases) {
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
    p.in = view(source);
    p.in_length = grad.size(2);
    p.mode = PaddingMode::zeros;
    p.origin = first;
    p.out = view(output);
    p.out_length = input_length;
    p.first = first * g.stride + phase - g.left;
    p.out_step = g.stride;
    p.fold = folds ? fold.data_ptr() : nullptr;
    p.fold_left = g.left;
    p.fold_right = g.right;
    p.edge = edges && g.right > 0;
    p.order = tile_order(grad.size(0), past - first, lanes_of(grad), part.layout);
    run_correlation(p, element_of(source));
    if (edges && g.left > 0) {
      add_left_edge(output, p, g);
    }
    phase += p.phases;
  }
  if (folds) {
    if (output.scalar_type() == at::kDouble) {
      add_fold<double>(output, fold, g);
    } else {
      add_fold<float>(output, fold, g);
    }
  }
  return output.to(grad.scalar_type());
}

}  // namespace sparseconv
