// Dense 1x1 convolution: fprop, dgrad, wgrad.

#include <torch/library.h>

#include <algorithm>

#include "../../checks.h"
#include "../fused.h"
#include "../launch.h"

namespace sparseconv {

namespace {

// The columns of wgrad are cut into at most this many runs, by shape alone: with panels of 32 lanes
// they are what threads share. At most 2 take 1 to 6 % less time on one and two threads, 141 -> 47,
// L = 128 and 512, but leave work for four; runs of 256 columns take 3 % more at L = 128.
constexpr int64_t kSplitsMax = 8;
constexpr int64_t kColumnsPerSplit = 512;

void check_weight(const Tensor& x, const Tensor& weight, int64_t dimension) {
  check_same_type(x, weight, "weight");
  TORCH_CHECK_VALUE(weight.dim() == 3 && weight.size(2) == 1 && weight.size(dimension) == x.size(1),
                    "expected a signal (N, C, L) and a weight (C_out, C_in, 1) that fits it, but "
                    "got ",
                    x.sizes(), " and ", weight.sizes());
}

// (depth, rows), contiguous.
template <typename T>
Tensor transposed(const Tensor& weight) {
  Tensor result = at::empty({weight.size(1), weight.size(0)}, weight.options());
  const T* from = weight.const_data_ptr<T>();
  T* to = result.data_ptr<T>();
  const int64_t rows = weight.size(0), depth = weight.size(1);
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t r = 0; r < rows; ++r) {
      to[k * rows + r] = from[r * weight.stride(0) + k * weight.stride(1)];
    }
  }
  return result;
}

Tensor multiply(const Tensor& x, const Tensor& weight, int64_t rows, Element element) {
  Tensor output = at::empty({x.size(0), rows, x.size(2)}, x.options());
  Pointwise p{};
  p.in = view(x);
  p.weight = weight.const_data_ptr();
  p.out = output.data_ptr();
  p.batch = x.size(0);
  p.length = x.size(2);
  p.depth = x.size(1);
  p.rows = rows;
  if (output.numel() > 0) {
    run_kernel(p, &KernelTable::pointwise, element,
               ceil_div(p.batch * p.length, lanes_of(x)) * p.depth * rows);
  }
  return output;
}

Tensor fprop(const Tensor& input, const Tensor& weight) {
  const Element element = fused_element(input, "input", "conv1d");
  check_weight(input, weight, 1);
  return multiply(input,
                  element == Element::f64 ? transposed<double>(weight) : transposed<float>(weight),
                  weight.size(0), element);
}

Tensor dgrad(const Tensor& grad, const Tensor& weight) {
  const Element element = fused_element(grad, "grad_output", "conv1d");
  check_weight(grad, weight, 0);
  return multiply(grad, weight.contiguous(), weight.size(1), element);
}

Tensor wgrad(const Tensor& grad, const Tensor& input) {
  check_signal(grad, "grad_output");
  const Element element = fused_element(input, "input", "conv1d");
  check_same_type(input, grad, "grad_output");
  TORCH_CHECK_VALUE(grad.size(0) == input.size(0) && grad.size(2) == input.size(2),
                    "expected grad_output (N, C_out, L) and input (N, C_in, L), but got ",
                    grad.sizes(), " and ", input.sizes());
  // Lanes hold whichever side fills them better.
  const int64_t lanes = lanes_of(input);
  const auto waste = [&](const Tensor& x) {
    return static_cast<double>(ceil_div(x.size(1), lanes) * lanes) /
           static_cast<double>(std::max<int64_t>(1, x.size(1)));
  };
  const bool swapped = waste(grad) < waste(input);
  const Tensor& row_side = swapped ? input : grad;
  const Tensor& lane_side = swapped ? grad : input;

  PointwiseGradient p{};
  p.row_side = view(row_side);
  p.lane_side = view(lane_side);
  p.rows = row_side.size(1);
  p.lanes = lane_side.size(1);
  p.partial_stride = ceil_div(p.lanes, lanes) * lanes;
  p.batch = input.size(0);
  p.length = input.size(2);
  const int64_t columns = p.batch * p.length;
  if (columns == 0 || p.rows == 0 || p.lanes == 0) {
    return at::zeros({grad.size(1), input.size(1), 1}, input.options());
  }
  p.splits = std::clamp<int64_t>(columns / kColumnsPerSplit, 1, kSplitsMax);
  Tensor partial = at::empty({p.splits, p.rows, p.partial_stride}, input.options());
  p.partial = partial.data_ptr();
  run_kernel(p, &KernelTable::pointwise_gradient, element,
             ceil_div(p.rows * p.lanes, lanes) * columns);
  Tensor result = partial[0];
  for (int64_t split = 1; split < p.splits; ++split) {
    result.add_(partial[split]);
  }
  result = result.narrow(1, 0, p.lanes);
  return (swapped ? result.t() : result).unsqueeze(2).contiguous();
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("pointwise_fprop", fprop);
  m.impl("pointwise_dgrad", dgrad);
  m.impl("pointwise_wgrad", wgrad);
}

}  // namespace sparseconv
