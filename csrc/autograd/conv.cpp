#include "conv.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>

#include "../checks.h"
#include "../cpu/conv.h"
#include "../cpu/isa/dispatch.h"
#include "../cpu/launch.h"
#include "plain.h"

namespace sparseconv {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Throws ValueError.
void check_nnz(const Tensor& values, const ConvPlan& plan) {
  TORCH_CHECK_VALUE(values.dim() == 1 && values.numel() == plan.nnz,
                    "expected values of as many active weights as the pattern has, ", plan.nnz,
                    ", but got ", values.sizes());
}

void check_arguments(const Tensor& input,
                     const Tensor& values,
                     const std::optional<Tensor>& bias,
                     const ConvPlan& plan) {
  const Geometry& g = plan.geometry;
  element_of(input);
  check_signal(input, "input", g.in_channels());
  check_lengths(g, input.size(2));
  check_values(values, input);
  check_nnz(values, plan);
  if (bias.has_value()) {
    check_vector(*bias, "bias", input, g.out_channels);
  }
}

// Of the gradient of the output, and the input that the output came from.
void check_gradient_of(const Tensor& input, const Tensor& grad, const ConvPlan& plan) {
  const Geometry& g = plan.geometry;
  check_signal(input, "input", g.in_channels());
  check_signal(grad, "grad_output", g.out_channels);
  element_of(input);
  check_same_type(input, grad, "grad_output");
  check_lengths(g, input.size(2));
  check_gradient(grad, g, input.size(0), input.size(2));
}

}  // namespace

Tensor fprop_of(const ConvPlan& plan, const Tensor& input, const Tensor& values) {
  const at::NoGradGuard no_grad;
  const ForkGuard fork_guard;
  check_arguments(input, values, std::nullopt, plan);
  return run_fprop(input.resolve_neg(), values.resolve_neg(), std::nullopt, plan.geometry,
                   plan.fprop(), false);
}

Tensor dgrad_of(const ConvPlan& plan,
                const Tensor& grad,
                const Tensor& values,
                int64_t input_length) {
  const at::NoGradGuard no_grad;
  const ForkGuard fork_guard;
  const Geometry& g = plan.geometry;
  check_signal(grad, "grad_output", g.out_channels);
  check_lengths(g, input_length);
  check_gradient(grad, g, grad.size(0), input_length);
  element_of(grad);
  check_values(values, grad);
  check_nnz(values, plan);
  return run_dgrad(grad.resolve_neg(), values.resolve_neg(), g, plan.dgrad(), input_length);
}

Tensor wgrad_of(const ConvPlan& plan, const Tensor& grad, const Tensor& input) {
  const at::NoGradGuard no_grad;
  const ForkGuard fork_guard;
  check_gradient_of(input, grad, plan);
  return run_wgrad(grad.resolve_neg(), input.resolve_neg(), plan.geometry, plan.wgrad());
}

namespace {

Tensor bias_gradient(const Tensor& grad, const ConvPlan& plan) {
  const ConvPlan& bias = plan.bias();
  const Tensor ones = at::ones({1}, grad.options()).expand({grad.size(0), 1, grad.size(2)});
  return run_wgrad(grad, ones, bias.geometry, bias.wgrad());
}

// Gradients by the functions of sparseconv/functional/conv.py, which have gradients themselves and
// know torch's transforms.
variable_list gradients_by_python(const Tensor& grad,
                                  const variable_list& saved,
                                  const ConvPlan& plan,
                                  const std::array<bool, 3>& needed) {
  const pybind11::gil_scoped_acquire gil;
  const pybind11::object found =
      pybind11::module_::import("sparseconv.functional.conv")
          .attr("gradients_by_python")(grad, saved[0], saved[1], plan.crow, plan.col,
                                       geometry_numbers(plan.geometry), needed);
  return tensors_of(found);
}

// What the forward pass takes beside the tensors that have gradients; these as well, frozen.
struct Call {
  ConvPlanPtr plan;
  Tensor input, values;
  std::optional<Tensor> bias;
  bool relu;
};

struct SparseConv : torch::autograd::Function<SparseConv> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& input,
                        const Tensor& values,
                        const std::optional<Tensor>& bias,
                        const Call& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const ConvPlan& plan = *call.plan;
    const Tensor output =
        run_fprop(call.input, call.values, call.bias, plan.geometry, plan.fprop(), call.relu);
    ctx->save_for_backward({input, values, call.relu ? output : Tensor()});
    ctx->saved_data["plan"] = held_in_tensor(call.plan);
    ctx->saved_data["bias"] = bias.has_value();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const ForkGuard fork_guard;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &output = saved[2];
    const Tensor held = ctx->saved_data["plan"].toTensor();
    const ConvPlan& plan = *static_cast<const ConvPlan*>(held.const_data_ptr());
    plan.check_untouched();
    // What nobody asked for, as in autograd.grad(y, x), is not computed.
    const std::array<bool, 3> needed = {
        ctx->needs_input_grad(0), ctx->needs_input_grad(1),
        ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)};
    Tensor grad = grads[0];
    if (output.defined()) {
      grad = at::threshold_backward(grad, output, 0);  // where y > 0, as F.relu's
    }
    variable_list found(3);
    if (at::GradMode::is_enabled() || !computes_plainly(grad)) {
      found = gradients_by_python(grad, saved, plan, needed);
    } else {
      // Checked again: hooks of saved tensors and other threads may have changed what was saved.
      const at::AutoDispatchBelowADInplaceOrView below;
      check_gradient_of(input, grad, plan);
      const Tensor values = [&] {
        const pybind11::gil_scoped_acquire gil;
        return frozen(saved[1]);
      }();
      check_nnz(values, plan);
      if (needed[0]) {
        RECORD_FUNCTION("sparseconv::dgrad", c10::ArrayRef<const c10::IValue>{});
        found[0] = dgrad_of(plan, grad, values, input.size(2));
      }
      if (needed[1]) {
        RECORD_FUNCTION("sparseconv::wgrad", c10::ArrayRef<const c10::IValue>{});
        found[1] = wgrad_of(plan, grad, input);
      }
      if (needed[2]) {
        found[2] = bias_gradient(grad.resolve_neg(), plan);
      }
    }
    found.resize(4);  // as many as `forward` has arguments
    return found;
  }
};

// Whether the arguments are what the kernels take; Python has the words for what is wrong.
bool fits(const Tensor& input,
          const Tensor& values,
          const std::optional<Tensor>& bias,
          const ConvPlan& plan) {
  try {
    check_arguments(input, values, bias, plan);
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}

}  // namespace

std::optional<Tensor> plain_conv(pybind11::handle input,
                                 pybind11::handle values,
                                 pybind11::handle bias,
                                 const ConvPlanPtr& plan,
                                 bool relu) {
  choose_kernels();
  const std::optional<Tensor> x = plain_tensor(input), parameter = plain_tensor(values);
  const std::optional<Tensor> b = bias.is_none() ? std::nullopt : plain_tensor(bias);
  if (!x || !parameter || (!b && !bias.is_none()) || !runs_plainly() ||
      (x->dim() != 2 && x->dim() != 3)) {
    return {};
  }
  const bool batched = x->dim() == 3;
  const Tensor signal = batched ? *x : x->unsqueeze(0);
  const auto bias_now = b ? std::optional(frozen(*b)) : std::nullopt;
  const Call call{plan, frozen(signal), frozen(*parameter), bias_now, relu};
  const pybind11::gil_scoped_release release;
  if (!fits(call.input, call.values, call.bias, *plan)) {
    return {};
  }
  RECORD_FUNCTION("sparseconv::fprop", c10::ArrayRef<const c10::IValue>{});
  const bool recorded =
      at::GradMode::is_enabled() &&
      (signal.requires_grad() || parameter->requires_grad() || (b && b->requires_grad()));
  const Tensor y =
      recorded ? SparseConv::apply(signal, *parameter, b, call)
               : run_fprop(call.input, call.values, call.bias, plan->geometry, plan->fprop(), relu);
  return batched ? y : y.squeeze(0);
}

}  // namespace sparseconv
