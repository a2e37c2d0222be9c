// BatchNorm of tensors in lanes: the ops and their gradients.

#include "lanes.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace sparseconv {

namespace {

struct Parts {
  std::vector<Tensor> tensors;
  int64_t channels = 0;

  // In rows the number of channels is that of the first vector that is there.
  Parts(at::TensorList parts,
        const KernelOrder& order,
        std::initializer_list<OptionalTensor> vectors) {
    for (const Tensor& part : parts) {
      tensors.push_back(checked_like(part, parts[0], order, {}, "a part"));
      channels += part.size(0);
    }
    if (parts[0].scalar_type() != at::kBFloat16) {
      return;
    }
    const int64_t panels = channels;
    channels *= kPanelChannels;
    for (const OptionalTensor& vector : vectors) {
      channels = vector ? vector->numel() : channels;
    }
    TORCH_CHECK_VALUE(panels_of(channels) == panels, "expected vectors for ", panels,
                      " panels of channels, but got ", channels, " numbers");
  }
};

const Tensor& first_of(at::TensorList parts) {
  TORCH_CHECK_VALUE(!parts.empty(), "expected at least one part");
  return parts[0];
}

Tensor lanes_or_none(const OptionalTensor& x,
                     const Tensor& like,
                     const KernelOrder& order,
                     int64_t n,
                     const char* name) {
  return x.has_value() ? checked_like(*x, like, order, n, name) : Tensor();
}

std::tuple<Tensor, Tensor, Tensor> lanes_norm(at::TensorList parts,
                                              const OptionalTensor& weight,
                                              const OptionalTensor& bias,
                                              const OptionalTensor& running_mean,
                                              const OptionalTensor& running_var,
                                              const OptionalTensor& added,
                                              bool training,
                                              double momentum,
                                              double eps,
                                              bool relu,
                                              int64_t batch,
                                              int64_t length) {
  const ForkGuard fork_guard;
  const Tensor& like = first_of(parts);
  const auto order = order_of(like, batch, length);
  const Parts own(parts, *order, {weight, bias, running_mean, running_var});
  TORCH_CHECK_VALUE(!training || batch * length > 1,
                    "Expected more than 1 value per channel when training, got input size [", batch,
                    ", ", own.channels, ", ", length, "]");
  TORCH_CHECK_VALUE(!training || eps > 0, "expected eps above 0, but got ", eps);
  TORCH_CHECK_VALUE(relu || !added.has_value(), "expected relu with what is added");
  for (const OptionalTensor& x : {running_mean, running_var}) {
    TORCH_CHECK_VALUE(training || x.has_value(), "expected running statistics in eval mode");
    if (x.has_value()) {
      vector_of(x, like, own.channels, "a running statistic");
      TORCH_CHECK_VALUE(x->is_contiguous() && !x->is_neg(), "expected contiguous statistics");
    }
  }
  const Norm norm = {vector_of(weight, like, own.channels, "weight"),
                     vector_of(bias, like, own.channels, "bias"),
                     running_mean.value_or(Tensor()),
                     running_var.value_or(Tensor()),
                     momentum,
                     eps,
                     training};
  NormOutput found = order->norm(own.tensors, own.channels, norm,
                                 lanes_or_none(added, like, *order, own.channels, "added"), relu);
  return {found.output, found.mean, found.invstd};
}

template <bool kInPlace>
std::vector<Tensor> norm_backward(const Tensor& grad,
                                  at::TensorList parts,
                                  const OptionalTensor& weight,
                                  const OptionalTensor& bias,
                                  const OptionalTensor& output,
                                  const Tensor& mean,
                                  const Tensor& invstd,
                                  bool training,
                                  bool relu,
                                  int64_t batch,
                                  int64_t length) {
  const ForkGuard fork_guard;
  const Tensor& like = first_of(parts);
  const auto order = order_of(like, batch, length);
  const Parts own(parts, *order, {mean});
  const Norm norm = {.weight = vector_of(weight, like, own.channels, "weight"),
                     .bias = vector_of(bias, like, own.channels, "bias"),
                     .training = training};
  NormGradients found = order->norm_gradient(
      checked_like(grad, like, *order, own.channels, "grad_output"), own.tensors, own.channels,
      norm, lanes_or_none(output, like, *order, own.channels, "output"), relu,
      vector_of(mean, like, own.channels, "mean"), vector_of(invstd, like, own.channels, "invstd"),
      kInPlace);
  std::vector<Tensor> result = {found.input, found.weight, found.bias};
  if (output.has_value()) {
    result.push_back(found.added);
  }
  return result;
}

// Weights and bias of a convolution and the BatchNorm after it, by running statistics, from a
// pattern's values, `kernels` of each channel, or a dense weight. Differentiable.
std::tuple<Tensor, Tensor> lanes_fold(const Tensor& weights,
                                      const OptionalTensor& conv_bias,
                                      const OptionalTensor& crow,
                                      int64_t kernels,
                                      const OptionalTensor& weight,
                                      const OptionalTensor& bias,
                                      const Tensor& mean,
                                      const Tensor& var,
                                      double eps) {
  if (at::GradMode::is_enabled() || !computes_plainly(weights, true)) {
    const auto exact = [](const Tensor& x) { return x.to(acc_type(x)); };
    Tensor scale = exact(var).add(eps).rsqrt();
    scale = weight ? scale * *weight : scale;
    Tensor offset = (conv_bias ? *conv_bias - exact(mean) : -exact(mean)) * scale;
    offset = bias ? offset + *bias : offset;
    if (!crow) {
      return {weights * scale.view({-1, 1, 1}), offset};
    }
    const Tensor counts = crow->slice(0, {}, {}, kernels).diff();
    return {weights * scale.repeat_interleave_symint(counts, {}, weights.sym_numel()), offset};
  }
  // The same numbers in one loop: ten operations on a few numbers took as long as a layer.
  const int64_t rows = var.numel(), size = weights.numel();
  const at::ScalarType type = at::promote_types(acc_type(weights), acc_type(var));
  const auto readable = [&](const OptionalTensor& x, int64_t numel) {
    if (!x) {
      return Tensor();
    }
    check_memory(*x, "each tensor");
    TORCH_CHECK_VALUE(x->is_cpu() && x->numel() == numel, "expected ", numel,
                      " numbers on the CPU, but got ", x->numel(), " on ", x->device());
    return x->resolve_neg().to(type).contiguous();
  };
  const Tensor from = readable(weights, size), variances = readable(var, rows),
               means = readable(mean, rows), scales = readable(weight, rows),
               biases = readable(bias, rows), offsets = readable(conv_bias, rows);
  if (crow) {
    check_indices(*crow, "crow_indices", rows * kernels + 1);
  }
  const int32_t* pointers = crow ? crow->const_data_ptr<int32_t>() : nullptr;
  const Tensor result = at::empty_like(from), offset = at::empty_like(means);
  AT_DISPATCH_FLOATING_TYPES(type, "lanes_fold", [&] {
    const auto numbers = [](const Tensor& x) {
      return x.defined() ? x.const_data_ptr<scalar_t>() : nullptr;
    };
    const auto *w = numbers(from), *variance = numbers(variances), *mean = numbers(means),
               *scale = numbers(scales), *shift = numbers(biases), *added = numbers(offsets);
    auto *to = result.data_ptr<scalar_t>(), *sums = offset.data_ptr<scalar_t>();
    int64_t end = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const scalar_t root = 1 / std::sqrt(variance[row] + static_cast<scalar_t>(eps));
      const scalar_t by = scale != nullptr ? root * scale[row] : root;
      const scalar_t sum = (added != nullptr ? added[row] - mean[row] : -mean[row]) * by;
      sums[row] = shift != nullptr ? sum + shift[row] : sum;
      const int64_t first = crow ? pointers[row * kernels] : end;
      const bool follows = first == end;
      end = crow ? pointers[(row + 1) * kernels] : size / rows * (row + 1);
      TORCH_CHECK_VALUE(follows && first <= end && end <= size, "expected crow_indices of ", size,
                        " weights");
      for (int64_t i = first; i < end; ++i) {
        to[i] = w[i] * by;
      }
    }
    TORCH_CHECK_VALUE(end == size, "expected weights of ", rows, " channels, but got ", size,
                      ", of which ", end, " belong to them");
  });
  return {result, offset};
}

struct NormCall {
  const OptionalTensor &mean, &var;
  bool training;
  double momentum, eps;
  bool relu;
  Order order;
  Tensor &batch_mean, &batch_invstd;  // results without gradients
};

// The same of the parts, weight, bias and zeros that are added, by ops that have all derivatives.
// `output`, if something was added, is zero where the gradient is.
Tensor norm_by_torch(AutogradContext* ctx,
                     const variable_list& inputs,
                     const Tensor& output,
                     const Tensor& mean,
                     const Tensor& invstd) {
  const Order y = Order::of(ctx);
  const Tensor &weight = inputs.end()[-3], &bias = inputs.end()[-2], &added = inputs.end()[-1];
  const int64_t channels = mean.numel(), margin = margin_of(inputs[0], y.length);
  const Tensor lanes = at::cat(variable_list(inputs.begin(), inputs.end() - 3));
  Tensor x = CALL(lanes_leave)(lanes, channels, y.batch, y.length);
  if (ctx->saved_data["training"].toBool()) {
    x = at::batch_norm(x, optional(weight), optional(bias), {}, {}, true, 0,
                       ctx->saved_data["eps"].toDouble(), false);
  } else {
    const Tensor scale = weight.defined() ? invstd * weight : invstd;
    x = ((x - mean.unsqueeze(1)) * scale.unsqueeze(1)).to(lanes.scalar_type());
    x = bias.defined() ? (x + bias.unsqueeze(1)).to(lanes.scalar_type()) : x;
  }
  if (added.defined()) {
    x = x + CALL(lanes_leave)(added, channels, y.batch, y.length);
    const Tensor z = CALL(lanes_leave)(output, channels, y.batch, y.length);
    return CALL(lanes_enter)(x.masked_fill(z.le(0), 0), margin);
  }
  return CALL(lanes_enter)(ctx->saved_data["relu"].toBool() ? x.relu() : x, margin);
}

struct LanesNorm : torch::autograd::Function<LanesNorm> {
  static Tensor forward(AutogradContext* ctx,
                        const at::TensorList& parts,
                        const OptionalTensor& weight,
                        const OptionalTensor& bias,
                        const OptionalTensor& added,
                        const NormCall& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor output;
    std::tie(output, call.batch_mean, call.batch_invstd) =
        CALL(lanes_norm)(parts, weight, bias, call.mean, call.var, added, call.training,
                         call.momentum, call.eps, call.relu, call.order.batch, call.order.length);
    variable_list saved = parts.vec();
    // What is added need not be kept: the output is positive where it gets a gradient.
    saved.insert(saved.end(), {weight.value_or(Tensor()), bias.value_or(Tensor()),
                               added ? output : Tensor(), call.batch_mean, call.batch_invstd});
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["training"] = call.training;
    ctx->saved_data["eps"] = call.eps;
    ctx->saved_data["relu"] = call.relu;
    call.order.keep(ctx);
    return output;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const ForkGuard fork_guard;
    const variable_list saved = ctx->get_saved_variables();
    const size_t n = saved.size() - 5;
    if (at::GradMode::is_enabled() || !computes_plainly(grads[0], true)) {
      variable_list inputs(saved.begin(), saved.end() - 2);
      Tensor output;
      if (inputs.back().defined()) {
        output = inputs.back().detach();
        inputs.back() = at::zeros_like(output).requires_grad_();
      }
      return gradients_by_torch(inputs, grads[0], [&](const variable_list& x) {
        return norm_by_torch(ctx, x, output, saved[n + 3], saved[n + 4]);
      });
    }
    const at::TensorList parts = at::TensorList(saved).slice(0, n);
    const Order y = Order::of(ctx);
    static const auto op =
        find_op<decltype(norm_backward<false>)>("sparseconv::lanes_norm_backward");
    const auto call = [&](const auto& compute) {
      return compute(grads[0], parts, optional(saved[n]), optional(saved[n + 1]),
                     optional(saved[n + 2]), saved[n + 3], saved[n + 4],
                     ctx->saved_data["training"].toBool(), ctx->saved_data["relu"].toBool(),
                     y.batch, y.length);
    };
    const std::vector<Tensor> gradients =
        is_own(grads[0]) ? call(norm_backward<true>)
                         : call([](const auto&... given) { return op.call(given...); });
    variable_list found;
    int64_t first = 0;
    for (const Tensor& part : parts) {
      found.push_back(n == 1 ? gradients[0] : gradients[0].narrow(0, first, part.size(0)));
      first += part.size(0);
    }
    for (size_t i = 0; i < 3; ++i) {
      const Tensor& of = saved[n + i];
      found.push_back(of.defined() ? gradients[1 + i].to(of.scalar_type()) : Tensor());
    }
    found.emplace_back();
    return found;
  }
};

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  using namespace sparseconv;
  implement(m, "lanes_norm", lanes_norm);
  implement(m, "lanes_norm_backward", norm_backward<false>);
}

TORCH_LIBRARY_IMPL(sparseconv, CompositeImplicitAutograd, m) {
  sparseconv::implement(m, "lanes_fold", sparseconv::lanes_fold);
}

TORCH_LIBRARY_IMPL(sparseconv, Autograd, m) {
  using namespace sparseconv;
  m.impl("lanes_norm", [](at::TensorList parts, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& mean,
                          const OptionalTensor& var, const OptionalTensor& added, bool training,
                          double momentum, double eps, bool relu, int64_t batch, int64_t length) {
    Tensor batch_mean, invstd;
    const Tensor output = run_function<LanesNorm>(
        parts, weight, bias, added,
        NormCall{mean, var, training, momentum, eps, relu, {batch, length}, batch_mean, invstd});
    return std::make_tuple(output, batch_mean, invstd);
  });
  m.impl("lanes_norm_backward", torch::autograd::autogradNotImplementedFallback());
}
