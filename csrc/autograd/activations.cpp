// Activations whose gradients, or exponentials, torch computes slowly.

#include <ATen/ops/elu.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/glu.h>
#include <ATen/ops/prelu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/tanh.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "lanes.h"

namespace sparseconv {

namespace {

ActivationKind kind_of(c10::string_view name) {
  TORCH_CHECK_VALUE(name == "elu" || name == "tanh" || name == "glu" || name == "gated_tanh",
                    "expected 'elu', 'tanh', 'glu' or 'gated_tanh', but got '", name, "'");
  return name == "elu"    ? ActivationKind::elu
         : name == "tanh" ? ActivationKind::tanh
         : name == "glu"  ? ActivationKind::glu
                          : ActivationKind::gated_tanh;
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
  const Tensor x = input.resolve_neg().contiguous();
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[0] /= parts;
  Tensor dy;
  if (grad.defined()) {
    check_same_type(input, grad, "grad_output");
    TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef(sizes), "expected grad_output of sizes ",
                      sizes, ", but got ", grad.sizes());
    dy = grad.resolve_neg().contiguous();
  }
  Tensor output = grad.defined() ? at::empty_like(x) : at::empty(sizes, x.options());
  const Activation p{x.const_data_ptr(), grad.defined() ? dy.const_data_ptr() : nullptr,
                     output.mutable_data_ptr(), x.numel() / parts, kind};
  run_kernel(p, &KernelTable::activate, element_of(x), p.n / x.size(3) * kActivationCost);
  return output;
}

Tensor lanes_activation(const Tensor& input, c10::string_view name) {
  const ForkGuard fork_guard;
  return activated(input, {}, name);
}

Tensor lanes_activation_backward(const Tensor& grad, const Tensor& input, c10::string_view name) {
  const ForkGuard fork_guard;
  return activated(input, grad, name);
}

Tensor activated_by_torch(const Tensor& x, const std::string& name) {
  if (name == "elu") {
    return at::elu(x);
  }
  if (name == "tanh") {
    return at::tanh(x);
  }
  if (name == "glu") {
    return at::glu(x, 0);
  }
  const std::vector<Tensor> halves = x.chunk(2, 0);
  return at::tanh(halves[0]).mul(at::sigmoid(halves[1]));
}

struct Activate : torch::autograd::Function<Activate> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, c10::string_view name) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({input});
    ctx->saved_data["name"] = std::string(name);
    return CALL(lanes_activation)(input, name);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor input = ctx->get_saved_variables()[0];
    const std::string name = ctx->saved_data["name"].toStringRef();
    if (at::GradMode::is_enabled()) {
      return gradients_by_torch({input}, grads[0], [&](const variable_list& x) {
        return activated_by_torch(x[0], name);
      });
    }
    return {CALL(lanes_activation_backward)(grads[0], input, name), {}};
  }
};

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
  const ForkGuard fork_guard;
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
  const ForkGuard fork_guard;
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

struct PreluFunction : torch::autograd::Function<PreluFunction> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& input,
                        const Tensor& weight,
                        int64_t dim) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({input, weight});
    ctx->saved_data["dim"] = dim;
    return CALL(prelu)(input, weight, dim);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const int64_t dim = ctx->saved_data["dim"].toInt();
    if (at::GradMode::is_enabled()) {
      return gradients_by_torch(saved, grads[0], [&](const variable_list& x) {
        return at::prelu(x[0].movedim(dim, 1), x[1]).movedim(1, dim);
      });
    }
    const auto [of_input, of_weight] = CALL(prelu_backward)(grads[0], saved[0], saved[1], dim);
    return {of_input, of_weight, {}};
  }
};

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  using namespace sparseconv;
  implement(m, "lanes_activation", lanes_activation);
  implement(m, "lanes_activation_backward", lanes_activation_backward);
  implement(m, "prelu", prelu);
  implement(m, "prelu_backward", prelu_backward);
}

TORCH_LIBRARY_IMPL(sparseconv, Autograd, m) {
  using namespace sparseconv;
  m.impl("lanes_activation", Differentiable<Activate>::call);
  m.impl("prelu", Differentiable<PreluFunction>::call);
  for (const char* name : {"lanes_activation_backward", "prelu_backward"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
