// Into lanes and out of them, and convolutions there: the ops and their gradients.

#include "lanes.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "../cpu/plan/plan_cache.h"

namespace sparseconv {

Tensor lanes_enter(const Tensor& input) {
  const ForkGuard fork_guard;
  check_signal(input, "input");
  return lanes_for(order_of(input, input.size(0), input.size(2)))->enter(input.resolve_neg());
}

namespace {

Tensor lanes_leave(const Tensor& input, int64_t batch, int64_t length) {
  const ForkGuard fork_guard;
  const LaneOrder order = order_of(input, batch, length);
  return lanes_for(order)->leave(checked(input, order, -1, "input"), input.size(0));
}

ConvPlanPtr lanes_plan(const Tensor& crow, const Tensor& col, at::IntArrayRef geometry) {
  ConvPlanPtr plan = plan_of(crow, col, geometry);
  TORCH_CHECK_VALUE(fits_lanes(plan->geometry),
                    "expected a convolution that keeps the length, of stride 1, padded with zeros "
                    "or replicated ends");
  return plan;
}

void check_weight(const Tensor& weight, const Tensor& like, int64_t dim, int64_t channels) {
  check_same_type(like, weight, "weight");
  TORCH_CHECK_VALUE(weight.dim() == 3 && weight.size(2) == 1 && weight.size(dim) == channels,
                    "expected a weight (C_out, C_in, 1) with ", channels, " channels in dimension ",
                    dim, ", but got ", weight.sizes());
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
  const LaneOrder order = order_of(input, batch, length);
  const ConvPlanPtr plan = lanes_plan(crow, col, geometry);
  const Tensor x = checked(input, order, plan->geometry.in_channels(), "input");
  check_vector(values, "values", input, plan->nnz);
  if (bias.has_value()) {
    check_vector(*bias, "bias", input, plan->geometry.out_channels);
  }
  return run_fprop(x, values, bias, plan->geometry, plan->fprop(), relu, &order);
}

Tensor lanes_dgrad(const Tensor& grad,
                   const Tensor& values,
                   const Tensor& crow,
                   const Tensor& col,
                   at::IntArrayRef geometry,
                   int64_t batch,
                   int64_t length) {
  const LaneOrder order = order_of(grad, batch, length);
  const ConvPlanPtr plan = lanes_plan(crow, col, geometry);
  const Tensor dy = checked(grad, order, plan->geometry.out_channels, "grad_output");
  check_vector(values, "values", grad, plan->nnz);
  return run_dgrad(dy, values, plan->geometry, plan->dgrad(), length, {}, &order);
}

Tensor lanes_wgrad(const Tensor& grad,
                   const Tensor& input,
                   const Tensor& crow,
                   const Tensor& col,
                   at::IntArrayRef geometry,
                   int64_t batch,
                   int64_t length) {
  const LaneOrder order = order_of(grad, batch, length);
  const ConvPlanPtr plan = lanes_plan(crow, col, geometry);
  const Tensor dy = checked(grad, order, plan->geometry.out_channels, "grad_output");
  const Tensor x = checked_like(input, grad, order, plan->geometry.in_channels(), "input");
  return run_wgrad(dy, x, plan->geometry, plan->wgrad(), &order);
}

Tensor lanes_pointwise(const Tensor& input,
                       const Tensor& weight,
                       const OptionalTensor& bias,
                       int64_t batch,
                       int64_t length) {
  const ForkGuard fork_guard;
  const LaneOrder order = order_of(input, batch, length);
  check_weight(weight, input, 1, input.size(0));
  const Tensor b = vector_of(bias, input, weight.size(0), "bias");
  return lanes_for(order)->pointwise_fprop(checked(input, order, -1, "input"), weight.resolve_neg(),
                                           b.defined() ? OptionalTensor(b) : std::nullopt);
}

Tensor lanes_pointwise_dgrad(const Tensor& grad,
                             const Tensor& weight,
                             int64_t batch,
                             int64_t length) {
  const ForkGuard fork_guard;
  const LaneOrder order = order_of(grad, batch, length);
  check_weight(weight, grad, 0, grad.size(0));
  return lanes_for(order)->pointwise_dgrad(checked(grad, order, -1, "grad_output"),
                                           weight.resolve_neg());
}

// Of any series with these groups and rows.
LaneOrder order_in(const Tensor& lanes) {
  TORCH_CHECK_VALUE(lanes.dim() == 4, "expected grad_output in lanes, but got ", lanes.sizes());
  LaneOrder order = order_of(lanes, 1, 1);
  order.groups = lanes.size(1);
  order.rows = lanes.size(2);
  return order;
}

Tensor lanes_pointwise_wgrad(const Tensor& grad, const Tensor& input) {
  const ForkGuard fork_guard;
  const LaneOrder order = order_in(grad);
  return lanes_for(order)->pointwise_wgrad(checked(grad, order, -1, "grad_output"),
                                           checked_like(input, grad, order, -1, "input"), {});
}

Tensor lanes_bias_grad(const Tensor& grad) {
  const ForkGuard fork_guard;
  const LaneOrder order = order_in(grad);
  return lanes_for(order)->sum_of_channels(checked(grad, order, -1, "grad_output"), grad.size(0));
}

struct Enter : torch::autograd::Function<Enter> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor output = CALL(lanes_enter)(input);  // which checks the input
    Order{input.size(0), input.size(2)}.keep(ctx);
    return output;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Order y = Order::of(ctx);
    return {CALL(lanes_leave)(grads[0], y.batch, y.length)};
  }
};

struct Leave : torch::autograd::Function<Leave> {
  static Tensor forward(AutogradContext*, const Tensor& input, const Order& y) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return CALL(lanes_leave)(input, y.batch, y.length);
  }
  static variable_list backward(AutogradContext*, variable_list grads) {
    return {CALL(lanes_enter)(grads[0]), {}};
  }
};

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
    ctx->saved_data["bias"] = bias.has_value();
    call.order.keep(ctx);
    return output;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &crow = saved[2], &col = saved[3], &output = saved[4];
    const std::vector<int64_t> geometry = ctx->saved_data["geometry"].toIntVector();
    const Order y = Order::of(ctx);
    const Tensor grad = output.defined() ? at::threshold_backward(grads[0], output, 0) : grads[0];
    variable_list found(4);
    if (ctx->needs_input_grad(0)) {
      found[0] = CALL(lanes_dgrad)(grad, saved[1], crow, col, geometry, y.batch, y.length);
    }
    if (ctx->needs_input_grad(1)) {
      found[1] = CALL(lanes_wgrad)(grad, saved[0], crow, col, geometry, y.batch, y.length);
    }
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) {
      found[2] = CALL(lanes_bias_grad)(grad);
    }
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
    ctx->saved_data["bias"] = bias.has_value();
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
      found[1] = CALL(lanes_pointwise_wgrad)(grads[0], saved[0]);
    }
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) {
      found[2] = CALL(lanes_bias_grad)(grads[0]);
    }
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
  m.impl("lanes_enter", [](const Tensor& input) { return Enter::apply(input); });
  m.impl("lanes_leave", [](const Tensor& input, int64_t batch, int64_t length) {
    return Leave::apply(input, Order{batch, length});
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
