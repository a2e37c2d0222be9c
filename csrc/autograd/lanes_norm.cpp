// BatchNorm and pooling of tensors in lanes: the ops and their gradients.

#include "lanes.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <cmath>

namespace sparseconv {

namespace {

struct Parts {
  std::vector<Tensor> tensors;
  int64_t channels = 0;

  Parts(at::TensorList parts, const LaneOrder& order) {
    for (const Tensor& part : parts) {
      tensors.push_back(checked_like(part, parts[0], order, -1, "a part"));
      channels += part.size(0);
    }
  }
};

const Tensor& first_of(at::TensorList parts) {
  TORCH_CHECK_VALUE(!parts.empty(), "expected at least one part");
  return parts[0];
}

Tensor lanes_or_none(const OptionalTensor& x,
                     const Tensor& like,
                     const LaneOrder& order,
                     int64_t n) {
  return x.has_value() ? checked_like(*x, like, order, n, "added") : Tensor();
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
  const LaneOrder order = order_of(like, batch, length);
  const Parts own(parts, order);
  TORCH_CHECK_VALUE(!training || batch * length > 1,
                    "Expected more than 1 value per channel when training, got input size [", batch,
                    ", ", own.channels, ", ", length, "]");
  TORCH_CHECK_VALUE(relu || !added.has_value(), "expected relu with what is added");
  for (const OptionalTensor& x : {running_mean, running_var}) {
    TORCH_CHECK_VALUE(training || x.has_value(), "expected running statistics in eval mode");
    if (x.has_value()) {
      check_vector(*x, "a running statistic", like, own.channels);
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
  NormOutput found =
      run_norm(own.tensors, order, norm, lanes_or_none(added, like, order, own.channels), relu, {});
  return {found.output, found.mean, found.invstd};
}

std::vector<Tensor> lanes_norm_backward(const Tensor& grad,
                                        at::TensorList parts,
                                        const OptionalTensor& weight,
                                        const OptionalTensor& bias,
                                        const OptionalTensor& added,
                                        const Tensor& mean,
                                        const Tensor& invstd,
                                        bool training,
                                        bool relu,
                                        int64_t batch,
                                        int64_t length) {
  const ForkGuard fork_guard;
  const Tensor& like = first_of(parts);
  const LaneOrder order = order_of(like, batch, length);
  const Parts own(parts, order);
  const Norm norm = {vector_of(weight, like, own.channels, "weight"),
                     vector_of(bias, like, own.channels, "bias"),
                     {},
                     {},
                     0,
                     0,
                     training};
  NormGradients found =
      run_norm_gradient(checked_like(grad, like, order, own.channels, "grad_output"), own.tensors,
                        order, norm, lanes_or_none(added, like, order, own.channels), relu,
                        vector_of(mean, like, own.channels, "mean"),
                        vector_of(invstd, like, own.channels, "invstd"), false);
  std::vector<Tensor> result = {found.input, found.weight, found.bias};
  if (added.has_value()) {
    result.push_back(found.added);
  }
  return result;
}

struct NormCall {
  const OptionalTensor &mean, &var;
  bool training;
  double momentum, eps;
  bool relu;
  Order order;
};

OptionalTensor optional(const Tensor& x) {
  return x.defined() ? OptionalTensor(x) : std::nullopt;
}

struct LanesNorm : torch::autograd::Function<LanesNorm> {
  static variable_list forward(AutogradContext* ctx,
                               const at::TensorList& parts,
                               const OptionalTensor& weight,
                               const OptionalTensor& bias,
                               const OptionalTensor& added,
                               const NormCall& call) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [output, mean, invstd] =
        CALL(lanes_norm)(parts, weight, bias, call.mean, call.var, added, call.training,
                         call.momentum, call.eps, call.relu, call.order.batch, call.order.length);
    variable_list saved = parts.vec();
    for (const OptionalTensor& x : {weight, bias, added}) {
      saved.push_back(x.value_or(Tensor()));
    }
    saved.insert(saved.end(), {mean, invstd});
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["training"] = call.training;
    ctx->saved_data["relu"] = call.relu;
    call.order.keep(ctx);
    ctx->mark_non_differentiable({mean, invstd});
    return {output, mean, invstd};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const size_t n = saved.size() - 5;
    const at::TensorList parts = at::TensorList(saved).slice(0, n);
    const Order y = Order::of(ctx);
    const std::vector<Tensor> gradients = CALL(lanes_norm_backward)(
        grads[0], parts, optional(saved[n]), optional(saved[n + 1]), optional(saved[n + 2]),
        saved[n + 3], saved[n + 4], ctx->saved_data["training"].toBool(),
        ctx->saved_data["relu"].toBool(), y.batch, y.length);
    variable_list found;
    int64_t first = 0;
    for (const Tensor& part : parts) {
      found.push_back(gradients[0].narrow(0, first, part.size(0)));
      first += part.size(0);
    }
    for (size_t i = 0; i < 3; ++i) {
      found.push_back(saved[n + i].defined() ? gradients[1 + i] : Tensor());
    }
    found.emplace_back();
    return found;
  }
};

constexpr int64_t kPoolCost = 32;  // of a vector, in multiply-adds of a convolution

Tensor pooled(const Tensor& x, const Tensor& grad, int64_t radius, const LaneOrder& order) {
  const ForkGuard fork_guard;
  TORCH_CHECK_VALUE(radius >= 0 && radius <= kPoolRadius, "expected a radius in [0, ", kPoolRadius,
                    "], but got ", radius);
  Tensor out = at::empty_like(x);
  MaxPool p{};
  p.order = order;
  p.in = x.const_data_ptr();
  p.grad = grad.defined() ? grad.const_data_ptr() : nullptr;
  p.out = out.data_ptr();
  p.channels = x.size(0);
  p.radius = radius;
  run_kernel(p, &KernelTable::max_pool, element_of(x), x.numel() / order.lanes * kPoolCost);
  return out;
}

Tensor lanes_max_pool(const Tensor& input, int64_t radius, int64_t batch, int64_t length) {
  const LaneOrder order = order_of(input, batch, length);
  return pooled(checked(input, order, -1, "input"), {}, radius, order);
}

Tensor lanes_max_pool_backward(const Tensor& grad,
                               const Tensor& input,
                               int64_t radius,
                               int64_t batch,
                               int64_t length) {
  const LaneOrder order = order_of(input, batch, length);
  return pooled(checked(input, order, -1, "input"),
                checked_like(grad, input, order, input.size(0), "grad_output"), radius, order);
}

struct Pool : torch::autograd::Function<Pool> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, int64_t radius, const Order& y) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({input});
    ctx->saved_data["radius"] = radius;
    y.keep(ctx);
    return CALL(lanes_max_pool)(input, radius, y.batch, y.length);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Order y = Order::of(ctx);
    return {CALL(lanes_max_pool_backward)(grads[0], ctx->get_saved_variables()[0],
                                          ctx->saved_data["radius"].toInt(), y.batch, y.length),
            {},
            {}};
  }
};

constexpr int64_t kSumRows = 64;  // bounds rounding

template <typename T>
void sum_rows(const T* in, const LaneOrder& y, T* sums) {
  std::fill_n(sums, y.lanes, T(0));
  for (int64_t r = 0; r < y.rows;) {
    T some[16] = {};
    for (const int64_t stop = std::min(y.rows, r + kSumRows); r < stop; ++r) {
      for (int64_t l = 0; l < y.lanes; ++l) {
        some[l] += in[r * y.lanes + l];
      }
    }
    for (int64_t l = 0; l < y.lanes; ++l) {
      sums[l] += some[l];
    }
  }
}

Tensor lanes_mean(const Tensor& input, int64_t batch, int64_t length) {
  const ForkGuard fork_guard;
  const LaneOrder y = order_of(input, batch, length);
  const Tensor x = checked(input, y, -1, "input");
  const int64_t channels = x.size(0);
  Tensor out = at::zeros({batch, channels}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "lanes_mean", [&] {
    const scalar_t* in = x.const_data_ptr<scalar_t>();
    scalar_t* to = out.data_ptr<scalar_t>();
    at::parallel_for(0, channels, 1 + kGrain / (1 + y.channel()), [&](int64_t begin, int64_t end) {
      std::vector<scalar_t> sums(y.groups * y.lanes);
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t g = 0; g < y.groups; ++g) {
          sum_rows(in + (c * y.groups + g) * y.rows * y.lanes, y, sums.data() + g * y.lanes);
        }
        for (int64_t unit = 0; unit < batch * y.pieces; ++unit) {
          to[unit / y.pieces * channels + c] += sums[unit];
        }
      }
    });
  });
  return out.div_(static_cast<double>(length));
}

struct Mean : torch::autograd::Function<Mean> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Order& y) {
    const at::AutoDispatchBelowADInplaceOrView below;
    y.keep(ctx);
    return CALL(lanes_mean)(input, y.batch, y.length);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Order y = Order::of(ctx);
    const Tensor each = grads[0].div(static_cast<double>(y.length)).unsqueeze(2);
    return {CALL(lanes_enter)(each.expand({-1, -1, y.length})), {}};
  }
};

std::tuple<Tensor, Tensor> lanes_fold(const Tensor& weights,
                                      const OptionalTensor& bias,
                                      const OptionalTensor& crow,
                                      const OptionalTensor& norm_weight,
                                      const OptionalTensor& norm_bias,
                                      const Tensor& mean,
                                      const Tensor& var,
                                      double eps) {
  check_same_type(mean, weights, "weights");
  const int64_t channels = mean.numel(), nnz = weights.numel();
  const Tensor own = weights.resolve_neg().contiguous();
  const Tensor m = vector_of(mean, weights, channels, "running_mean");
  const Tensor v = vector_of(var, weights, channels, "running_var");
  const Tensor scale = vector_of(norm_weight, weights, channels, "weight");
  const Tensor shift = vector_of(norm_bias, weights, channels, "bias");
  const Tensor b = vector_of(bias, weights, channels, "bias");
  const int64_t kernels = crow.has_value() ? crow->numel() - 1 : 0;
  TORCH_CHECK_VALUE(
      channels > 0 && (crow.has_value() ? weights.dim() == 1 && kernels % channels == 0
                                        : weights.dim() == 3 && weights.size(0) == channels),
      "expected the weights of ", channels, " channels");
  if (crow.has_value()) {
    check_pointers(*crow, "crow_indices", kernels, nnz);
  }
  Tensor folded = at::empty_like(own), offset = at::empty({channels}, own.options());
  AT_DISPATCH_FLOATING_TYPES(own.scalar_type(), "lanes_fold", [&] {
    const auto data = [](const Tensor& x) {
      return x.defined() ? x.const_data_ptr<scalar_t>() : nullptr;
    };
    const scalar_t *w = data(own), *means = data(m), *vars = data(v), *scales = data(scale),
                   *shifts = data(shift), *biases = data(b);
    scalar_t *to = folded.data_ptr<scalar_t>(), *offsets = offset.data_ptr<scalar_t>();
    const int32_t* starts = crow.has_value() ? crow->const_data_ptr<int32_t>() : nullptr;
    const auto start = [&](int64_t channel) {
      return starts != nullptr ? starts[channel * (kernels / channels)]
                               : channel * (nnz / channels);
    };
    for (int64_t c = 0; c < channels; ++c) {
      const double factor = (scales != nullptr ? static_cast<double>(scales[c]) : 1) /
                            std::sqrt(static_cast<double>(vars[c]) + eps);
      const double distance =
          (biases != nullptr ? static_cast<double>(biases[c]) : 0) - static_cast<double>(means[c]);
      offsets[c] = static_cast<scalar_t>(distance * factor +
                                         (shifts != nullptr ? static_cast<double>(shifts[c]) : 0));
      for (int64_t i = start(c); i < start(c + 1); ++i) {
        to[i] = static_cast<scalar_t>(static_cast<double>(w[i]) * factor);
      }
    }
  });
  return {folded, offset};
}

}  // namespace

}  // namespace sparseconv

TORCH_LIBRARY_IMPL(sparseconv, CPU, m) {
  using namespace sparseconv;
  m.impl("lanes_norm", lanes_norm);
  m.impl("lanes_norm_backward", lanes_norm_backward);
  m.impl("lanes_max_pool", lanes_max_pool);
  m.impl("lanes_max_pool_backward", lanes_max_pool_backward);
  m.impl("lanes_mean", lanes_mean);
  m.impl("lanes_fold", lanes_fold);
}

TORCH_LIBRARY_IMPL(sparseconv, Autograd, m) {
  using namespace sparseconv;
  m.impl("lanes_norm", [](at::TensorList parts, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& mean,
                          const OptionalTensor& var, const OptionalTensor& added, bool training,
                          double momentum, double eps, bool relu, int64_t batch, int64_t length) {
    const variable_list found =
        LanesNorm::apply(parts, weight, bias, added,
                         NormCall{mean, var, training, momentum, eps, relu, {batch, length}});
    return std::make_tuple(found[0], found[1], found[2]);
  });
  m.impl("lanes_max_pool", [](const Tensor& input, int64_t radius, int64_t batch, int64_t length) {
    return Pool::apply(input, radius, Order{batch, length});
  });
  m.impl("lanes_mean", [](const Tensor& input, int64_t batch, int64_t length) {
    return Mean::apply(input, Order{batch, length});
  });
  for (const char* name : {"lanes_norm_backward", "lanes_max_pool_backward", "lanes_fold"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
