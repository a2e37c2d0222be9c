// Activations whose gradients, or exponentials, torch computes slowly.

#include <ATen/ops/elu.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/glu.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/tanh.h>
#include <torch/library.h>

#include "lanes.h"

namespace sparseconv {

namespace {

// In the order of ActivationKind.
constexpr const char* kActivations[] = {"elu", "tanh", "glu", "gated_tanh"};

ActivationKind kind_of(c10::string_view name) {
  const auto* found = std::find(std::begin(kActivations), std::end(kActivations), name);
  TORCH_CHECK_VALUE(found != std::end(kActivations),
                    "expected 'elu', 'tanh', 'glu' or 'gated_tanh', but got '", name, "'");
  return static_cast<ActivationKind>(found - kActivations);
}

constexpr int64_t kActivationCost = 64;  // of a vector, in multiply-adds of a convolution

// Of a tensor in any lanes: idle positions stay zero.
Tensor activated(const Tensor& input, const Tensor& grad, c10::string_view name) {
  const ActivationKind kind = kind_of(name);
  const int64_t parts = kind == ActivationKind::elu || kind == ActivationKind::tanh ? 1 : 2;
  check_memory(input, "input");
  TORCH_CHECK_TYPE(
      input.is_cpu() && (input.scalar_type() == at::kFloat || input.scalar_type() == at::kDouble),
      "expected an input of float32 or float64 on the CPU");
  TORCH_CHECK_VALUE(
      input.dim() == 4 && input.size(3) == lanes_of(input) && input.size(0) % parts == 0,
      "expected an input in lanes, and an even number of channels to halve, but got ",
      input.sizes());
  const Tensor x = aligned(input);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[0] /= parts;
  Tensor dy;
  if (grad.defined()) {
    check_same_type(input, grad, "grad_output");
    TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef(sizes), "expected grad_output of sizes ",
                      sizes, ", but got ", grad.sizes());
    dy = aligned(grad);
  }
  Tensor output = grad.defined() ? at::empty_like(x) : at::empty(sizes, x.options());
  const Activation p{x.const_data_ptr(), grad.defined() ? dy.const_data_ptr() : nullptr,
                     output.mutable_data_ptr(), x.numel() / parts, kind};
  run_kernel(p, &KernelTable::activate, element_of(x), p.n / x.size(3) * kActivationCost);
  return output;
}

Tensor lanes_activation(const Tensor& input, c10::string_view name) {
  return activated(input, {}, name);
}

Tensor lanes_activation_backward(const Tensor& grad, const Tensor& input, c10::string_view name) {
  return activated(input, grad, name);
}

Tensor activated_by_torch(const Tensor& x, ActivationKind kind) {
  switch (kind) {
    case ActivationKind::elu:
      return at::elu(x);
    case ActivationKind::tanh:
      return at::tanh(x);
    case ActivationKind::glu:
      return at::glu(x, 0);
    default: {
      const std::vector<Tensor> halves = x.chunk(2, 0);
      return at::tanh(halves[0]).mul(at::sigmoid(halves[1]));
    }
  }
}

variable_list activation_gradients(const Backward& b) {
  const int64_t kind = b.kept[0];
  if (b.again) {
    return gradients_by_torch(b, b.saved, [&](const variable_list& x) {
      return activated_by_torch(x[0], static_cast<ActivationKind>(kind));
    });
  }
  return {CALL(lanes_activation_backward)(b.grad, b.saved[0], kActivations[kind])};
}

// Of contiguous tensors whose dimension `dim` are channels.
Prelu prelu_of(const Tensor& x, const Tensor& weight, int64_t dim) {
  check_same_type(x, weight, "weight");
  check_memory(x, "input");
  TORCH_CHECK_TYPE(x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble),
                   "expected an input of float32 or float64 on the CPU");
  TORCH_CHECK_VALUE(dim >= 0 && dim < x.dim(), "expected a dim in [0, ", x.dim(), "), but got ",
                    dim);
  TORCH_CHECK_VALUE(weight.dim() == 1 && (weight.size(0) == 1 || weight.size(0) == x.size(dim)),
                    "expected one weight or ", x.size(dim), ", but got ", weight.sizes());
  Prelu p{};
  p.channels = weight.size(0);
  p.length = c10::multiply_integers(x.sizes().slice(dim + 1));
  p.rows = c10::multiply_integers(x.sizes().slice(0, dim + 1));
  return p;
}

void run_prelu(const Prelu& p, const Tensor& x) {
  const int64_t vectors = ceil_div(p.length, lanes_of(x));
  run_kernel(p, &KernelTable::prelu, element_of(x), p.rows * vectors * kActivationCost);
}

Tensor prelu(const Tensor& input, const Tensor& weight, int64_t dim) {
  Prelu p = prelu_of(input, weight, dim);
  const Tensor x = input.resolve_neg().contiguous(), slopes = weight.resolve_neg().contiguous();
  Tensor output = at::empty_like(x);
  p.in = x.const_data_ptr();
  p.weight = slopes.const_data_ptr();
  p.out = output.mutable_data_ptr();
  run_prelu(p, x);
  return output;
}

// The gradients of the input and of the weight.
std::tuple<Tensor, Tensor> prelu_backward(const Tensor& grad,
                                          const Tensor& input,
                                          const Tensor& weight,
                                          int64_t dim) {
  Prelu p = prelu_of(input, weight, dim);
  check_same_type(input, grad, "grad_output");
  TORCH_CHECK_VALUE(grad.sizes() == input.sizes(), "expected grad_output of sizes ", input.sizes(),
                    ", but got ", grad.sizes());
  const Tensor x = input.resolve_neg().contiguous(), slopes = weight.resolve_neg().contiguous();
  const Tensor dy = grad.resolve_neg().contiguous();
  Tensor output = at::empty_like(x), sums = at::empty({p.rows, lanes_of(x)}, x.options());
  p.in = x.const_data_ptr();
  p.weight = slopes.const_data_ptr();
  p.grad = dy.const_data_ptr();
  p.out = output.mutable_data_ptr();
  p.sums = sums.mutable_data_ptr();
  run_prelu(p, x);
  // Rows of one weight follow one another if there is only one, else they are `channels` apart.
  const Tensor of_weight =
      sums.view({-1, p.channels, sums.size(1)}).sum(at::IntArrayRef{0, 2}, false, at::kDouble);
  return {output, of_weight.to(x.scalar_type())};
}

variable_list prelu_gradients(const Backward& b) {
  const int64_t dim = b.kept[0];
  if (b.again) {
    return gradients_by_torch(b, b.saved, [&](const variable_list& x) {
      return at::prelu(x[0].movedim(dim, 1), x[1]).movedim(1, dim);
    });
  }
  const auto [of_input, of_weight] = CALL(prelu_backward)(b.grad, b.saved[0], b.saved[1], dim);
  return {of_input, of_weight};
}

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_FRAGMENT(sparseconv, m) {
  using namespace sparseconv;
  implement<lanes_activation>(m, "lanes_activation",
                              [](const Tensor& input, c10::string_view name) {
                                const Tensor output = COMPUTE(lanes_activation)(input, name);
                                return recorded<activation_gradients>(
                                    output, {input}, {static_cast<int64_t>(kind_of(name))}, input);
                              });
  implement<lanes_activation_backward>(m, "lanes_activation_backward");
  implement<prelu>(m, "prelu", [](const Tensor& input, const Tensor& weight, int64_t dim) {
    const Tensor output = COMPUTE(prelu)(input, weight, dim);
    return recorded<prelu_gradients>(output, {input, weight}, {dim}, input, weight);
  });
  implement<prelu_backward>(m, "prelu_backward");
}
