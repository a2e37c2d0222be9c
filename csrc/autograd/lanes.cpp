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

Tensor lanes_leave(const Tensor& input, int64_t channels, int64_t batch, int64_t length) {
  const ForkGuard fork_guard;
  const auto order = order_of(input, batch, length);
  return order->leave(checked(input, *order, channels, "input"), channels);
}

namespace {

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
  return order->fprop(x, w, optional(b), *plan, relu);
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
                       int64_t length,
                       const OptionalTensor& added) {
  const ForkGuard fork_guard;
  const auto order = order_of(input, batch, length);
  check_weight(weight, input);
  const int64_t channels = weight.size(0);
  return order->pointwise_fprop(
      checked(input, *order, weight.size(1), "input"), weight.resolve_neg(),
      vector_of(bias, input, channels, "bias"),
      added ? checked_like(*added, input, *order, channels, "added") : Tensor());
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
    return gradient_of_first(
        CALL(lanes_leave)(grads[0], ctx->saved_data["channels"].toInt(), y.batch, y.length));
  }
};

struct Leave : torch::autograd::Function<Leave> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& input,
                        int64_t channels,
                        int64_t batch,
                        int64_t length) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor output = CALL(lanes_leave)(input, channels, batch, length);
    ctx->saved_data["margin"] = margin_of(input, length);
    return output;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return gradient_of_first(CALL(lanes_enter)(grads[0], ctx->saved_data["margin"].toInt()));
  }
};

// A sparse convolution, or, without a geometry, a dense one with one tap. Its three computations
// are bilinear, so the derivatives of each are the other two.
struct Filter {
  Tensor crow, col;
  std::vector<int64_t> geometry;
  Order order;
  Tensor weight = {};  // of a 1x1 wgrad, for its type

  Tensor fprop(const Tensor& x,
               const Tensor& w,
               const OptionalTensor& bias,
               const OptionalTensor& added,  // to a 1x1 convolution
               bool relu) const {
    const auto [n, length] = order;
    return geometry.empty() ? CALL(lanes_pointwise)(x, w, bias, n, length, added)
                            : CALL(lanes_conv)(x, w, bias, crow, col, geometry, n, length, relu);
  }
  Tensor dgrad(const Tensor& grad, const Tensor& w) const {
    const auto [n, length] = order;
    return geometry.empty() ? CALL(lanes_pointwise_dgrad)(grad, w, n, length)
                            : CALL(lanes_dgrad)(grad, w, crow, col, geometry, n, length);
  }
  Tensor wgrad(const Tensor& grad, const Tensor& x, const Tensor& w) const {
    const auto [n, length] = order;
    const Tensor found = geometry.empty()
                             ? CALL(lanes_pointwise_wgrad)(grad, x, w, n, length)
                             : CALL(lanes_wgrad)(grad, x, crow, col, geometry, n, length);
    TORCH_CHECK_VALUE(!w.defined() || w.sizes() == found.sizes(), "expected values of shape ",
                      found.sizes(), " as in the forward pass, but got ", w.sizes());
    return found;
  }

  void keep(AutogradContext* ctx, const Tensor& a, const Tensor& b, const Tensor& c = {}) const {
    ctx->save_for_backward({a, b, c, crow, col});
    // In one entry, because each one costs time in every call.
    std::vector<int64_t> numbers = geometry;
    numbers.insert(numbers.end(), {order.batch, order.length});
    ctx->saved_data["numbers"] = std::move(numbers);
  }
  static Filter of(AutogradContext* ctx, const variable_list& saved) {
    std::vector<int64_t> geometry = ctx->saved_data["numbers"].toIntVector();
    const Order order{*(geometry.end() - 2), geometry.back()};
    geometry.resize(geometry.size() - 2);
    return {saved[3], saved[4], std::move(geometry), order};
  }
};

struct Fprop : torch::autograd::Function<Fprop> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& input,
                        const Tensor& weights,
                        const OptionalTensor& bias,
                        const OptionalTensor& added,
                        const Filter& filter,
                        bool relu) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor output = filter.fprop(input, weights, bias, added, relu);
    filter.keep(ctx, input, weights, relu ? output : Tensor());
    ctx->saved_data["bias"] = bias ? static_cast<int64_t>(bias->scalar_type()) : -1;
    ctx->saved_data["added"] = added.has_value();
    return output;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const ForkGuard fork_guard;
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weights = saved[1], &output = saved[2];
    const Filter filter = Filter::of(ctx, saved);
    const bool own = output.defined() && is_own(grads[0]);
    Tensor grad = grads[0];
    if (own) {
      at::threshold_backward_out(grad, grad, output, 0);
    } else if (output.defined()) {
      grad = at::threshold_backward(grad, output, 0);
    }
    variable_list found(6);
    found[3] = ctx->saved_data["added"].toBool() ? grad : Tensor();
    if (ctx->needs_input_grad(0)) {
      found[0] = filter.dgrad(grad, weights);
    }
    if (ctx->needs_input_grad(1)) {
      found[1] = filter.wgrad(grad, input, weights).to(weights.scalar_type());
    }
    const int64_t type = ctx->saved_data["bias"].toInt();
    if (type >= 0 && ctx->needs_input_grad(2)) {
      const int64_t channels = filter.geometry.empty() ? weights.size(0) : filter.geometry[0];
      found[2] = CALL(lanes_bias_grad)(grad, channels, filter.order.batch, filter.order.length)
                     .to(static_cast<at::ScalarType>(type));
    }
    return found;
  }
};

// dgrad of a gradient and weights, or with kWeights wgrad of a gradient and an input.
template <bool kWeights>
struct FilterGradient : torch::autograd::Function<FilterGradient<kWeights>> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& grad,
                        const Tensor& with,
                        const Filter& filter) {
    const at::AutoDispatchBelowADInplaceOrView below;
    filter.keep(ctx, grad, with);
    return kWeights ? filter.wgrad(grad, with, filter.weight) : filter.dgrad(grad, with);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Filter filter = Filter::of(ctx, saved);
    const Tensor &grad = saved[0], &with = saved[1], &again = grads[0];
    if (kWeights) {
      return {filter.fprop(with, again, {}, {}, false), filter.dgrad(grad, again), {}};
    }
    const Tensor of_weights = filter.wgrad(grad, again, with).to(with.scalar_type());
    return {filter.fprop(again, with, {}, {}, false), of_weights, {}};
  }
};

struct BiasGrad : torch::autograd::Function<BiasGrad> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& grad,
                        int64_t channels,
                        int64_t batch,
                        int64_t length) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Order{batch, length}.keep(ctx);
    ctx->saved_data["type"] = grad.scalar_type();
    ctx->saved_data["margin"] = margin_of(grad, length);
    return CALL(lanes_bias_grad)(grad, channels, batch, length);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Order y = Order::of(ctx);
    const Tensor each = grads[0].to(ctx->saved_data["type"].toScalarType()).view({1, -1, 1});
    return gradient_of_first(
        CALL(lanes_enter)(each.expand({y.batch, -1, y.length}), ctx->saved_data["margin"].toInt()));
  }
};

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  using namespace sparseconv;
  implement(m, "lanes_enter", lanes_enter);
  implement(m, "lanes_leave", lanes_leave);
  implement(m, "lanes_conv", lanes_conv);
  implement(m, "lanes_dgrad", lanes_dgrad);
  implement(m, "lanes_wgrad", lanes_wgrad);
  implement(m, "lanes_pointwise", lanes_pointwise);
  implement(m, "lanes_pointwise_dgrad", lanes_pointwise_dgrad);
  implement(m, "lanes_pointwise_wgrad", lanes_pointwise_wgrad);
  implement(m, "lanes_bias_grad", lanes_bias_grad);
}

TORCH_LIBRARY_IMPL(sparseconv, Autograd, m) {
  using namespace sparseconv;
  m.impl("lanes_enter", Differentiable<Enter>::call);
  m.impl("lanes_leave", Differentiable<Leave>::call);
  m.impl("lanes_conv", [](const Tensor& input, const Tensor& values, const OptionalTensor& bias,
                          const Tensor& crow, const Tensor& col, at::IntArrayRef geometry,
                          int64_t batch, int64_t length, bool relu) {
    const Filter filter{crow, col, geometry.vec(), {batch, length}};
    return run_function<Fprop>(input, values, bias, OptionalTensor(), filter, relu);
  });
  m.impl("lanes_dgrad",
         [](const Tensor& grad, const Tensor& values, const Tensor& crow, const Tensor& col,
            at::IntArrayRef geometry, int64_t batch, int64_t length) {
           return run_function<FilterGradient<false>>(
               grad, values, Filter{crow, col, geometry.vec(), {batch, length}});
         });
  m.impl("lanes_wgrad",
         [](const Tensor& grad, const Tensor& input, const Tensor& crow, const Tensor& col,
            at::IntArrayRef geometry, int64_t batch, int64_t length) {
           return run_function<FilterGradient<true>>(
               grad, input, Filter{crow, col, geometry.vec(), {batch, length}});
         });
  m.impl("lanes_pointwise",
         [](const Tensor& input, const Tensor& weight, const OptionalTensor& bias, int64_t batch,
            int64_t length, const OptionalTensor& added) {
           return run_function<Fprop>(input, weight, bias, added,
                                      Filter{{}, {}, {}, {batch, length}}, false);
         });
  m.impl("lanes_pointwise_dgrad", [](const Tensor& grad, const Tensor& weight, int64_t batch,
                                     int64_t length) {
    return run_function<FilterGradient<false>>(grad, weight, Filter{{}, {}, {}, {batch, length}});
  });
  m.impl("lanes_pointwise_wgrad", [](const Tensor& grad, const Tensor& input, const Tensor& weight,
                                     int64_t batch, int64_t length) {
    return run_function<FilterGradient<true>>(grad, input,
                                              Filter{{}, {}, {}, {batch, length}, weight});
  });
  m.impl("lanes_bias_grad", Differentiable<BiasGrad>::call);
}
