// BatchNorm over a batch (training), followed by ReLU, and their gradient.

#include <torch/library.h>

#include <tuple>

#include "../../checks.h"
#include "../fused.h"
#include "../launch.h"

namespace sparseconv {

namespace {

// A vector takes as long as this many multiply-adds of a convolution, over all passes (forward 26,
// backward 27).
constexpr int64_t kVectorCost = 26;

// A contiguous vector with one entry per channel, of the input's dtype.
const void* channel_vector(const Tensor& x, const Tensor& vector, const char* name) {
  check_same_type(x, vector, name);
  TORCH_CHECK_VALUE(vector.dim() == 1 && vector.size(0) == x.size(1) && vector.is_contiguous(),
                    "expected ", name, " contiguous and of shape (", x.size(1), ",), but got ",
                    vector.sizes());
  return vector.const_data_ptr();
}

const void* channel_vector(const Tensor& x, const std::optional<Tensor>& vector, const char* name) {
  return vector.has_value() ? channel_vector(x, *vector, name) : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& input,
                                           const std::optional<Tensor>& weight,
                                           const std::optional<Tensor>& bias,
                                           const std::optional<Tensor>& running_mean,
                                           const std::optional<Tensor>& running_var,
                                           double momentum,
                                           double eps) {
  const Element element = fused_element(input, "input", "batch_norm");
  BatchNormRelu p{};
  p.in = view(input);
  p.weight = channel_vector(input, weight, "weight");
  p.bias = channel_vector(input, bias, "bias");
  p.running_mean = const_cast<void*>(channel_vector(input, running_mean, "running_mean"));
  p.running_var = const_cast<void*>(channel_vector(input, running_var, "running_var"));
  p.momentum = momentum;
  p.eps = eps;
  p.batch = input.size(0);
  p.channels = input.size(1);
  p.length = input.size(2);
  TORCH_CHECK_VALUE(p.batch * p.length > 1,
                    "Expected more than 1 value per channel when training, got input size ",
                    input.sizes());
  Tensor mean = at::empty({p.channels}, input.options());
  Tensor invstd = at::empty({p.channels}, input.options());
  p.mean = mean.data_ptr();
  p.invstd = invstd.data_ptr();
  Tensor output = at::empty(input.sizes(), input.options());
  p.out = output.data_ptr();
  run_kernel(p, &KernelTable::batch_norm_relu, element,
             ceil_div(input.numel(), lanes_of(input)) * kVectorCost);
  return {output, mean, invstd};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad,
                                            const Tensor& input,
                                            const std::optional<Tensor>& weight,
                                            const std::optional<Tensor>& bias,
                                            const Tensor& mean,
                                            const Tensor& invstd) {
  const Element element = fused_element(input, "input", "batch_norm");
  check_signal(grad, "grad_output");
  check_same_type(input, grad, "grad_output");
  TORCH_CHECK_VALUE(grad.sizes() == input.sizes() && input.size(0) * input.size(2) > 0,
                    "expected grad_output of the shape of the input, not empty, but got ",
                    grad.sizes(), " and ", input.sizes());
  BatchNormReluGradient p{};
  p.grad = view(grad);
  p.in = view(input);
  p.weight = channel_vector(input, weight, "weight");
  p.bias = channel_vector(input, bias, "bias");
  p.mean = channel_vector(input, mean, "mean");
  p.invstd = channel_vector(input, invstd, "invstd");
  p.batch = input.size(0);
  p.channels = input.size(1);
  p.length = input.size(2);
  Tensor grad_input = at::empty(input.sizes(), input.options());
  Tensor grad_weight = at::empty({p.channels}, input.options());
  Tensor grad_bias = at::empty({p.channels}, input.options());
  p.grad_in = grad_input.data_ptr();
  p.grad_weight = grad_weight.data_ptr();
  p.grad_bias = grad_bias.data_ptr();
  run_kernel(p, &KernelTable::batch_norm_relu_gradient, element,
             ceil_div(input.numel(), lanes_of(input)) * kVectorCost);
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  m.impl("batch_norm_relu", forward);
  m.impl("batch_norm_relu_backward", backward);
}

}  // namespace sparseconv
