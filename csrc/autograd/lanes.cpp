// Into lanes and out of them, and convolutions there: the ops and their gradients.

#include "lanes.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "../cpu/plan/plan_cache.h"

namespace sparseconv {

Tensor lanes_enter(const Tensor& input, int64_t margin) {
  const ForkGuard fork_guard;
  check_signal(input, "input");
  return order_of(input, input.size(0), input.size(2), margin)->enter(input.resolve_neg());
}

namespace {

Tensor lanes_leave(const Tensor& input, int64_t channels, int64_t batch, int64_t length) {
  const ForkGuard fork_guard;
  const auto order = order_of(input, batch, length);
  return order->leave(checked(input, *order, channels, "input"), channels);
}

ConvPlanPtr lanes_plan(const Tensor& crow,
                       const Tensor& col,
                       at::IntArrayRef geometry,
                       const Tensor& like,
                       int64_t length) {
  ConvPlanPtr plan = plan_of(crow, col, geometry);
  const Geometry& g = plan->geometry;
  TORCH_CHECK_VALUE(fits_lanes(g),
                    "expected a convolution that keeps the length, of stride 1, padded with zeros "
                    "or replicated ends");
  TORCH_CHECK_VALUE(like.scalar_type() != at::kBFloat16 || !fits_rows(*plan) ||
                        g.in_channels() == 1 ||
                        length + 2 * std::max(g.left, g.right) <= like.size(2),
                    "expected room in rows for a padding of ", g.left, " and ", g.right);
  return plan;
}

void check_weight(const Tensor& weight, const Tensor& like) {
  check_weights(weight, like, "weight");
  TORCH_CHECK_VALUE(weight.dim() == 3 && weight.size(2) == 1,
                    "expected a weight (C_out, C_in, 1), but got ", weight.sizes());
  TORCH_CHECK_VALUE(like.scalar_type() != at::kBFloat16 ||
                        fits_rows(pointwise_plan(weight.size(0), weight.size(1))),
                    "expected fewer channels of a 1x1 convolution");
}

Tensor lanes_conv(const Tensor& input,
                  const Tensor& values,
                  const OptionalTensor& bias,
                  const Tensor& crow,
                  const Tensor& col,
                  at::IntArrayRef geometry,
                  int64_t batch,
                  int64_t length,
                  bool relu) {
  const ForkGuard fork_guard;
  const auto order = order_of(input, batch, length);
  const ConvPlanPtr plan = lanes_plan(crow, col, geometry, input, length);
  const Tensor x = checked(input, *order, plan->geometry.in_channels(), "input");
  const Tensor w = vector_of(values, input, plan->nnz, "values");
  const Tensor b = vector_of(bias, input, plan->geometry.out_channels, "bias");
  return order->fprop(x, w, optional(b), *plan, relu, nullptr);
}

Tensor lanes_dgrad(const Tensor& grad,
                   const Tensor& values,
                   const Tensor& crow,
                   const Tensor& col,
                   at::IntArrayRef geometry,
                   int64_t batch,
                   int64_t length) {
  const ForkGuard fork_guard;
  const auto order = order_of(grad, batch, length);
  const ConvPlanPtr plan = lanes_plan(crow, col, geometry, grad, length);
  const Tensor dy = checked(grad, *order, plan->geometry.out_channels, "grad_output");
  return order->dgrad(dy, vector_of(values, grad, plan->nnz, "values"), *plan);
}

Tensor lanes_wgrad(const Tensor& grad,
                   const Tensor& input,
                   const Tensor& crow,
                   const Tensor& col,
                   at::IntArrayRef geometry,
                   int64_t batch,
                   int64_t length) {
  const ForkGuard fork_guard;
  const auto order = order_of(grad, batch, length);
  const ConvPlanPtr plan = lanes_plan(crow, col, geometry, grad, length);
  const Tensor dy = checked(grad, *order, plan->geometry.out_channels, "grad_output");
  const Tensor x = checked_like(input, grad, *order, plan->geometry.in_channels(), "input");
  return order->wgrad(dy, x, *plan);
}

Tensor lanes_pointwise(const Tensor& input,
                       const Tensor& weight,
                       const OptionalTensor& bias,
                       int64_t batch,
                       int64_t length) {
  const ForkGuard fork_guard;
  const auto order = order_of(input, batch, length);
  check_weight(weight, input);
  const Tensor b = vector_of(bias, input, weight.size(0), "bias");
  return order->pointwise_fprop(checked(input, *order, weight.size(1), "input"),
                                weight.resolve_neg(), optional(b));
}

Tensor lanes_pointwise_dgrad(const Tensor& grad,
                             const Tensor& weight,
                             int64_t batch,
                             int64_t length) {
  const ForkGuard fork_guard;
  const auto order = order_of(grad, batch, length);
  check_weight(weight, grad);
  return order->pointwise_dgrad(checked(grad, *order, weight.size(0), "grad_output"),
                                weight.resolve_neg());
}

Tensor lanes_pointwise_wgrad(const Tensor& grad,
                             const Tensor& input,
                             const Tensor& weight,
                             int64_t batch,
                             int64_t length) {
  const ForkGuard fork_guard;
  const auto order = order_of(grad, batch, length);
  check_weight(weight, grad);
  return order->pointwise_wgrad(checked(grad, *order, weight.size(0), "grad_output"),
                                checked_like(input, grad, *order, weight.size(1), "input"), weight);
}

Tensor lanes_bias_grad(const Tensor& grad, int64_t channels, int64_t batch, int64_t length) {
  const ForkGuard fork_guard;
  const auto order = order_of(grad, batch, length);
  return order->sum_of_channels(checked(grad, *order, channels, "grad_output"), channels);
}

struct Enter : torch::autograd::Function<Enter> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, int64_t margin) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor output = CALL(lanes_enter)(input, margin);  // which checks the input
    Order{input.size(0), input.size(2)}.keep(ctx);
    ctx->saved_data["channels"] = input.size(1);
    return output;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Order y = Order::of(ctx);
    return {CALL(lanes_leave)(grads[0], ctx->saved_data["channels"].toInt(), y.batch, y.length),
            {}};
  }
};

struct Leave : torch::autograd::Function<Leave> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& input,
                        int64_t channels,
                        const Order& y) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor output = CALL(lanes_leave)(input, channels, y.batch, y.length);
    ctx->saved_data["margin"] = margin_of(input, y.length);
    return output;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {CALL(lanes_enter)(grads[0], ctx->saved_data["margin"].toInt()), {}, {}};
  }
};

void keep_bias(AutogradContext* ctx, const OptionalTensor& bias) {
  ctx->saved_data["bias"] = bias ? static_cast<int64_t>(bias->scalar_type()) : -1;
}

Tensor bias_grad_of(AutogradContext* ctx, const Tensor& grad, int64_t channels) {
  const int64_t type = ctx->saved_data["bias"].toInt();
  const Order y = Order::of(ctx);
  return type >= 0 && ctx->needs_input_grad(2)
             ? CALL(lanes_bias_grad)(grad, channels, y.batch, y.length)
                   .to(static_cast<at::ScalarType>(type))
             : Tensor();
}

struct ConvCall {
  const Tensor &crow, &col;
  at::IntArrayRef geometry;
  Order order;
  bool relu;
};

struct Conv : torch::autograd::Function<Conv> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& input,
                        const Tensor& values,
                        const OptionalTensor& bias,
                        const ConvCall& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor output = CALL(lanes_conv)(input, values, bias, call.crow, call.col, call.geometry,
                                           call.order.batch, call.order.length, call.relu);
    ctx->save_for_backward({input, values, call.crow, call.col, call.relu ? output : Tensor()});
    ctx->saved_data["geometry"] = call.geometry.vec();
    keep_bias(ctx, bias);
    call.order.keep(ctx);
    return output;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &crow = saved[2], &col = saved[3], &output = saved[4];
    const std::vector<int64_t> geometry = ctx->saved_data["geometry"].toIntVector();
    const Order y = Order::of(ctx);
    const bool own = output.defined() && is_own(grads[0]);
    Tensor grad = grads[0];
    if (own) {
      at::threshold_backward_out(grad, grad, output, 0);
    } else if (output.defined()) {
      grad = at::threshold_backward(grad, output, 0);
    }
    variable_list found(4);
    if (ctx->needs_input_grad(0)) {
      found[0] = CALL(lanes_dgrad)(grad, saved[1], crow, col, geometry, y.batch, y.length);
    }
    if (ctx->needs_input_grad(1)) {
      found[1] = CALL(lanes_wgrad)(grad, saved[0], crow, col, geometry, y.batch, y.length)
                     .to(saved[1].scalar_type());
    }
    found[2] = bias_grad_of(ctx, grad, geometry[0]);
    return found;
  }
};

struct PointwiseConv : torch::autograd::Function<PointwiseConv> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& input,
                        const Tensor& weight,
                        const OptionalTensor& bias,
                        const Order& y) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({input, weight});
    keep_bias(ctx, bias);
    y.keep(ctx);
    return CALL(lanes_pointwise)(input, weight, bias, y.batch, y.length);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Order y = Order::of(ctx);
    variable_list found(4);
    if (ctx->needs_input_grad(0)) {
      found[0] = CALL(lanes_pointwise_dgrad)(grads[0], saved[1], y.batch, y.length);
    }
    if (ctx->needs_input_grad(1)) {
      found[1] = CALL(lanes_pointwise_wgrad)(grads[0], saved[0], saved[1], y.batch, y.length)
                     .to(saved[1].scalar_type());
    }
    found[2] = bias_grad_of(ctx, grads[0], saved[1].size(0));
    return found;
  }
};

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  using namespace sparseconv;
  m.impl("lanes_enter", lanes_enter);
  m.impl("lanes_leave", lanes_leave);
  m.impl("lanes_conv", lanes_conv);
  m.impl("lanes_dgrad", lanes_dgrad);
  m.impl("lanes_wgrad", lanes_wgrad);
  m.impl("lanes_pointwise", lanes_pointwise);
  m.impl("lanes_pointwise_dgrad", lanes_pointwise_dgrad);
  m.impl("lanes_pointwise_wgrad", lanes_pointwise_wgrad);
  m.impl("lanes_bias_grad", lanes_bias_grad);
}

TORCH_LIBRARY_IMPL(sparseconv, Autograd, m) {
  using namespace sparseconv;
  m.impl("lanes_enter",
         [](const Tensor& input, int64_t margin) { return Enter::apply(input, margin); });
  m.impl("lanes_leave", [](const Tensor& input, int64_t channels, int64_t batch, int64_t length) {
    return Leave::apply(input, channels, Order{batch, length});
  });
  m.impl("lanes_conv", [](const Tensor& input, const Tensor& values, const OptionalTensor& bias,
                          const Tensor& crow, const Tensor& col, at::IntArrayRef geometry,
                          int64_t batch, int64_t length, bool relu) {
    return Conv::apply(input, values, bias, ConvCall{crow, col, geometry, {batch, length}, relu});
  });
  m.impl("lanes_pointwise", [](const Tensor& input, const Tensor& weight,
                               const OptionalTensor& bias, int64_t batch, int64_t length) {
    return PointwiseConv::apply(input, weight, bias, Order{batch, length});
  });
  for (const char* name : {"lanes_dgrad", "lanes_wgrad", "lanes_pointwise_dgrad",
                           "lanes_pointwise_wgrad", "lanes_bias_grad"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
