// Into lanes and out of them, and convolutions there: the ops and their gradients.

#include "lanes.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "../cpu/plan/plan_cache.h"

namespace sparseconv {

Tensor lanes_enter(const Tensor& input, int64_t margin) {
  check_signal(input, "input");
  return Ordered(input, input.size(0), input.size(2), margin)->enter(input.resolve_neg());
}

Tensor lanes_leave(const Tensor& input, int64_t channels, int64_t batch, int64_t length) {
  const Ordered own(input, batch, length);
  return own->leave(own.checked(input, channels, "input"), channels);
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

Convolution pointwise(const Tensor& weight, const Ordered& own) {
  own.check_weights(weight, "weight");
  TORCH_CHECK_VALUE(weight.dim() == 3 && weight.size(2) == 1,
                    "expected a weight (C_out, C_in, 1), but got ", weight.sizes());
  TORCH_CHECK_VALUE(own.like.scalar_type() != at::kBFloat16 ||
                        fits_rows(pointwise_plan(weight.size(0), weight.size(1))),
                    "expected fewer channels of a 1x1 convolution");
  return {nullptr, weight.resolve_neg()};
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
  const Ordered own(input, batch, length);
  const ConvPlanPtr plan = lanes_plan(crow, col, geometry, input, length);
  const Tensor x = own.checked(input, plan->geometry.in_channels(), "input");
  return own->fprop(
      x, {plan.get(), own.vector(values, plan->nnz, "values"),
          optional(own.vector(bias, plan->geometry.out_channels, "bias")), Tensor(), relu});
}

Tensor lanes_dgrad(const Tensor& grad,
                   const Tensor& values,
                   const Tensor& crow,
                   const Tensor& col,
                   at::IntArrayRef geometry,
                   int64_t batch,
                   int64_t length) {
  const Ordered own(grad, batch, length);
  const ConvPlanPtr plan = lanes_plan(crow, col, geometry, grad, length);
  const Tensor dy = own.checked(grad, plan->geometry.out_channels, "grad_output");
  return own->dgrad(dy, {plan.get(), own.vector(values, plan->nnz, "values")});
}

Tensor lanes_wgrad(const Tensor& grad,
                   const Tensor& input,
                   const Tensor& crow,
                   const Tensor& col,
                   at::IntArrayRef geometry,
                   int64_t batch,
                   int64_t length) {
  const Ordered own(grad, batch, length);
  const ConvPlanPtr plan = lanes_plan(crow, col, geometry, grad, length);
  const Tensor dy = own.checked(grad, plan->geometry.out_channels, "grad_output");
  return own->wgrad(dy, own.checked(input, plan->geometry.in_channels(), "input"), {plan.get()});
}

Tensor lanes_pointwise(const Tensor& input,
                       const Tensor& weight,
                       const OptionalTensor& bias,
                       int64_t batch,
                       int64_t length,
                       const OptionalTensor& added) {
  const Ordered own(input, batch, length);
  Convolution c = pointwise(weight, own);
  const Tensor x = own.checked(input, weight.size(1), "input");
  c.bias = optional(own.vector(bias, weight.size(0), "bias"));
  c.added = own.checked(added, weight.size(0), "added");
  return own->fprop(x, c);
}

Tensor lanes_pointwise_dgrad(const Tensor& grad,
                             const Tensor& weight,
                             int64_t batch,
                             int64_t length) {
  const Ordered own(grad, batch, length);
  const Convolution c = pointwise(weight, own);
  return own->dgrad(own.checked(grad, weight.size(0), "grad_output"), c);
}

Tensor lanes_pointwise_wgrad(const Tensor& grad,
                             const Tensor& input,
                             const Tensor& weight,
                             int64_t batch,
                             int64_t length) {
  const Ordered own(grad, batch, length);
  const Convolution c = pointwise(weight, own);
  const Tensor dy = own.checked(grad, weight.size(0), "grad_output");
  return own->wgrad(dy, own.checked(input, weight.size(1), "input"), c).view(weight.sizes());
}

Tensor lanes_bias_grad(const Tensor& grad, int64_t channels, int64_t batch, int64_t length) {
  const Ordered own(grad, batch, length);
  return own->sum_of_channels(own.checked(grad, channels, "grad_output"), channels);
}

variable_list enter_gradients(const Backward& b) {
  const auto [channels, batch, length] = b.numbers<3>();
  return {CALL(lanes_leave)(b.grad, channels, batch, length)};
}

variable_list leave_gradients(const Backward& b) {
  return {CALL(lanes_enter)(b.grad, b.kept[0])};
}

variable_list bias_grad_gradients(const Backward& b) {
  const auto [type, margin, batch, length] = b.numbers<4>();
  const Tensor each = b.grad.to(static_cast<at::ScalarType>(type)).view({1, -1, 1});
  return {CALL(lanes_enter)(each.expand({batch, -1, length}), margin)};
}

// A sparse convolution, or, without a geometry, a dense one with one tap. Its three computations
// are bilinear, so the derivatives of each are the other two.
struct Filter {
  int64_t batch, length;
  Tensor crow = {}, col = {};
  at::IntArrayRef geometry = {};

  static Filter of(const Backward& b) {
    const auto [batch, length] = b.numbers<2>();
    const Tensor &crow = b.saved[3], &col = b.saved[4];
    const int64_t numbers = crow.defined() ? kGeometryNumbers : 0;
    return {batch, length, crow, col, at::IntArrayRef(b.kept).slice(0, numbers)};
  }
  // The output of a computation with a and b, of which `positive` is saved, too.
  template <variable_list (*kGradients)(const Backward&), typename... Added>
  Tensor recorded(const Tensor& output,
                  const Tensor& a,
                  const Tensor& b,
                  const Tensor& positive,
                  const Added&... added) const {
    std::vector<int64_t> numbers = geometry.vec();
    numbers.insert(numbers.end(), {added.has_value()..., batch, length});
    return sparseconv::recorded<kGradients>(output, {a, b, positive, crow, col}, std::move(numbers),
                                            a, b, added...);
  }

  Tensor fprop(const Tensor& x, const Tensor& w) const {
    return geometry.empty() ? CALL(lanes_pointwise)(x, w, {}, batch, length, {})
                            : CALL(lanes_conv)(x, w, {}, crow, col, geometry, batch, length, false);
  }
  Tensor dgrad(const Tensor& grad, const Tensor& w) const {
    return geometry.empty() ? CALL(lanes_pointwise_dgrad)(grad, w, batch, length)
                            : CALL(lanes_dgrad)(grad, w, crow, col, geometry, batch, length);
  }
  Tensor wgrad(const Tensor& grad, const Tensor& x, const Tensor& w) const {
    const Tensor found = geometry.empty()
                             ? CALL(lanes_pointwise_wgrad)(grad, x, w, batch, length)
                             : CALL(lanes_wgrad)(grad, x, crow, col, geometry, batch, length);
    TORCH_CHECK_VALUE(w.sizes() == found.sizes(), "expected values of shape ", found.sizes(),
                      " as in the forward pass, but got ", w.sizes());
    return found;
  }
};

variable_list fprop_gradients(const Backward& b) {
  const Filter filter = Filter::of(b);
  const Tensor &input = b.saved[0], &weights = b.saved[1], &positive = b.saved[2];
  const auto [has_bias, has_added, batch, length] = b.numbers<4>();
  const bool own = positive.defined() && b.owns_grad();
  Tensor grad = b.grad;
  if (own) {
    at::threshold_backward_out(grad, grad, positive, 0);
  } else if (positive.defined()) {
    grad = at::threshold_backward(grad, positive, 0);
  }
  variable_list found(4);
  if (b.needs(0)) {
    found[0] = filter.dgrad(grad, weights);
  }
  if (b.needs(1)) {
    found[1] = filter.wgrad(grad, input, weights);
  }
  if (has_bias && b.needs(2)) {
    const int64_t channels = filter.geometry.empty() ? weights.size(0) : filter.geometry[0];
    found[2] = CALL(lanes_bias_grad)(grad, channels, batch, length);
  }
  found[3] = has_added ? grad : Tensor();
  return found;
}

variable_list dgrad_gradients(const Backward& b) {
  const Filter filter = Filter::of(b);
  const Tensor &grad = b.saved[0], &weights = b.saved[1];
  return {filter.fprop(b.grad, weights), filter.wgrad(grad, b.grad, weights)};
}

variable_list wgrad_gradients(const Backward& b) {
  const Filter filter = Filter::of(b);
  const Tensor &grad = b.saved[0], &input = b.saved[1];
  return {filter.fprop(input, b.grad), filter.dgrad(grad, b.grad)};
}

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_FRAGMENT(sparseconv, m) {
  using namespace sparseconv;
  implement<lanes_enter>(m, "lanes_enter", [](const Tensor& input, int64_t margin) {
    const Tensor output = COMPUTE(lanes_enter)(input, margin);  // which checks the input
    return recorded<enter_gradients>(output, {}, {input.size(1), input.size(0), input.size(2)},
                                     input);
  });
  implement<lanes_leave>(
      m, "lanes_leave", [](const Tensor& input, int64_t channels, int64_t batch, int64_t length) {
        const Tensor output = COMPUTE(lanes_leave)(input, channels, batch, length);
        return recorded<leave_gradients>(output, {}, {margin_of(input, length)}, input);
      });
  implement<lanes_bias_grad>(
      m, "lanes_bias_grad",
      [](const Tensor& grad, int64_t channels, int64_t batch, int64_t length) {
        const Tensor output = COMPUTE(lanes_bias_grad)(grad, channels, batch, length);
        const auto type = static_cast<int64_t>(grad.scalar_type());
        return recorded<bias_grad_gradients>(output, {},
                                             {type, margin_of(grad, length), batch, length}, grad);
      });
  implement<lanes_conv>(
      m, "lanes_conv",
      [](const Tensor& input, const Tensor& values, const OptionalTensor& bias, const Tensor& crow,
         const Tensor& col, at::IntArrayRef geometry, int64_t batch, int64_t length, bool relu) {
        const Filter filter{batch, length, crow, col, geometry};
        const Tensor output =
            COMPUTE(lanes_conv)(input, values, bias, crow, col, geometry, batch, length, relu);
        return filter.recorded<fprop_gradients>(output, input, values, relu ? output : Tensor(),
                                                bias, OptionalTensor());
      });
  implement<lanes_dgrad>(
      m, "lanes_dgrad",
      [](const Tensor& grad, const Tensor& values, const Tensor& crow, const Tensor& col,
         at::IntArrayRef geometry, int64_t batch, int64_t length) {
        const Filter filter{batch, length, crow, col, geometry};
        const Tensor output =
            COMPUTE(lanes_dgrad)(grad, values, crow, col, geometry, batch, length);
        return filter.recorded<dgrad_gradients>(output, grad, values, {});
      });
  implement<lanes_wgrad>(
      m, "lanes_wgrad",
      [](const Tensor& grad, const Tensor& input, const Tensor& crow, const Tensor& col,
         at::IntArrayRef geometry, int64_t batch, int64_t length) {
        const Filter filter{batch, length, crow, col, geometry};
        const Tensor output = COMPUTE(lanes_wgrad)(grad, input, crow, col, geometry, batch, length);
        return filter.recorded<wgrad_gradients>(output, grad, input, {});
      });
  implement<lanes_pointwise>(
      m, "lanes_pointwise",
      [](const Tensor& input, const Tensor& weight, const OptionalTensor& bias, int64_t batch,
         int64_t length, const OptionalTensor& added) {
        const Tensor output = COMPUTE(lanes_pointwise)(input, weight, bias, batch, length, added);
        return Filter{batch, length}.recorded<fprop_gradients>(output, input, weight, {}, bias,
                                                               added);
      });
  implement<lanes_pointwise_dgrad>(
      m, "lanes_pointwise_dgrad",
      [](const Tensor& grad, const Tensor& weight, int64_t batch, int64_t length) {
        const Tensor output = COMPUTE(lanes_pointwise_dgrad)(grad, weight, batch, length);
        return Filter{batch, length}.recorded<dgrad_gradients>(output, grad, weight, {});
      });
  implement<lanes_pointwise_wgrad>(
      m, "lanes_pointwise_wgrad",
      [](const Tensor& grad, const Tensor& input, const Tensor& weight, int64_t batch,
         int64_t length) {
        const Tensor output = COMPUTE(lanes_pointwise_wgrad)(grad, input, weight, batch, length);
        return Filter{batch, length}.recorded<wgrad_gradients>(output, grad, input, {});
      });
  // Alone, gradients that have none themselves raise, in backward and forward mode.
  for (const char* name : {"lanes_activation_backward", "prelu_backward", "max_pool_backward",
                           "lanes_max_pool_backward", "lanes_norm_backward"}) {
    m.impl(name, torch::dispatch(c10::DispatchKey::Autograd,
                                 torch::autograd::autogradNotImplementedFallback()));
  }
}
