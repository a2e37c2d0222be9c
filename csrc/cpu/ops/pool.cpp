// Adaptive averages over a fixed number of bins, and their gradient.

#include <torch/library.h>

#include "../../checks.h"
#include "../fused.h"
#include "../launch.h"

namespace sparseconv {

namespace {

// A position of a lane group takes as long as this many multiply-adds of a convolution: 67 us for
// 141 groups of 128 + 50.
constexpr int64_t kPositionCost = 16;

Tensor run_pool(const Tensor& x, int64_t length, int64_t bins, bool gradient) {
  const Element element =
      fused_element(x, gradient ? "grad_output" : "input", "adaptive_avg_pool1d");
  constexpr int64_t kMost = int64_t{1} << 31;
  TORCH_CHECK_VALUE(length >= 1 && length < kMost && bins >= 1 && bins < kMost,
                    "expected a length and a number of bins in [1, 2**31), but got ", length,
                    " and ", bins);
  const Tensor in = x.contiguous();
  Tensor output = at::empty({x.size(0), x.size(1), gradient ? length : bins}, x.options());
  Pool p{};
  p.in = in.const_data_ptr();
  p.out = output.data_ptr();
  p.series = x.size(0) * x.size(1);
  p.length = length;
  p.bins = bins;
  if (p.series > 0) {
    run_kernel(p, gradient ? &KernelTable::pool_gradient : &KernelTable::pool, element,
               ceil_div(p.series, lanes_of(x)) * kPositionCost * (length + bins));
  }
  return output;
}

Tensor forward(const Tensor& input, int64_t bins) {
  return run_pool(input, input.dim() == 3 ? input.size(2) : 0, bins, false);
}

Tensor backward(const Tensor& grad, int64_t length) {
  return run_pool(grad, length, grad.dim() == 3 ? grad.size(2) : 0, true);
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("adaptive_avg_pool1d", forward);
  m.impl("adaptive_avg_pool1d_backward", backward);
}

}  // namespace sparseconv
